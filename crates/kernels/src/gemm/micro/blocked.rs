//! A block whose A stands in vectors.

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
}

/// Evenly spaced rows: the first, the values between two, and how many.
#[derive(Clone, Copy)]
pub(crate) struct Spaced {
    pub(crate) first: *const f32,
    pub(crate) step: usize,
    pub(crate) count: usize,
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

    /// One product.
    #[inline(always)]
    fn point<S: Simd>(&self, simd: S, point: usize) {
        let block = self.0;
        let [a_step, b_step, c_step] = block.point_steps.map(|step| point * step);
        let mut sums = [[simd.zero(); VECTORS]; ROWS];
        let (mut a, mut b) = (block.a.wrapping_add(a_step), block.b.wrapping_add(b_step));
        let (mut left, mut next) = (block.depth, block.next);
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
                let c = block.c.wrapping_add(c_step + row * block.c_step + v * S::LANES);
                // SAFETY: C has ROWS rows of `VECTORS · LANES` values.
                unsafe { simd.store(c, if block.add { simd.add(simd.load(c), sum) } else { sum }) };
            }
        }
    }
}

impl<const ROWS: usize, const VECTORS: usize> Task for BlockedTask<'_, ROWS, VECTORS> {
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
pub(super) unsafe fn blocked<S: Simd, const ROWS: usize, const VECTORS: usize>(block: &Blocked) {
    // SAFETY: the caller promises that the CPU has the instructions.
    unsafe { S::assume() }.run(BlockedTask::<ROWS, VECTORS>(block))
}
