//! Rows that are copied before they meet: as they are, two of them to one of pairs, or with what threes take off.

use crate::buffer::InLines;
use crate::gemm::micro::threes::STEP;
use crate::prologue::Prologue;
use crate::simd::{Simd, Task};
use crate::vector::{load_first, look_ahead};

/// A row that is copied.
pub(super) struct Row<'a> {
    pub(super) from: *const f32,
    /// What it goes through, and the channel of its first value.
    pub(super) through: Option<(Prologue<'a>, usize)>,
}

/// Copies rows of `width` values to rows that are `step` values apart.
pub(super) struct Copy<F> {
    pub(super) rows: usize,
    pub(super) width: usize,
    pub(super) source: F,
    pub(super) to: *mut f32,
    pub(super) step: usize,
}

impl<'a, F: Fn(usize) -> Row<'a>> Task for Copy<F> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let whole = self.width / S::LANES * S::LANES;
        for row in 0..self.rows {
            let (Row { from, through }, to) = ((self.source)(row), self.to.wrapping_add(row * self.step));
            look_ahead(simd, from, self.width);
            // SAFETY: the rows are promised by the caller of `TransposedProduct::copy`, which has checked the room; of a last vector
            // that is written whole, nobody reads the rest.
            unsafe {
                if let Some((prologue, channel)) = through {
                    prologue.run(simd, from, channel, to, self.width);
                    continue;
                }
                for at in (0..whole).step_by(S::LANES) {
                    simd.store(to.add(at), simd.load(from.add(at)));
                }
                if whole < self.width {
                    simd.store(to.add(whole), simd.load_partial(from.add(whole), self.width - whole));
                }
            }
        }
    }
}

/// The same with two rows to one of pairs; an odd last row meets zeros.
pub(super) struct CopyPairs<F>(pub(super) Copy<F>);

/// Values of two rows that go through a prologue before they become pairs.
const PIECE: usize = 128;

impl<'a, F: Fn(usize) -> Row<'a>> Task for CopyPairs<F> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Copy { rows, width, source, to, step } = self.0;
        let nothing = InLines([0.0; PIECE]);
        let mut through = InLines([[0.0; PIECE]; 2]);
        for pair in 0..rows.div_ceil(2) {
            let to = to.wrapping_add(pair * step);
            let first = source(2 * pair);
            let second = (2 * pair + 1 < rows).then(|| source(2 * pair + 1));
            let rows = [Some(first), second];
            rows.iter().flatten().for_each(|row| look_ahead(simd, row.from, width));
            if let [Some(Row { from: a, through: None }), Some(Row { from: b, through: None })] = rows {
                // SAFETY: as for `Copy`.
                unsafe { simd.narrow_pairs([a, b], to, width) };
                continue;
            }
            for at in (0..width).step_by(PIECE) {
                let count = PIECE.min(width - at);
                let mut from = [nothing.0.as_ptr(); 2];
                for ((row, piece), from) in rows.iter().zip(&mut through.0).zip(&mut from) {
                    let Some(row) = row else { continue };
                    *from = row.from.wrapping_add(at);
                    if let Some((prologue, channel)) = row.through {
                        // SAFETY: as for `Copy`, and a piece has room for PIECE values.
                        unsafe { prologue.run(simd, *from, channel + at, piece.as_mut_ptr(), count) };
                        *from = piece.as_ptr();
                    }
                }
                // SAFETY: as for `Copy`.
                unsafe { simd.narrow_pairs(from, to.wrapping_add(at), count) };
            }
        }
    }
}

/// The same for threes: rows are multiplied by a power of two, and behind them goes one of the sums of the products of each two that
/// will be added.
pub(super) struct CopyForThrees<F> {
    pub(super) copy: Copy<F>,
    pub(super) factor: f32,
}

impl<'a, F: Fn(usize) -> Row<'a>> Task for CopyForThrees<F> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let CopyForThrees { copy: Copy { rows, width, source, to, step }, factor } = self;
        let factor = simd.splat(factor);
        let sums = to.wrapping_add(rows * step);
        let whole = rows / STEP * STEP;
        for at in (0..width).step_by(S::LANES) {
            // SAFETY: as for `Copy`, with room for one row more, of whole vectors.
            unsafe { simd.store(sums.add(at), simd.zero()) };
        }
        for first in (0..rows).step_by(3) {
            let three: [Option<Row>; 3] =
                std::array::from_fn(|index| (first + index < rows).then(|| source(first + index)));
            three.iter().flatten().for_each(|row| look_ahead(simd, row.from, width));
            for at in (0..width).step_by(S::LANES) {
                let lanes = S::LANES.min(width - at);
                let mut values = [simd.zero(); 3];
                for (index, (row, value)) in three.iter().zip(&mut values).enumerate() {
                    let Some(Row { from, through }) = row else { continue };
                    // SAFETY: as for `Copy`; of a last vector that is written whole, nobody reads the rest.
                    unsafe {
                        let mut read = load_first(simd, from.add(at), lanes);
                        if let Some((prologue, channel)) = through {
                            read = prologue.vector(simd, read, channel + at, lanes);
                        }
                        *value = simd.mul(read, factor);
                        simd.store(to.add((first + index) * step + at), *value);
                    }
                }
                if first >= whole {
                    continue;
                }
                // SAFETY: the row of sums has whole vectors.
                unsafe {
                    let (sums, [a, b, _]) = (sums.add(at), values);
                    let sum = simd.load(sums);
                    let minus = !first.is_multiple_of(STEP);
                    let sum = if minus { simd.mul_sub_from(a, b, sum) } else { simd.mul_add(a, b, sum) };
                    simd.store(sums, sum);
                }
            }
        }
    }
}
