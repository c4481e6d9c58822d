//! A block whose A is read through pointers.

use super::{STEPS, load, multiply_add, store};
use crate::buffer::LINE;
use crate::simd::{Simd, Task};
use std::ops::Range;

/// How many values ahead of the products a panel is asked for: the products of so many take as long as memory does to answer.
const SOON: usize = 2048;

/// `C = A·B` for a block: C is `rows × columns`, A is read through pointers, B is one packed panel.
pub(crate) struct Gathered {
    /// Pointers to the rows of A, `[tap][row]`; each is valid for reads at `skip .. skip + depth`.
    pub(crate) a: *const *const f32,
    /// Number of taps.
    pub(crate) taps: usize,
    /// First value of a row that is used.
    pub(crate) skip: usize,
    /// Values of a row that are used by each tap.
    pub(crate) depth: usize,
    /// How many values further on the next block's rows of A usually begin, which are asked for; 0 if they are near or unknown.
    pub(crate) ahead: usize,
    /// The panel's values, `[tap][depth][vectors · lanes]`.
    pub(crate) b: *const f32,
    /// Whether they are read for the first time, so that they are asked for on the way.
    pub(crate) far: bool,
    /// What will be read then, any address, and how many lines of it are asked for with each line of a row of A.
    pub(crate) coming: *const f32,
    pub(crate) each: usize,
    /// Pointers to the rows of C; each is valid for reads and writes of `columns` values from `column` on.
    pub(crate) c: *const *mut f32,
    /// First column in a row of C.
    pub(crate) column: usize,
    /// How many values further on the lines begin that the next block will write and add, which are asked for.
    pub(crate) ahead_c: usize,
    /// Columns that exist; the panel's others are padding.
    pub(crate) columns: usize,
    /// How many bytes further on what will be read beside the lines of C begins, which is asked for with them; 0 for nothing.
    pub(crate) beside: [isize; 2],
    /// Whether to add to C instead of overwriting it.
    pub(crate) accumulate: bool,
    /// A value a column that is added, or null.
    pub(crate) bias: *const f32,
    /// Pointers to the rows that are added, as long as C's, or null.
    pub(crate) residual: *const *const f32,
    /// Whether negative results become 0.
    pub(crate) relu: bool,
}

struct GatheredTask<'a, const ROWS: usize, const VECTORS: usize, const HALVES: bool>(&'a Gathered);

impl<const ROWS: usize, const VECTORS: usize, const HALVES: bool> Task
    for GatheredTask<'_, ROWS, VECTORS, HALVES>
{
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let block = self.0;
        let mut sums = [[simd.zero(); VECTORS]; ROWS];
        let mut b = block.b;
        // Lines of C that are asked for, of which `each` go with a line of A.
        let lines = ROWS * (VECTORS * S::LANES).div_ceil(LINE);
        let each = lines.div_ceil(block.depth.div_ceil(LINE).max(1));
        let mut asked = 0;
        for tap in 0..block.taps {
            // SAFETY: `a` holds `taps · ROWS` pointers, each valid for reads at `skip .. skip + depth`; the panel holds
            // `taps · depth` rows of `VECTORS · LANES` values (all promised by the caller of `MicroKernels::gathered`).
            unsafe {
                let rows: [*const f32; ROWS] =
                    std::array::from_fn(|row| (*block.a.add(tap * ROWS + row)).add(block.skip));
                let last = tap + 1 == block.taps;
                let mut k = 0;
                while k < block.depth {
                    let mut end = block.depth;
                    if last && asked < lines {
                        self.ask(simd, asked..lines.min(asked + each));
                        asked += each;
                        end = end.min(k + LINE);
                    }
                    if block.ahead > 0 {
                        for row in rows {
                            simd.prefetch(row.wrapping_add(k + block.ahead));
                        }
                        end = end.min(k + LINE);
                    }
                    if block.each > 0 {
                        let first = (tap * block.depth + k) / LINE * block.each;
                        for line in first..first + block.each {
                            simd.prefetch_second(block.coming.wrapping_add(line * LINE));
                        }
                        end = end.min(k + LINE);
                    }
                    // Two loops, so that the one that nearly all blocks take has nothing but products.
                    if block.far {
                        for k in k..end {
                            for line in (0..VECTORS * S::LANES).step_by(LINE) {
                                simd.prefetch(b.wrapping_add(SOON + line));
                            }
                            Self::step(simd, &rows, k, b, &mut sums);
                            b = b.add(VECTORS * S::LANES);
                        }
                        k = end;
                        continue;
                    }
                    while k + STEPS <= end {
                        for step in 0..STEPS {
                            let b = b.add(step * VECTORS * S::LANES);
                            Self::step(simd, &rows, k + step, b, &mut sums);
                        }
                        b = b.add(STEPS * VECTORS * S::LANES);
                        k += STEPS;
                    }
                    while k < end {
                        Self::step(simd, &rows, k, b, &mut sums);
                        b = b.add(VECTORS * S::LANES);
                        k += 1;
                    }
                }
            }
        }
        // SAFETY: promised by the caller of `MicroKernels::gathered`; TAIL is set exactly when columns are missing.
        unsafe {
            if block.columns == VECTORS * S::LANES {
                self.finish::<S, false>(simd, sums);
            } else {
                self.finish::<S, true>(simd, sums);
            }
        }
    }
}

