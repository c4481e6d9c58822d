//! Products whose rows of A are not multiplied as they stand: they go through a prologue, or are rounded into pairs of bf16, or
//! both, while they are gathered, a chunk at a time for all panels of B that a task multiplies them by.

use super::driver::{Coming, DEPTH_BLOCK, Part, Product, Rows, TASKS, Targets};
use super::heights::Heights;
use super::micro::MAX_ROWS;
use super::pack::{Panel, panels};
use super::{row_step, threes};
use crate::Context;
use crate::bf16::Operands;
use crate::buffer::{Aligned, InLines};
use crate::parallel::{SharedMut, Space, with_free};
use crate::prologue::Prologue;
use crate::simd::{Simd, Task};
use crate::vector::look_ahead;
use std::ops::Range;

/// Prepared values, or pairs, of a chunk of A's rows: a quarter of a 1 MiB L2 cache, as a block of B is.
const CHUNK: usize = 1 << 16;

/// Blocks of rows of a chunk, at least and at most.
const BLOCKS: [usize; 2] = [8, 48];

/// Rows of a chunk at most.
const MAX_CHUNK: usize = BLOCKS[1] * MAX_ROWS;

/// Values that go through a prologue before they are rounded.
const PIECE: usize = 256;

/// Prepared rows of A, for each thread, reused from one product to the next.
#[derive(Debug, Default)]
pub(crate) struct PreparedScratch(Vec<Space<Aligned>>);

impl Operands {
    /// How many operands stand in the bits of an `f32`.
    pub(super) fn together(self) -> usize {
        match self {
            Operands::F32 | Operands::Threes => 1,
            Operands::Bf16 => 2,
        }
    }
}

