//! The innermost loops: a block of a few rows by one panel of columns, held in registers.
//!
//! Two loops serve every matrix product and convolution of this crate. [`Gathered`] multiplies rows that are read
//! through pointers (one set of pointers a kernel tap, so a convolution needs no copy of its input) by a packed panel.
//! [`Transposed`] multiplies the transposed rows by unpacked rows of another matrix and is the gradient of the
//! weights. Both exist for every height from 1 to what the level's registers hold, for operands in `f32` and in pairs of bf16,
//! which stand in the bits of an `f32` each.

use crate::buffer::LINE;
use crate::simd::{Scalar, Simd, Task};

/// Largest number of rows of a block, over all levels.
pub(crate) const MAX_ROWS: usize = 12;

/// How many values ahead of the products a panel is asked for: the products of so many take as long as memory does to answer.
const SOON: usize = 2048;

/// Steps of the products after which it is seen whether there are more.
const STEPS: usize = 4;

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
    /// How many values further on the next block's rows of A begin, which are asked for; 0 if they are near or unknown.
    pub(crate) ahead: usize,
    /// The panel's values, `[tap][depth][vectors · lanes]`.
    pub(crate) b: *const f32,
    /// Whether they are read for the first time, so that they are asked for on the way.
    pub(crate) far: bool,
    /// Pointers to the rows of C; each is valid for reads and writes of `columns` values.
    pub(crate) c: *const *mut f32,
    /// Columns that exist; the panel's others are padding.
    pub(crate) columns: usize,
    /// Whether to add to C instead of overwriting it.
    pub(crate) accumulate: bool,
    /// A value a column that is added, or null.
    pub(crate) bias: *const f32,
    /// Pointers to rows of `columns` values that are added, or null.
    pub(crate) residual: *const *const f32,
    /// Whether negative results become 0.
    pub(crate) relu: bool,
}

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
}

/// `C = A·B` for a block whose A stands in vectors of its columns: `[depth / lanes][rows][lanes]`.
pub(crate) struct Blocked {
    /// First vector of the block's first row.
    pub(crate) a: *const f32,
    /// Values between two vectors of a row.
    pub(crate) a_step: usize,
    /// Columns of A and rows of B.
    pub(crate) depth: usize,
    /// The panel's values, `[depth][vectors · lanes]`.
    pub(crate) b: *const f32,
    /// First row of C, of `vectors · lanes` values.
    pub(crate) c: *mut f32,
    /// Values between two rows of C.
    pub(crate) c_step: usize,
    /// Whether the products are added to what C holds.
    pub(crate) add: bool,
    /// Values that will be needed next; any address.
    pub(crate) next: *const f32,
    /// Cache lines of them to ask for with each vector of A's columns.
    pub(crate) lines: usize,
}

/// The micro-kernels of one level. Tables are indexed by `[vectors − 1][rows − 1]`.
pub(crate) struct MicroKernels {
    /// Lanes of a vector.
    pub(crate) lanes: usize,
    gathered: &'static [&'static [unsafe fn(&Gathered)]],
    transposed: &'static [&'static [unsafe fn(&Transposed<'_>)]],
    blocked: &'static [&'static [unsafe fn(&Blocked)]],
}

impl MicroKernels {
    /// Most vectors that a panel may have.
    pub(crate) fn max_vectors(&self) -> usize {
        self.gathered.len()
    }

    /// Most rows of a block whose panel has `vectors` vectors.
    pub(crate) fn max_rows(&self, vectors: usize) -> usize {
        self.gathered[vectors - 1].len()
    }

    /// Multiplies one block.
    ///
    /// # Safety
    /// The pointers must be valid as [`Gathered`] says, for `rows` rows and a panel of `vectors` vectors.
    pub(crate) unsafe fn gathered(&self, vectors: usize, rows: usize, block: &Gathered) {
        debug_assert!(block.columns <= vectors * self.lanes);
        // SAFETY: the table is only reachable through a level that this CPU has; the rest is the caller's promise.
        unsafe { self.gathered[vectors - 1][rows - 1](block) }
    }

    /// Most rows of a block whose A stands in vectors.
    pub(crate) fn max_blocked_rows(&self, vectors: usize) -> usize {
        self.blocked[vectors - 1].len()
    }

