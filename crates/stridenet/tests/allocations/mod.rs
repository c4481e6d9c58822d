//! Counts what a test asks the system's allocator for.

use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use std::alloc::System;

#[global_allocator]
static COUNTER: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Allocations of all threads while `work` runs.
pub(crate) fn allocations(work: impl FnOnce()) -> usize {
    let region = Region::new(COUNTER);
    work();
    let change = region.change();
    change.allocations + change.reallocations
}
