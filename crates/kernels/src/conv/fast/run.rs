//! One forward pass: blocks of tiles through the transforms and the products, on all threads.

use super::memory::{Memory, Own, with_room};
use super::pack::{Pack, PackTask};
use super::products::{Ahead, Products};
use super::schedule::{Schedule, Share, together};
use super::threes::{OfTiles, OfWeights};
use super::tiles::{self, Block, Line};
use super::transform::{self, Later, MAX_POINTS, Steps, Transform};
use super::{FastConv, PANEL, Panel, narrow};
use crate::Context;
use crate::buffer::LINE;
use crate::gemm::Epilogue;
use crate::parallel::{SharedMut, with_free};
use crate::prologue::Prologue;
use std::marker::PhantomData;
use std::ops::Range;

/// Input channels whose weights are transformed together in passing: those of a panel stay in the L2 cache, beside M.
const IN_PASSING: usize = 64;

/// Values of an input that no core's cache holds beside what else is needed.
pub(super) const FAR: usize = 3 << 16;

/// How many tiles further on the one is whose input is asked for, where it comes from memory.
const AHEAD: usize = 8;

impl FastConv {
    /// The first pixel of a tile, counted through the batch, where tiles are pixels in a row.
    fn first_pixel(&self, tile: usize) -> usize {
        let (image, column) = (tile / self.columns.len(), tile % self.columns.len());
        image * self.output[0] * self.output[1] + self.columns[column].start
    }

    /// The tile that is `tiles` tiles further on.
    pub(super) fn later(&self, tiles: usize) -> Later {
        Later { tiles, across: self.columns.len() }
    }
}