impl Product<'_> {
    /// [`run`](Product::run), where A's rows are prepared first; the arguments were checked.
    pub(super) fn run_prepared(&self, cx: &Context, scratch: &mut PreparedScratch, c: &mut [f32]) {
        let operands = self.b.operands();
        let rows = self.images * self.gather.rows_per_image();
        let whole = self.gather.taps() * self.gather.depth();
        let panels = panels(cx.level(), operands, self.b.columns());
        let Some(widest) = panels.clone().next() else { return };
        let block = cx.level().kernels(operands).max_rows(widest.vectors);
        // Of A's rows, before the next values.
        let length = DEPTH_BLOCK * operands.together();
        let step = row_step(whole.min(length).div_ceil(operands.together()));
        let most = (CHUNK / step.max(1)).clamp(BLOCKS[0] * block, BLOCKS[1] * block);
        let chunk = rows.div_ceil(TASKS).clamp(BLOCKS[0] * block, most).next_multiple_of(block);
        let chunks = rows.div_ceil(chunk);
        // All panels in one task, if there are enough: A's rows are then prepared once.
        let groups = TASKS.div_ceil(chunks.max(1)).clamp(1, panels.len());
        let own = Space::for_threads(&mut scratch.0, cx.pool().available());
        // Whichever threads take part later, nothing is allocated then.
        let room = chunk.min(rows) * step;
        own.iter_mut().for_each(|rows| rows.get_mut().grow(room));
        let out = SharedMut(c.as_mut_ptr());
        cx.pool().run(chunks * groups, |task| {
            let group = task % groups;
            let of = |task: usize| (task / groups * chunk).min(rows)..rows.min((task / groups + 1) * chunk);
            // Threads take tasks in turn.
            let (rows, next) = (of(task), of(task + cx.pool().available()));
            let coming = if next == rows { Coming::NOTHING } else { self.coming_rows(next) };
            let own_panels = panels.len() * group / groups..panels.len() * (group + 1) / groups;
            let panels = panels.clone().skip(own_panels.start).take(own_panels.len());
            let near = Heights::new(panels.len(), self.near(cx, widest));
            let mut targets = [0; MAX_CHUNK];
            let mut position = self.gather.position(rows.start);
            for target in &mut targets[..rows.len()] {
                *target = self.scatter.offset(&position);
                self.gather.advance(&mut position);
            }
            let targets = &targets[..rows.len()];
            let first = rows.start;
            let mut sums = [0.0; MAX_CHUNK];
            with_free(own, |prepared| {
                assert!(prepared.len() >= rows.len() * step, "room for prepared rows");
                let mut depth = 0..whole.min(length);
                loop {
                    let (rows, depth_here) = (rows.clone(), depth.clone());
                    let to = prepared.as_mut_ptr();
                    let prepare =
                        Prepare { product: self, rows, depth: depth_here, to, step, sums: &mut sums };
                    match operands {
                        Operands::F32 | Operands::Threes => cx.level().run(prepare),
                        Operands::Bf16 => cx.level().run_halves(prepare),
                    }
                    let part = Part {
                        taps: 1,
                        skip: 0,
                        depth: depth.len().div_ceil(operands.together()),
                        row: depth.start / operands.together(),
                        accumulate: depth.start > 0 || self.epilogue.in_place(),
                        last: depth.end == whole,
                    };
                    let coming = if part.last { coming } else { Coming::NOTHING };
                    for index in 0..near.count() {
                        let group = near.block(index);
                        let panels = panels.clone().skip(group.start).take(group.len());
                        let coming = coming.part(index, near.count());
                        let prepared = (to.cast_const(), step, &sums[..]);
                        self.prepared_rows(cx, panels, part, prepared, (first, targets, coming), &out);
                    }
                    if part.last {
                        break;
                    }
                    depth = depth.end..whole.min(depth.end + length);
                }
            });
        });
    }

    /// Rows of A that are prepared next, where they stand together.
    fn coming_rows(&self, rows: Range<usize>) -> Coming {
        let step = self.gather.even_step().filter(|&step| step == self.gather.taps() * self.gather.depth());
        step.map_or(Coming::NOTHING, |step| {
            Coming::new(self.input.values.as_ptr().wrapping_add(rows.start * step), rows.len() * step)
        })
    }

    /// One part of the depth for some panels and prepared rows, which are `step` values apart, while what is read then comes near.
    /// `first` is the first of these rows, which go to `places`.
    fn prepared_rows(
        &self,
        cx: &Context,
        panels: impl Iterator<Item = Panel> + Clone,
        part: Part,
        (prepared, step, sums): (*const f32, usize, &[f32]),
        (first, places, coming): (usize, &[usize], Coming),
        out: &SharedMut<f32>,
    ) {
        let Some(widest) = panels.clone().next() else { return };
        let columns = panels.clone().map(|panel| panel.columns).sum();
        let tallest = cx.level().kernels(self.b.operands()).max_rows(widest.vectors);
        let mut pointers = [std::ptr::null(); MAX_ROWS];
        let mut targets = Targets::default();
        let next = [0, tallest * self.scatter.usual_step()];
        let beside = self.beside(&part, out);
        let blocks = places.len().div_ceil(tallest);
        for (index, places) in places.chunks(tallest).enumerate() {
            for (row, &place) in places.iter().enumerate() {
                pointers[row] = prepared.wrapping_add((index * tallest + row) * step);
                targets.set(self, out, row, place);
            }
            let height = places.len();
            let coming = coming.part(index, blocks);
            let (a, targets, sums) = (&pointers, &targets, &sums[index * tallest..]);
            let rows = Rows { a, targets, height, next, first: index == 0, beside, coming, sums };
            // SAFETY: each row was prepared; `check` holds, so that targets stay in C. Tasks own disjoint rows and columns of C,
            // because `scatter` is injective; no other product of the pass has them, so that they are complete after the last part.
            unsafe {
                self.multiply(cx, panels.clone(), &part, &rows);
                if part.last {
                    let start = first + index * tallest;
                    self.follow(start..start + height, columns, out);
                }
            }
        }
    }
}

/// Prepares rows of A. The input is as long as the gather demands, and `to` has room for the rows, which was checked.
struct Prepare<'a> {
    product: &'a Product<'a>,
    rows: Range<usize>,
    depth: Range<usize>,
    to: *mut f32,
    /// Values between two prepared rows.
    step: usize,
    /// What each row brings with it, of threes.
    sums: &'a mut [f32; MAX_CHUNK],
}

