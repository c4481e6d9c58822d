//! Matrices rearranged into the panels that the micro-kernels read.

use super::driver::DEPTH_BLOCK;
use super::micro::BesideProducts;
use super::pack_halves::{PackColumns, PackRows};
use super::threes;
use crate::bf16::Operands;
use crate::buffer::{Aligned, LINE};
use crate::parallel::SharedMut;
use crate::transpose::{square_of, transpose};
use crate::{Context, Level};
use std::ops::Range;

/// A `depth × columns` matrix cut into panels of a few vectors of columns each, for the level that packed it.
///
/// Panel by panel, its values stand in the order `[depth][vectors · lanes]`; missing columns of the last vector are 0. As
/// bf16, two rows are one of pairs; a missing last row is 0.
#[derive(Debug, Clone)]
pub struct PackedMatrix {
    level: Level,
    operands: Operands,
    depth: usize,
    columns: usize,
    values: Aligned,
    /// What the values were multiplied by: a power of two, of threes alone.
    factor: f32,
    /// What the columns bring with them, of threes alone, for each block of rows.
    sums: Aligned,
}

/// One panel of a [`PackedMatrix`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Panel {
    /// First column.
    pub(crate) column: usize,
    /// Columns that exist.
    pub(crate) columns: usize,
    /// Vectors of columns, the last one possibly partial.
    pub(crate) vectors: usize,
    /// Vectors of columns in the panels before.
    first_vector: usize,
}

/// The panels of `columns` columns at `level`: as wide as the micro-kernels for such operands take, the rest in the last one.
pub(crate) fn panels(
    level: Level,
    operands: Operands,
    columns: usize,
) -> impl ExactSizeIterator<Item = Panel> + Clone {
    narrow_panels(level, columns, level.kernels(operands).max_vectors())
}

/// The same, of at most `widest` vectors.
pub(crate) fn narrow_panels(
    level: Level,
    columns: usize,
    widest: usize,
) -> impl ExactSizeIterator<Item = Panel> + Clone {
    let lanes = level.micro_kernels().lanes;
    let vectors = columns.div_ceil(lanes);
    (0..vectors.div_ceil(widest)).map(move |panel| {
        let first_vector = panel * widest;
        let column = first_vector * lanes;
        let vectors = widest.min(vectors - first_vector);
        Panel { column, columns: (vectors * lanes).min(columns - column), vectors, first_vector }
    })
}

/// Multiplies values that were packed just now.
fn scale(packed: &mut [f32], factor: f32) {
    if factor != 1.0 {
        packed.iter_mut().for_each(|value| *value *= factor);
    }
}

/// Rows of a panel that a thread packs at a time.
const ROWS: usize = 256;

impl PackedMatrix {
    /// A matrix without values.
    pub(crate) fn empty(level: Level) -> Self {
        PackedMatrix {
            level,
            operands: Operands::F32,
            depth: 0,
            columns: 0,
            values: Aligned::default(),
            factor: 1.0,
            sums: Aligned::default(),
        }
    }

    /// A matrix of zeros.
    pub fn zeros(level: Level, depth: usize, columns: usize) -> Self {
        let mut packed = PackedMatrix::empty(level);
        packed.reset(level, Operands::F32, depth, columns);
        packed
    }

    /// Packs the matrix whose value at row `k`, column `j` is `value(k, j)`.
    pub fn new(level: Level, depth: usize, columns: usize, value: impl Fn(usize, usize) -> f32) -> Self {
        let mut packed = PackedMatrix::zeros(level, depth, columns);
        let lanes = level.micro_kernels().lanes;
        let mut rest = packed.values.values_mut();
        for panel in panels(level, Operands::F32, columns) {
            let width = panel.vectors * lanes;
            let (values, tail) = rest.split_at_mut(depth * width);
            for (k, row) in values.chunks_exact_mut(width).enumerate() {
                for (j, to) in row[..panel.columns].iter_mut().enumerate() {
                    *to = value(k, panel.column + j);
                }
            }
            rest = tail;
        }
        packed
    }

    /// Becomes a matrix of another size, to be filled, in the same memory where that is large enough.
    pub(crate) fn reset(&mut self, level: Level, operands: Operands, depth: usize, columns: usize) {
        (self.level, self.operands, self.depth, self.columns) = (level, operands, depth, columns);
        self.factor = 1.0;
        let columns = columns.next_multiple_of(level.micro_kernels().lanes);
        self.values.reset(self.stored_rows() * columns);
        if operands == Operands::Threes {
            self.sums.reset(depth.div_ceil(DEPTH_BLOCK).max(1) * columns);
        }
    }

