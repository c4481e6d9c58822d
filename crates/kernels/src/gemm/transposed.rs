//! Transposed products, which are gradients of weights: blocks of rows of both sides meet again and again without leaving the L2
//! cache. Where they stand too far apart for that, or not as they are multiplied, they are copied first.

mod copy;

use self::copy::{Copy, CopyForThrees, CopyPairs, Row};
use super::driver::TASKS;
use super::gather::Gather;
use super::heights::Heights;
use super::micro::Transposed;
use super::pack::{Panel, narrow_panels};
use crate::bf16::Operands;
use crate::buffer::{Aligned, LINE};
use crate::parallel::{SharedMut, Space, with_free};
use crate::prologue::Source;
use crate::{Context, Level};
use std::ops::Range;

/// `C = gather(A)ᵀ·B`, where C is `[taps][depth][columns]` and B is `[rows of the gather][columns]`; with groups, the
/// channels of A and the columns of B and C are cut into as many pieces that do not see each other.
pub(crate) struct TransposedProduct<'a> {
    /// Images of the batch.
    pub(crate) images: usize,
    /// A's values.
    pub(crate) input: Source<'a>,
    /// How A's rows are made; its depth is that of one group.
    pub(crate) gather: &'a Gather,
    /// Number of groups.
    pub(crate) groups: usize,
    /// B's values.
    pub(crate) b: &'a [f32],
    /// Columns of B and C, over all groups.
    pub(crate) columns: usize,
    /// How A and B meet.
    pub(crate) operands: Operands,
    /// By what B is multiplied before it does; of threes alone, 1 for others.
    pub(crate) factor: f32,
}

/// Memory that transposed products use while they run, reused from one to the next.
#[derive(Debug, Default)]
pub(crate) struct TransposedScratch {
    /// Sums of all parts but the first.
    parts: Aligned,
    /// Rows of A and of B for each thread.
    rows: Vec<Space<[Aligned; 2]>>,
}

/// Rows of A and B that are read again and again before the next ones, at most: they stay in L2, where those that come next arrive.
const LENGTH: usize = 256;

/// Sums of a task up to which half as many rows meet at a time: reading and writing the sums takes little time then, and more of the
/// rows stay in the L1 cache.
const FEW: usize = 1 << 15;

/// Values between two rows up to which they are read where they stand: what they lose there, since they fall into few of the L1
/// cache's sets, is less than copying them takes. Measured.
const CLOSE: usize = 512;

/// Vectors of B that meet A's rows at a time, at most: as many rows of them as are read again and again stay in the L1 cache.
const PANEL: usize = 2;

/// Channels of A, and columns of B, of a task at most: its part of C stays in L2 as well.
const WIDTH: usize = 256;

/// Values of a row from which on a column of rows would fall into few of a cache's sets.
const WIDE: usize = 128;

/// Sums that other parts are added to at a time, at most: they stay in the L1 cache.
const ADDED: usize = 4096;

/// Values that partial sums may take at most.
const PARTS_LIMIT: usize = 1 << 22;

/// The panels of some of B's columns.
fn panels(level: Level, columns: usize) -> impl ExactSizeIterator<Item = Panel> + Clone {
    narrow_panels(level, columns, PANEL.min(level.micro_kernels().max_vectors()))
}

/// How a transposed product is cut: all by its shape. A task is a piece of C, summed over a part of the rows.
struct Cut {
    /// Parts of the rows, each with a copy of C.
    parts: usize,
    /// Groups of a piece.
    groups: usize,
    /// Taps of a piece.
    taps: usize,
    /// Channels of a group of A in a piece.
    depth: usize,
    /// Columns of a group of B in a piece.
    columns: usize,
    /// Rows of A and B that are read again and again before the next ones.
    length: usize,
}

/// A piece of C.
struct Piece {
    groups: Range<usize>,
    taps: Range<usize>,
    /// Of each group.
    depth: Range<usize>,
    /// Of each group.
    columns: Range<usize>,
}

