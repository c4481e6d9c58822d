//! A block whose A stands in vectors.

use super::kind;
use crate::buffer::LINE;
use crate::simd::{Simd, Task};
use crate::vector::ask;

/// `C = A·B` for a block whose A stands in vectors of its columns, `[depth / lanes][rows][lanes]`, or for some of them, one for each
/// point of a transform.
pub(crate) struct Blocked {
    /// Number of products.
    pub(crate) points: usize,
    /// Values between A, B and C of two of them.
    pub(crate) point_steps: [usize; 3],
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
    /// Cache lines of them to ask for with each vector of A's columns, from the same place at each point.
    pub(crate) lines: usize,
    /// Rows as long as C's, at any address, that will be needed after all products.
    pub(crate) later: Spaced,
    /// What completed sums of threes have besides the products; nothing for others, and where there is more to add.
    pub(crate) beside: Option<BesidePoints>,
}

/// What the sums of threes have besides the products, point by point.
#[derive(Clone, Copy)]
pub(crate) struct BesidePoints {
    /// Of each row, `[rows]`; as far apart as A from point to point.
    pub(crate) rows: *const f32,
    /// Of each column, `[vectors · lanes]`, and the values from point to point.
    pub(crate) columns: *const f32,
    pub(crate) columns_step: usize,
    /// Factor of the products that are left, one for each point.
    pub(crate) factors: *const f32,
}

/// Evenly spaced rows: the first, the values between two, and how many.
#[derive(Clone, Copy)]
pub(crate) struct Spaced {
    pub(crate) first: *const f32,
    pub(crate) step: usize,
    pub(crate) count: usize,
}

/// Whether the three that begins with such a lane, of a vector with an odd index or an even one, meets with a minus.
#[inline(always)]
pub(crate) fn is_minus<S: Simd>(odd: bool, lane: usize) -> bool {
    let before = if odd { S::LANES / 3 } else { 0 };
    !(before + lane / 3).is_multiple_of(2)
}

struct BlockedTask<'a, const ROWS: usize, const VECTORS: usize, const KIND: u8>(&'a Blocked);