    /// Has all values multiplied by such a power of two when they are filled in; products take it back.
    pub(crate) fn scale(&mut self, factor: f32) {
        assert!(self.operands == Operands::Threes || factor == 1.0, "operands that are not scaled");
        self.factor = factor;
    }

    /// Sums what the columns bring with them, where threes will take it off.
    fn sum(&mut self, cx: &Context) {
        if self.operands == Operands::Threes {
            let mut sums = std::mem::take(&mut self.sums);
            let panels = panels(self.level, self.operands, self.columns);
            threes::of_columns(cx, self, panels, sums.values_mut());
            self.sums = sums;
        }
    }

    /// What threes take off in a panel and in rows that bring `rows` with them, for the block from B's row `row` on.
    pub(super) fn beside_products(&self, panel: &Panel, row: usize, rows: &[f32]) -> Option<BesideProducts> {
        let columns = self.columns.next_multiple_of(self.level.micro_kernels().lanes);
        (self.operands == Operands::Threes).then(|| BesideProducts {
            rows: rows.as_ptr(),
            columns: self.sums.values()[row / DEPTH_BLOCK * columns + panel.column..].as_ptr(),
            factor: 1.0 / self.factor,
        })
    }

    /// Makes room for a matrix that [settles](Self::settle) in large pages.
    pub(crate) fn reserve_large_pages(&mut self, depth: usize, columns: usize) {
        let columns = columns.next_multiple_of(self.level.micro_kernels().lanes);
        self.values = Aligned::zeros_for_large_pages(depth * columns);
    }

    /// As [`Aligned::settle`].
    pub(crate) fn settle(&self) {
        self.values.settle();
    }

    /// Rows as they are stored, one or two to a row of the matrix.
    fn stored_rows(&self) -> usize {
        match self.operands {
            Operands::F32 | Operands::Threes => self.depth,
            Operands::Bf16 => self.depth.div_ceil(2),
        }
    }

    /// Fills the stored rows of all panels, `each` at a time, on all threads; `fill` gets a panel, which of its rows these are,
    /// their values, and how many a row has.
    fn fill(
        &mut self,
        cx: &Context,
        each: usize,
        fill: impl Fn(Panel, Range<usize>, &mut [f32], usize) + Sync,
    ) {
        let (stored, lanes) = (self.stored_rows(), self.level.micro_kernels().lanes);
        let (panels, pieces) = (panels(self.level, self.operands, self.columns), stored.div_ceil(each));
        let values = SharedMut(self.values.as_mut_ptr());
        cx.pool().run(panels.len() * pieces, |task| {
            let Some(panel) = panels.clone().nth(task / pieces) else { return };
            let rows = task % pieces * each..stored.min((task % pieces + 1) * each);
            let width = panel.vectors * lanes;
            let start = panel.first_vector * lanes * stored + rows.start * width;
            // SAFETY: the panels' rows are disjoint and lie within `values`.
            let packed =
                unsafe { std::slice::from_raw_parts_mut(values.get().add(start), rows.len() * width) };
            fill(panel, rows, packed, width);
        });
    }

