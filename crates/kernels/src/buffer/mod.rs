//! Memory for values, aligned to cache lines.

mod pages;

pub use pages::prefer_large_pages;

use pages::Pages;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Values of a cache line.
pub(crate) const LINE: usize = 16;

/// What begins a cache line.
#[repr(align(64))]
pub(crate) struct InLines<T>(pub(crate) T);

/// Lines of a page.
const PAGE: usize = 64;

/// Values from which on the system gives a buffer pages of its own.
const PAGED: usize = 1 << 14;

/// How many lines after the beginning of its page a buffer's first value stands: large buffers would all begin with a page, and what
/// is read from one and written to another in the same places would meet in the same sets of a cache.
fn stagger(length: usize) -> usize {
    // Odd, so that all lines of a page have their turn.
    const STEP: usize = 11;
    static LINES: AtomicUsize = AtomicUsize::new(0);
    if length < PAGED { 0 } else { LINES.fetch_add(STEP, Ordering::Relaxed) % PAGE }
}

/// A vector in which `length` zeros begin a cache line, and the index of the first. They come from the system without being written.
pub fn zeros_in_lines(length: usize) -> (Vec<f32>, usize) {
    // The same room wherever the first value will stand, so that a buffer fits where one of its length was freed.
    let room = if length < PAGED { 1 } else { PAGE };
    let values = vec![0.0f32; length + room * LINE];
    let rest = values.as_ptr().align_offset(LINE * size_of::<f32>());
    assert!(rest <= LINE, "a vector's values are aligned to their size");
    let first = stagger(length) * LINE + rest;
    (values, first)
}

/// A growing buffer of values whose first one begins a cache line.
///
/// Zeros come from the system without being written, so that a page is made by the thread that first writes to it.
#[derive(Debug, Default)]
pub struct Aligned {
    memory: Memory,
    /// Where the first value stands there.
    first: usize,
    length: usize,
}

/// Where a buffer's values stand.
#[derive(Debug)]
enum Memory {
    /// With room to begin with a whole line.
    Heap(Vec<f32>),
    /// In pages whose values from the buffer's first on are the buffer's.
    Paged(Arc<Pages>),
}

impl Default for Memory {
    fn default() -> Self {
        Memory::Heap(Vec::new())
    }
}

impl Aligned {
    /// A buffer of at least `length` zeros.
    pub fn zeros(length: usize) -> Self {
        if length == 0 {
            return Aligned::default();
        }
        let length = length.next_multiple_of(LINE);
        let (values, first) = zeros_in_lines(length);
        Aligned { memory: Memory::Heap(values), first, length }
    }

    /// As [`zeros`](Self::zeros), where large pages fit, for values that are read again and again: [`settle`](Self::settle)
    /// asks for such pages. Buffers that would not fill one share some, which the system gets back when all of them are gone.
    pub(crate) fn zeros_for_large_pages(length: usize) -> Self {
        let length = length.next_multiple_of(LINE);
        match Pages::with_room(length) {
            Some((pages, first)) => Aligned { memory: Memory::Paged(pages), first, length },
            None => Aligned::zeros(length),
        }
    }

    /// Moves the values into large pages, where they fit and the system grants them: at once from Linux 6.1 on, else later.
    pub(crate) fn settle(&self) {
        if let Memory::Paged(pages) = &self.memory {
            pages.settle(self.first..self.first + self.length);
        }
    }

    /// Makes room for at least `length` values; what stood there stays.
    pub fn grow(&mut self, length: usize) {
        if self.length < length {
            let mut larger = Aligned::zeros(length);
            larger.values_mut()[..self.length].copy_from_slice(self.values());
            *self = larger;
        }
    }

    /// Makes room for at least `length` values; what stood there is lost.
    pub fn reset(&mut self, length: usize) {
        if self.length < length {
            // Freed before the larger one is made.
            *self = Aligned::default();
            *self = Aligned::zeros(length);
        }
    }

    /// Whether there are no values.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Number of values.
    pub fn len(&self) -> usize {
        self.length
    }

