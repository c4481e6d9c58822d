//! The gradient of the weights: the same algorithm, transposed. Where `y = Aᵀ[(G w) ⊙ (Bᵀ d)]`, the gradient of w is
//! `Gᵀ[Σ (Bᵀ d) ⊙ (A dy)]`: for each point one matrix product of the transformed input and the transformed gradient,
//! summed over all tiles of the batch.

use super::algorithm::{F2, F3, F4, F4Of4, F5, S3};
use super::memory::{FastScratch, Memory, Own};
use super::run::FAR;
use super::square::Square;
use super::tiles::{Block, MAX_TILES};
use super::transform::{self, Gradient, Input, MAX_POINTS, MAX_WEIGHTS, Steps};
use super::{FastConv, Tiling};
use crate::Context;
use crate::bf16::Operands;
use crate::buffer::{Aligned, LINE};
use crate::gemm::heights::Heights;
use crate::gemm::micro::Transposed;
use crate::gemm::pack::panels;
use crate::gemm::{add_parts, row_step};
use crate::parallel::{SharedMut, Space, with_free};
use crate::prologue::Source;
use crate::simd::{Simd, Task};
use crate::vector::ask;
use std::marker::PhantomData;
use std::ops::Range;

/// Values of the transformed weights' gradient up to which parts of the batch are summed apart: those that stay in the L2
/// cache of a thread, and those that are still read and written faster than a shared V moves between caches.
const SUMS: [usize; 2] = [1 << 18, 1 << 20];

/// Parts of the batch at most, for each of these: each part has sums that are written, and read once more to be added.
const PARTS: [usize; 2] = [8, 4];

/// Tiles of a part that are worth sums of its own, where there are more than the fewest parts.
const WORTH: usize = 512;

/// Values of a block's V and D, or half as many again: in the L2 cache of a thread, and in the cache that threads share.
const OWN_VALUES: usize = 1 << 17;
const SHARED_VALUES: usize = 5 << 19;

/// Tiles of a block at least, however many channels there are: each block reads and writes all sums.
const LEAST_TILES: usize = 64;

/// Input channels of a task on the way back from the sums.
const ROWS: usize = 4;

/// How many tiles further on the one is whose input is asked for, where it comes from memory: fewer than in a forward pass, because
/// the output's gradient comes beside it.
const AHEAD: usize = 2;

/// Lines of sums that are read in one run.
const LINES: usize = 8;

/// How the tiles are cut, by the shape alone.
struct Cut {
    /// Parts with sums of their own, each a task.
    parts: usize,
    /// Blocks of tiles of a part.
    blocks: usize,
}

/// One pass.
struct Pass<'a, T> {
    conv: &'a FastConv,
    cx: &'a Context,
    x: Source<'a>,
    dy: &'a [f32],
    tiles: usize,
    cut: Cut,
    transform: PhantomData<fn() -> T>,
}

impl FastConv {
    /// Whether there is a [`grad_weight`](Self::grad_weight): for one group, and not by Strassen's algorithm, whose sums in
    /// memory cost what its products save.
    pub fn has_grad_weight(&self) -> bool {
        self.tiling.parts() == 1 && self.geometry.groups == 1 && !self.view.is_transposed()
    }

