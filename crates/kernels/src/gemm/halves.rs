//! Products of bf16: rows of A are rounded into pairs while they are gathered, a chunk at a time for all panels of B that a
//! task multiplies them by.

use super::driver::{Product, TASKS};
use super::micro::{Gathered, MAX_ROWS};
use super::pack::{Panel, panels};
use super::row_step;
use crate::Context;
use crate::bf16::Operands;
use crate::buffer::Aligned;
use crate::parallel::{SharedMut, with_free};
use crate::simd::{Simd, Task};
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

/// Values of A's rows that are multiplied before the next ones, an even number: as pairs, 2048 rows of B by 64 columns are a
/// quarter of a 1 MiB L2 cache.
const DEPTH: usize = 2048;

/// Pairs of a chunk of A's rows: another quarter.
const CHUNK: usize = 1 << 16;

/// Blocks of rows of a chunk, at least and at most.
const BLOCKS: [usize; 2] = [8, 48];

/// Rows of a chunk at most.
const MAX_CHUNK: usize = BLOCKS[1] * MAX_ROWS;

/// Rows of A as pairs, for each thread, reused from one product to the next.
#[derive(Debug, Default)]
pub(crate) struct HalvesScratch(Vec<Mutex<Aligned>>);

/// What a task of a product does.
struct Piece<'a> {
    /// Rows of A and C.
    rows: Range<usize>,
    /// Values of A's rows, and rows of B.
    depth: Range<usize>,
    /// Where A's rows stand as pairs.
    pairs: *const f32,
    /// Where C's rows begin.
    targets: &'a [usize],
    out: &'a SharedMut<f32>,
}

impl Product<'_> {
    /// [`run`](Product::run), where B holds bf16; the arguments were checked.
    pub(super) fn run_halves(&self, cx: &Context, scratch: &mut HalvesScratch, c: &mut [f32]) {
        let rows = self.images * self.gather.rows_per_image();
        let whole = self.gather.taps() * self.gather.depth();
        let panels = panels(cx.level(), self.b.columns());
        let Some(widest) = panels.clone().next() else { return };
        let block = cx.level().kernels(Operands::Bf16).max_rows(widest.vectors);
        let step = row_step(whole.min(DEPTH).div_ceil(2));
        let most = (CHUNK / step.max(1)).clamp(BLOCKS[0] * block, BLOCKS[1] * block);
        let chunk = rows.div_ceil(TASKS).clamp(BLOCKS[0] * block, most).next_multiple_of(block);
        let chunks = rows.div_ceil(chunk);
        // All panels in one task, if there are enough: A's rows are then rounded once.
        let groups = TASKS.div_ceil(chunks.max(1)).clamp(1, panels.len());
        let HalvesScratch(own) = scratch;
        if own.len() < cx.pool().available() {
            own.resize_with(cx.pool().available(), Mutex::default);
        }
        // Whichever threads take part later, nothing is allocated then.
        let room = chunk.min(rows) * step;
        own.iter_mut().for_each(|pairs| pairs.get_mut().unwrap_or_else(PoisonError::into_inner).grow(room));
        let out = SharedMut(c.as_mut_ptr());
        cx.pool().run(chunks * groups, |task| {
            let (from, group) = (task / groups * chunk, task % groups);
            let rows = from..rows.min(from + chunk);
            let own_panels = panels.len() * group / groups..panels.len() * (group + 1) / groups;
            let panels = panels.clone().skip(own_panels.start).take(own_panels.len());
            let mut targets = [0; MAX_CHUNK];
            let mut position = self.gather.position(rows.start);
            for target in &mut targets[..rows.len()] {
                *target = self.scatter.offset(&position);
                self.gather.advance(&mut position);
            }
            with_free(own, |pairs| {
                assert!(pairs.len() >= rows.len() * step, "room for pairs");
                let mut depth = 0..whole.min(DEPTH);
                loop {
                    let (rows, input) = (rows.clone(), self.input.as_ptr().wrapping_add(self.offset));
                    let to = pairs.as_mut_ptr();
                    // SAFETY: `check` holds for the input, and there is room for the rows.
                    unsafe { round(cx, self, input, (rows.clone(), depth.clone()), to, step) };
                    let targets = &targets[..rows.len()];
                    let piece = Piece { rows, depth: depth.clone(), pairs: to, targets, out: &out };
                    panels.clone().for_each(|panel| self.panel(cx, &panel, &piece, step));
                    if depth.end == whole {
                        break;
                    }
                    depth = depth.end..whole.min(depth.end + DEPTH);
                }
            });
        });
    }

    /// One panel of the columns for a piece.
    fn panel(&self, cx: &Context, panel: &Panel, piece: &Piece, step: usize) {
        let kernels = cx.level().kernels(Operands::Bf16);
        let tallest = kernels.max_rows(panel.vectors);
        let column = self.column + panel.column;
        let whole = self.gather.taps() * self.gather.depth();
        let last = piece.depth.end == whole;
        let bias = self.epilogue.bias.filter(|_| last);
        let residual = self.epilogue.other().filter(|_| last);
        let added = residual.map_or(std::ptr::null(), <[f32]>::as_ptr);
        let mut pointers = [std::ptr::null(); MAX_ROWS];
        let mut targets = [std::ptr::null_mut(); MAX_ROWS];
        let mut residuals = [std::ptr::null(); MAX_ROWS];
        for start in (0..piece.rows.len()).step_by(tallest) {
            let height = tallest.min(piece.rows.len() - start);
            for row in 0..height {
                let at = piece.targets[start + row] + column;
                pointers[row] = piece.pairs.wrapping_add((start + row) * step);
                targets[row] = piece.out.get().wrapping_add(at);
                residuals[row] = added.wrapping_add(at);
            }
            let arguments = Gathered {
                a: pointers.as_ptr(),
                taps: 1,
                skip: 0,
                depth: piece.depth.len().div_ceil(2),
                ahead: 0,
                b: self.b.panel_row(panel, piece.depth.start / 2),
                c: targets.as_ptr(),
                columns: panel.columns,
                accumulate: piece.depth.start > 0 || self.epilogue.in_place(),
                bias: bias.map_or(std::ptr::null(), |bias| bias[column..].as_ptr()),
                residual: if residual.is_some() { residuals.as_ptr() } else { std::ptr::null() },
                relu: self.epilogue.relu && last,
            };
            // SAFETY: the pairs were written for each row; `check` holds, so that targets stay in C, the panel has a row for
            // each pair, bias and residual are long enough. Tasks own disjoint rows and columns of C, because `scatter` is
            // injective.
            unsafe { kernels.gathered(panel.vectors, height, &arguments) };
        }
    }
}