    /// The first value, valid for reads of [`len`](Self::len) values.
    pub(crate) fn as_ptr(&self) -> *const f32 {
        self.values().as_ptr()
    }

    /// The first value, valid for reads and writes of [`len`](Self::len) values.
    pub(crate) fn as_mut_ptr(&mut self) -> *mut f32 {
        self.values_mut().as_mut_ptr()
    }

    /// The values.
    pub fn values(&self) -> &[f32] {
        let range = self.first..self.first + self.length;
        match &self.memory {
            Memory::Heap(values) => &values[range],
            // SAFETY: this buffer took the range, and lends it as it is lent itself.
            Memory::Paged(pages) => unsafe { pages.values(range) },
        }
    }

    /// The values.
    pub fn values_mut(&mut self) -> &mut [f32] {
        let range = self.first..self.first + self.length;
        match &mut self.memory {
            Memory::Heap(values) => &mut values[range],
            // SAFETY: as in `values`.
            Memory::Paged(pages) => unsafe { pages.values_mut(range) },
        }
    }
}

impl Clone for Aligned {
    /// A copy's values begin a cache line too, which a copy of the vector would not.
    fn clone(&self) -> Self {
        let mut copy = Aligned::zeros(self.length);
        copy.values_mut().copy_from_slice(self.values());
        copy
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_begin_a_line_and_stay() {
        let mut buffer = Aligned::default();
        let mut others = Vec::new();
        for length in [1, 15, 16, 17, 1000, 100_000, 600_000] {
            buffer.grow(length);
            let copy = buffer.clone();
            for buffer in [&buffer, &copy] {
                assert_eq!(buffer.as_ptr().addr() % 64, 0);
                assert!(buffer.len() >= length && buffer.len() < length + LINE);
            }
            assert_eq!(copy.values(), buffer.values());
            buffer.values_mut()[length - 1] = length as f32;
            others.push((length, copy));
        }
        for (length, _) in &others {
            assert_eq!(buffer.values()[length - 1], *length as f32);
        }
        assert_eq!(buffer.values().iter().filter(|&&value| value != 0.0).count(), others.len());
        buffer.grow(3);
        assert!(buffer.len() >= 600_000);
        buffer.reset(600_000);
        assert_eq!(buffer.values()[599_999], 600_000.0);
        buffer.reset(900_000);
        assert!(buffer.len() >= 900_000 && buffer.as_ptr().addr() % 64 == 0);
    }

    #[test]
    fn large_buffers_begin_in_different_lines_of_a_page() {
        assert_eq!(stagger(PAGED - 1), 0);
        let lines = [PAGED; 8].map(stagger);
        assert!(lines.iter().all(|&line| line < PAGE));
        assert!(lines.iter().any(|line| line != &lines[0]));
        let buffers = [PAGED; 8].map(zeros_in_lines);
        for (values, first) in &buffers {
            assert!(values[*first..].len() >= PAGED && values[*first..].as_ptr().addr() % 64 == 0);
            assert_eq!(values.len(), buffers[0].0.len(), "one fits where another was");
        }
    }

    #[test]
    fn buffers_that_settle_in_large_pages_keep_out_of_one_another() {
        let lengths = [1, 16, 5_000, 300_000, 400_001, 524_288, 600_000, 300_000];
        let mut buffers = lengths.map(Aligned::zeros_for_large_pages);
        for (index, buffer) in buffers.iter_mut().enumerate() {
            assert!(buffer.len() >= lengths[index] && buffer.as_ptr().addr() % 64 == 0);
            assert!(buffer.values().iter().all(|&value| value == 0.0));
            buffer.values_mut().fill(index as f32);
        }
        buffers.iter().step_by(2).for_each(Aligned::settle);
        let [.., last] = &mut buffers;
        drop(std::mem::take(last));
        for (index, buffer) in buffers.iter().enumerate() {
            assert!(buffer.values().iter().all(|&value| value == index as f32));
        }
    }
}
