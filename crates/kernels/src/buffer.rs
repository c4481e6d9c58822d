//! Memory for values, aligned to cache lines.

/// Values of a cache line.
pub(crate) const LINE: usize = 16;

/// A growing buffer of values whose first one begins a cache line.
///
/// Zeros come from the system without being written, so that a page is made by the thread that first writes to it.
#[derive(Debug, Default)]
pub struct Aligned {
    /// The values, and room to begin with a whole line.
    values: Vec<f32>,
    /// Where the first whole line begins.
    first: usize,
    length: usize,
}

impl Aligned {
    /// A buffer of at least `length` zeros.
    pub fn zeros(length: usize) -> Self {
        if length == 0 {
            return Aligned::default();
        }
        let length = length.next_multiple_of(LINE);
        let values = vec![0.0f32; length + LINE];
        let first = values.as_ptr().align_offset(LINE * size_of::<f32>());
        assert!(first <= LINE, "a vector's values are aligned to their size");
        Aligned { values, first, length }
    }

    /// As [`zeros`](Self::zeros), in large pages where the system grants them: for values that are read from memory again
    /// and again. It takes the system longer to make them.
    pub(crate) fn zeros_in_large_pages(length: usize) -> Self {
        let buffer = Aligned::zeros(length);
        prefer_large_pages(&buffer.values);
        buffer
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
        &self.values[self.first..][..self.length]
    }

    /// The values.
    pub fn values_mut(&mut self) -> &mut [f32] {
        &mut self.values[self.first..][..self.length]
    }
}

/// Asks the system for large pages, where values have not been written yet: far fewer translations of addresses, and
/// hardware prefetching does not end every 4 KiB. It is a wish: nothing depends on its being granted.
#[cfg(target_os = "linux")]
fn prefer_large_pages(values: &[f32]) {
    const PAGE: usize = 4096 / size_of::<f32>();
    let skipped = values.as_ptr().align_offset(4096);
    let length = values.len().saturating_sub(skipped) / PAGE * PAGE * size_of::<f32>();
    let first = values.as_ptr().wrapping_add(skipped);
    // SAFETY: the pages lie within `values`, and the advice does not change what they hold.
    unsafe { libc::madvise(first.cast_mut().cast(), length, libc::MADV_HUGEPAGE) };
}

#[cfg(not(target_os = "linux"))]
fn prefer_large_pages(_: &[f32]) {}

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
        for length in [1, 15, 16, 17, 1000, 100_000] {
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
        assert!(buffer.len() >= 100_000);
        buffer.reset(100_000);
        assert_eq!(buffer.values()[99_999], 100_000.0);
        buffer.reset(200_000);
        assert!(buffer.len() >= 200_000 && buffer.as_ptr().addr() % 64 == 0);
    }
}
