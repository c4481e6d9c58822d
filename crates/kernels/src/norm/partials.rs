//! How sums over rows are taken: chunk by chunk, and then over the chunks in their order.

use crate::Context;
use crate::follow::{Chunks, Follow, Work};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{PoisonError, RwLock};

/// Chunks that a large matrix is cut into at least.
const LEAST: usize = 64;

/// Channels whose sums are taken together.
pub(super) const WIDTH: usize = 512;

/// Channels whose sums are merged together: enough to be worth a task.
const MERGED: usize = 128;

/// Values of a chunk: worth a task of their own, and in the L2 cache of a core.
const VALUES: [usize; 2] = [16 * 1024, 64 * 1024];

/// Rows from which on a chunk's sums are few beside it.
const ROWS: usize = 64;

/// Two sums for each channel of each chunk: first all of the one, then all of the other.
#[derive(Debug, Default)]
pub(super) struct Partials {
    sums: Vec<RwLock<Vec<f64>>>,
    /// What [`Follow`](crate::Follow) counts.
    left: Vec<AtomicUsize>,
    /// Whether a pass is being followed.
    claimed: AtomicBool,
    /// Chunks whose sums are there.
    worked: AtomicUsize,
}

/// `rows` rows of `channels` channels cut by their shape alone, into chunks of whole lines of `line` rows.
pub(super) fn chunks(rows: usize, channels: usize, line: usize) -> Chunks {
    let [least, most] = VALUES.map(|values| values / channels);
    let each = rows.div_ceil(LEAST).clamp(least.max(1), most.max(ROWS));
    Chunks { rows, channels, each: each.next_multiple_of(line.max(1)) }
}

impl Partials {
    /// Makes room for the sums of these chunks, whichever threads take them.
    pub(super) fn reset(&mut self, chunks: Chunks) {
        let count = chunks.len();
        self.sums.resize_with(count.max(self.sums.len()), RwLock::default);
        self.left.resize_with(count.max(self.left.len()), AtomicUsize::default);
        *self.worked.get_mut() = 0;
        for sums in &mut self.sums[..count] {
            let sums = sums.get_mut().unwrap_or_else(PoisonError::into_inner);
            sums.clear();
            sums.reserve(2 * chunks.channels);
        }
    }

    /// What lets `work` follow a pass.
    pub(super) fn follow<'a>(&'a self, chunks: Chunks, work: &'a dyn Work) -> Follow<'a> {
        Follow::new(chunks, (&self.left[..chunks.len()], &self.claimed), work)
    }

    /// Runs `work` on zeros for the sums of a chunk, a block of channels after the other.
    pub(super) fn add(
        &self,
        chunks: Chunks,
        chunk: usize,
        mut work: impl FnMut(Range<usize>, &mut [f64], &mut [f64]),
    ) {
        let mut sums = self.sums[chunk].write().unwrap_or_else(PoisonError::into_inner);
        sums.clear();
        sums.resize(2 * chunks.channels, 0.0);
        self.worked.fetch_add(1, Ordering::Relaxed);
        let (first, second) = sums.split_at_mut(chunks.channels);
        for start in (0..chunks.channels).step_by(WIDTH) {
            let channels = start..chunks.channels.min(start + WIDTH);
            work(channels.clone(), &mut first[channels.clone()], &mut second[channels]);
        }
    }

    /// Runs `combine` on the totals and the sums of each chunk, in the order of the rows, some channels at a time.
    ///
    /// # Panics
    /// When there are chunks whose sums were not taken, or were taken twice.
    pub(super) fn merge(
        &mut self,
        cx: &Context,
        chunks: Chunks,
        totals: &mut [[f64; 2]],
        combine: impl Fn(Range<usize>, &mut [[f64; 2]], &[f64], &[f64]) + Sync,
    ) {
        assert_eq!(*self.worked.get_mut(), chunks.len(), "chunks whose sums are there");
        assert_eq!(totals.len(), chunks.channels, "totals of each channel");
        let sums = &self.sums[..chunks.len()];
        cx.pool().pieces(totals, MERGED, |piece, totals| {
            let channels = piece * MERGED..piece * MERGED + totals.len();
            for (chunk, sums) in sums.iter().enumerate() {
                let sums = sums.read().unwrap_or_else(PoisonError::into_inner);
                let (first, second) = sums.split_at(chunks.channels);
                combine(chunks.rows(chunk), totals, &first[channels.clone()], &second[channels.clone()]);
            }
        });
    }
}
