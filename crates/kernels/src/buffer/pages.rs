//! Large pages from the system: values that are read from memory again and again need far fewer translations of addresses
//! there, and hardware prefetching does not end every 4 KiB.

use memmap2::MmapMut;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// Values of a large page.
const LARGE: usize = (2 << 20) / size_of::<f32>();

/// Values of a buffer that is not worth a place in large pages.
const SMALL: usize = 1 << 12;

/// Values of pages that smaller buffers share.
const SHARED: usize = 8 * LARGE;

/// Zeros that the system made where large pages fit. Buffers take them from the front, each once.
#[derive(Debug)]
pub(super) struct Pages {
    /// Given back when it is dropped.
    _map: MmapMut,
    first: *mut f32,
    length: usize,
    taken: AtomicUsize,
}

// SAFETY: the pages stay where they are, and each value is reached by the one buffer that took it.
unsafe impl Send for Pages {}
// SAFETY: as above.
unsafe impl Sync for Pages {}

impl Pages {
    /// Pages with `length` values from the beginning of a large page on.
    fn new(length: usize) -> Option<Arc<Self>> {
        if cfg!(miri) || !cfg!(target_os = "linux") {
            return None;
        }
        let bytes = length.checked_mul(size_of::<f32>())?;
        let large = LARGE * size_of::<f32>();
        // What lies before the first large page is never touched, so that no memory stands behind it.
        let mut map = MmapMut::map_anon(bytes.checked_add(large)?).ok()?;
        let skipped = map.as_ptr().align_offset(large);
        let first = map.get_mut(skipped..)?.as_mut_ptr().cast();
        Some(Arc::new(Pages { _map: map, first, length, taken: AtomicUsize::new(0) }))
    }

    /// Pages of which a buffer of `length` values has taken the first, and where they begin: pages of its own where it fills
    /// large ones, else beside other buffers. None for few values, and where the system has none.
    pub(super) fn with_room(length: usize) -> Option<(Arc<Self>, usize)> {
        /// Those that have room left, as long as a buffer holds them.
        static OPEN: Mutex<Weak<Pages>> = Mutex::new(Weak::new());
        if length < SMALL {
            return None;
        }
        if length >= LARGE {
            let pages = Pages::new(length)?;
            return pages.take(length).map(|first| (pages, first));
        }
        let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pages) = open.upgrade()
            && let Some(first) = pages.take(length)
        {
            return Some((pages, first));
        }
        let pages = Pages::new(SHARED)?;
        *open = Arc::downgrade(&pages);
        pages.take(length).map(|first| (pages, first))
    }

    /// Takes the next `length` values, where so many are left.
    fn take(&self, length: usize) -> Option<usize> {
        let more = |taken: usize| taken.checked_add(length).filter(|&taken| taken <= self.length);
        self.taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok()
    }

    /// Moves the values `range`, and what else stands in the large pages that they fill or share, into such pages, where the
    /// system grants them. Nobody who reads or changes values meanwhile notices, but for the wait.
    pub(super) fn settle(&self, range: Range<usize>) {
        debug_assert!(range.end <= self.taken.load(Ordering::Relaxed));
        let pages = range.start / LARGE..range.end.div_ceil(LARGE).min(self.length / LARGE);
        if !pages.is_empty() {
            // SAFETY: the pages belong to the map.
            unsafe {
                let first = self.first.add(pages.start * LARGE);
                if !advise(first, pages.len(), Advice::Collapse) {
                    // Then the system moves them when it finds the time.
                    advise(first, pages.len(), Advice::Prefer);
                }
            }
        }
    }

    /// The values `range`.
    ///
    /// # Safety
    /// The caller has taken them, and changes none while it holds what this returns.
    pub(super) unsafe fn values(&self, range: Range<usize>) -> &[f32] {
        debug_assert!(range.end <= self.taken.load(Ordering::Relaxed));
        // SAFETY: the pages hold `length` initialised values, of which those in `range` were taken.
        unsafe { std::slice::from_raw_parts(self.first.add(range.start), range.len()) }
    }

    /// The values `range`, to be changed.
    ///
    /// # Safety
    /// The caller has taken them, and reaches them in no other way while it holds what this returns.
    #[expect(clippy::mut_from_ref, reason = "who took a range owns it")]
    pub(super) unsafe fn values_mut(&self, range: Range<usize>) -> &mut [f32] {
        debug_assert!(range.end <= self.taken.load(Ordering::Relaxed));
        // SAFETY: as in `values`, and nobody else reaches them.
        unsafe { std::slice::from_raw_parts_mut(self.first.add(range.start), range.len()) }
    }
}

/// Asks the system for large pages under values that nobody has touched yet, where they fill such pages: it is a wish, nothing depends
/// on it.
pub fn prefer_large_pages(values: &mut [f32]) {
    let before = values.as_ptr().align_offset(LARGE * size_of::<f32>()).min(values.len());
    let inside = (values.len() - before) / LARGE;
    if inside > 0 {
        // SAFETY: the pages lie within the values.
        unsafe { advise(values[before..].as_mut_ptr(), inside, Advice::Prefer) };
    }
}

/// What the system is asked for.
#[derive(Debug, Clone, Copy)]
enum Advice {
    /// `MADV_HUGEPAGE`: pages that nobody has touched are made large, others later.
    Prefer = 14,
    /// `MADV_COLLAPSE`, from Linux 6.1 on: what stands in small pages is moved into large ones.
    Collapse = 25,
}

/// Tells the system about `pages` large pages, and whether it will do so: it is a wish, nothing depends on it.
///
/// # Safety
/// They begin at `first` and are mapped.
unsafe fn advise(first: *mut f32, pages: usize, advice: Advice) -> bool {
    #[cfg(all(target_os = "linux", not(miri)))]
    // SAFETY: neither advice changes values.
    unsafe {
        libc::madvise(first.cast(), pages * LARGE * size_of::<f32>(), advice as i32) == 0
    }
    #[cfg(not(all(target_os = "linux", not(miri))))]
    {
        let _ = (first, pages, advice);
        false
    }
}

#[cfg(all(test, target_os = "linux", not(miri)))]
mod tests {
    use super::*;

    #[test]
    fn a_wish_for_large_pages_changes_no_value() {
        for length in [0, 1, LARGE - 1, LARGE, 3 * LARGE + 17] {
            let mut values = vec![1.5; length];
            prefer_large_pages(&mut values);
            assert!(values.iter().all(|&value| value == 1.5), "{length}");
        }
    }

    #[test]
    fn what_is_taken_is_taken_once() {
        let pages = Pages::new(LARGE + 1000).expect("pages from the system");
        assert_eq!(pages.first.addr() % (LARGE * size_of::<f32>()), 0);
        let firsts = [LARGE, 900, 100].map(|length| pages.take(length));
        assert_eq!(firsts, [Some(0), Some(LARGE), Some(LARGE + 900)]);
        assert_eq!([1, usize::MAX].map(|length| pages.take(length)), [None; 2]);
        assert!(Pages::new(usize::MAX / 2).is_none());
    }

    #[test]
    fn small_buffers_share_pages_as_long_as_one_is_held() {
        let taken = [3 * LARGE / 4; 9].map(|length| Pages::with_room(length).expect("pages from the system"));
        for (index, (pages, first)) in taken.iter().enumerate() {
            for (other, start) in &taken[..index] {
                assert!(!Arc::ptr_eq(pages, other) || first.abs_diff(*start) >= 3 * LARGE / 4);
            }
        }
        assert!(taken.windows(2).any(|pair| Arc::ptr_eq(&pair[0].0, &pair[1].0)));
    }
}