/// `index` of as many equal ranges as there are in `whole`, and the rest of the index.
fn range(index: usize, whole: usize, length: usize) -> (Range<usize>, usize) {
    let count = whole.div_ceil(length);
    let from = index % count * length;
    (from..whole.min(from + length), index / count)
}

impl Cut {
    fn new(cx: &Context, product: &TransposedProduct) -> Self {
        let (taps, depth, columns) =
            (product.gather.taps(), product.gather.depth(), product.columns / product.groups);
        let panel = panels(cx.level(), columns).next().map_or(1, |panel| panel.vectors);
        let panel = panel * cx.level().micro_kernels().lanes;
        let cut_depth = depth.div_ceil(depth.div_ceil(WIDTH));
        let cut_columns = columns.min((WIDTH / panel).max(1) * panel);
        let groups = (WIDTH / depth.max(columns)).clamp(1, product.groups);
        let mut cut = Cut {
            parts: 1,
            groups,
            taps: (WIDTH * WIDTH / (groups * cut_depth * cut_columns)).clamp(1, taps),
            depth: cut_depth,
            columns: cut_columns,
            length: LENGTH,
        };
        let rows = product.rows();
        let limit = (PARTS_LIMIT / product.size().max(1)).min(rows / LENGTH).max(1);
        cut.parts = TASKS.div_ceil(cut.pieces(product)).min(limit);
        let missing = TASKS.div_ceil(cut.parts * cut.pieces(product));
        cut.taps = cut.taps.div_ceil(missing);
        if cut.groups * cut.taps * cut.depth * cut.columns <= FEW {
            cut.length /= 2;
        }
        cut
    }

    fn pieces(&self, product: &TransposedProduct) -> usize {
        product.groups.div_ceil(self.groups)
            * product.gather.taps().div_ceil(self.taps)
            * product.gather.depth().div_ceil(self.depth)
            * (product.columns / product.groups).div_ceil(self.columns)
    }

    fn piece(&self, product: &TransposedProduct, index: usize) -> Piece {
        let (columns, index) = range(index, product.columns / product.groups, self.columns);
        let (depth, index) = range(index, product.gather.depth(), self.depth);
        let (taps, index) = range(index, product.gather.taps(), self.taps);
        let (groups, _) = range(index, product.groups, self.groups);
        Piece { groups, taps, depth, columns }
    }
}

/// Rows that meet, copied or where they stand.
#[derive(Clone, Copy)]
struct Near {
    first: *const f32,
    step: usize,
}

/// Rows that will meet next, of A and of B.
#[derive(Clone, Copy)]
struct Next<'a> {
    rows: usize,
    sides: [Side<'a>; 2],
}

/// Rows of `width` values.
#[derive(Clone, Copy)]
struct Side<'a> {
    rows: Stand<'a>,
    width: usize,
}

/// Where rows stand: in steps from the first on, or each somewhere.
#[derive(Clone, Copy)]
enum Stand<'a> {
    Even(*const f32, usize),
    Each(&'a [*const f32]),
}

impl Stand<'_> {
    fn row(&self, row: usize) -> *const f32 {
        match *self {
            Stand::Even(first, step) => first.wrapping_add(row * step),
            Stand::Each(rows) => rows[row],
        }
    }
}

/// Lines that are asked for in one call of a micro-kernel at most.
const SOON: usize = 256;

impl Next<'_> {
    /// Writes where the lines of the rows begin that call `call` of `calls` asks for; returns their number.
    fn lines(&self, call: usize, calls: usize, lines: &mut [*const f32; SOON]) -> usize {
        let mut count = 0;
        for row in self.rows * call / calls..self.rows * (call + 1) / calls {
            for Side { rows, width } in self.sides {
                let row = rows.row(row);
                let asked = width.div_ceil(LINE).min(SOON - count);
                for (index, line) in lines[count..][..asked].iter_mut().enumerate() {
                    *line = row.wrapping_add(index * LINE);
                }
                count += asked;
            }
        }
        count
    }
}

