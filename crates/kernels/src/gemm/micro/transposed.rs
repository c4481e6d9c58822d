//! A block of a transposed product.

use super::threes::STEP;
use super::{STEPS, kind, load, multiply_add, store};
use crate::buffer::LINE;
use crate::simd::{Simd, Task};

/// `C = Aᵀ·B` for a block: C is `rows × columns`; both A and B are read row by row.
pub(crate) struct Transposed<'a> {
    /// First row of A; each row is valid for reads of the block's `rows` values.
    pub(crate) a: *const f32,
    /// Values between two rows of A.
    pub(crate) a_step: usize,
    /// Number of rows of A and B.
    pub(crate) length: usize,
    /// First row of B; each row is valid for reads of `columns` values.
    pub(crate) b: *const f32,
    /// Values between two rows of B.
    pub(crate) b_step: usize,
    /// First row of C; each is valid for reads and writes of `columns` values.
    pub(crate) c: *mut f32,
    /// Values between two rows of C.
    pub(crate) c_step: usize,
    /// Columns that exist.
    pub(crate) columns: usize,
    /// Whether to add to C instead of overwriting it.
    pub(crate) accumulate: bool,
    /// Addresses whose lines will be needed soon.
    pub(crate) soon: &'a [*const f32],
    /// Factor of the products; of threes alone, where one more row of A and of B holds what is taken off before.
    pub(crate) factor: f32,
}

struct TransposedTask<'a, const ROWS: usize, const VECTORS: usize, const KIND: u8>(&'a Transposed<'a>);

