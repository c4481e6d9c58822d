//! Blocking and threads: cuts products into tasks and tasks into micro-kernel blocks.

use super::gather::{Gather, Scatter};
use super::heights::Heights;
use super::micro::{Gathered, MAX_ROWS};
use super::pack::{PackedMatrix, Panel, panels};
use super::prepared::PreparedScratch;
use super::threes::OfRows;
use crate::Context;
use crate::bf16::Operands;
use crate::buffer::LINE;
use crate::follow::Follow;
use crate::parallel::SharedMut;
use crate::prologue::Source;
use std::ops::Range;

/// Rows of B that a block of a panel holds at most: 1024 rows of 64 columns are a quarter of a 1 MiB L2 cache.
pub(super) const DEPTH_BLOCK: usize = 1024;

/// Taps whose pointers are set up at once.
const TAP_BLOCK: usize = 64;

/// Values of B, or pairs, that a block of rows meets before the next block, so that A is read once and C is written in long runs:
/// they stay in the L2 cache.
const NEAR: usize = 1 << 15;

/// Values between two rows up to which threes read them where they stand.
const CLOSE: usize = 256;

/// Bytes a cycle that the products may read from the L2 cache. Where they would read more, a panel meets all rows before the next
/// one, from the L1 cache.
const FROM_L2: usize = 16;

/// Values of B that stay in the L2 cache from one task to the next.
const KEPT: usize = 1 << 17;

/// Parts into which a product is cut at least, where its size allows.
pub(super) const TASKS: usize = 16;

/// Tasks that a product is cut into at least, even if B is read for few rows then.
const LEAST_TASKS: usize = 4;

/// What is added to each result.
#[derive(Debug, Clone, Copy)]
pub enum Residual<'a> {
    /// Another tensor.
    Tensor(&'a [f32]),
    /// What stands in the output already.
    InPlace,
}

impl<'a> Residual<'a> {
    /// The other tensor.
    pub(crate) fn tensor(self) -> Option<&'a [f32]> {
        match self {
            Residual::Tensor(values) => Some(values),
            Residual::InPlace => None,
        }
    }
}

impl<'a> Epilogue<'a> {
    /// The tensor that is added, where it is another one than the output.
    pub(crate) fn other(&self) -> Option<&'a [f32]> {
        self.residual.and_then(Residual::tensor)
    }

    /// The first value that is added, where the output begins at `y`; null for none.
    pub(crate) fn added(&self, y: *const f32) -> *const f32 {
        match self.residual {
            Some(Residual::Tensor(values)) => values.as_ptr(),
            Some(Residual::InPlace) => y,
            None => std::ptr::null(),
        }
    }

    /// Whether the results are added to what stands in the output.
    pub(crate) fn in_place(&self) -> bool {
        matches!(self.residual, Some(Residual::InPlace))
    }
}

/// What is done to each result before it is stored, in this order.
#[derive(Debug, Clone, Copy, Default)]
pub struct Epilogue<'a> {
    /// A value a column (output channel) that is added.
    pub bias: Option<&'a [f32]>,
    /// A tensor of the output's shape that is added.
    pub residual: Option<Residual<'a>>,
    /// Whether negative results become 0.
    pub relu: bool,
    /// What is done with the rows of the output when they are there.
    pub follow: Option<Follow<'a>>,
}

/// `C = gather(A)·B` with an epilogue.
pub(crate) struct Product<'a> {
    /// Images of the batch.
    pub(crate) images: usize,
    /// A's values.
    pub(crate) input: Source<'a>,
    /// First value of each gathered row that is used (a group's first channel).
    pub(crate) offset: usize,
    /// How A's rows are made.
    pub(crate) gather: &'a Gather,
    /// The packed right side: `taps · depth` rows.
    pub(crate) b: &'a PackedMatrix,
    /// Where C's rows go.
    pub(crate) scatter: &'a Scatter,
    /// Offset of the first column in a row of C (a group's first channel).
    pub(crate) column: usize,
    /// What is done to the results.
    pub(crate) epilogue: Epilogue<'a>,
}

