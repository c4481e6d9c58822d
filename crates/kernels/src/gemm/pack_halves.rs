//! Rows and columns of a matrix as pairs of bf16 in a panel.

use super::pack::Panel;
use crate::simd::{Simd, Task};
use std::ops::Range;

/// Packs pairs of rows.
pub(super) struct PackRows<'a, F> {
    /// The matrix's rows.
    pub(super) row: &'a F,
    /// Their number.
    pub(super) depth: usize,
    /// First pair that is packed.
    pub(super) first: usize,
    pub(super) panel: Panel,
    /// Rows of pairs, each `width` long.
    pub(super) packed: &'a mut [f32],
    pub(super) width: usize,
}

impl<'b, F: Fn(usize) -> &'b [f32]> Task for PackRows<'_, F> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let PackRows { row, depth, first, panel, packed, width } = self;
        let zeros = [0.0; 128];
        for (pair, to) in packed.chunks_exact_mut(width).enumerate() {
            let (to, padding) = to.split_at_mut(panel.columns);
            let part = |k: usize| match k < depth {
                true => &row(k)[panel.column..][..to.len()],
                false => &zeros[..to.len()],
            };
            let rows = [part(2 * (first + pair)), part(2 * (first + pair) + 1)];
            // SAFETY: both rows are as long as `to`.
            unsafe { simd.narrow_pairs(rows.map(<[f32]>::as_ptr), to.as_mut_ptr(), to.len()) };
            padding.fill(0.0);
        }
    }
}

/// Packs rows that are given by columns, in blocks of `length` rows.
pub(super) struct PackColumns<'a, F> {
    /// The part of a column within a block.
    pub(super) column: &'a F,
    pub(super) length: usize,
    /// Rows that are packed, from an even one on.
    pub(super) rows: Range<usize>,
    pub(super) panel: Panel,
    /// Rows of pairs, each `width` long.
    pub(super) packed: &'a mut [f32],
    pub(super) width: usize,
}

/// Pairs that are rounded at once.
const PAIRS: usize = 64;

impl<'b, F: Fn(usize, usize) -> &'b [f32]> Task for PackColumns<'_, F> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let PackColumns { column, length, rows, panel, packed, width } = self;
        let mut values = [0.0f32; 2 * PAIRS];
        let mut pairs = [0.0f32; PAIRS];
        for j in 0..panel.columns {
            let column = |block: usize| column(block, panel.column + j);
            let mut to = packed[j..].iter_mut().step_by(width);
            let mut k = rows.start;
            while k < rows.end {
                let count = (2 * PAIRS).min(rows.end - k);
                let (block, from) = (k / length, k % length);
                let values = if from + count <= length {
                    &column(block)[from..from + count]
                } else {
                    for (k, value) in (k..k + count).zip(&mut values) {
                        *value = column(k / length)[k % length];
                    }
                    &values[..count]
                };
                // SAFETY: there are at most `2 · PAIRS` values.
                unsafe { simd.narrow(values.as_ptr(), pairs.as_mut_ptr(), count) };
                pairs[..count.div_ceil(2)].iter().zip(&mut to).for_each(|(&pair, to)| *to = pair);
                k += count;
            }
        }
        packed.chunks_exact_mut(width).for_each(|row| row[panel.columns..].fill(0.0));
    }
}
