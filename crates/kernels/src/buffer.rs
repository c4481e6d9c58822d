//! Memory for values, aligned to cache lines.

/// A cache line of values; a vector of these is aligned for the widest vectors.
#[derive(Debug, Clone, Copy)]
#[repr(align(64))]
struct Line(#[expect(dead_code, reason = "read through pointers to the values")] [f32; LINE]);

/// Values of a cache line.
pub(crate) const LINE: usize = 16;

/// A growing buffer of values whose first one begins a cache line.
#[derive(Debug, Clone, Default)]
pub(crate) struct Aligned(Vec<Line>);

impl Aligned {
    /// A buffer of at least `length` zeros.
    pub(crate) fn zeros(length: usize) -> Self {
        Aligned(vec![Line([0.0; LINE]); length.div_ceil(LINE)])
    }

    /// Makes room for at least `length` values; what stood there stays.
    pub(crate) fn grow(&mut self, length: usize) {
        if self.0.len() < length.div_ceil(LINE) {
            self.0.resize(length.div_ceil(LINE), Line([0.0; LINE]));
        }
    }

    /// Number of values.
    pub(crate) fn len(&self) -> usize {
        self.0.len() * LINE
    }

    /// The first value, valid for reads of [`len`](Self::len) values.
    pub(crate) fn as_ptr(&self) -> *const f32 {
        self.0.as_ptr().cast()
    }

    /// The first value, valid for reads and writes of [`len`](Self::len) values.
    pub(crate) fn as_mut_ptr(&mut self) -> *mut f32 {
        self.0.as_mut_ptr().cast()
    }

    /// The values.
    pub(crate) fn values_mut(&mut self) -> &mut [f32] {
        let length = self.len();
        // SAFETY: a `Line` is exactly LINE values (64 bytes, aligned to 64, no padding).
        unsafe { std::slice::from_raw_parts_mut(self.as_mut_ptr(), length) }
    }
}
