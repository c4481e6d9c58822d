//! Batch normalisation over NHWC activations (Ioffe & Szegedy 2015): statistics, application, gradient.
//!
//! An activation `[N, H, W, C]` is a matrix of `N·H·W` rows and `C` channels; each channel is normalised over all
//! rows. Sums are taken in `f32` over 32 rows at a time and in `f64` beyond, in an order that the shape fixes.

mod apply;
mod backward;
mod partials;
mod statistics;
#[cfg(test)]
mod tests;

pub use apply::{Apply, apply};
pub use backward::{Backward, Coefficients, Gradients, Input, Relu, Summed, Sums, backward, coefficients};
pub use statistics::{Statistics, statistics};

use crate::follow::Chunks;
use std::collections::HashMap;

/// Two sums for each channel.
type Totals = Vec<[f64; 2]>;

/// Memory that the sums of statistics and gradients are taken in, reused from one batch norm to the next.
#[derive(Debug, Default)]
pub struct Scratch {
    /// Each chunk's sums.
    partials: partials::Partials,
    /// Places for two sums of all chunks for each channel, by the number of channels: those of a gradient are held until its batch
    /// norm needs them.
    totals: HashMap<usize, Vec<Totals>>,
    coefficients: Coefficients,
}

impl Scratch {
    /// A place for the sums of all chunks, which are 0, as those of each of these chunks are now.
    fn take(&mut self, chunks: Chunks) -> Totals {
        self.partials.reset(chunks);
        let mut totals = self.totals.get_mut(&chunks.channels).and_then(Vec::pop).unwrap_or_default();
        totals.clear();
        totals.resize(chunks.channels, [0.0; 2]);
        totals
    }

    /// Takes the place back.
    fn give(&mut self, totals: Totals) {
        self.totals.entry(totals.len()).or_default().push(totals);
    }
}

/// Number of rows of `values` with `channels` each.
fn rows(what: &str, values: &[f32], channels: usize) -> usize {
    assert!(channels > 0, "{what} has no channels");
    assert!(!values.is_empty(), "{what} has no rows");
    assert!(
        values.len().is_multiple_of(channels),
        "{what} has {} values, which are no rows of {channels} channels",
        values.len()
    );
    values.len() / channels
}

/// Rows that an elementwise pass handles as one task.
fn task_rows(channels: usize) -> usize {
    (16 * 1024 / channels).max(1)
}

/// Rows that an elementwise pass takes through a block of channels before it turns to the next block: enough to keep
/// the parameters in registers with few channels, and one contiguous stretch of memory with many.
fn tile_rows(channels: usize) -> usize {
    (2048 / channels).clamp(1, 32)
}
