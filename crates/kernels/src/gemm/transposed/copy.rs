//! Rows that are copied before they meet: as they are, or two of them to one of pairs.

use crate::prologue::Prologue;
use crate::simd::{Simd, Task};
use crate::vector::look_ahead;

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
        let nothing = [0.0; PIECE];
        let mut through = [[0.0; PIECE]; 2];
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
                let mut from = [nothing.as_ptr(); 2];
                for ((row, piece), from) in rows.iter().zip(&mut through).zip(&mut from) {
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