    /// Multiplies one block whose A stands in vectors.
    ///
    /// # Safety
    /// The pointers must be valid as [`Blocked`] says, for `rows` rows and a panel of `vectors` vectors.
    pub(crate) unsafe fn blocked(&self, vectors: usize, rows: usize, block: &Blocked) {
        // SAFETY: the table is only reachable through a level that this CPU has; the rest is the caller's promise.
        unsafe { self.blocked[vectors - 1][rows - 1](block) }
    }

    /// Multiplies one transposed block.
    ///
    /// # Safety
    /// The pointers must be valid as [`Transposed`] says, for `rows` rows.
    pub(crate) unsafe fn transposed(&self, vectors: usize, rows: usize, block: &Transposed) {
        debug_assert!(block.columns <= vectors * self.lanes);
        // SAFETY: the table is only reachable through a level that this CPU has; the rest is the caller's promise.
        unsafe { self.transposed[vectors - 1][rows - 1](block) }
    }
}

struct BlockedTask<'a, const ROWS: usize, const VECTORS: usize>(&'a Blocked);

impl<const ROWS: usize, const VECTORS: usize> BlockedTask<'_, ROWS, VECTORS> {
    /// Adds the products of one column of A and one row of B.
    ///
    /// # Safety
    /// `a` must be valid in steps of LANES for ROWS values, `b` for `VECTORS · LANES` values.
    #[inline(always)]
    unsafe fn step<S: Simd>(simd: S, a: *const f32, b: *const f32, sums: &mut [[S::V; VECTORS]; ROWS]) {
        // SAFETY: promised by the caller.
        unsafe {
            let columns: [S::V; VECTORS] = std::array::from_fn(|v| simd.load(b.add(v * S::LANES)));
            for (row, sums) in sums.iter_mut().enumerate() {
                let value = simd.splat(*a.add(row * S::LANES));
                for (sum, &column) in sums.iter_mut().zip(&columns) {
                    *sum = simd.mul_add(value, column, *sum);
                }
            }
        }
    }
}

impl<const ROWS: usize, const VECTORS: usize> Task for BlockedTask<'_, ROWS, VECTORS> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let block = self.0;
        let mut sums = [[simd.zero(); VECTORS]; ROWS];
        let (mut a, mut b, mut left, mut next) = (block.a, block.b, block.depth, block.next);
        while left > 0 {
            let count = left.min(S::LANES);
            // SAFETY: each of ROWS rows has a vector at `a`, and the panel `count` more rows of `VECTORS · LANES`
            // values (promised by the caller of `MicroKernels::blocked`).
            unsafe {
                if count == S::LANES && block.lines >= S::LANES {
                    // Many lines go one by one between the products: all at once they would hold up the loads. In the
                    // first cache they would take the place of what the products read.
                    for lane in 0..S::LANES {
                        Self::step(simd, a.add(lane), b.add(lane * VECTORS * S::LANES), &mut sums);
                        for line in (lane..block.lines).step_by(S::LANES) {
                            simd.prefetch_second(next.wrapping_add(line * LINE));
                        }
                    }
                } else if count == S::LANES {
                    for line in 0..block.lines {
                        simd.prefetch(next.wrapping_add(line * LINE));
                    }
                    for lane in 0..S::LANES {
                        Self::step(simd, a.add(lane), b.add(lane * VECTORS * S::LANES), &mut sums);
                    }
                } else {
                    for lane in 0..count {
                        Self::step(simd, a.add(lane), b.add(lane * VECTORS * S::LANES), &mut sums);
                    }
                }
            }
            b = b.wrapping_add(count * VECTORS * S::LANES);
            next = next.wrapping_add(block.lines * LINE);
            a = a.wrapping_add(block.a_step);
            left -= count;
        }
        for (row, sums) in sums.iter().enumerate() {
            for (v, &sum) in sums.iter().enumerate() {
                let c = block.c.wrapping_add(row * block.c_step + v * S::LANES);
                // SAFETY: C has ROWS rows of `VECTORS · LANES` values.
                unsafe { simd.store(c, if block.add { simd.add(simd.load(c), sum) } else { sum }) };
            }
        }
    }
}