    /// `dw = Σ x · dy` over the batch's pixels, as HWIO; shapes as for [`Conv::grad_weight`](super::super::Conv::grad_weight).
    ///
    /// # Panics
    /// When a slice's length is not its shape's, the level is not the context's, there is
    /// [no such gradient](Self::has_grad_weight), or the input has a prologue that the algorithm
    /// [does not take](Self::takes_prologue).
    pub fn grad_weight<'a>(
        &self,
        cx: &Context,
        x: impl Into<Source<'a>>,
        dy: &[f32],
        scratch: &mut FastScratch,
        dw: &mut [f32],
    ) {
        assert!(
            self.has_grad_weight(),
            "the gradient of the weights of several groups, of pairs, or of a turned convolution"
        );
        assert!(cx.level() == self.level, "prepared for another instruction-set level");
        let Source { values: x, prologue } = self.source(x);
        let images = self.images(x);
        let output_len = self.output[0] * self.output[1] * self.geometry.out_channels;
        assert_eq!(dy.len(), images * output_len, "values of the output's gradient");
        assert_eq!(dw.len(), self.geometry.weight_len(), "number of weights");
        let FastScratch { copy, weights: sums, memory } = scratch;
        let values = self.view.of(cx, &self.geometry, self.input, x, copy);
        let x = Source { values, prologue };
        match self.tiling {
            Tiling::F2 => Pass::<Square<F2>>::new(self, cx, x, dy, images).run(memory, sums, dw),
            Tiling::F3 => Pass::<Square<F3>>::new(self, cx, x, dy, images).run(memory, sums, dw),
            Tiling::F4 => Pass::<Square<F4>>::new(self, cx, x, dy, images).run(memory, sums, dw),
            Tiling::F5 => Pass::<Square<F5>>::new(self, cx, x, dy, images).run(memory, sums, dw),
            Tiling::S3 => Pass::<Square<S3>>::new(self, cx, x, dy, images).run(memory, sums, dw),
            Tiling::S7 => Pass::<Square<F4Of4>>::new(self, cx, x, dy, images).run(memory, sums, dw),
            Tiling::Strassen | Tiling::Twice => unreachable!("there is no such gradient"),
        }
    }

    /// Channels of a row of V, and of a row of D and of the sums, in whole vectors.
    fn rows(&self) -> [usize; 2] {
        [self.view.depth, self.outputs()].map(|channels| channels.next_multiple_of(self.lanes()))
    }
}

impl<'a, T: transform::Transposed> Pass<'a, T> {
    fn new(conv: &'a FastConv, cx: &'a Context, x: Source<'a>, dy: &'a [f32], images: usize) -> Self {
        let tiles = images * conv.rows.len() * conv.columns.len();
        let [v_row, d_row] = conv.rows();
        let fit = |values: usize| (values / (T::POINTS * (v_row + d_row))).min(MAX_TILES);
        let sums = T::POINTS * conv.view.depth * d_row;
        let (parts, most) = match SUMS.into_iter().position(|limit| sums <= limit) {
            Some(0) => ((tiles / WORTH).clamp(PARTS[1], PARTS[0]), fit(OWN_VALUES).max(1)),
            Some(_) => (PARTS[1], fit(SHARED_VALUES / PARTS[1]).max(LEAST_TILES)),
            None => (1, fit(SHARED_VALUES).max(LEAST_TILES)),
        };
        let parts = tiles.div_ceil(most).clamp(1, parts);
        // The nearest number: fewer tiles than fit would be few for sums that are read and written once more for each block.
        let blocks = (tiles.div_ceil(parts) + most / 2) / most;
        let cut = Cut { parts, blocks: blocks.max(1) };
        Pass { conv, cx, x, dy, tiles, cut, transform: PhantomData }
    }