/// A block of rows that meet.
struct Block<'a> {
    piece: &'a Piece,
    /// Rows as they are stored.
    length: usize,
    /// Whether C holds the sums of blocks before.
    accumulate: bool,
    next: Option<Next<'a>>,
}

/// Values between two copied rows of `width`: with wide ones an odd number of lines, so that a column does not meet itself in a
/// cache's sets.
pub(crate) fn row_step(width: usize) -> usize {
    let whole = width.next_multiple_of(2 * LINE);
    if whole < WIDE { width.next_multiple_of(LINE) } else { whole + LINE }
}

/// Adds other sums, one after the other in `parts`, to `sums`.
pub(crate) fn add_parts(cx: &Context, sums: &mut [f32], parts: &[f32]) {
    if parts.is_empty() {
        return;
    }
    let size = sums.len();
    let length = size.div_ceil(TASKS).clamp(1024, ADDED);
    cx.pool().pieces(sums, length, |index, sums| {
        for part in parts.chunks_exact(size) {
            let part = &part[index * length..][..sums.len()];
            sums.iter_mut().zip(part).for_each(|(sum, value)| *sum += value);
        }
    });
}

impl TransposedProduct<'_> {
    fn rows(&self) -> usize {
        self.images * self.gather.rows_per_image()
    }

    /// Values between two rows of A, and of B, where these are read where they stand.
    fn steps(&self) -> [Option<usize>; 2] {
        let as_they_stand = self.operands == Operands::F32;
        let a = self.gather.even_step().filter(|_| self.input.prologue.is_none());
        [a, Some(self.columns)].map(|step| step.filter(|&step| as_they_stand && step <= CLOSE))
    }

    /// Copied rows that `rows` rows become.
    fn stored(&self, rows: usize) -> usize {
        rows.div_ceil(self.operands.together())
    }

    /// Rows that are copied besides.
    fn besides(&self) -> usize {
        usize::from(self.operands == Operands::Threes)
    }

    /// Copies rows of `width` values, or two of them to one of pairs; for threes they are multiplied by `factor`, and what is taken off
    /// follows them.
    ///
    /// # Safety
    /// Each of the rows of `source` must be valid for reads of its width, and the channels exist that a prologue is told of.
    unsafe fn copy<'s>(
        &self,
        cx: &Context,
        to: &mut Aligned,
        (rows, width, factor): (usize, usize, f32),
        source: impl Fn(usize) -> Row<'s>,
    ) -> Near {
        let step = row_step(width);
        assert!(to.len() >= (self.stored(rows) + self.besides()) * step, "room for copied rows");
        let copy = Copy { rows, width, source, to: to.as_mut_ptr(), step };
        match self.operands {
            Operands::F32 => cx.level().run(copy),
            Operands::Bf16 => cx.level().run_halves(CopyPairs(copy)),
            Operands::Threes => cx.level().run(CopyForThrees { copy, factor }),
        }
        Near { first: to.as_ptr(), step }
    }

    /// Values of C.
    fn size(&self) -> usize {
        self.gather.taps() * self.gather.depth() * self.columns
    }

    /// Computes C.
    pub(crate) fn run(&self, cx: &Context, scratch: &mut TransposedScratch, c: &mut [f32]) {
        let (rows, size) = (self.rows(), self.size());
        assert_eq!(c.len(), size, "values of the transposed product");
        assert!(
            self.input.values.len() >= self.images * self.gather.image_step(),
            "the left matrix is too short"
        );
        assert!(self.b.len() >= rows * self.columns, "the right matrix is too short");
        let last_group = (self.groups - 1) * self.gather.depth();
        assert!(self.gather.reach() + last_group <= self.gather.image_step(), "a row leaves its image");
        if rows == 0 || size == 0 {
            c.fill(0.0);
            return;
        }
        let cut = Cut::new(cx, self);
        let TransposedScratch { parts, rows: own } = scratch;
        parts.grow((cut.parts - 1) * size);
        let own = Space::for_threads(own, cx.pool().available());
        // Whichever threads take part later, nothing is allocated then.
        let lengths = self.copied(&cut);
        for own in &mut *own {
            let own = own.get_mut();
            own.iter_mut().zip(lengths).for_each(|(rows, length)| rows.grow(length));
        }
        let (first, others) = (SharedMut(c.as_mut_ptr()), SharedMut(parts.as_mut_ptr()));
        let pieces = cut.pieces(self);
        cx.pool().run(cut.parts * pieces, |task| {
            let part = task / pieces;
            let rows = rows * part / cut.parts..rows * (part + 1) / cut.parts;
            let c = match part.checked_sub(1) {
                None => first.get(),
                Some(other) => others.get().wrapping_add(other * size),
            };
            with_free(own, |own| self.piece(cx, (&cut, task % pieces), rows, own, c));
        });
        add_parts(cx, c, &parts.values()[..(cut.parts - 1) * size]);
    }

    /// Values of the largest copied rows of A and of B.
    fn copied(&self, cut: &Cut) -> [usize; 2] {
        let length = self.stored(self.rows().div_ceil(cut.parts).min(cut.length)) + self.besides();
        let (depth, columns) = (self.gather.depth(), self.columns / self.groups);
        let [a, b] = self.steps();
        [(a, depth, cut.depth), (b, columns, cut.columns)].map(|(step, group, width)| match step {
            Some(_) => 0,
            None => length * row_step((cut.groups - 1) * group + width.min(group)),
        })
    }

    /// One task: piece `index` of C, summed over some rows.
    fn piece(
        &self,
        cx: &Context,
        (cut, index): (&Cut, usize),
        rows: Range<usize>,
        own: &mut [Aligned; 2],
        c: *mut f32,
    ) {
        let piece = &cut.piece(self, index);
        let (group_depth, group_columns) = (self.gather.depth(), self.columns / self.groups);
        // With several groups their whole width is read.
        let width = |range: &Range<usize>, group| (piece.groups.len() - 1) * group + range.len();
        let (a_width, b_width) = (width(&piece.depth, group_depth), width(&piece.columns, group_columns));
        let a_first = piece.groups.start * group_depth + piece.depth.start;
        let b_first = piece.groups.start * group_columns + piece.columns.start;
        // Blocks of equal length: a short one would read and write C for a few rows.
        let count = rows.len().div_ceil(cut.length);
        let at = |index: usize| rows.start + rows.len() * index.min(count) / count;
        let [input, dy] =
            [self.input.values.as_ptr().wrapping_add(a_first), self.b.as_ptr().wrapping_add(b_first)];
        let [a_own, b_own] = own;
        let [mut pointers, mut later] = [[std::ptr::null(); LENGTH]; 2];
        for index in 0..count {
            let rows = at(index)..at(index + 1);
            let b = self.near_b(cx, dy, &rows, b_width, b_own);
            let coming = rows.end..at(index + 2);
            let next = self.next(piece, [(input, a_width), (dy, b_width)], coming, &mut later);
            let block = Block { piece, length: self.stored(rows.len()), accumulate: index > 0, next };
            for tap in piece.taps.clone() {
                let own = (&mut *a_own, &mut pointers);
                let a = self.near_a(cx, (input, a_first), (tap, &rows), a_width, own);
                for group in piece.groups.clone() {
                    let inside = group - piece.groups.start;
                    let a = Near { first: a.first.wrapping_add(inside * group_depth), ..a };
                    let b = Near { first: b.first.wrapping_add(inside * group_columns), ..b };
                    let row = tap * group_depth + piece.depth.start;
                    let c = c.wrapping_add(row * self.columns + group * group_columns + piece.columns.start);
                    self.tiles(cx, &block, [a, b], c);
                }
            }
        }
    }

    /// What is asked for before `rows` meet, of which such widths are read from such places on: nothing where several taps or groups
    /// read them again and again. `pointers` holds A's rows where they are not in steps.
    fn next<'n>(
        &self,
        piece: &Piece,
        [(input, a_width), (dy, b_width)]: [(*const f32, usize); 2],
        rows: Range<usize>,
        pointers: &'n mut [*const f32; LENGTH],
    ) -> Option<Next<'n>> {
        if self.gather.taps() != 1 || piece.groups.len() > 1 {
            return None;
        }
        let even = |first: *const f32, step| Stand::Even(first.wrapping_add(rows.start * step), step);
        let a = match self.gather.even_step() {
            Some(step) => even(input, step),
            None => {
                self.gather.block(input, self.gather.position(rows.start), 0..1, rows.len(), pointers);
                Stand::Each(pointers)
            }
        };
        let sides = [Side { rows: a, width: a_width }, Side { rows: even(dy, self.columns), width: b_width }];
        Some(Next { rows: rows.len(), sides })
    }

    /// Rows of A for a tap, of which `width` values are read from `input` on, which is that of channel `channel`: copied to `own`
    /// unless they are read where they stand.
    fn near_a(
        &self,
        cx: &Context,
        (input, channel): (*const f32, usize),
        (tap, rows): (usize, &Range<usize>),
        width: usize,
        (own, pointers): (&mut Aligned, &mut [*const f32; LENGTH]),
    ) -> Near {
        if let [Some(step), _] = self.steps() {
            return Near { first: input.wrapping_add(rows.start * step), step };
        }
        let position = self.gather.position(rows.start);
        self.gather.block(input, position, tap..tap + 1, rows.len(), pointers);
        let source = |row: usize| {
            let from = pointers[row];
            let prologue = self.input.prologue.filter(|_| !self.gather.is_padding(from));
            Row { from, through: prologue.map(|prologue| (prologue, channel)) }
        };
        // SAFETY: `run` has checked that A is long enough, and there are zeros for as many channels as a pixel has.
        unsafe { self.copy(cx, own, (rows.len(), width, 1.0), source) }
    }

    /// Rows of B, of which `width` values are read from `dy` on: copied to `own` unless they are read where they stand.
    fn near_b(
        &self,
        cx: &Context,
        dy: *const f32,
        rows: &Range<usize>,
        width: usize,
        own: &mut Aligned,
    ) -> Near {
        let first = dy.wrapping_add(rows.start * self.columns);
        if let [_, Some(step)] = self.steps() {
            return Near { first, step };
        }
        let source = |row| Row { from: first.wrapping_add(row * self.columns), through: None };
        // SAFETY: `run` has checked that B is long enough.
        unsafe { self.copy(cx, own, (rows.len(), width, self.factor), source) }
    }

    /// The products of a block for one tap and one group, added to the piece's part of C or taking its place.
    fn tiles(&self, cx: &Context, block: &Block, [a, b]: [Near; 2], c: *mut f32) {
        let kernels = cx.level().kernels(self.operands);
        let depth = block.piece.depth.len();
        let panels = panels(cx.level(), block.piece.columns.len());
        let heights = |panel: &Panel| Heights::new(depth, kernels.max_rows(panel.vectors));
        let calls = panels.clone().map(|panel| heights(&panel).count()).sum();
        let mut lines = [std::ptr::null(); SOON];
        let mut call = 0;
        for panel in panels {
            let heights = heights(&panel);
            for index in 0..heights.count() {
                let rows = heights.block(index);
                let soon = block.next.map_or(0, |next| next.lines(call, calls, &mut lines));
                let arguments = Transposed {
                    a: a.first.wrapping_add(rows.start),
                    a_step: a.step,
                    length: block.length,
                    b: b.first.wrapping_add(panel.column),
                    b_step: b.step,
                    c: c.wrapping_add(rows.start * self.columns + panel.column),
                    c_step: self.columns,
                    columns: panel.columns,
                    accumulate: block.accumulate,
                    soon: &lines[..soon],
                    factor: 1.0 / self.factor,
                };
                // SAFETY: A and B hold `length` rows of the piece's channels and columns, copied or where `run` has found them; C
                // has been checked to be long enough, and tasks own disjoint groups, taps, channels, columns or parts of it.
                unsafe { kernels.transposed(panel.vectors, rows.len(), &arguments) };
                call += 1;
            }
        }
    }
}
