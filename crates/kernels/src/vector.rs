//! Checked access to slices by vectors, and the loop over the channels of a block of rows.

use crate::buffer::LINE;
use crate::simd::Simd;

/// Vectors that one call of [`Columns::block`] handles at most.
const BLOCK: usize = 4;

/// Channels that one call of [`Columns::block`] handles at most, at any level.
pub(crate) const BLOCK_CHANNELS: usize = BLOCK * 16;

/// How many values further on those are that a pass over memory asks for while it works: it knows which come next sooner than the
/// CPU finds out, since it reads a few rows block by block, or short ones.
const AHEAD: usize = 2048;

/// Reads `count` values; the other lanes are 0.
///
/// # Safety
/// `count <= LANES`, and `from` must be valid for reads of `count` values.
#[inline(always)]
pub(crate) unsafe fn load_first<S: Simd>(simd: S, from: *const f32, count: usize) -> S::V {
    // SAFETY: promised by the caller.
    unsafe { if count == S::LANES { simd.load(from) } else { simd.load_partial(from, count) } }
}

/// Writes the first `count` lanes.
///
/// # Safety
/// `count <= LANES`, and `to` must be valid for writes of `count` values.
#[inline(always)]
pub(crate) unsafe fn store_first<S: Simd>(simd: S, to: *mut f32, value: S::V, count: usize) {
    // SAFETY: promised by the caller.
    unsafe { if count == S::LANES { simd.store(to, value) } else { simd.store_partial(to, value, count) } }
}

/// Reads `count` values (at most a vector) from `from[at]` on; the other lanes are 0.
#[inline(always)]
pub(crate) fn read<S: Simd>(simd: S, from: &[f32], at: usize, count: usize) -> S::V {
    assert!(count <= S::LANES);
    let from = &from[at..at + count];
    // SAFETY: `from` has `count` values, and `count <= LANES`.
    unsafe { load_first(simd, from.as_ptr(), count) }
}

/// Writes the first `count` lanes of `value` to `to[at]` and on.
#[inline(always)]
pub(crate) fn write<S: Simd>(simd: S, to: &mut [f32], at: usize, count: usize, value: S::V) {
    assert!(count <= S::LANES);
    let to = &mut to[at..at + count];
    // SAFETY: `to` has `count` values, and `count <= LANES`.
    unsafe { store_first(simd, to.as_mut_ptr(), value, count) }
}

/// The sum of all lanes.
#[inline(always)]
pub(crate) fn total<S: Simd>(simd: S, value: S::V) -> f32 {
    const { assert!(S::LANES <= 16) };
    let mut lanes = [0.0; 16];
    // SAFETY: as many as the most lanes.
    unsafe { simd.store(lanes.as_mut_ptr(), value) };
    let eight: [f32; 8] = std::array::from_fn(|lane| lanes[lane] + lanes[lane + 8]);
    let four: [f32; 4] = std::array::from_fn(|lane| eight[lane] + eight[lane + 4]);
    (four[0] + four[2]) + (four[1] + four[3])
}

/// Asks for `count` values, a line after the other. `from` may be any address.
#[inline(always)]
pub(crate) fn ask<S: Simd>(simd: S, from: *const f32, count: usize) {
    for at in (0..count).step_by(LINE) {
        simd.prefetch(from.wrapping_add(at));
    }
}

/// Asks for `count` values that stand [`AHEAD`] of those at `from`.
#[inline(always)]
pub(crate) fn look_ahead<S: Simd>(simd: S, from: *const f32, count: usize) {
    ask(simd, from.wrapping_add(AHEAD), count);
}

/// Work on neighbouring channels, whose accumulators and parameters stay in registers while rows go by.
pub(crate) trait Columns {
    /// Handles the `V` vectors of channels from `from` on; several, where there are as many, hide how long an addition takes. Each
    /// holds `count` channels: all lanes, except that a last vector (with `V` 1) may hold fewer. Implementations are
    /// `#[inline(always)]`.
    fn block<S: Simd, const V: usize>(&mut self, simd: S, from: usize, count: usize);
}

/// Runs `work` on all of `channels`, block by block.
#[inline(always)]
pub(crate) fn columns<S: Simd>(simd: S, channels: usize, work: &mut impl Columns) {
    const { assert!(BLOCK * S::LANES <= BLOCK_CHANNELS) };
    let mut from = 0;
    while from + BLOCK * S::LANES <= channels {
        work.block::<S, BLOCK>(simd, from, S::LANES);
        from += BLOCK * S::LANES;
    }
    if from + 2 * S::LANES <= channels {
        work.block::<S, 2>(simd, from, S::LANES);
        from += 2 * S::LANES;
    }
    if from + S::LANES <= channels {
        work.block::<S, 1>(simd, from, S::LANES);
        from += S::LANES;
    }
    if from < channels {
        work.block::<S, 1>(simd, from, channels - from);
    }
}