impl<const ROWS: usize, const VECTORS: usize, const KIND: u8> TransposedTask<'_, ROWS, VECTORS, KIND> {
    /// Adds the products of a row of A and a row of B.
    ///
    /// # Safety
    /// `a` must be valid for reads of ROWS values, `b` as [`load`] demands.
    #[inline(always)]
    unsafe fn step<S: Simd, const TAIL: bool>(
        &self,
        simd: S,
        [a, b]: [*const f32; 2],
        sums: &mut [[S::V; VECTORS]; ROWS],
    ) {
        // SAFETY: promised by the caller.
        unsafe {
            let columns: [S::V; VECTORS] =
                std::array::from_fn(|v| load::<S, TAIL>(simd, b, self.0.columns, v));
            for (row, sums) in sums.iter_mut().enumerate() {
                let value = simd.splat(*a.add(row));
                for (sum, &column) in sums.iter_mut().zip(&columns) {
                    *sum = multiply_add::<S, KIND>(simd, value, column, *sum);
                }
            }
        }
    }

    /// Adds the products of three rows of A and three rows of B.
    ///
    /// # Safety
    /// Rows as for [`step`](Self::step).
    #[inline(always)]
    unsafe fn three<S: Simd, const TAIL: bool, const MINUS: bool>(
        &self,
        simd: S,
        [a, b]: [*const f32; 2],
        sums: &mut [[S::V; VECTORS]; ROWS],
    ) {
        let block = self.0;
        // SAFETY: promised by the caller.
        unsafe {
            let b: [[S::V; 3]; VECTORS] = std::array::from_fn(|v| {
                let row = |row| b.wrapping_add(row * block.b_step);
                std::array::from_fn(|index| load::<S, TAIL>(simd, row(index), block.columns, v))
            });
            for (row, sums) in sums.iter_mut().enumerate() {
                for (sum, &b) in sums.iter_mut().zip(&b) {
                    let step = block.a_step * size_of::<f32>();
                    *sum = simd.three::<MINUS>(a.wrapping_add(row), step, b, *sum);
                }
            }
        }
    }

    /// Takes off what threes have besides the products.
    ///
    /// # Safety
    /// As `MicroKernels::transposed`; `TAIL` as there.
    #[inline(always)]
    unsafe fn take_off<S: Simd, const TAIL: bool>(&self, simd: S, sums: &mut [[S::V; VECTORS]; ROWS]) {
        let block = self.0;
        let a = block.a.wrapping_add(block.length * block.a_step);
        let b = block.b.wrapping_add(block.length * block.b_step);
        let factor = simd.splat(block.factor);
        for v in 0..VECTORS {
            // SAFETY: promised by the caller.
            let of_column = unsafe { load::<S, TAIL>(simd, b, block.columns, v) };
            for (row, sums) in sums.iter_mut().enumerate() {
                let without = simd.sub(sums[v], of_column);
                // SAFETY: promised by the caller.
                let of_row = simd.splat(unsafe { *a.add(row) });
                sums[v] = simd.mul(simd.sub(without, of_row), factor);
            }
        }
    }

    /// # Safety
    /// As `MicroKernels::transposed`; without `TAIL`, all `VECTORS · LANES` columns exist.
    #[inline(always)]
    unsafe fn multiply<S: Simd, const TAIL: bool>(&self, simd: S) {
        let block = self.0;
        let mut sums = [[simd.zero(); VECTORS]; ROWS];
        let (mut a, mut b) = (block.a, block.b);
        // What is asked for all at once would hold up the loads.
        let piece = if KIND == kind::THREES { 3 * STEP } else { LINE };
        let pieces = block.length.div_ceil(piece).max(1);
        let mut rows = 0..ROWS;
        let each = ROWS.div_ceil(pieces);
        let mut soon = block.soon.chunks(block.soon.len().div_ceil(pieces).max(1));
        for start in (0..block.length).step_by(piece) {
            for row in rows.by_ref().take(each) {
                let c = block.c.wrapping_add(row * block.c_step);
                for v in 0..VECTORS {
                    simd.prefetch_to_write(c.wrapping_add(v * S::LANES));
                }
            }
            for &at in soon.next().unwrap_or_default() {
                simd.prefetch(at);
            }
            let mut left = piece.min(block.length - start);
            // SAFETY: `length` rows of A and B are valid, promised by the caller.
            unsafe {
                while KIND == kind::THREES && left >= STEP {
                    let half = [a.wrapping_add(3 * block.a_step), b.wrapping_add(3 * block.b_step)];
                    self.three::<S, TAIL, false>(simd, [a, b], &mut sums);
                    self.three::<S, TAIL, true>(simd, half, &mut sums);
                    a = a.wrapping_add(STEP * block.a_step);
                    b = b.wrapping_add(STEP * block.b_step);
                    left -= STEP;
                }
                while KIND != kind::THREES && left >= STEPS {
                    for index in 0..STEPS {
                        let rows =
                            [a.wrapping_add(index * block.a_step), b.wrapping_add(index * block.b_step)];
                        self.step::<S, TAIL>(simd, rows, &mut sums);
                    }
                    a = a.wrapping_add(STEPS * block.a_step);
                    b = b.wrapping_add(STEPS * block.b_step);
                    left -= STEPS;
                }
                for _ in 0..left {
                    self.step::<S, TAIL>(simd, [a, b], &mut sums);
                    a = a.wrapping_add(block.a_step);
                    b = b.wrapping_add(block.b_step);
                }
            }
        }
        if KIND == kind::THREES {
            // SAFETY: promised by the caller.
            unsafe { self.take_off::<S, TAIL>(simd, &mut sums) };
        }
        for (row, sums) in sums.iter().enumerate() {
            let c = block.c.wrapping_add(row * block.c_step);
            for (v, &sum) in sums.iter().enumerate() {
                // SAFETY: C's rows are valid for reads and writes, promised by the caller.
                unsafe {
                    let sum = match block.accumulate {
                        true => simd.add(load::<S, TAIL>(simd, c, block.columns, v), sum),
                        false => sum,
                    };
                    store::<S, TAIL>(simd, c, block.columns, v, sum);
                }
            }
        }
    }
}

impl<const ROWS: usize, const VECTORS: usize, const KIND: u8> Task
    for TransposedTask<'_, ROWS, VECTORS, KIND>
{
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        // SAFETY: promised by the caller of `MicroKernels::transposed`; TAIL is set exactly when columns are missing.
        unsafe {
            if self.0.columns == VECTORS * S::LANES {
                self.multiply::<S, false>(simd)
            } else {
                self.multiply::<S, true>(simd)
            }
        }
    }
}

/// # Safety
/// The CPU has `S`'s instructions, and the block is as `MicroKernels::transposed` demands.
pub(super) unsafe fn transposed<S: Simd, const ROWS: usize, const VECTORS: usize, const KIND: u8>(
    block: &Transposed,
) {
    // SAFETY: the caller promises that the CPU has the instructions.
    unsafe { S::assume() }.run(TransposedTask::<ROWS, VECTORS, KIND>(block))
}
