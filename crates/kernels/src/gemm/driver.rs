//! Blocking and threads: cuts products into tasks and tasks into micro-kernel blocks.

use super::gather::{Gather, Scatter};
use super::micro::{Gathered, MAX_ROWS, Transposed};
use super::pack::{PackedMatrix, Panel, panels};
use crate::Context;
use crate::parallel::SharedMut;

/// Rows of B that a block of a panel holds at most: 1024 rows of 64 columns are a quarter of a 1 MiB L2 cache.
const DEPTH_BLOCK: usize = 1024;

/// Taps whose pointers are set up at once.
const TAP_BLOCK: usize = 64;

/// Parts into which a product is cut at least, where its size allows.
const TASKS: usize = 16;

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
    pub(crate) input: &'a [f32],
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
    /// Computes C.
    pub(crate) fn run(&self, cx: &Context, c: &mut [f32]) {
        self.check(cx, c);
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
        assert!(input.len() >= images * gather.image_step(), "the input is too short");
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
        let input = self.input.as_ptr().wrapping_add(self.offset);
        let column = self.column + panel.column;
        let mut pointers = [std::ptr::null(); TAP_BLOCK * MAX_ROWS];
        let mut targets = [std::ptr::null_mut(); MAX_ROWS];
        let mut residuals = [std::ptr::null(); MAX_ROWS];
        let mut position = self.gather.position(rows.start);
        let bias = self.epilogue.bias.filter(|_| last);
        let residual = self.epilogue.other().filter(|_| last);
        let added = residual.map_or(std::ptr::null(), <[f32]>::as_ptr);
        let even = self.gather.even_step().zip(self.scatter.even_step());
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
                    for row in 0..height {
                        self.gather.pointers(input, &position, block.tap, block.taps, |tap, pointer| {
                            pointers[tap * height + row] = pointer;
                        });
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
                b: self.b.panel_row(panel, block.tap * self.gather.depth() + block.skip),
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

/// `C = gather(A)ᵀ·B`, where C is `[taps][depth][columns]` and B is `[rows of the gather][columns]`; with groups, the
/// channels of A and the columns of B and C are cut into as many pieces that do not see each other.
pub(crate) struct TransposedProduct<'a> {
    /// Images of the batch.
    pub(crate) images: usize,
    /// A's values.
    pub(crate) input: &'a [f32],
    /// How A's rows are made; its depth is that of one group.
    pub(crate) gather: &'a Gather,
    /// Number of groups.
    pub(crate) groups: usize,
    /// B's values.
    pub(crate) b: &'a [f32],
    /// Columns of B and C, over all groups.
    pub(crate) columns: usize,
}

/// Rows of A and B that are read again and again before the next ones: they stay in L2.
const LENGTH_BLOCK: usize = 256;

/// Values that partial sums may take at most.
const PARTS_LIMIT: usize = 1 << 22;

/// How a transposed product is cut: all by its shape.
struct Cut {
    /// Parts of the sum's length, each with a copy of C.
    parts: usize,
    /// Rows of A and B in a part.
    length: usize,
    /// Pieces of the taps.
    taps: usize,
    /// Panels of a group's columns in a piece.
    panels: usize,
    /// Tasks a part.
    pieces: usize,
}

impl TransposedProduct<'_> {
    fn cut(&self, cx: &Context) -> Cut {
        let rows = self.images * self.gather.rows_per_image();
        let size = self.gather.taps() * self.gather.depth() * self.columns;
        let parts = (PARTS_LIMIT / size.max(1)).min(rows / LENGTH_BLOCK).clamp(1, TASKS);
        let length = rows.div_ceil(parts).next_multiple_of(LENGTH_BLOCK);
        let parts = rows.div_ceil(length).max(1);
        let missing = TASKS.div_ceil(parts * self.groups);
        let taps_at_once = self.gather.taps().div_ceil(missing).max(1);
        let taps = self.gather.taps().div_ceil(taps_at_once);
        let count = panels(cx.level(), self.columns / self.groups).len();
        let panels_at_once = count.div_ceil(missing.div_ceil(taps.max(1))).max(1);
        let pieces = self.groups * taps * count.div_ceil(panels_at_once);
        Cut { parts, length, taps: taps_at_once, panels: panels_at_once, pieces }
    }

    /// Computes C; `parts` is scratch memory that grows as needed and is reused.
    pub(crate) fn run(&self, cx: &Context, parts: &mut Vec<f32>, c: &mut [f32]) {
        let rows = self.images * self.gather.rows_per_image();
        let size = self.gather.taps() * self.gather.depth() * self.columns;
        assert_eq!(c.len(), size, "values of the transposed product");
        assert!(self.input.len() >= self.images * self.gather.image_step(), "the left matrix is too short");
        assert!(self.b.len() >= rows * self.columns, "the right matrix is too short");
        let last_group = (self.groups - 1) * self.gather.depth();
        assert!(self.gather.reach() + last_group <= self.gather.image_step(), "a row leaves its image");
        let cut = self.cut(cx);
        if cut.parts == 1 {
            c.fill(0.0);
            let out = SharedMut(c.as_mut_ptr());
            cx.pool().run(cut.pieces, |piece| self.piece(cx, &cut, piece, 0, &out));
            return;
        }
        parts.clear();
        parts.resize(cut.parts * size, 0.0);
        let out = SharedMut(parts.as_mut_ptr());
        cx.pool().run(cut.parts * cut.pieces, |task| {
            let part = task / cut.pieces;
            self.piece(cx, &cut, task % cut.pieces, part, &SharedMut(out.get().wrapping_add(part * size)));
        });
        let parts = &*parts;
        cx.pool().pieces(c, size.div_ceil(TASKS).max(1024), |index, piece| {
            let from = index * size.div_ceil(TASKS).max(1024);
            piece.copy_from_slice(&parts[from..from + piece.len()]);
            for part in parts.chunks_exact(size).skip(1) {
                for (sum, value) in piece.iter_mut().zip(&part[from..]) {
                    *sum += value;
                }
            }
        });
    }

    /// One task: some taps and panels of one group, summed over one part of the length.
    fn piece(&self, cx: &Context, cut: &Cut, piece: usize, part: usize, out: &SharedMut<f32>) {
        let panels = panels(cx.level(), self.columns / self.groups);
        let panel_pieces = panels.len().div_ceil(cut.panels);
        let (group, rest) = (piece % self.groups, piece / self.groups);
        let (panel_piece, tap_piece) = (rest % panel_pieces, rest / panel_pieces);
        let panels = panels.skip(panel_piece * cut.panels).take(cut.panels);
        let taps = tap_piece * cut.taps..self.gather.taps().min((tap_piece + 1) * cut.taps);
        let rows = self.images * self.gather.rows_per_image();
        let rows = part * cut.length..rows.min((part + 1) * cut.length);
        let input = self.input.as_ptr().wrapping_add(group * self.gather.depth());
        let mut pointers = [std::ptr::null(); LENGTH_BLOCK];
        for start in rows.clone().step_by(LENGTH_BLOCK) {
            let length = LENGTH_BLOCK.min(rows.end - start);
            for tap in taps.clone() {
                let mut position = self.gather.position(start);
                for pointer in &mut pointers[..length] {
                    self.gather.pointers(input, &position, tap, 1, |_, source| *pointer = source);
                    self.gather.advance(&mut position);
                }
                for panel in panels.clone() {
                    self.tile(cx, &pointers[..length], start, [tap, group], &panel, out);
                }
            }
        }
    }

    /// All channels of one tap for one panel of columns.
    fn tile(
        &self,
        cx: &Context,
        pointers: &[*const f32],
        start: usize,
        [tap, group]: [usize; 2],
        panel: &Panel,
        out: &SharedMut<f32>,
    ) {
        let kernels = cx.level().micro_kernels();
        let depth = self.gather.depth();
        let blocks = depth.div_ceil(kernels.max_rows(panel.vectors));
        let column = group * (self.columns / self.groups) + panel.column;
        for block in 0..blocks {
            // Heights as equal as can be: a short last block would waste the registers.
            let (from, to) = (depth * block / blocks, depth * (block + 1) / blocks);
            let arguments = Transposed {
                a: pointers.as_ptr(),
                skip: from,
                length: pointers.len(),
                b: self.b[start * self.columns + column..].as_ptr(),
                b_step: self.columns,
                c: out.get().wrapping_add((tap * depth + from) * self.columns + column),
                c_step: self.columns,
                columns: panel.columns,
                accumulate: true,
            };
            // SAFETY: `run` has checked that A, B and C are long enough; gathered pointers are valid for `depth`
            // values. Tasks own disjoint taps, groups, panels or parts of C.
            unsafe { kernels.transposed(panel.vectors, to - from, &arguments) };
        }
    }
}