/// What of A and B is multiplied before the next part: some taps in full, or a part of one tap.
#[derive(Clone, Copy)]
pub(super) struct Part {
    pub(super) taps: usize,
    /// Of each of A's rows, the first value and how many.
    pub(super) skip: usize,
    pub(super) depth: usize,
    /// The first of B's rows, as they are stored.
    pub(super) row: usize,
    /// Whether the products are added to what stands in C.
    pub(super) accumulate: bool,
    /// Whether they complete the sums.
    pub(super) last: bool,
}

/// A block of rows that meets one panel after the other.
pub(super) struct Rows<'a> {
    /// Pointers to A's rows, `[tap][row]`.
    pub(super) a: &'a [*const f32],
    pub(super) targets: &'a Targets,
    pub(super) height: usize,
    /// How many values further on the next block's rows of A and of C usually begin; 0 if they are near or unknown.
    pub(super) next: [usize; 2],
    /// Whether these rows are the first that meet the panels.
    pub(super) first: bool,
    /// As [`Gathered::beside`].
    pub(super) beside: [isize; 2],
    /// What is read after the panels, of which these rows bring a part near.
    pub(super) coming: Coming,
    /// What each row brings with it, of threes alone.
    pub(super) sums: &'a [f32],
}

/// Values that are read after others, by lines.
#[derive(Clone, Copy)]
pub(super) struct Coming {
    from: *const f32,
    lines: usize,
}

impl Coming {
    /// None.
    pub(super) const NOTHING: Coming = Coming { from: std::ptr::null(), lines: 0 };

    /// `count` values.
    pub(super) fn new(from: *const f32, count: usize) -> Self {
        Coming { from, lines: count.div_ceil(LINE) }
    }

    /// Part `index` of `parts` equal ones.
    #[inline(always)]
    pub(super) fn part(self, index: usize, parts: usize) -> Coming {
        if self.lines == 0 {
            return self;
        }
        let [start, end] = [index, index + 1].map(|index| self.lines * index / parts);
        Coming { from: self.from.wrapping_add(start * LINE), lines: end - start }
    }
}

/// Where a block of rows goes: pointers to the first column's values.
pub(super) struct Targets {
    c: [*mut f32; MAX_ROWS],
    /// What is added.
    residual: [*const f32; MAX_ROWS],
}

impl Default for Targets {
    fn default() -> Self {
        Targets { c: [std::ptr::null_mut(); MAX_ROWS], residual: [std::ptr::null(); MAX_ROWS] }
    }
}

impl Targets {
    /// Lets row `row` of the block go to `at` in C.
    #[inline(always)]
    pub(super) fn set(&mut self, product: &Product, out: &SharedMut<f32>, row: usize, at: usize) {
        let at = at + product.column;
        self.c[row] = out.get().wrapping_add(at);
        let added = product.epilogue.other().map_or(std::ptr::null(), <[f32]>::as_ptr);
        self.residual[row] = added.wrapping_add(at);
    }
}