/// `a · b + c`; where they are `HALVES`, lanes of `a` and `b` hold pairs of bf16, both products of which are added.
#[inline(always)]
fn multiply_add<S: Simd, const HALVES: bool>(simd: S, a: S::V, b: S::V, c: S::V) -> S::V {
    if HALVES { simd.dot(a, b, c) } else { simd.mul_add(a, b, c) }
}

/// Columns of vector `v` that exist, of `columns`.
#[inline(always)]
fn count<S: Simd>(columns: usize, v: usize) -> usize {
    columns.saturating_sub(v * S::LANES).min(S::LANES)
}

/// Vector `v` of a row.
///
/// # Safety
/// The row must be valid for reads of `columns` values; without `TAIL`, those are all of the vector's lanes.
#[inline(always)]
unsafe fn load<S: Simd, const TAIL: bool>(simd: S, row: *const f32, columns: usize, v: usize) -> S::V {
    let from = row.wrapping_add(v * S::LANES);
    // SAFETY: promised by the caller.
    unsafe { if TAIL { simd.load_partial(from, count::<S>(columns, v)) } else { simd.load(from) } }
}

/// Writes vector `v` of a row.
///
/// # Safety
/// The row must be valid for writes of `columns` values; without `TAIL`, those are all of the vector's lanes.
#[inline(always)]
unsafe fn store<S: Simd, const TAIL: bool>(simd: S, row: *mut f32, columns: usize, v: usize, value: S::V) {
    let to = row.wrapping_add(v * S::LANES);
    // SAFETY: promised by the caller.
    unsafe {
        if TAIL { simd.store_partial(to, value, count::<S>(columns, v)) } else { simd.store(to, value) }
    }
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
        let each = (ROWS * VECTORS).div_ceil(block.depth.div_ceil(LINE).max(1));
        for tap in 0..block.taps {
            // SAFETY: `a` holds `taps · ROWS` pointers, each valid for reads at `skip .. skip + depth`; the panel holds
            // `taps · depth` rows of `VECTORS · LANES` values (all promised by the caller of `MicroKernels::gathered`).
            unsafe {
                let rows: [*const f32; ROWS] =
                    std::array::from_fn(|row| (*block.a.add(tap * ROWS + row)).add(block.skip));
                let last = tap + 1 == block.taps;
                for start in (0..block.depth).step_by(LINE) {
                    if last {
                        self.ask(simd, each, start);
                    }
                    if block.ahead > 0 {
                        for row in rows {
                            simd.prefetch(row.wrapping_add(start + block.ahead));
                        }
                    }
                    let part = start..block.depth.min(start + LINE);
                    // Two loops, so that the one that nearly all blocks take has nothing but products.
                    if block.far {
                        for k in part {
                            for v in 0..VECTORS {
                                simd.prefetch(b.wrapping_add(SOON + v * S::LANES));
                            }
                            Self::step(simd, &rows, k, b, &mut sums);
                            b = b.add(VECTORS * S::LANES);
                        }
                    } else {
                        let mut k = part.start;
                        while k + STEPS <= part.end {
                            for step in 0..STEPS {
                                Self::step(
                                    simd,
                                    &rows,
                                    k + step,
                                    b.add(step * VECTORS * S::LANES),
                                    &mut sums,
                                );
                            }
                            b = b.add(STEPS * VECTORS * S::LANES);
                            k += STEPS;
                        }
                        for k in k..part.end {
                            Self::step(simd, &rows, k, b, &mut sums);
                            b = b.add(VECTORS * S::LANES);
                        }
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

    /// Asks for `each` vectors of what will be added and of the lines that will be written, while the products of the last tap
    /// from `start` on are made: all at once they would hold up the loads.
    ///
    /// # Safety
    /// `c`, and `residual` where it is not null, must hold ROWS pointers.
    #[inline(always)]
    unsafe fn ask<S: Simd>(&self, simd: S, each: usize, start: usize) {
        let block = self.0;
        let first = start / LINE * each;
        for index in first..(first + each).min(ROWS * VECTORS) {
            let (row, at) = (index / VECTORS, index % VECTORS * S::LANES);
            // SAFETY: promised by the caller.
            unsafe {
                simd.prefetch_to_write((*block.c.add(row)).wrapping_add(at));
                if !block.residual.is_null() {
                    simd.prefetch((*block.residual.add(row)).wrapping_add(at));
                }
            }
        }
    }

    /// Applies the epilogue and stores the sums.
    ///
    /// # Safety
    /// As [`MicroKernels::gathered`]; without `TAIL`, all `VECTORS · LANES` columns exist.
    #[inline(always)]
    unsafe fn finish<S: Simd, const TAIL: bool>(&self, simd: S, mut sums: [[S::V; VECTORS]; ROWS]) {
        let block = self.0;
        // SAFETY: the caller promises ROWS pointers to `columns` values in `c`, and in `residual` unless it is null, and
        // `columns` values at `bias` unless it is null.
        unsafe {
            if block.accumulate {
                for (row, sums) in sums.iter_mut().enumerate() {
                    for (v, sum) in sums.iter_mut().enumerate() {
                        let old = load::<S, TAIL>(simd, *block.c.add(row), block.columns, v);
                        *sum = simd.add(old, *sum);
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
                    for (v, sum) in sums.iter_mut().enumerate() {
                        let residual = load::<S, TAIL>(simd, *block.residual.add(row), block.columns, v);
                        *sum = simd.add(*sum, residual);
                    }
                }
            }
            if block.relu {
                for sum in sums.as_flattened_mut() {
                    *sum = simd.max(simd.zero(), *sum);
                }
            }
            for (row, sums) in sums.iter().enumerate() {
                for (v, &sum) in sums.iter().enumerate() {
                    store::<S, TAIL>(simd, *block.c.add(row), block.columns, v, sum);
                }
            }
        }
    }
}

struct TransposedTask<'a, const ROWS: usize, const VECTORS: usize, const HALVES: bool>(&'a Transposed<'a>);

impl<const ROWS: usize, const VECTORS: usize, const HALVES: bool> TransposedTask<'_, ROWS, VECTORS, HALVES> {
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
                    *sum = multiply_add::<S, HALVES>(simd, value, column, *sum);
                }
            }
        }
    }

    /// # Safety
    /// As [`MicroKernels::transposed`]; without `TAIL`, all `VECTORS · LANES` columns exist.
    #[inline(always)]
    unsafe fn multiply<S: Simd, const TAIL: bool>(&self, simd: S) {
        let block = self.0;
        let mut sums = [[simd.zero(); VECTORS]; ROWS];
        let (mut a, mut b) = (block.a, block.b);
        // What is asked for all at once would hold up the loads.
        let pieces = block.length.div_ceil(LINE).max(1);
        let mut rows = 0..ROWS;
        let each = ROWS.div_ceil(pieces);
        let mut soon = block.soon.chunks(block.soon.len().div_ceil(pieces).max(1));
        for start in (0..block.length).step_by(LINE) {
            for row in rows.by_ref().take(each) {
                let c = block.c.wrapping_add(row * block.c_step);
                for v in 0..VECTORS {
                    simd.prefetch_to_write(c.wrapping_add(v * S::LANES));
                }
            }
            for &at in soon.next().unwrap_or_default() {
                simd.prefetch(at);
            }
            let mut left = LINE.min(block.length - start);
            // SAFETY: `length` rows of A and B are valid, promised by the caller.
            unsafe {
                while left >= STEPS {
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

impl<const ROWS: usize, const VECTORS: usize, const HALVES: bool> Task
    for TransposedTask<'_, ROWS, VECTORS, HALVES>
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
/// The CPU has `S`'s instructions, and the block is as [`MicroKernels::gathered`] demands.
unsafe fn gathered<S: Simd, const ROWS: usize, const VECTORS: usize, const HALVES: bool>(block: &Gathered) {
    // SAFETY: the caller promises that the CPU has the instructions.
    unsafe { S::assume() }.run(GatheredTask::<ROWS, VECTORS, HALVES>(block))
}

/// # Safety
/// The CPU has `S`'s instructions, and the block is as [`MicroKernels::transposed`] demands.
unsafe fn transposed<S: Simd, const ROWS: usize, const VECTORS: usize, const HALVES: bool>(
    block: &Transposed,
) {
    // SAFETY: the caller promises that the CPU has the instructions.
    unsafe { S::assume() }.run(TransposedTask::<ROWS, VECTORS, HALVES>(block))
}

/// # Safety
/// The CPU has `S`'s instructions, and the block is as [`MicroKernels::blocked`] demands.
unsafe fn blocked<S: Simd, const ROWS: usize, const VECTORS: usize>(block: &Blocked) {
    // SAFETY: the caller promises that the CPU has the instructions.
    unsafe { S::assume() }.run(BlockedTask::<ROWS, VECTORS>(block))
}

/// The tables of one level: for each number of vectors of a panel, the heights that its registers hold. A that stands in
/// vectors is always `f32`.
macro_rules! micro_kernels {
    ($simd:ty, $halves:literal: $($vectors:literal => [$($rows:literal)*]),*;
        blocked $($wide:literal => [$($high:literal)*]),*) => {
        MicroKernels {
            lanes: <$simd as Simd>::LANES,
            gathered: &[$(&[$(gathered::<$simd, $rows, $vectors, $halves>),*]),*],
            transposed: &[$(&[$(transposed::<$simd, $rows, $vectors, $halves>),*]),*],
            blocked: if $halves { &[] } else { &[$(&[$(blocked::<$simd, $high, $wide>),*]),*] },
        }
    };
}

/// The portable level's kernels.
macro_rules! scalar {
    ($halves:literal) => {
        micro_kernels!(Scalar, $halves:
            1 => [1 2 3 4 5 6],
            2 => [1 2 3 4];
            blocked 1 => [1 2 3 4 5 6], 2 => [1 2 3 4]
        )
    };
}

/// 16 registers: 6 rows by 2 vectors and 10 rows by 1 leave room for the operands.
#[cfg(target_arch = "x86_64")]
macro_rules! avx2 {
    ($halves:literal) => {
        micro_kernels!(crate::simd::Avx2, $halves:
            1 => [1 2 3 4 5 6 7 8 9 10],
            2 => [1 2 3 4 5 6];
            blocked 1 => [1 2 3 4 5 6 7 8 9 10], 2 => [1 2 3 4 5 6]
        )
    };
}

/// 32 vector registers. A block of one vector could be taller, but the pointers to its rows would no longer fit the 16
/// general registers.
#[cfg(target_arch = "x86_64")]
macro_rules! avx512 {
    ($bf16:literal, $halves:literal) => {
        micro_kernels!(crate::simd::Avx512<$bf16>, $halves:
            1 => [1 2 3 4 5 6 7 8 9 10 11 12],
            2 => [1 2 3 4 5 6 7 8 9 10 11 12],
            3 => [1 2 3 4 5 6 7 8],
            4 => [1 2 3 4 5 6];
            blocked 1 => [1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16], 2 => [1 2 3 4 5 6 7 8 9 10 11 12 13 14]
        )
    };
}

/// 32 registers of four lanes.
#[cfg(target_arch = "aarch64")]
macro_rules! neon {
    ($halves:literal) => {
        micro_kernels!(crate::simd::Neon, $halves:
            1 => [1 2 3 4 5 6 7 8 9 10 11 12],
            2 => [1 2 3 4 5 6 7 8 9 10 11 12],
            3 => [1 2 3 4 5 6 7 8],
            4 => [1 2 3 4 5 6];
            blocked 1 => [1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16], 2 => [1 2 3 4 5 6 7 8 9 10 11 12]
        )
    };
}

pub(crate) static SCALAR: MicroKernels = scalar!(false);
pub(crate) static SCALAR_HALVES: MicroKernels = scalar!(true);
#[cfg(target_arch = "x86_64")]
pub(crate) static AVX2: MicroKernels = avx2!(false);
#[cfg(target_arch = "x86_64")]
pub(crate) static AVX2_HALVES: MicroKernels = avx2!(true);
#[cfg(target_arch = "x86_64")]
pub(crate) static AVX512: MicroKernels = avx512!(false, false);
#[cfg(target_arch = "x86_64")]
pub(crate) static AVX512_HALVES: MicroKernels = avx512!(false, true);
/// With instructions for bf16.
#[cfg(target_arch = "x86_64")]
pub(crate) static AVX512_BF16: MicroKernels = avx512!(true, true);
#[cfg(target_arch = "aarch64")]
pub(crate) static NEON: MicroKernels = neon!(false);
#[cfg(target_arch = "aarch64")]
pub(crate) static NEON_HALVES: MicroKernels = neon!(true);
