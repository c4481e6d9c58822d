//! Time spent in each step.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Time that threads have spent in each step of a plan, added up over all threads of the context.
#[derive(Debug)]
pub(super) struct Profile(Vec<AtomicU64>);

impl Profile {
    pub(super) fn new(steps: usize) -> Self {
        Profile((0..steps).map(|_| AtomicU64::new(0)).collect())
    }

    /// A step took `time` and kept `threads` threads busy.
    pub(super) fn add(&self, step: usize, time: Duration, threads: usize) {
        self.0[step].fetch_add(time.as_nanos() as u64 * threads as u64, Ordering::Relaxed);
    }

    pub(super) fn times(&self) -> impl Iterator<Item = Duration> {
        self.0.iter().map(|time| Duration::from_nanos(time.load(Ordering::Relaxed)))
    }
}
