//! Blocking and threads: cuts products into tasks and tasks into micro-kernel blocks.

use super::gather::{Gather, Scatter};
use super::micro::{Gathered, MAX_ROWS};
use super::pack::{PackedMatrix, Panel, panels};
use super::prepared::PreparedScratch;
use crate::Context;
use crate::bf16::Operands;
use crate::parallel::SharedMut;
use crate::prologue::Source;

/// Rows of B that a block of a panel holds at most: 1024 rows of 64 columns are a quarter of a 1 MiB L2 cache.
pub(super) const DEPTH_BLOCK: usize = 1024;

/// Taps whose pointers are set up at once.
const TAP_BLOCK: usize = 64;

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

/// A range of B's rows that is multiplied before the next one: some taps in full, or a part of one tap.
#[derive(Clone, Copy)]
struct DepthBlock {
    tap: usize,
    taps: usize,
    skip: usize,
    depth: usize,
}

impl Product<'_> {
    /// Computes C, with operands as B was packed; `scratch` holds A's rows where they are not multiplied as they stand.
    pub(crate) fn run(&self, cx: &Context, scratch: &mut PreparedScratch, c: &mut [f32]) {
        self.check(cx, c);
        if self.b.operands() == Operands::Bf16 || self.input.prologue.is_some() {
            return self.run_prepared(cx, scratch, c);
        }
        let rows = self.images * self.gather.rows_per_image();
        let panels = panels(cx.level(), self.b.columns());
        let block =
            panels.clone().next().map_or(1, |panel| cx.level().micro_kernels().max_rows(panel.vectors));
        // Enough rows a task to use a panel's block many times, few enough to keep all threads busy.
        let chunk = rows.div_ceil(TASKS).clamp(8 * block, 48 * block);
        // A short last chunk would read all of B for a few rows.
        let chunks = (rows / chunk).max(LEAST_TASKS.div_ceil(panels.len().max(1))).max(1);
        let chunk = rows.div_ceil(chunks).next_multiple_of(block);
        let out = SharedMut(c.as_mut_ptr());
        let count = panels.len();
        cx.pool().run(rows.div_ceil(chunk) * count, |task| {
            let (from, panel) = (task / count * chunk, panels.clone().nth(task % count));
            if let Some(panel) = panel {
                self.chunk(cx, &panel, from..rows.min(from + chunk), &out);
            }
        });
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
    }

    fn depth_blocks(&self) -> impl Iterator<Item = DepthBlock> + Clone {
        let (taps, depth) = (self.gather.taps(), self.gather.depth());
        let taps_at_once = (DEPTH_BLOCK / depth).clamp(1, TAP_BLOCK);
        let depth_at_once = depth.min(DEPTH_BLOCK);
        (0..taps).step_by(taps_at_once).flat_map(move |tap| {
            (0..depth).step_by(depth_at_once).map(move |skip| DepthBlock {
                tap,
                taps: taps_at_once.min(taps - tap),
                skip,
                depth: depth_at_once.min(depth - skip),
            })
        })
    }

    /// One panel of the columns for a range of rows.
    fn chunk(&self, cx: &Context, panel: &Panel, rows: std::ops::Range<usize>, out: &SharedMut<f32>) {
        let whole = self.gather.taps() * self.gather.depth();
        let nothing = DepthBlock { tap: 0, taps: 0, skip: 0, depth: 0 };
        let mut done = 0;
        for block in self.depth_blocks().chain((whole == 0).then_some(nothing)) {
            let first = done == 0;
            done += block.taps * block.depth;
            self.depth_block(
                cx,
                panel,
                rows.clone(),
                block,
                [!first || self.epilogue.in_place(), done == whole],
                out,
            );
        }
    }

    fn depth_block(
        &self,
        cx: &Context,
        panel: &Panel,
        rows: std::ops::Range<usize>,
        block: DepthBlock,
        [accumulate, last]: [bool; 2],
        out: &SharedMut<f32>,
    ) {
        let kernels = cx.level().micro_kernels();
        let tallest = kernels.max_rows(panel.vectors);
        let input = self.input.values.as_ptr().wrapping_add(self.offset);
        let column = self.column + panel.column;
        let mut pointers = [std::ptr::null(); TAP_BLOCK * MAX_ROWS];
        let mut targets = [std::ptr::null_mut(); MAX_ROWS];
        let mut residuals = [std::ptr::null(); MAX_ROWS];
        let mut position = self.gather.position(rows.start);
        let bias = self.epilogue.bias.filter(|_| last);
        let residual = self.epilogue.other().filter(|_| last);
        let added = residual.map_or(std::ptr::null(), <[f32]>::as_ptr);
        let even = self.gather.even_step().zip(self.scatter.even_step());
        // The first panel brings the rows of A near for the others.
        let ahead = even.filter(|_| panel.column == 0).map_or(0, |(from, _)| tallest * from);
        for start in rows.clone().step_by(tallest) {
            let height = tallest.min(rows.end - start);
            match even {
                Some((from, to)) => {
                    for row in 0..height {
                        let at = (start + row) * to + column;
                        pointers[row] = input.wrapping_add((start + row) * from);
                        targets[row] = out.get().wrapping_add(at);
                        residuals[row] = added.wrapping_add(at);
                    }
                }
                None => {
                    let taps = block.tap..block.tap + block.taps;
                    self.gather.block(input, position, taps, height, &mut pointers);
                    for row in 0..height {
                        let at = self.scatter.offset(&position) + column;
                        targets[row] = out.get().wrapping_add(at);
                        residuals[row] = added.wrapping_add(at);
                        self.gather.advance(&mut position);
                    }
                }
            }
            let arguments = Gathered {
                a: pointers.as_ptr(),
                taps: block.taps,
                skip: block.skip,
                depth: block.depth,
                ahead,
                b: self.b.panel_row(panel, block.tap * self.gather.depth() + block.skip),
                far: start == rows.start,
                c: targets.as_ptr(),
                columns: panel.columns,
                accumulate,
                bias: bias.map_or(std::ptr::null(), |bias| bias[column..].as_ptr()),
                residual: if residual.is_some() { residuals.as_ptr() } else { std::ptr::null() },
                relu: self.epilogue.relu && last,
            };
            // SAFETY: `check` holds: gathered pointers stay in the input or lead to `depth` zeros (`offset` stays
            // within the pixel), targets stay in C, the panel has `taps · depth` rows from the first one used, bias
            // and residual are long enough. Tasks own disjoint rows and columns of C, because `scatter` is injective.
            unsafe { kernels.gathered(panel.vectors, height, &arguments) };
        }
    }
}
