//! What can be wrong with a description of a network.

use stridenet_kernels::conv::GeometryError;
use thiserror::Error;

/// A description of a network cannot be read, is not consistent, or does not fit an input.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ArchError {
    /// No preset has this name.
    #[error("unknown architecture {name:?}, nearest are {}; `stridenet inspect --help` lists all", .nearest.join(", "))]
    Preset {
        /// The name asked for.
        name: String,
        /// The presets with the nearest names.
        nearest: Vec<&'static str>,
    },
    /// Weights are not those of a residual network as it is described here.
    #[error("{problem}")]
    Unrecognised {
        /// What is missing or unusual.
        problem: String,
    },
    /// A named choice has another value than its names.
    #[error("{what} is {found:?}, expected one of {}", .expected.join(", "))]
    Choice {
        /// The choice.
        what: &'static str,
        /// The value found.
        found: String,
        /// The names it can have.
        expected: &'static [&'static str],
    },
    /// The text is not the JSON of a description.
    #[error("the architecture's JSON cannot be read: {message}")]
    Json {
        /// The parser's reason, with line and column.
        message: String,
    },
    /// The name cannot be printed on a line.
    #[error(
        "the architecture's name has {length} characters, expected 1 to {limit} without control characters"
    )]
    Name {
        /// Characters of the name.
        length: usize,
        /// The most allowed.
        limit: usize,
    },
    /// A number lies outside its range.
    #[error("{what} is {found}, expected {low} to {high}")]
    Range {
        /// The number's name.
        what: String,
        /// The value found.
        found: usize,
        /// The smallest value allowed.
        low: usize,
        /// The largest value allowed.
        high: usize,
    },
    /// Lists that describe the same stages differ in length.
    #[error(
        "depths has {depths} entries, widths {widths} and strides {strides}, expected one entry a stage in each; \
         to change the number of stages give all three"
    )]
    Lengths {
        /// Entries of `depths`.
        depths: usize,
        /// Entries of `widths`.
        widths: usize,
        /// Entries of `strides`.
        strides: usize,
    },
    /// A field has a value that another field does not allow.
    #[error("{field} is {found}, but {reason}; {remedy}")]
    Conflict {
        /// The field.
        field: &'static str,
        /// The value found.
        found: String,
        /// Why it is not allowed.
        reason: String,
        /// What to do.
        remedy: String,
    },
    /// The network has more parameters than can be meant.
    #[error(
        "the network has {found} parameters, expected at most {limit}; use fewer blocks or smaller widths"
    )]
    TooLarge {
        /// Parameters counted until the limit was passed.
        found: u64,
        /// The most allowed.
        limit: u64,
    },
    /// A layer's window cannot be built or applied.
    #[error("layer {layer}: {source}")]
    Layer {
        /// The layer's name.
        layer: String,
        /// The reason.
        source: GeometryError,
    },
}

impl ArchError {
    /// Puts the layer's name before a geometry's reason.
    pub(crate) fn at(layer: &str) -> impl FnOnce(GeometryError) -> ArchError {
        move |source| ArchError::Layer { layer: layer.to_owned(), source }
    }
}
