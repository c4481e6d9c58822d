//! What can go wrong with weights and model folders.

use super::account::Account;
use std::path::PathBuf;
use thiserror::Error;

/// Weights, a model folder or an NPY file cannot be read, written or used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum WeightsError {
    /// A file cannot be read or written.
    #[error(transparent)]
    File(#[from] crate::file::FileError),
    /// The bytes are no safetensors file.
    #[error("{} is not a valid safetensors file: {problem}; copy or export it again", path.display())]
    Safetensors {
        /// The file.
        path: PathBuf,
        /// What was found and what was expected.
        problem: String,
    },
    /// The bytes are no PyTorch file, or one with more than weights.
    #[error("{} cannot be read as a PyTorch file: {problem}; {remedy}", path.display())]
    Pytorch {
        /// The file.
        path: PathBuf,
        /// What was found and what was expected.
        problem: String,
        /// What to do.
        remedy: &'static str,
    },
    /// There is no description of the network, and its weights do not show what it is.
    #[error(
        "{} does not show its architecture: {problem}; put its config.json beside it, or name the architecture with \
         `stridenet import --arch`",
        path.display()
    )]
    Unrecognised {
        /// The file.
        path: PathBuf,
        /// What is missing or unusual.
        problem: String,
    },
    /// The weights cannot be changed as asked.
    #[error("{}: {problem}; {remedy}", path.display())]
    Adapt {
        /// The file.
        path: PathBuf,
        /// What was found and what was asked for.
        problem: String,
        /// What to do.
        remedy: &'static str,
    },
    /// The bytes are no ONNX file.
    #[error("{} is not a valid ONNX file: {problem}; copy or export it again", path.display())]
    Onnx {
        /// The file.
        path: PathBuf,
        /// What was found and what was expected.
        problem: String,
    },
    /// The bytes are something else than weights.
    #[error("{} is {format}; {remedy}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// The format found, with its article.
        format: &'static str,
        /// What to do.
        remedy: &'static str,
    },
    /// Neither the bytes nor the name say what the file is.
    #[error("{} is not a file of weights, by its first bytes and by its name; expected {expected}", path.display())]
    UnknownFormat {
        /// The file.
        path: PathBuf,
        /// The extensions of the formats that can be read.
        expected: String,
    },
    /// A tensor's element type is not one that weights have.
    #[error(
        "{}: the tensor {tensor} has the type {dtype}, expected F32, F16, BF16, F64 or I64; export it as F32",
        path.display()
    )]
    Dtype {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The type found.
        dtype: String,
    },
    /// Tensors hold NaN or infinite values.
    #[error(
        "{} holds values that are NaN or infinite as float32: {}; use a checkpoint from before the training \
         diverged, or let them pass with --allow-nonfinite",
        path.display(), list_counts(tensors)
    )]
    NonFinite {
        /// The file.
        path: PathBuf,
        /// Each tensor with the number of its values that are not finite.
        tensors: Vec<(String, usize)>,
    },
    /// The number of values differs from the product of the sizes.
    #[error("the tensor {tensor} has {found} values, which do not fill its shape {shape:?}")]
    Length {
        /// The tensor.
        tensor: String,
        /// Its shape.
        shape: Vec<usize>,
        /// Number of values found.
        found: usize,
    },
    /// A name is used twice or is reserved by the safetensors format.
    #[error("the tensor name {tensor} is {problem}; give every tensor a name of its own")]
    Name {
        /// The tensor.
        tensor: String,
        /// What is wrong with the name.
        problem: &'static str,
    },
    /// The tensors are not those the network has.
    #[error(
        "{} does not fit {}: {}; choose the architecture and the number of classes it was saved with, or another file",
        path.display(), account.network, account.problems()
    )]
    Misfit {
        /// The file.
        path: PathBuf,
        /// What was applied and what was not.
        account: Box<Account>,
    },
    /// The configuration is no JSON or has not the form timm writes.
    #[error(
        "{} is not a model configuration in timm's form: {problem}; correct the file or export the model again",
        path.display()
    )]
    ConfigJson {
        /// The file.
        path: PathBuf,
        /// What was found, with its line and column.
        problem: String,
    },
    /// The configuration contradicts itself.
    #[error("{}: {}; {remedy}", path.display(), escaped(problem))]
    Config {
        /// The file.
        path: PathBuf,
        /// What was found and what was expected.
        problem: String,
        /// What to do.
        remedy: String,
    },
    /// There is no model where one was looked for.
    #[error(
        "no model at {}: {problem}; train one with `stridenet train --out FOLDER`, or give the folder or the \
         weights of one",
        path.display()
    )]
    NoModel {
        /// The path given.
        path: PathBuf,
        /// What was looked for.
        problem: String,
    },
    /// The bytes are no NPY file that can be used.
    #[error("{}: {problem}; {remedy}", path.display())]
    Npy {
        /// The file.
        path: PathBuf,
        /// What was found and what was expected.
        problem: String,
        /// What to do.
        remedy: &'static str,
    },
}

fn list_counts(tensors: &[(String, usize)]) -> String {
    let parts: Vec<String> = tensors
        .iter()
        .map(|(name, count)| format!("{} ({})", printable(name), self::count(*count, "value")))
        .collect();
    parts.join(", ")
}

/// `text` fit for one line of a terminal: control characters escaped, shortened to 200 characters.
pub(crate) fn printable(text: &str) -> String {
    const LONGEST: usize = 200;
    let mut shown = String::new();
    for (index, character) in text.chars().enumerate() {
        if index == LONGEST {
            shown.push('…');
            break;
        }
        push_escaped(&mut shown, character);
    }
    shown
}

/// `text` with control characters escaped: what a file says may be quoted in it.
fn escaped(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    text.chars().for_each(|character| push_escaped(&mut shown, character));
    shown
}

fn push_escaped(shown: &mut String, character: char) {
    if character.is_control() {
        shown.extend(character.escape_default());
    } else {
        shown.push(character);
    }
}

/// `1 tensor`, `2 tensors`.
pub(super) fn count(number: usize, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_from_files_cannot_break_the_line() {
        assert_eq!(printable("conv\n1\u{1b}[31m"), "conv\\n1\\u{1b}[31m");
        assert_eq!(printable(&"x".repeat(1000)).chars().count(), 201);
    }
}