/// A row on its way to pairs.
struct Pairs {
    to: *mut f32,
    /// Where a part of the row does not end with a pair, its last value waits for the next part's first.
    waiting: Option<f32>,
}

impl Pairs {
    /// Rounds `count` values, of which the first is the row's value `at`.
    ///
    /// # Safety
    /// `from` must be valid for reads of `count` values, at least one, and `to` for writes of all pairs of the row.
    #[inline(always)]
    unsafe fn put<S: Simd>(&mut self, simd: S, mut from: *const f32, mut at: usize, mut count: usize) {
        // SAFETY: promised by the caller.
        unsafe {
            if let Some(before) = self.waiting.take() {
                *self.to.add(at / 2) = crate::bf16::pair(before, *from);
                (from, at, count) = (from.add(1), at + 1, count - 1);
            }
            simd.narrow(from, self.to.add(at / 2), count);
            self.waiting = (!count.is_multiple_of(2)).then(|| *from.add(count - 1));
        }
    }
}

impl Prepare<'_> {
    /// Takes `count` values at `from`, of which the first is the row's value `at` and of channel `channel`, to the row.
    ///
    /// # Safety
    /// `from` must be valid for reads of `count` values, at least one; the row must have room, and the channels exist.
    #[inline(always)]
    unsafe fn put<S: Simd>(
        &self,
        simd: S,
        prologue: Option<Prologue>,
        (from, channel): (*const f32, usize),
        pairs: &mut Pairs,
        (at, count): (usize, usize),
    ) {
        let to = pairs.to.wrapping_add(at);
        look_ahead(simd, from, count);
        // SAFETY: promised by the caller; a piece has room for PIECE values.
        unsafe {
            match (self.product.b.operands(), prologue) {
                (Operands::F32 | Operands::Threes, Some(prologue)) => {
                    prologue.run(simd, from, channel, to, count)
                }
                (Operands::F32 | Operands::Threes, None) => std::ptr::copy_nonoverlapping(from, to, count),
                (Operands::Bf16, None) => pairs.put(simd, from, at, count),
                (Operands::Bf16, Some(prologue)) => {
                    let mut piece = InLines([0.0; PIECE]);
                    for start in (0..count).step_by(PIECE) {
                        let count = PIECE.min(count - start);
                        prologue.run(simd, from.add(start), channel + start, piece.0.as_mut_ptr(), count);
                        pairs.put(simd, piece.0.as_ptr(), at + start, count);
                    }
                }
            }
        }
    }
}

impl Task for Prepare<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Product { input, offset, gather, .. } = *self.product;
        let first_value = input.values.as_ptr().wrapping_add(offset);
        let wanted = self.depth.clone();
        let each = gather.depth();
        let taps = wanted.start / each..wanted.end.div_ceil(each);
        let mut position = gather.position(self.rows.start);
        for row in 0..self.rows.len() {
            let mut pairs = Pairs { to: self.to.wrapping_add(row * self.step), waiting: None };
            gather.pointers(first_value, &position, taps.start, taps.len(), |tap, from| {
                let first = (taps.start + tap) * each;
                let part = wanted.start.max(first)..wanted.end.min(first + each);
                let skip = part.start - first;
                let prologue = input.prologue.filter(|_| !gather.is_padding(from));
                let source = (from.wrapping_add(skip), offset + skip);
                let place = (part.start - wanted.start, part.len());
                // SAFETY: the part is one of a row that the gather made, whose values are the channels from the offset on;
                // there is room for all of the row.
                unsafe { self.put(simd, prologue, source, &mut pairs, place) };
            });
            gather.advance(&mut position);
            if self.product.b.operands() == Operands::Threes {
                // SAFETY: these values were written just now.
                self.sums[row] = unsafe { threes::of_row(simd, pairs.to, wanted.len()) };
            }
        }
    }
}
