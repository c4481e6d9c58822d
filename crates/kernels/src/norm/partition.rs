//! How a sum over rows is cut into tasks.

use crate::Context;
use std::ops::Range;

/// Tasks that a large matrix is cut into.
const TASKS: usize = 64;
/// Channels of a task; wider matrices are cut into several blocks of channels.
pub(super) const WIDTH: usize = 512;
/// Values that are worth a task of their own.
const SMALLEST: usize = 16 * 1024;

/// A matrix cut into chunks of rows and blocks of channels, by its shape alone.
pub(super) struct Partition {
    rows: usize,
    channels: usize,
    chunk: usize,
    width: usize,
}

/// The rows and channels of one task.
pub(super) struct Part {
    pub(super) rows: Range<usize>,
    pub(super) channels: Range<usize>,
}

impl Partition {
    pub(super) fn new(rows: usize, channels: usize) -> Self {
        let width = channels.min(WIDTH);
        let chunks = (TASKS / channels.div_ceil(width)).max(1);
        let chunk = rows.div_ceil(chunks).max(SMALLEST / width).min(rows);
        Partition { rows, channels, chunk, width }
    }

    fn blocks(&self) -> usize {
        self.channels.div_ceil(self.width)
    }

    fn part(&self, index: usize) -> Part {
        let (row, channel) = (index / self.blocks() * self.chunk, index % self.blocks() * self.width);
        Part {
            rows: row..(row + self.chunk).min(self.rows),
            channels: channel..(channel + self.width).min(self.channels),
        }
    }

    /// Runs `task` on each part with two zeroed `f64` for each of its channels (first all of the one, then all of the
    /// other) in `partials`, then `combine` on the results, in the order of the rows.
    pub(super) fn reduce(
        &self,
        context: &Context,
        partials: &mut Vec<f64>,
        task: impl Fn(&Part, &mut [f64], &mut [f64]) + Sync,
        mut combine: impl FnMut(&Part, &[f64], &[f64]),
    ) {
        let parts = self.rows.div_ceil(self.chunk) * self.blocks();
        partials.clear();
        partials.resize(parts * 2 * self.width, 0.0);
        context.pool().pieces(partials, 2 * self.width, |index, partial| {
            let part = self.part(index);
            let (first, second) = partial.split_at_mut(self.width);
            let channels = part.channels.len();
            task(&part, &mut first[..channels], &mut second[..channels]);
        });
        for (index, partial) in partials.chunks(2 * self.width).enumerate() {
            let part = self.part(index);
            let (first, second) = partial.split_at(self.width);
            let channels = part.channels.len();
            combine(&part, &first[..channels], &second[..channels]);
        }
    }
}