/// The weights of a pass.
#[derive(Clone, Copy)]
pub(super) enum Weights<'a> {
    /// In the domain of products.
    Packed(&'a [f32]),
    /// HWIO: each panel is transformed when a block of tiles comes to it.
    Plain(&'a [f32]),
    /// HWIO: each thread transforms them for itself when it comes to its first block of tiles.
    Apart(&'a [f32]),
}

/// One call of [`FastConv::forward`], whose arguments have been checked.
pub(super) struct Run<'a> {
    pub(super) conv: &'a FastConv,
    pub(super) cx: &'a Context,
    pub(super) x: &'a [f32],
    pub(super) prologue: Option<Prologue<'a>>,
    pub(super) weights: Weights<'a>,
    /// The power of two by which weights are multiplied, and by what products are at each point then, of threes alone.
    pub(super) factor: Option<f32>,
    pub(super) factors: Option<[f32; MAX_POINTS]>,
    pub(super) epilogue: Epilogue<'a>,
    pub(super) y: SharedMut<f32>,
}

impl Run<'_> {
    /// Computes all tiles of `images` images.
    pub(super) fn batch<T: Transform>(&self, images: usize, memory: &mut Memory) {
        let conv = self.conv;
        let tiles = images * conv.rows.len() * conv.columns.len();
        if tiles == 0 {
            return;
        }
        let threads = self.cx.pool().available();
        let in_passing = matches!(self.weights, Weights::Plain(_));
        let schedule = Schedule::new(conv, tiles, threads, in_passing);
        let (blocks, sections) = (schedule.blocks, conv.sections().len());
        let together = together(conv);
        let chunks = sections.div_ceil(together);
        let range = |index: usize| schedule.cut.block(tiles, blocks, index);
        let most = schedule.cut.longest(tiles, blocks);
        let Memory { block, shared, own } = memory;
        let chunk = if schedule.share == Share::Block { together } else { 1 };
        let [v_len, m_len] = self.block_lens(most, chunk);
        let together_len = if schedule.share == Share::PanelsAndInput { v_len } else { 0 };
        let weights_len = if let Weights::Apart(_) = self.weights { conv.packed_len() } else { 0 };
        let own = with_room(own, threads, most, [v_len - together_len, m_len, weights_len]);
        if schedule.share == Share::Block {
            self.cx.pool().run(blocks * chunks, |task| {
                let first = task % chunks * together;
                let chunk = first..sections.min(first + together);
                if let Some(group) = conv.view.narrow {
                    return with_free(own, |own| self.narrow::<T>(group, range(task / chunks), chunk, own));
                }
                // Threads take blocks in turn.
                let next = task / chunks + threads;
                let mut ahead = match schedule.cut.streamed {
                    true => Ahead::Weights,
                    false if next < blocks => self.ahead(range(next)),
                    false => Ahead::Nothing,
                };
                with_free(own, |own| self.alone::<T>(range(task / chunks), chunk, &mut ahead, own));
                // SAFETY: where somebody follows, there is one group, so that this task has taken these tiles through all output
                // channels.
                unsafe { self.follow(range(task / chunks)) };
            });
            return;
        }
        shared.grow(together_len);
        let v = SharedMut(shared.as_mut_ptr());
        let (panels, vectors) = (conv.panels(0), conv.vectors(0));
        for index in 0..blocks {
            let block = self.fill(block, range(index));
            let step = conv.v_step(block.tiles().len(), 1);
            let steps = conv.v_steps(block.tiles().len(), step);
            if schedule.share == Share::PanelsAndInput {
                let pieces = vectors.len().min(4 * threads);
                self.cx.pool().run(pieces, |piece| {
                    let vectors = vectors.len() * piece / pieces..vectors.len() * (piece + 1) / pieces;
                    let first = vectors.start * steps.vector;
                    self.transform::<T>(block, vectors, steps, v.get().wrapping_add(first));
                });
                if self.factor.is_some() {
                    let pieces = T::POINTS.min(4 * threads);
                    self.cx.pool().run(pieces, |piece| {
                        let points = T::POINTS * piece / pieces..T::POINTS * (piece + 1) / pieces;
                        self.sum_tiles(block, (v.get(), step), points);
                    });
                }
            }
            self.cx.pool().run(panels.len(), |panel| {
                let Some(panel) = panels.clone().nth(panel) else { return };
                with_free(own, |own| {
                    let v = match schedule.share {
                        Share::PanelsAndInput => v.get(),
                        Share::Panels | Share::Block => own.v.as_mut_ptr(),
                    };
                    if schedule.share == Share::Panels && own.transformed.replace(index) != Some(index) {
                        self.transform::<T>(block, vectors.clone(), steps, v);
                        self.sum_tiles(block, (v, step), 0..T::POINTS);
                    }
                    let mut ahead = if schedule.cut.streamed { Ahead::Weights } else { Ahead::Nothing };
                    self.panel::<T>(&mut ahead, block, panel, (v, step), own.m.as_mut_ptr());
                });
            });
        }
    }

    /// Values of V, for some sections, and of M for a block of `tiles` tiles, with the weights that are transformed in passing behind
    /// it.
    fn block_lens(&self, tiles: usize, sections: usize) -> [usize; 2] {
        let [v_len, m_len] = self.conv.block_lens(tiles, sections);
        let weights = match self.weights {
            Weights::Packed(_) | Weights::Apart(_) => 0,
            Weights::Plain(_) => {
                let rows = IN_PASSING.min(self.conv.view.depth) + usize::from(self.factor.is_some());
                self.conv.tiling.points() * (rows * PANEL * self.conv.lanes() + LINE)
            }
        };
        [v_len, m_len + weights]
    }

    /// Takes a block of tiles through the sections `chunk` in memory of the thread's own.
    pub(super) fn alone<T: Transform>(
        &self,
        tiles: Range<usize>,
        chunk: Range<usize>,
        ahead: &mut Ahead,
        Own { block, v, m, weights, packed, .. }: &mut Own,
    ) {
        let conv = self.conv;
        let weights = match self.weights {
            Weights::Packed(_) | Weights::Plain(_) => self.weights,
            Weights::Apart(weight) => {
                if !std::mem::replace(packed, true) {
                    let weight = (weight, self.factor);
                    conv.pack_panels::<T>(self.cx, weight, SharedMut(weights.as_mut_ptr()), false);
                }
                Weights::Packed(weights.values())
            }
        };
        let run = Run { weights, y: SharedMut(self.y.get()), ..*self };
        let block = self.fill(block, tiles);
        let tiles = block.tiles().len();
        let [v_len, m_len] = self.block_lens(tiles, chunk.len());
        v.grow(v_len);
        m.grow(m_len);
        let step = conv.v_step(tiles, chunk.len());
        let vectors = conv.vectors(chunk.start).start..conv.vectors(chunk.end - 1).end;
        self.transform::<T>(block, vectors, conv.v_steps(tiles, step), v.as_mut_ptr());
        self.sum_tiles(block, (v.as_mut_ptr(), step), 0..T::POINTS);
        for section in chunk.clone() {
            let v = v.as_ptr().wrapping_add((section - chunk.start) * conv.section_len(tiles));
            for panel in conv.panels(section) {
                run.panel::<T>(ahead, block, panel, (v, step), m.as_mut_ptr());
            }
        }
    }

    /// Reports the pixels of tiles, where somebody wants to know.
    ///
    /// # Safety
    /// All channels of these tiles' pixels must be complete; they were not reported before. There is one group.
    unsafe fn follow(&self, tiles: Range<usize>) {
        let Some(follow) = &self.epilogue.follow else { return };
        let (conv, [height, width]) = (self.conv, self.conv.output);
        for Line { image, rows, columns } in tiles::lines([&conv.rows, &conv.columns], tiles) {
            let values = columns.iter().map(|columns| columns.outputs).sum::<usize>() * follow.channels();
            for y in rows.start..rows.start + rows.outputs {
                // SAFETY: y has been checked to be the result that is followed, whose chunks are whole lines of pixels; the rest
                // is promised by the caller.
                unsafe { follow.done((image * height + y) * width, values, &self.y) };
            }
        }
    }

    /// The input of a later block, where it stands together.
    fn ahead(&self, tiles: Range<usize>) -> Ahead {
        let conv = self.conv;
        if conv.tiling.parts() == 1 || conv.geometry.stride != [1, 1] {
            return Ahead::Nothing;
        }
        let [first, end] = [tiles.start, tiles.end].map(|tile| conv.first_pixel(tile) * conv.view.channels);
        let vectors = conv.view.depth / conv.lanes() * conv.panels(0).len() * conv.tiling.points();
        let left = (end - first).div_ceil(LINE);
        Ahead::Input { next: self.x.as_ptr().wrapping_add(first), left, each: left.div_ceil(vectors) }
    }

    /// The block, of these tiles.
    pub(super) fn fill<'a>(&self, block: &'a mut Block, tiles: Range<usize>) -> &'a Block {
        block.fill([&self.conv.rows, &self.conv.columns], tiles)
    }

    /// Transforms some vectors of channels into V, which begins with the first of them.
    pub(super) fn transform<T: Transform>(
        &self,
        block: &Block,
        vectors: Range<usize>,
        steps: Steps,
        v: *mut f32,
    ) {
        self.cx.level().run(transform::Input::<T> {
            tiles: block.tiles(),
            x: self.x.as_ptr(),
            prologue: self.prologue,
            size: self.conv.view.size,
            padding: self.conv.view.padding,
            channels: self.conv.view.channels,
            stride: self.conv.geometry.stride[0],
            line: self.conv.output[1],
            vectors,
            zeros: self.conv.zeros.as_ptr(),
            v,
            steps,
            later: self.conv.later(match (self.conv.view.narrow, self.conv.geometry.groups) {
                (Some(_), _) => narrow::TILES,
                (None, 1) if self.x.len() >= FAR => AHEAD,
                (None, 1) => 0,
                (None, _) => 1,
            }),
            transform: PhantomData,
        });
    }

    /// Sums what some points of transformed tiles bring with them, where threes will take it off, behind each point of V.
    fn sum_tiles(&self, block: &Block, v: (*mut f32, usize), points: Range<usize>) {
        if self.factor.is_some() {
            let (tiles, depth) = (block.tiles().len(), self.conv.view.depth);
            self.cx.level().run(OfTiles { v, points, tiles, depth });
        }
    }

    /// The products of one panel of output channels, and their way back. V begins with the panel's section and has its
    /// points `v_step` values apart.
    fn panel<T: Transform>(
        &self,
        ahead: &mut Ahead,
        block: &Block,
        panel: Panel,
        (v, v_step): (*const f32, usize),
        m: *mut f32,
    ) {
        let conv = self.conv;
        let (depth, width) = (conv.view.depth, panel.vectors * conv.lanes());
        let m_step = conv.m_step(width);
        let (panel, m) = (&panel, (m, m_step));
        match self.weights {
            Weights::Packed(values) => {
                let b = values.as_ptr().wrapping_add(conv.panel_start(panel.channels.start));
                let b = (b, conv.weight_step(width));
                let sums = Some((b.0.wrapping_add(depth * width), b.1));
                let first = 0;
                let products = Products { block, panel, v: (v, v_step), b, depth, m, first, sums };
                self.products::<T>(ahead, products);
            }
            Weights::Apart(_) => unreachable!("packed when the thread came to its first block"),
            Weights::Plain(weight) => {
                let slots = block.tiles().len();
                let b = m.0.wrapping_add(slots * m_step);
                // Behind the weights.
                let sums = b.wrapping_add(T::POINTS * (IN_PASSING.min(depth) * width + LINE));
                for start in (0..depth).step_by(IN_PASSING) {
                    let last = start + IN_PASSING >= depth;
                    let depth = IN_PASSING.min(depth - start);
                    let step = depth * width + LINE;
                    // SAFETY: behind M there is room for so many weights, which nobody else uses.
                    let packed = unsafe { std::slice::from_raw_parts_mut(b, T::POINTS * step) };
                    let (geometry, view, inputs) = (&conv.geometry, &conv.view, start..start + depth);
                    let exact = false;
                    let pack = Pack { weight, geometry, view, panel, width, inputs, packed, step, exact };
                    self.cx.level().run(PackTask::<T> { pack, transform: PhantomData });
                    if let Some(factor) = self.factor {
                        let (scales, weights, sums) = (&conv.scales, (b, step), (sums, width));
                        let add = start > 0;
                        self.cx.level().run(OfWeights {
                            scales,
                            factor,
                            weights,
                            rows: depth,
                            width,
                            sums,
                            add,
                        });
                    }
                    let sums = last.then_some((sums.cast_const(), width));
                    let (b, first) = ((b.cast_const(), step), start);
                    let products = Products { block, panel, v: (v, v_step), b, depth, m, first, sums };
                    self.products::<T>(&mut Ahead::Nothing, products);
                }
            }
        }
        self.back::<T>(block, panel.channels.clone(), m.0, m_step);
    }

    /// The way back of the products in M, whose slots are `slot_step` values apart, for some output channels.
    pub(super) fn back<T: Transform>(
        &self,
        block: &Block,
        channels: Range<usize>,
        m: *const f32,
        slot_step: usize,
    ) {
        self.cx.level().run(transform::Output::<T> {
            block,
            m,
            slot_step,
            y: self.y.get(),
            size: self.conv.output,
            channels: self.conv.geometry.out_channels,
            panel: channels,
            bias: self.epilogue.bias.map_or(std::ptr::null(), <[f32]>::as_ptr),
            residual: self.epilogue.added(self.y.get()),
            relu: self.epilogue.relu,
            transform: PhantomData,
        });
    }
}