impl<const ROWS: usize, const VECTORS: usize, const HALVES: bool> GatheredTask<'_, ROWS, VECTORS, HALVES> {
    /// Adds the products of column `k` of A and one row of B.
    ///
    /// # Safety
    /// Each of `rows` must be valid for reads at `k`, `b` for `VECTORS · LANES` values.
    #[inline(always)]
    unsafe fn step<S: Simd>(
        simd: S,
        rows: &[*const f32; ROWS],
        k: usize,
        b: *const f32,
        sums: &mut [[S::V; VECTORS]; ROWS],
    ) {
        // SAFETY: promised by the caller.
        unsafe {
            let columns: [S::V; VECTORS] = std::array::from_fn(|v| simd.load(b.add(v * S::LANES)));
            for (row, sums) in rows.iter().zip(sums) {
                let value = simd.splat(*row.add(k));
                for (sum, &column) in sums.iter_mut().zip(&columns) {
                    *sum = multiply_add::<S, HALVES>(simd, value, column, *sum);
                }
            }
        }
    }

    /// Asks for some lines of what the next block adds and writes, while the products of the last tap are made: all at once they
    /// would hold up the loads.
    ///
    /// # Safety
    /// `c`, and `residual` where it is not null, must hold ROWS pointers, and there must be as many lines.
    #[inline(always)]
    unsafe fn ask<S: Simd>(&self, simd: S, lines: Range<usize>) {
        let block = self.0;
        for index in lines {
            let (row, at) = (index % ROWS, block.column + block.ahead_c + index / ROWS * LINE);
            // SAFETY: promised by the caller.
            unsafe {
                let c = (*block.c.add(row)).wrapping_add(at);
                simd.prefetch_to_write(c);
                for beside in block.beside.into_iter().filter(|&beside| beside != 0) {
                    simd.prefetch_second(c.wrapping_byte_offset(beside));
                }
                if !block.residual.is_null() {
                    simd.prefetch((*block.residual.add(row)).wrapping_add(at));
                }
            }
        }
    }

    /// Applies the epilogue and stores the sums.
    ///
    /// # Safety
    /// As `MicroKernels::gathered`; without `TAIL`, all `VECTORS · LANES` columns exist.
    #[inline(always)]
    unsafe fn finish<S: Simd, const TAIL: bool>(&self, simd: S, mut sums: [[S::V; VECTORS]; ROWS]) {
        let block = self.0;
        // SAFETY: the caller promises ROWS pointers to `columns` values in `c`, and in `residual` unless it is null, and
        // `columns` values at `bias` unless it is null.
        unsafe {
            let c: [*mut f32; ROWS] = std::array::from_fn(|row| (*block.c.add(row)).add(block.column));
            if block.accumulate {
                for (&c, sums) in c.iter().zip(&mut sums) {
                    for (v, sum) in sums.iter_mut().enumerate() {
                        *sum = simd.add(load::<S, TAIL>(simd, c, block.columns, v), *sum);
                    }
                }
            }
            if !block.bias.is_null() {
                for v in 0..VECTORS {
                    let bias = load::<S, TAIL>(simd, block.bias, block.columns, v);
                    for sums in &mut sums {
                        sums[v] = simd.add(sums[v], bias);
                    }
                }
            }
            if !block.residual.is_null() {
                for (row, sums) in sums.iter_mut().enumerate() {
                    let residual = (*block.residual.add(row)).add(block.column);
                    for (v, sum) in sums.iter_mut().enumerate() {
                        *sum = simd.add(*sum, load::<S, TAIL>(simd, residual, block.columns, v));
                    }
                }
            }
            if block.relu {
                for sum in sums.as_flattened_mut() {
                    *sum = simd.max(simd.zero(), *sum);
                }
            }
            for (c, sums) in c.into_iter().zip(&sums) {
                for (v, &sum) in sums.iter().enumerate() {
                    store::<S, TAIL>(simd, c, block.columns, v, sum);
                }
            }
        }
    }
}

/// # Safety
/// The CPU has `S`'s instructions, and the block is as `MicroKernels::gathered` demands.
pub(super) unsafe fn gathered<S: Simd, const ROWS: usize, const VECTORS: usize, const HALVES: bool>(
    block: &Gathered,
) {
    // SAFETY: the caller promises that the CPU has the instructions.
    unsafe { S::assume() }.run(GatheredTask::<ROWS, VECTORS, HALVES>(block))
}