    /// The block, of the tiles of block `index` of all parts' blocks.
    fn fill<'b>(&self, block: &'b mut Block, index: usize) -> &'b Block {
        let count = self.cut.parts * self.cut.blocks;
        let at = |index: usize| self.tiles * index / count;
        block.fill([&self.conv.rows, &self.conv.columns], at(index)..at(index + 1))
    }

    /// Tiles of the largest block.
    fn most(&self) -> usize {
        self.tiles.div_ceil(self.cut.parts * self.cut.blocks)
    }

    /// Values of V, and of V and D, for the largest block.
    fn lengths(&self) -> [usize; 2] {
        let [v, d] = self.steps(self.most()).map(|steps| T::POINTS * steps.point);
        [v, v + d]
    }

    /// The steps of V and D for a block of `slots` tiles. A line more between two points: they do not share cache sets.
    fn steps(&self, slots: usize) -> [Steps; 2] {
        self.conv.rows().map(|row| {
            let slot = row_step(row);
            Steps { point: slot * slots + LINE, vector: self.conv.lanes(), slot }
        })
    }

    /// Values of the sums of a part.
    fn sums_len(&self) -> usize {
        T::POINTS * self.conv.view.depth * self.conv.rows()[1]
    }

    fn run(&self, memory: &mut Memory, sums: &mut Aligned, dw: &mut [f32]) {
        sums.reset(self.cut.parts * self.sums_len());
        let out = SharedMut(sums.as_mut_ptr());
        if self.cut.parts > 1 {
            let [_, length] = self.lengths();
            self.apart(memory.own(self.cx.pool().available(), self.most(), length), &out);
        } else {
            self.together(memory, &out);
        }
        let (sum, others) = sums.values_mut().split_at_mut(self.sums_len());
        add_parts(self.cx, sum, &others[..(self.cut.parts - 1) * self.sums_len()]);
        let rows = self.conv.view.depth;
        let dw = SharedMut(dw.as_mut_ptr());
        self.cx.pool().run(rows.div_ceil(ROWS), |task| {
            let rows = task * ROWS..rows.min((task + 1) * ROWS);
            self.cx.level().run(Back { pass: self, rows, sums: sum, dw: dw.get() });
        });
    }

    /// Sums each part by itself, in memory of the thread's own.
    fn apart(&self, own: &[Space<Own>], sums: &SharedMut<f32>) {
        let (blocks, [v_len, _]) = (self.cut.blocks, self.lengths());
        self.cx.pool().run(self.cut.parts, |part| {
            with_free(own, |Own { block, v, .. }| {
                let (v, d) = (v.as_mut_ptr(), v.as_mut_ptr().wrapping_add(v_len));
                let sums = sums.get().wrapping_add(part * self.sums_len());
                for index in 0..blocks {
                    let block = self.fill(block, part * blocks + index);
                    self.transform(block, 0..block.tiles().len(), [v, d]);
                    for point in 0..T::POINTS {
                        self.products(block, point, [v, d], sums, index > 0);
                    }
                }
            });
        });
    }

    /// Takes block after block through both steps on all threads.
    fn together(&self, Memory { block, shared, .. }: &mut Memory, sums: &SharedMut<f32>) {
        let (threads, [v_len, length]) = (self.cx.pool().available(), self.lengths());
        shared.grow(length);
        let (v, d) = (SharedMut(shared.as_mut_ptr()), SharedMut(shared.as_mut_ptr().wrapping_add(v_len)));
        for index in 0..self.cut.blocks {
            let block = self.fill(block, index);
            let tiles = block.tiles().len();
            let pieces = tiles.min(4 * threads);
            self.cx.pool().run(pieces, |piece| {
                let tiles = tiles * piece / pieces..tiles * (piece + 1) / pieces;
                self.transform(block, tiles, [v.get(), d.get()]);
            });
            self.cx.pool().run(T::POINTS, |point| {
                self.products(block, point, [v.get(), d.get()], sums.get(), index > 0);
            });
        }
    }

    /// V and D of some of a block's tiles.
    fn transform(&self, block: &Block, tiles: Range<usize>, [v, d]: [*mut f32; 2]) {
        let (conv, tiles) = (self.conv, &block.tiles()[tiles]);
        let [v_steps, d_steps] = self.steps(block.tiles().len());
        let later = |values: &[f32]| conv.later(if values.len() >= FAR { AHEAD } else { 0 });
        self.cx.level().run(Input::<T> {
            tiles,
            x: self.x.values.as_ptr(),
            prologue: self.x.prologue,
            size: conv.view.size,
            padding: conv.view.padding,
            channels: conv.view.channels,
            stride: conv.geometry.stride[0],
            line: conv.output[1],
            vectors: conv.vectors(0),
            zeros: conv.zeros.as_ptr(),
            v,
            steps: v_steps,
            later: later(self.x.values),
            transform: PhantomData,
        });
        self.cx.level().run(Gradient::<T> {
            tiles,
            dy: self.dy.as_ptr(),
            size: conv.output,
            channels: conv.geometry.out_channels,
            d,
            steps: d_steps,
            later: later(self.dy),
            transform: PhantomData,
        });
    }

    /// Adds a block's products of one point to the sums, or sets the sums to them.
    fn products(&self, block: &Block, point: usize, [v, d]: [*mut f32; 2], sums: *mut f32, accumulate: bool) {
        let (conv, kernels) = (self.conv, self.cx.level().micro_kernels());
        let [v_steps, d_steps] = self.steps(block.tiles().len());
        let [row, column] = T::last(point);
        let slots = block.slots(row, column);
        let v = v.cast_const().wrapping_add(point * v_steps.point + slots.start * v_steps.slot);
        let (depth, width) = (conv.view.depth, conv.rows()[1]);
        let d = d.cast_const().wrapping_add(point * d_steps.point + slots.start * d_steps.slot);
        let sums = sums.wrapping_add(point * depth * width);
        for panel in panels(conv.level, Operands::F32, width) {
            let heights = Heights::new(depth, kernels.max_rows(panel.vectors));
            for index in 0..heights.count() {
                let rows = heights.block(index);
                let arguments = Transposed {
                    a: v.wrapping_add(rows.start),
                    a_step: v_steps.slot,
                    length: slots.len(),
                    b: d.wrapping_add(panel.column),
                    b_step: d_steps.slot,
                    c: sums.wrapping_add(rows.start * width + panel.column),
                    c_step: width,
                    columns: panel.columns,
                    accumulate,
                    soon: &[],
                    factor: 1.0,
                };
                // SAFETY: V and D hold `depth` and `width` values for each of the point's slots, and the sums `depth` rows
                // of `width` for each point; nobody else works on this point of these sums.
                unsafe { kernels.transposed(panel.vectors, rows.len(), &arguments) };
            }
        }
    }
}