impl Product<'_> {
    /// Computes C, with operands as B was packed; `scratch` holds A's rows where they are not multiplied as they stand.
    pub(crate) fn run(&self, cx: &Context, scratch: &mut PreparedScratch, c: &mut [f32]) {
        self.check(cx, c);
        if !self.reads_in_place() {
            return self.run_prepared(cx, scratch, c);
        }
        let rows = self.images * self.gather.rows_per_image();
        let panels = panels(cx.level(), self.b.operands(), self.b.columns());
        let Some(widest) = panels.clone().next().filter(|_| rows > 0) else { return };
        let kernels = cx.level().kernels(self.b.operands());
        let block = kernels.max_rows(widest.vectors);
        // Enough rows a task to use a panel's block many times, few enough to keep all threads busy.
        let chunk = rows.div_ceil(TASKS).clamp(8 * block, 48 * block);
        // A short last chunk would read all of B for a few rows.
        let chunks = (rows / chunk).max(LEAST_TASKS.div_ceil(panels.len())).max(1);
        let chunk = rows.div_ceil(chunks).next_multiple_of(block);
        let chunks = rows.div_ceil(chunk);
        // A block of rows meets all panels that stay near, if there are enough tasks.
        let most = self.near(cx, widest).min((panels.len() * chunks / TASKS).max(1));
        let groups = Heights::new(panels.len(), most);
        let out = SharedMut(c.as_mut_ptr());
        cx.pool().run(chunks * groups.count(), |task| {
            let (from, group) = (task / groups.count() * chunk, groups.block(task % groups.count()));
            let of = |group: Range<usize>| panels.clone().skip(group.start).take(group.len());
            // Threads take tasks in turn.
            let next = (task + cx.pool().available()) % groups.count();
            let next = if next == task % groups.count() { 0..0 } else { groups.block(next) };
            let panels = of(group);
            let rows = from..rows.min(from + chunk);
            let mut parts = self.parts().peekable();
            while let Some(part) = parts.next() {
                let coming = match (parts.peek(), self.parts().next()) {
                    (Some(later), _) => self.coming(panels.clone(), later),
                    (None, Some(first)) => self.coming(of(next.clone()), &first),
                    (None, None) => Coming::NOTHING,
                };
                self.part(cx, panels.clone(), rows.clone(), part, coming, &out);
            }
        });
    }

    /// Whether A's rows are multiplied as they stand. For threes a block has more rows than a cache's sets have places, so that wide ones
    /// would push each other out.
    fn reads_in_place(&self) -> bool {
        let as_they_stand = match self.b.operands() {
            Operands::F32 => true,
            Operands::Bf16 => false,
            Operands::Threes => self.gather.even_step().is_some_and(|step| step <= CLOSE),
        };
        as_they_stand && self.input.prologue.is_none()
    }

    /// Reports columns of rows of C that are complete, where somebody wants to know.
    ///
    /// # Safety
    /// [`check`](Self::check) holds for the output `out`; these values are complete, nobody else reads or writes them any more, and
    /// they were not reported before.
    pub(super) unsafe fn follow(&self, rows: Range<usize>, columns: usize, out: &SharedMut<f32>) {
        if let Some(follow) = &self.epilogue.follow {
            // SAFETY: promised by the caller.
            unsafe { follow.rows_done(rows, columns, out) };
        }
    }

    /// How many bytes further on than in C what is read beside its rows begins, where they are complete after a part.
    pub(super) fn beside(&self, part: &Part, out: &SharedMut<f32>) -> [isize; 2] {
        let beside = self.epilogue.follow.filter(|_| part.last).map(|follow| follow.beside());
        beside.unwrap_or_default().map(|values| {
            let distance = |values: &[f32]| values.as_ptr().addr().wrapping_sub(out.get().addr()) as isize;
            values.map_or(0, distance)
        })
    }

    /// How many panels as wide as `widest` a block of rows meets before the next block.
    pub(super) fn near(&self, cx: &Context, widest: Panel) -> usize {
        let kernels = cx.level().kernels(self.b.operands());
        // A row of a panel serves `rows · vectors` products, of which two are made in a cycle.
        let bytes_a_cycle = 2 * size_of::<f32>() * kernels.lanes / kernels.max_rows(widest.vectors);
        if bytes_a_cycle > FROM_L2 {
            return 1;
        }
        let depth = self.gather.taps() * self.gather.depth();
        let stored = depth.div_ceil(self.b.operands().together()).min(DEPTH_BLOCK);
        (NEAR / (stored * widest.vectors * kernels.lanes).max(1)).max(1)
    }

    /// Everything that the unsafe code below relies on.
    fn check(&self, cx: &Context, c: &[f32]) {
        let Product { images, input, offset, gather, b, scatter, column, epilogue } = self;
        assert_eq!(b.level(), cx.level(), "the matrix was packed for another instruction-set level");
        assert_eq!(b.depth(), gather.taps() * gather.depth(), "rows of the packed matrix");
        assert!(input.values.len() >= images * gather.image_step(), "the input is too short");
        assert!(
            gather.reach() == 0 || gather.reach() + offset <= gather.image_step(),
            "a row leaves its image"
        );
        assert!(c.len() >= scatter.end(*images, column + b.columns()), "the output is too short");
        assert!(epilogue.bias.is_none_or(|bias| bias.len() >= column + b.columns()), "the bias is too short");
        assert!(epilogue.other().is_none_or(|residual| residual.len() == c.len()), "the residual's length");
        let follows = |follow: Follow| scatter.even_step() == Some(follow.channels());
        assert!(epilogue.follow.is_none_or(follows), "rows in order");
    }

    /// The parts of a product of A's rows as they stand.
    fn parts(&self) -> impl Iterator<Item = Part> {
        let (taps, depth) = (self.gather.taps(), self.gather.depth());
        let taps_at_once = (DEPTH_BLOCK / depth.max(1)).clamp(1, TAP_BLOCK);
        let depth_at_once = depth.clamp(1, DEPTH_BLOCK);
        let part = move |tap: usize, skip: usize| Part {
            taps: taps_at_once.min(taps - tap),
            skip,
            depth: depth_at_once.min(depth - skip),
            row: tap * depth + skip,
            accumulate: tap + skip > 0 || self.epilogue.in_place(),
            last: tap + taps_at_once >= taps && skip + depth_at_once >= depth,
        };
        let nothing = Part { taps: 0, depth: 0, last: true, ..part(0, 0) };
        let parts = (0..taps)
            .step_by(taps_at_once)
            .flat_map(move |tap| (0..depth).step_by(depth_at_once).map(move |skip| part(tap, skip)));
        parts.chain((taps * depth == 0).then_some(nothing))
    }

    /// What a part needs of some panels, where that stands together: the rows of one panel, or all values of several ones.
    fn coming(&self, panels: impl Iterator<Item = Panel> + Clone, part: &Part) -> Coming {
        if self.b.depth() * self.b.columns() <= KEPT {
            return Coming::NOTHING;
        }
        let Some(first) = panels.clone().next() else { return Coming::NOTHING };
        let (count, vectors) =
            panels.fold((0, 0), |(count, vectors), panel| (count + 1, vectors + panel.vectors));
        let depth = part.taps * part.depth;
        if count > 1 && depth < self.b.depth() {
            return Coming::NOTHING;
        }
        let values = depth * vectors * self.b.level().micro_kernels().lanes;
        Coming::new(self.b.panel_row(&first, part.row), values)
    }

    /// One part of the depth for some panels and rows, while what is read then comes near.
    fn part(
        &self,
        cx: &Context,
        panels: impl Iterator<Item = Panel> + Clone,
        rows: Range<usize>,
        part: Part,
        coming: Coming,
        out: &SharedMut<f32>,
    ) {
        let Some(widest) = panels.clone().next() else { return };
        let columns = panels.clone().map(|panel| panel.columns).sum();
        let tallest = cx.level().kernels(self.b.operands()).max_rows(widest.vectors);
        let blocks = rows.len().div_ceil(tallest);
        let input = self.input.values.as_ptr().wrapping_add(self.offset);
        let mut pointers = [std::ptr::null(); TAP_BLOCK * MAX_ROWS];
        let mut targets = Targets::default();
        let mut position = self.gather.position(rows.start);
        let even = self.gather.even_step().zip(self.scatter.even_step());
        let next = [self.gather.usual_step(), self.scatter.usual_step()].map(|step| tallest * step);
        let beside = self.beside(&part, out);
        let taps = part.row.checked_div(self.gather.depth()).unwrap_or(0);
        let mut sums = [0.0; MAX_ROWS];
        for (index, start) in rows.clone().step_by(tallest).enumerate() {
            let height = tallest.min(rows.end - start);
            match even {
                Some((from, to)) => {
                    for (row, pointer) in pointers[..height].iter_mut().enumerate() {
                        *pointer = input.wrapping_add((start + row) * from);
                        targets.set(self, out, row, (start + row) * to);
                    }
                }
                None => {
                    self.gather.block(input, position, taps..taps + part.taps, height, &mut pointers);
                    for row in 0..height {
                        targets.set(self, out, row, self.scatter.offset(&position));
                        self.gather.advance(&mut position);
                    }
                }
            }
            // The first block waits for what it reads itself.
            let coming = if index > 0 { coming.part(index - 1, blocks - 1) } else { Coming::NOTHING };
            let first = index == 0;
            if self.b.operands() == Operands::Threes {
                let rows = pointers[..height].iter().map(|row| row.wrapping_add(part.skip));
                cx.level().run(OfRows { rows, depth: part.depth, sums: &mut sums });
            }
            let (a, targets, sums) = (&pointers, &targets, &sums);
            let rows = Rows { a, targets, height, next, first, beside, coming, sums };
            // SAFETY: `check` holds: gathered pointers stay in the input or lead to `depth` zeros (`offset` stays within the
            // pixel), targets stay in C. Tasks own disjoint rows and columns of C, because `scatter` is injective. No other product of
            // the pass has them, so that they are complete after the last part.
            unsafe {
                self.multiply(cx, panels.clone(), &part, &rows);
                if part.last {
                    self.follow(start..start + height, columns, out);
                }
            }
        }
    }

    /// Multiplies a block of rows by panels.
    ///
    /// # Safety
    /// [`check`](Self::check) holds, A's pointers are valid for reads of what the part says, the targets are rows of C, and nobody
    /// else reads or writes them in the panels' columns.
    pub(super) unsafe fn multiply(
        &self,
        cx: &Context,
        panels: impl Iterator<Item = Panel> + Clone,
        part: &Part,
        rows: &Rows,
    ) {
        let kernels = cx.level().kernels(self.b.operands());
        let bias = self.epilogue.bias.filter(|_| part.last);
        let residual = self.epilogue.other().filter(|_| part.last);
        let [next_a, next_c] = rows.next;
        let (count, steps) = match rows.coming.lines {
            0 => (1, 1),
            // The last line of a row's last tap.
            _ => (panels.clone().count(), (part.taps - 1) * part.depth / LINE + part.depth.div_ceil(LINE)),
        };
        for (index, panel) in panels.enumerate() {
            let coming = rows.coming.part(index, count);
            let arguments = Gathered {
                a: rows.a.as_ptr(),
                taps: part.taps,
                skip: part.skip,
                depth: part.depth,
                // The first panel brings the rows near for the others.
                ahead: if panel.column == 0 { next_a } else { 0 },
                b: self.b.panel_row(&panel, part.row),
                far: rows.first,
                coming: coming.from,
                each: coming.lines.div_ceil(steps),
                c: rows.targets.c.as_ptr(),
                column: panel.column,
                columns: panel.columns,
                ahead_c: next_c,
                beside: rows.beside,
                accumulate: part.accumulate,
                bias: bias.map_or(std::ptr::null(), |bias| bias[self.column + panel.column..].as_ptr()),
                residual: if residual.is_some() { rows.targets.residual.as_ptr() } else { std::ptr::null() },
                relu: self.epilogue.relu && part.last,
                beside_products: self.b.beside_products(&panel, part.row, rows.sums),
            };
            // SAFETY: promised by the caller; the panel has a row for each value or pair of A's rows, bias and residual are long
            // enough, as `check` has found.
            unsafe { kernels.gathered(panel.vectors, rows.height, &arguments) };
        }
    }
}