    /// Replaces row `k` by `row(k)`, on all threads.
    ///
    /// # Panics
    /// When a row is shorter than the matrix is wide.
    pub fn refill_rows<'a>(&mut self, cx: &Context, row: impl Fn(usize) -> &'a [f32] + Sync) {
        let (level, operands, depth, factor) = (self.level, self.operands, self.depth, self.factor);
        self.fill(cx, ROWS, |panel, rows, packed, width| {
            if operands == Operands::Bf16 {
                let (row, first) = (&row, rows.start);
                return level.run_halves(PackRows { row, depth, first, panel, packed, width });
            }
            for (to, k) in packed.chunks_exact_mut(width).zip(rows) {
                let (columns, padding) = to.split_at_mut(panel.columns);
                columns.copy_from_slice(&row(k)[panel.column..][..panel.columns]);
                padding.fill(0.0);
            }
            scale(packed, factor);
        });
        self.sum(cx);
    }

    /// Replaces the rows from `block · length` on in column `j` by the `length` values of `column(block, j)`, on all threads.
    ///
    /// # Panics
    /// When the rows are no whole number of blocks, or a column is shorter than a block.
    pub(crate) fn refill_columns<'a>(
        &mut self,
        cx: &Context,
        length: usize,
        column: impl Fn(usize, usize) -> &'a [f32] + Sync,
    ) {
        let (depth, lanes) = (self.depth, self.level.micro_kernels().lanes);
        assert!(depth.is_multiple_of(length.max(1)), "rows of the matrix");
        if self.operands == Operands::Bf16 {
            // A pair may stand in two blocks.
            let level = self.level;
            return self.fill(cx, ROWS, |panel, pairs, packed, width| {
                let rows = 2 * pairs.start..depth.min(2 * pairs.end);
                level.run_halves(PackColumns { column: &column, length, rows, panel, packed, width });
            });
        }
        let (panels, pieces) = (panels(self.level, self.operands, self.columns), length.div_ceil(ROWS));
        let factor = self.factor;
        let blocks = depth.checked_div(length).unwrap_or(0);
        let values = SharedMut(self.values.as_mut_ptr());
        cx.pool().run(panels.len() * blocks * pieces, |task| {
            let Some(panel) = panels.clone().nth(task / (blocks * pieces)) else { return };
            let (block, piece) = (task / pieces % blocks, task % pieces);
            let rows = piece * ROWS..length.min((piece + 1) * ROWS);
            let width = panel.vectors * lanes;
            let start = panel.first_vector * lanes * depth + (block * length + rows.start) * width;
            // SAFETY: the panels' rows are disjoint and lie within `values`.
            let packed =
                unsafe { std::slice::from_raw_parts_mut(values.get().add(start), rows.len() * width) };
            // Squares of a line's width: each line of the columns is read once, and rows are written by lines.
            for first in (0..panel.columns).step_by(LINE) {
                let count = LINE.min(panel.columns - first);
                for (start, packed) in rows.clone().step_by(LINE).zip(packed.chunks_mut(LINE * width)) {
                    let length = packed.len() / width;
                    let lines = square_of([count, length], |line| {
                        &column(block, panel.column + first + line)[start..]
                    });
                    let rows = transpose(&lines);
                    for (packed, row) in packed.chunks_exact_mut(width).zip(&rows) {
                        match packed[first..].first_chunk_mut() {
                            Some(to) => *to = *row,
                            None => packed[first..].copy_from_slice(&row[..width - first]),
                        }
                    }
                }
            }
            scale(packed, factor);
        });
        self.sum(cx);
    }

    /// How the values are stored.
    pub(crate) fn operands(&self) -> Operands {
        self.operands
    }

    /// The level that packed the matrix.
    pub fn level(&self) -> Level {
        self.level
    }

    /// Number of rows.
    pub fn depth(&self) -> usize {
        self.depth
    }

    /// Number of columns.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Pointer to stored row `k` of a panel, valid for reads to the panel's last row.
    pub(crate) fn panel_row(&self, panel: &Panel, k: usize) -> *const f32 {
        let lanes = self.level.micro_kernels().lanes;
        let at = (panel.first_vector * self.stored_rows() + panel.vectors * k) * lanes;
        debug_assert!(at <= self.values.len());
        self.values.as_ptr().wrapping_add(at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_stands_in_its_panel() {
        for level in Level::available() {
            let lanes = level.micro_kernels().lanes;
            for columns in [1, lanes - 1, lanes, 3 * lanes + 1, 9 * lanes] {
                let value = |k: usize, j: usize| (k * 1000 + j + 1) as f32;
                let matrix: Vec<f32> = (0..5 * columns).map(|at| value(at / columns, at % columns)).collect();
                let by_value = PackedMatrix::new(level, 5, columns, value);
                let mut by_rows = PackedMatrix::zeros(level, 5, columns);
                by_rows.refill_rows(&Context::new(level, 2), |k| &matrix[k * columns..]);
                // Memory that another matrix has left.
                let mut by_columns = PackedMatrix::new(level, 17, columns + 70, |_, _| f32::NAN);
                by_columns.reset(level, Operands::F32, 6, columns);
                let columns_of: Vec<f32> = (0..6 * columns).map(|at| value(at % 6, at / 6)).collect();
                by_columns
                    .refill_columns(&Context::new(level, 2), 3, |block, j| &columns_of[6 * j + 3 * block..]);
                assert_eq!(
                    panels(level, Operands::F32, columns).map(|panel| panel.columns).sum::<usize>(),
                    columns
                );
                for panel in panels(level, Operands::F32, columns) {
                    for k in 0..5 {
                        for j in 0..panel.vectors * lanes {
                            let expected = if j < panel.columns { value(k, panel.column + j) } else { 0.0 };
                            for packed in [&by_value, &by_rows, &by_columns] {
                                // SAFETY: row `k` of the panel holds `vectors · lanes` values.
                                let found = unsafe { *packed.panel_row(&panel, k).add(j) };
                                assert_eq!(found, expected);
                            }
                        }
                    }
                }
            }
        }
    }
}
