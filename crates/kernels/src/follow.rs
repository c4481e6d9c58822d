//! Work on rows of a result as soon as they are there.

use crate::Context;
use crate::parallel::SharedMut;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// A matrix cut into chunks of neighbouring rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Chunks {
    pub(crate) rows: usize,
    pub(crate) channels: usize,
    /// Rows of a chunk; the last one may have fewer.
    pub(crate) each: usize,
}

impl Chunks {
    /// Number of chunks.
    pub(crate) fn len(&self) -> usize {
        self.rows.div_ceil(self.each)
    }

    /// The rows of a chunk.
    pub(crate) fn rows(&self, chunk: usize) -> Range<usize> {
        chunk * self.each..self.rows.min((chunk + 1) * self.each)
    }

    /// The values of a chunk.
    pub(crate) fn values(&self, chunk: usize) -> Range<usize> {
        let rows = self.rows(chunk);
        rows.start * self.channels..rows.end * self.channels
    }
}

/// What is done with a chunk of rows; nobody else uses them meanwhile.
pub(crate) trait Work: Sync {
    /// What is read beside the values, in the same places of slices as long as the result.
    fn beside(&self) -> [Option<&[f32]>; 2] {
        [None; 2]
    }

    /// Works on the values of chunk `chunk`.
    fn run(&self, chunk: usize, values: &mut [f32]);
}

/// What is done with each chunk of rows of a result as soon as it is there, on the thread that completed it: in that core's
/// cache, and not after it has been to memory and back. Each chunk's work depends on the chunk alone.
#[derive(Clone, Copy)]
pub struct Follow<'a> {
    chunks: Chunks,
    /// For each chunk, the values that are not there yet.
    left: &'a [AtomicUsize],
    /// Whether a pass has begun.
    claimed: &'a AtomicBool,
    work: &'a dyn Work,
}

impl std::fmt::Debug for Follow<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Follow").field("chunks", &self.chunks).finish_non_exhaustive()
    }
}

impl<'a> Follow<'a> {
    /// For one pass. `left` counts what is not there yet: the values of each chunk; `claimed` says whether the pass has begun.
    pub(crate) fn new(
        chunks: Chunks,
        (left, claimed): (&'a [AtomicUsize], &'a AtomicBool),
        work: &'a dyn Work,
    ) -> Self {
        assert_eq!(left.len(), chunks.len(), "a count for each chunk");
        claimed.store(false, Ordering::Relaxed);
        for (chunk, left) in left.iter().enumerate() {
            left.store(chunks.values(chunk).len(), Ordering::Relaxed);
        }
        Follow { chunks, left, claimed, work }
    }

    /// Begins the one pass that is followed, whose result has so many values, in chunks of whole lines of `line` rows.
    ///
    /// # Panics
    /// When the result is another one, or a pass has begun before.
    pub(crate) fn begin(&self, values: usize, line: usize) {
        let Chunks { rows, channels, each } = self.chunks;
        assert!(!self.claimed.swap(true, Ordering::Relaxed), "one pass is followed");
        assert_eq!(values, rows * channels, "values of the result that is followed");
        assert!(each.is_multiple_of(line) || each >= rows, "chunks of whole lines");
    }

    /// Channels of a row.
    pub(crate) fn channels(&self) -> usize {
        self.chunks.channels
    }

    /// What will be read beside the values, in the same places of slices as long as the result: it may be asked for meanwhile.
    pub(crate) fn beside(&self) -> [Option<&'a [f32]>; 2] {
        self.work.beside()
    }

    /// So many values are there of the chunk that row `row` is in.
    ///
    /// # Safety
    /// The pass has [begun](Self::begin), and `out` is the first value of its result, valid for reads and writes of all of it; these
    /// values were not reported before, and nobody else reads or writes them any more.
    pub(crate) unsafe fn done(&self, row: usize, values: usize, out: &SharedMut<f32>) {
        let chunk = row / self.chunks.each;
        // What other threads have written of the chunk is seen by the one that completes it.
        if self.left[chunk].fetch_sub(values, Ordering::AcqRel) == values {
            let Range { start, end } = self.chunks.values(chunk);
            // SAFETY: the chunk is complete, so nobody else uses it any more; it lies in the result.
            let values = unsafe { std::slice::from_raw_parts_mut(out.get().add(start), end - start) };
            self.work.run(chunk, values);
        }
    }

    /// `columns` columns of these rows are there.
    ///
    /// # Safety
    /// As for [`done`](Self::done).
    pub(crate) unsafe fn rows_done(&self, rows: Range<usize>, columns: usize, out: &SharedMut<f32>) {
        let mut start = rows.start;
        while start < rows.end {
            let end = rows.end.min((start / self.chunks.each + 1) * self.chunks.each);
            // SAFETY: promised by the caller.
            unsafe { self.done(start, (end - start) * columns, out) };
            start = end;
        }
    }

    /// All of the result is there.
    pub(crate) fn all_done(&self, cx: &Context, out: &mut [f32]) {
        cx.pool().pieces(out, self.chunks.each * self.chunks.channels, |chunk, values| {
            self.work.run(chunk, values);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    /// Notes what it was given.
    #[derive(Default)]
    struct Notes(Mutex<Vec<(usize, Vec<f32>)>>);

    impl Work for Notes {
        fn run(&self, chunk: usize, values: &mut [f32]) {
            self.0.lock().unwrap().push((chunk, values.to_vec()));
        }
    }

    #[test]
    #[should_panic(expected = "one pass is followed")]
    fn one_pass_is_followed() {
        let (left, claimed, notes) = ([AtomicUsize::new(0)], AtomicBool::new(false), Notes::default());
        let follow = Follow::new(Chunks { rows: 2, channels: 2, each: 2 }, (&left, &claimed), &notes);
        follow.begin(4, 1);
        follow.begin(4, 1);
    }

    #[test]
    fn each_chunk_is_worked_on_once_when_it_is_there() {
        let chunks = Chunks { rows: 7, channels: 2, each: 3 };
        let mut values: Vec<f32> = (0..14).map(|value| value as f32).collect();
        let expected: Vec<_> = (0..chunks.len()).map(|at| (at, values[chunks.values(at)].to_vec())).collect();
        let left: Vec<AtomicUsize> = (0..3).map(|_| AtomicUsize::new(0)).collect();
        let (left, claimed) = (&left[..], AtomicBool::new(true));
        let (whole, parts) = (Notes::default(), Notes::default());
        Follow::new(chunks, (left, &claimed), &whole).all_done(&Context::detect(), &mut values);
        let follow = Follow::new(chunks, (left, &claimed), &parts);
        follow.begin(14, 1);
        let out = SharedMut(values.as_mut_ptr());
        // The columns one after the other; the first chunk is completed last.
        for (rows, complete) in [(1..7, 0), (3..7, 2), (0..1, 2), (1..3, 2), (0..1, 3)] {
            // SAFETY: `out` is the first of all values, which nobody writes.
            unsafe { follow.rows_done(rows, 1, &out) };
            assert_eq!(parts.0.lock().unwrap().len(), complete);
        }
        for Notes(found) in [whole, parts] {
            let mut found = found.into_inner().unwrap();
            found.sort_by_key(|(chunk, _)| *chunk);
            assert_eq!(found, expected);
        }
    }
}