impl<const ROWS: usize, const VECTORS: usize, const KIND: u8> BlockedTask<'_, ROWS, VECTORS, KIND> {
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

    /// Adds the products of a vector of A's columns: threes while there are lanes for one, then what they leave. `ODD` is that of the
    /// vector's index, so that signs alternate. `ask` is told of each lane.
    ///
    /// # Safety
    /// `a` must be valid for ROWS vectors, `b` for LANES rows of `VECTORS · LANES` values.
    #[inline(always)]
    unsafe fn threes<S: Simd, const ODD: bool>(
        simd: S,
        a: *const f32,
        b: *const f32,
        sums: &mut [[S::V; VECTORS]; ROWS],
        ask: impl Fn(usize),
    ) {
        for lane in (0..S::LANES / 3 * 3).step_by(3) {
            // SAFETY: promised by the caller.
            unsafe {
                let (a, b) = (a.add(lane), b.add(lane * VECTORS * S::LANES));
                match is_minus::<S>(ODD, lane) {
                    true => Self::three::<S, true>(simd, a, b, sums),
                    false => Self::three::<S, false>(simd, a, b, sums),
                }
            }
            (lane..lane + 3).for_each(&ask);
        }
        for lane in S::LANES / 3 * 3..S::LANES {
            // SAFETY: promised by the caller.
            unsafe { Self::step(simd, a.add(lane), b.add(lane * VECTORS * S::LANES), sums) };
            ask(lane);
        }
    }

    /// Adds the products of three columns of A and three rows of B.
    ///
    /// # Safety
    /// `a` must be valid in steps of LANES for three values of ROWS rows, `b` for `3 · VECTORS · LANES` values.
    #[inline(always)]
    unsafe fn three<S: Simd, const MINUS: bool>(
        simd: S,
        a: *const f32,
        b: *const f32,
        sums: &mut [[S::V; VECTORS]; ROWS],
    ) {
        // SAFETY: promised by the caller.
        unsafe {
            let b: [[S::V; 3]; VECTORS] = std::array::from_fn(|v| {
                std::array::from_fn(|row| simd.load(b.add((row * VECTORS + v) * S::LANES)))
            });
            for (row, sums) in sums.iter_mut().enumerate() {
                for (sum, &b) in sums.iter_mut().zip(&b) {
                    *sum = simd.three::<MINUS>(a.add(row * S::LANES), size_of::<f32>(), b, *sum);
                }
            }
        }
    }

    /// One product.
    #[inline(always)]
    fn point<S: Simd>(&self, simd: S, point: usize) {
        let block = self.0;
        let [a_step, b_step, c_step] = block.point_steps.map(|step| point * step);
        let beside = block.beside.filter(|_| KIND == kind::THREES).map(|beside| BesidePoints {
            rows: beside.rows.wrapping_add(a_step),
            columns: beside.columns.wrapping_add(point * beside.columns_step),
            factors: beside.factors.wrapping_add(point),
            ..beside
        });
        let mut sums = [[simd.zero(); VECTORS]; ROWS];
        let (mut a, mut b) = (block.a.wrapping_add(a_step), block.b.wrapping_add(b_step));
        let (mut left, mut next) = (block.depth, block.next);
        let mut odd = false;
        while left > 0 {
            let count = left.min(S::LANES);
            if S::LANES < LINE {
                // A's next vectors are a stride away that the CPU does not foresee within so few products. At the end they are
                // about those of the next point.
                for line in (0..ROWS * S::LANES).step_by(LINE) {
                    simd.prefetch(a.wrapping_add(block.a_step + line));
                }
            }
            // SAFETY: each of ROWS rows has a vector at `a`, and the panel `count` more rows of `VECTORS · LANES`
            // values (promised by the caller of `MicroKernels::blocked`).
            unsafe {
                if KIND == kind::THREES && count == S::LANES {
                    let ask = |lane: usize| {
                        for line in (lane..block.lines).step_by(S::LANES) {
                            simd.prefetch_second(next.wrapping_add(line * LINE));
                        }
                    };
                    match odd {
                        true => Self::threes::<S, true>(simd, a, b, &mut sums, ask),
                        false => Self::threes::<S, false>(simd, a, b, &mut sums, ask),
                    }
                    odd = !odd;
                } else if count == S::LANES && block.lines >= S::LANES {
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
                let c = block.c.wrapping_add(c_step + row * block.c_step + v * S::LANES);
                // SAFETY: C has ROWS rows of `VECTORS · LANES` values, and what is taken off as many rows and columns.
                unsafe {
                    let mut sum = if block.add { simd.add(simd.load(c), sum) } else { sum };
                    if let Some(beside) = beside {
                        let without = simd.sub(sum, simd.load(beside.columns.add(v * S::LANES)));
                        let without = simd.sub(without, simd.splat(*beside.rows.add(row)));
                        sum = simd.mul(without, simd.splat(*beside.factors));
                    }
                    simd.store(c, sum);
                }
            }
        }
    }
}

impl<const ROWS: usize, const VECTORS: usize, const KIND: u8> Task for BlockedTask<'_, ROWS, VECTORS, KIND> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Spaced { first, step, count } = self.0.later;
        for row in 0..count {
            ask(simd, first.wrapping_add(row * step), VECTORS * S::LANES);
        }
        for point in 0..self.0.points {
            self.point(simd, point);
        }
    }
}

/// # Safety
/// The CPU has `S`'s instructions, and the block is as `MicroKernels::blocked` demands.
pub(super) unsafe fn blocked<S: Simd, const ROWS: usize, const VECTORS: usize, const KIND: u8>(
    block: &Blocked,
) {
    // SAFETY: the caller promises that the CPU has the instructions.
    unsafe { S::assume() }.run(BlockedTask::<ROWS, VECTORS, KIND>(block))
}