/// Rounds rows of A, `step` values apart, into pairs.
///
/// # Safety
/// `input` must be valid as the gather demands, `to` for writes of `step` values a row.
unsafe fn round(
    cx: &Context,
    product: &Product,
    input: *const f32,
    (rows, depth): (Range<usize>, Range<usize>),
    to: *mut f32,
    step: usize,
) {
    cx.level().run_halves(Round { product, input, rows, depth, to, step });
}

struct Round<'a> {
    product: &'a Product<'a>,
    input: *const f32,
    rows: Range<usize>,
    depth: Range<usize>,
    to: *mut f32,
    step: usize,
}

impl Task for Round<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let gather = self.product.gather;
        let (rows, wanted) = (self.rows, self.depth);
        let each = gather.depth();
        let taps = wanted.start / each..wanted.end.div_ceil(each);
        let mut position = gather.position(rows.start);
        for row in 0..rows.len() {
            let to = self.to.wrapping_add(row * self.step);
            // Where a row's parts do not begin with a pair, its last value waits for the next part's first.
            let mut waiting = None;
            gather.pointers(self.input, &position, taps.start, taps.len(), |tap, from| {
                let first = (taps.start + tap) * each;
                let part = wanted.start.max(first)..wanted.end.min(first + each);
                let (mut from, mut at, mut count) =
                    (from.wrapping_add(part.start - first), part.start - wanted.start, part.len());
                // SAFETY: the part is one of a row that the gather made; `to` has room for all of the row's pairs.
                unsafe {
                    if let Some(before) = waiting.take() {
                        *to.add(at / 2) = crate::bf16::pair(before, *from);
                        (from, at, count) = (from.add(1), at + 1, count - 1);
                    }
                    simd.narrow(from, to.add(at / 2), count);
                    waiting = (!count.is_multiple_of(2)).then(|| *from.add(count - 1));
                }
            });
            gather.advance(&mut position);
        }
    }
}
