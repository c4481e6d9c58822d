//! A block whose A is read through pointers.

use super::threes::STEP;
use super::{STEPS, kind, load, multiply_add, store};
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
    /// What is taken off, and how far the sums are scaled; of threes alone.
    pub(crate) beside_products: Option<BesideProducts>,
}

/// What the sums of threes have besides the products.
#[derive(Clone, Copy)]
pub(crate) struct BesideProducts {
    /// Of each row, `[rows]`.
    pub(crate) rows: *const f32,
    /// Of each column of the panel, `[vectors · lanes]`.
    pub(crate) columns: *const f32,
    /// Factor of the products that are left.
    pub(crate) factor: f32,
}

struct GatheredTask<'a, const ROWS: usize, const VECTORS: usize, const KIND: u8>(&'a Gathered);

/// Lines of C that are asked for while products are made.
struct Asking {
    lines: usize,
    /// With a line of A's rows.
    each: usize,
    asked: usize,
}

impl Asking {
    #[inline(always)]
    fn new<S: Simd>(block: &Gathered, rows: usize, vectors: usize) -> Self {
        let lines = rows * (vectors * S::LANES).div_ceil(LINE);
        Asking { lines, each: lines.div_ceil(block.depth.div_ceil(LINE).max(1)), asked: 0 }
    }
}