/// From the sums to the gradients of some input channels' weights.
struct Back<'a, T> {
    pass: &'a Pass<'a, T>,
    rows: Range<usize>,
    sums: &'a [f32],
    dw: *mut f32,
}

impl<T: transform::Transposed> Task for Back<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let conv = self.pass.conv;
        let (depth, width) = (conv.view.depth, conv.rows()[1]);
        let outputs = conv.outputs();
        let mut lines = [[[0.0; LINE]; MAX_POINTS]; LINES];
        for input in self.rows.clone() {
            for start in (0..outputs).step_by(LINES * LINE) {
                // Read in long runs and asked for: there are more points than streams that the hardware fetches ahead.
                for point in 0..T::POINTS {
                    let at = (point * depth + input) * width + start;
                    let sums = &self.sums[at..][..(width - start).min(LINES * LINE)];
                    ask(simd, sums.as_ptr().wrapping_add(sums.len()), sums.len());
                    for (line, sums) in lines.iter_mut().zip(sums.chunks(LINE)) {
                        line[point][..sums.len()].copy_from_slice(sums);
                    }
                }
                for (first, points) in (start..outputs).step_by(LINE).zip(&lines) {
                    let count = LINE.min(outputs - first);
                    let mut weights = [[0.0; LINE]; MAX_WEIGHTS];
                    T::weights(conv, points, &mut weights);
                    for (weight, values) in weights.iter().enumerate().take(T::WEIGHTS) {
                        let Some(at) = T::place(conv, weight, input, first) else { continue };
                        // SAFETY: the weights between an input channel and these output channels lie in dw, and each is
                        // another one for each input channel, which belongs to one task.
                        let to = unsafe { std::slice::from_raw_parts_mut(self.dw.wrapping_add(at), count) };
                        to.copy_from_slice(&values[..count]);
                    }
                }
            }
        }
    }
}
