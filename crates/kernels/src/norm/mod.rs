//! Batch normalisation over NHWC activations (Ioffe & Szegedy 2015): statistics, application, gradient.
//!
//! An activation `[N, H, W, C]` is a matrix of `N·H·W` rows and `C` channels; each channel is normalised over all
//! rows. Sums are taken in `f32` over 32 rows at a time and in `f64` beyond, in an order that the shape fixes.

mod apply;
mod backward;
mod partition;
mod statistics;
#[cfg(test)]
mod tests;

pub use apply::{Apply, apply};
pub use backward::{Backward, Gradients, Input, Relu, backward};
pub use statistics::statistics;

/// Memory that the sums of statistics and gradients are taken in, reused from one batch norm to the next.
#[derive(Debug, Default)]
pub struct Scratch {
    /// Each task's sums.
    partials: Vec<f64>,
    /// For each channel, the two sums of all tasks.
    totals: Vec<[f64; 2]>,
    coefficients: backward::Coefficients,
}

impl Scratch {
    /// Each task's sums, those of all tasks for `channels` channels, which are 0, and the coefficients.
    fn parts(&mut self, channels: usize) -> (&mut Vec<f64>, &mut [[f64; 2]], &mut backward::Coefficients) {
        self.totals.clear();
        self.totals.resize(channels, [0.0; 2]);
        (&mut self.partials, &mut self.totals, &mut self.coefficients)
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