impl<const ROWS: usize, const VECTORS: usize, const KIND: u8> Task for GatheredTask<'_, ROWS, VECTORS, KIND> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let block = self.0;
        let mut sums = [[simd.zero(); VECTORS]; ROWS];
        let mut b = block.b;
        let mut asking = Asking::new::<S>(block, ROWS, VECTORS);
        for tap in 0..block.taps {
            // SAFETY: `a` holds `taps · ROWS` pointers, each valid for reads at `skip .. skip + depth`; the panel holds
            // `taps · depth` rows of `VECTORS · LANES` values (all promised by the caller of `MicroKernels::gathered`).
            unsafe {
                let rows: [*const f32; ROWS] =
                    std::array::from_fn(|row| (*block.a.add(tap * ROWS + row)).add(block.skip));
                if KIND == kind::THREES {
                    self.tap_of_threes(simd, (tap, &rows), &mut b, &mut asking, &mut sums);
                } else {
                    self.tap(simd, (tap, &rows), &mut b, &mut asking, &mut sums);
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

impl<const ROWS: usize, const VECTORS: usize, const KIND: u8> GatheredTask<'_, ROWS, VECTORS, KIND> {
    /// Adds the products of a tap.
    ///
    /// # Safety
    /// Each of the rows must be valid for reads of `depth` values, `b` for as many rows of `VECTORS · LANES` values; the rest as
    /// [`ask`](Self::ask).
    #[inline(always)]
    unsafe fn tap<S: Simd>(
        &self,
        simd: S,
        (tap, rows): (usize, &[*const f32; ROWS]),
        b: &mut *const f32,
        asking: &mut Asking,
        sums: &mut [[S::V; VECTORS]; ROWS],
    ) {
        let block = self.0;
        let mut k = 0;
        while k < block.depth {
            // SAFETY: promised by the caller.
            unsafe {
                let asked = self.ask(simd, (tap, rows), k, asking);
                let end = if asked { block.depth.min(k + LINE) } else { block.depth };
                // Two loops, so that the one that nearly all blocks take has nothing but products.
                if block.far {
                    for k in k..end {
                        self.ask_panel(simd, *b, 1);
                        Self::step(simd, rows, k, *b, sums);
                        *b = b.add(VECTORS * S::LANES);
                    }
                    k = end;
                    continue;
                }
                while k + STEPS <= end {
                    for step in 0..STEPS {
                        let b = b.add(step * VECTORS * S::LANES);
                        Self::step(simd, rows, k + step, b, sums);
                    }
                    *b = b.add(STEPS * VECTORS * S::LANES);
                    k += STEPS;
                }
                while k < end {
                    Self::step(simd, rows, k, *b, sums);
                    *b = b.add(VECTORS * S::LANES);
                    k += 1;
                }
            }
        }
    }

    /// The same in threes, and what they leave.
    ///
    /// # Safety
    /// As there.
    #[inline(always)]
    unsafe fn tap_of_threes<S: Simd>(
        &self,
        simd: S,
        (tap, rows): (usize, &[*const f32; ROWS]),
        b: &mut *const f32,
        asking: &mut Asking,
        sums: &mut [[S::V; VECTORS]; ROWS],
    ) {
        let (block, width) = (self.0, VECTORS * S::LANES);
        let whole = block.depth / STEP * STEP;
        // SAFETY: promised by the caller.
        unsafe {
            for k in (0..whole).step_by(STEP) {
                if k % LINE < STEP {
                    self.ask(simd, (tap, rows), k, asking);
                }
                if block.far {
                    self.ask_panel(simd, *b, STEP);
                }
                Self::three::<S, false>(simd, rows, k, *b, sums);
                Self::three::<S, true>(simd, rows, k + STEP / 2, b.add(STEP / 2 * width), sums);
                *b = b.add(STEP * width);
            }
            for k in whole..block.depth {
                Self::step(simd, rows, k, *b, sums);
                *b = b.add(width);
            }
        }
    }

    /// Adds the products of three columns of A, from `k` on, and three rows of B.
    ///
    /// # Safety
    /// Each of `rows` must be valid for reads at `k .. k + 3`, `b` for `3 · VECTORS · LANES` values.
    #[inline(always)]
    unsafe fn three<S: Simd, const MINUS: bool>(
        simd: S,
        rows: &[*const f32; ROWS],
        k: usize,
        b: *const f32,
        sums: &mut [[S::V; VECTORS]; ROWS],
    ) {
        // SAFETY: promised by the caller.
        unsafe {
            let b: [[S::V; 3]; VECTORS] = std::array::from_fn(|v| {
                std::array::from_fn(|row| simd.load(b.add((row * VECTORS + v) * S::LANES)))
            });
            for (&row, sums) in rows.iter().zip(sums) {
                for (sum, &b) in sums.iter_mut().zip(&b) {
                    *sum = simd.three::<MINUS>(row.add(k), size_of::<f32>(), b, *sum);
                }
            }
        }
    }

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
                    *sum = multiply_add::<S, KIND>(simd, value, column, *sum);
                }
            }
        }
    }

    /// Asks for what goes with the line of A's rows that begins at `k`, if anything does.
    ///
    /// # Safety
    /// `c`, and `residual` where it is not null, must hold ROWS pointers.
    #[inline(always)]
    unsafe fn ask<S: Simd>(
        &self,
        simd: S,
        (tap, rows): (usize, &[*const f32; ROWS]),
        k: usize,
        asking: &mut Asking,
    ) -> bool {
        let block = self.0;
        let mut asked = false;
        if tap + 1 == block.taps && asking.asked < asking.lines {
            let until = asking.lines.min(asking.asked + asking.each);
            // SAFETY: promised by the caller.
            unsafe { self.ask_targets(simd, asking.asked..until) };
            (asking.asked, asked) = (until, true);
        }
        if block.ahead > 0 {
            for row in rows {
                simd.prefetch(row.wrapping_add(k + block.ahead));
            }
            asked = true;
        }
        if block.each > 0 {
            let first = (tap * block.depth + k) / LINE * block.each;
            for line in first..first + block.each {
                simd.prefetch_second(block.coming.wrapping_add(line * LINE));
            }
            asked = true;
        }
        asked
    }

    /// Asks for as many rows of the panel as will be needed soon.
    #[inline(always)]
    fn ask_panel<S: Simd>(&self, simd: S, b: *const f32, rows: usize) {
        for line in (0..rows * VECTORS * S::LANES).step_by(LINE) {
            simd.prefetch(b.wrapping_add(SOON + line));
        }
    }

    /// Asks for some lines of what the next block adds and writes, while the products of the last tap are made: all at once they
    /// would hold up the loads.
    ///
    /// # Safety
    /// `c`, and `residual` where it is not null, must hold ROWS pointers, and there must be as many lines.
    #[inline(always)]
    unsafe fn ask_targets<S: Simd>(&self, simd: S, lines: Range<usize>) {
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
            if let Some(BesideProducts { rows, columns, factor }) =
                block.beside_products.filter(|_| KIND == kind::THREES)
            {
                let factor = simd.splat(factor);
                for (row, sums) in sums.iter_mut().enumerate() {
                    let of_row = simd.splat(*rows.add(row));
                    for (v, sum) in sums.iter_mut().enumerate() {
                        let without = simd.sub(*sum, simd.load(columns.add(v * S::LANES)));
                        *sum = simd.mul(simd.sub(without, of_row), factor);
                    }
                }
            }
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
pub(super) unsafe fn gathered<S: Simd, const ROWS: usize, const VECTORS: usize, const KIND: u8>(
    block: &Gathered,
) {
    // SAFETY: the caller promises that the CPU has the instructions.
    unsafe { S::assume() }.run(GatheredTask::<ROWS, VECTORS, KIND>(block))
}
