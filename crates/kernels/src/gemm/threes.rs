//! What products of threes take off: the terms of their sums that belong to a row of A, or to a column of B, alone.

use super::driver::DEPTH_BLOCK;
use super::micro::Gathered;
use super::micro::threes::STEP;
use super::pack::{PackedMatrix, Panel};
use crate::Context;
use crate::bf16::Operands;
use crate::parallel::SharedMut;
use crate::simd::{Simd, Task};
use crate::vector::{load_first, total};

/// Signs with which neighbours' products are added, again and again after whole vectors of any level.
static SIGNS: [f32; 8 * STEP] = {
    let mut signs = [0.0; 8 * STEP];
    let mut at = 0;
    while at < signs.len() {
        signs[at] = 1.0;
        signs[at + STEP / 2] = -1.0;
        at += STEP;
    }
    signs
};

/// A row of zeros, as long as a block.
static ZEROS: [f32; DEPTH_BLOCK] = [0.0; DEPTH_BLOCK];

/// What a row of A brings with it, of `depth` values at `row`.
///
/// # Safety
/// They must be valid for reads.
#[inline(always)]
pub(super) unsafe fn of_row<S: Simd>(simd: S, row: *const f32, depth: usize) -> f32 {
    // The last value of a three is in no pair.
    let length = (depth / STEP * STEP).saturating_sub(1);
    let mut sum = simd.zero();
    for at in (0..length).step_by(S::LANES) {
        let lanes = S::LANES.min(length - at);
        // SAFETY: `length` values and the next one are the row's; signs repeat after whole vectors.
        unsafe {
            let signs = simd.load(SIGNS.as_ptr().add(at % SIGNS.len()));
            let [first, second] = [at, at + 1].map(|at| load_first(simd, row.add(at), lanes));
            sum = simd.mul_add(simd.mul(first, signs), second, sum);
        }
    }
    total(simd, sum)
}

/// What rows of A bring with them, of `depth` values each. They must be valid for reads.
pub(super) struct OfRows<'a, I> {
    pub(super) rows: I,
    pub(super) depth: usize,
    pub(super) sums: &'a mut [f32],
}

impl<I: Iterator<Item = *const f32>> Task for OfRows<'_, I> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        for (row, sum) in self.rows.zip(self.sums) {
            // SAFETY: promised by the caller.
            *sum = unsafe { of_row(simd, row, self.depth) };
        }
    }
}

/// What the columns of B bring with them, block by block of its rows.
pub(super) fn of_columns(
    cx: &Context,
    b: &PackedMatrix,
    panels: impl ExactSizeIterator<Item = Panel> + Clone + Sync,
    sums: &mut [f32],
) {
    let kernels = cx.level().kernels(Operands::Threes);
    let blocks = b.depth().div_ceil(DEPTH_BLOCK).max(1);
    let row = b.columns().next_multiple_of(kernels.lanes);
    assert!(sums.len() >= blocks * row, "room for sums");
    let sums = SharedMut(sums.as_mut_ptr());
    let count = panels.len();
    cx.pool().run(blocks * count, |task| {
        let (block, Some(panel)) = (task / count, panels.clone().nth(task % count)) else { return };
        let first = block * DEPTH_BLOCK;
        // The sums of a row of zeros, in the same order: such a row's products are exactly 0.
        let zeros = ZEROS.as_ptr();
        let mut to = sums.get().wrapping_add(block * row);
        let arguments = Gathered {
            a: &raw const zeros,
            taps: 1,
            skip: 0,
            depth: DEPTH_BLOCK.min(b.depth() - first),
            ahead: 0,
            b: b.panel_row(&panel, first),
            far: false,
            coming: std::ptr::null(),
            each: 0,
            c: &raw mut to,
            column: panel.column,
            columns: panel.vectors * kernels.lanes,
            ahead_c: 0,
            beside: [0; 2],
            accumulate: false,
            bias: std::ptr::null(),
            residual: std::ptr::null(),
            relu: false,
            beside_products: None,
        };
        // SAFETY: a block has no more rows than there are zeros, the panel has them; each block has a row of sums for all columns of
        // all panels, which are disjoint.
        unsafe { kernels.gathered(panel.vectors, 1, &arguments) };
    });
}
