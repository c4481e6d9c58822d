//! One forward pass: blocks of tiles through the transforms and the products, on all threads.

use super::pack::{Pack, PackTask};
use super::tiles::{Block, MAX_TILES, Tile};
use super::transform::{self, Later, Steps, Transform};
use super::{FastConv, PANEL, Panel, narrow};
use crate::Context;
use crate::buffer::{Aligned, LINE};
use crate::gemm::heights::Heights;
use crate::gemm::micro::Blocked;
use crate::gemm::{Epilogue, Residual};
use crate::parallel::{SharedMut, with_free};
use crate::prologue::Prologue;
use crate::simd::{Simd, Task};
use std::marker::PhantomData;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

/// Memory that fast convolutions use while they run, reused from one to the next.
#[derive(Debug, Default)]
pub struct FastScratch {
    /// The input as the tiles read it, where that is not as it stands.
    pub(super) copy: Aligned,
    /// The weights of one pass in the domain of products, or the sums that are their gradients.
    pub(super) weights: Aligned,
    pub(super) memory: Memory,
}

/// Memory for transformed tiles and products.
#[derive(Debug, Default)]
pub(super) struct Memory {
    /// The tiles that threads work on together.
    pub(super) block: Block,
    /// The transformed input, where threads share it.
    pub(super) shared: Aligned,
    /// What each thread has for itself.
    pub(super) own: Vec<Mutex<Own>>,
}

/// What each of `threads` threads has for itself, with room for a block of `tiles` tiles, V and M: whichever threads take part
/// later, nothing is allocated then.
fn with_room(
    own: &mut Vec<Mutex<Own>>,
    threads: usize,
    tiles: usize,
    [v_len, m_len]: [usize; 2],
) -> &[Mutex<Own>] {
    if own.len() < threads {
        own.resize_with(threads, Mutex::default);
    }
    for own in &mut own[..threads] {
        let Own { block, v, m, .. } = own.get_mut().unwrap_or_else(PoisonError::into_inner);
        block.reserve(tiles);
        v.grow(v_len);
        m.grow(m_len);
    }
    own
}

impl Memory {
    /// What each of `threads` threads has for itself, with room for a block of `tiles` tiles and `length` values in V.
    pub(super) fn own(&mut self, threads: usize, tiles: usize, length: usize) -> &[Mutex<Own>] {
        with_room(&mut self.own, threads, tiles, [length, 0])
    }

    /// Makes room for at most `tiles` tiles and `threads` threads.
    pub(super) fn reserve(&mut self, conv: &FastConv, tiles: usize, threads: usize) {
        let Cut { most, streamed } = Cut::new(conv);
        let [v_len, m_len] = conv.block_lens(most.min(tiles), together(conv));
        let alone = !streamed || threads == 1 || reads_all(conv, tiles, threads);
        with_room(&mut self.own, threads, most.min(tiles), [if alone { v_len } else { 0 }, m_len]);
        self.block.reserve(most.min(tiles));
        self.shared.grow(if threads > 1 { v_len } else { 0 });
    }
}

#[derive(Debug, Default)]
pub(super) struct Own {
    pub(super) block: Block,
    pub(super) v: Aligned,
    pub(super) m: Aligned,
    /// Rows of outputs that a pool will read.
    pub(super) strip: Aligned,
}

/// Values of packed weights beyond which threads share out the panels, so that each reads only a part of them.
const STREAMED: usize = 1 << 20;

/// Values of streamed weights that each thread reads for itself rather than share a transformed input with others, which
/// costs what moves from one core's cache to another's: about half of what the last cache holds.
const READ_BY_ALL: usize = 1 << 22;

/// Tiles of a thread for which it pays to read all weights.
const ENOUGH: usize = 24;

/// Values of V at most, where the weights stream by.
const TRANSFORMED: usize = 3 << 19;

/// Pixels of a block of tiles that are pixels in a row, at most.
const MOST_PIXELS: usize = 256;

/// Tiles of a small block: about as many as two calls of the shortest micro-kernels take.
const SMALL: usize = 12;

/// Channels that are transformed together where there are groups: enough to read pixels in long runs.
const TOGETHER: usize = 128;

/// Input channels whose weights are transformed together in passing: those of a panel stay in the L2 cache, beside M.
const IN_PASSING: usize = 64;

/// Values of an input that no core's cache holds.
pub(super) const FAR: usize = 1 << 18;

/// How many tiles further on the one is whose input is asked for, where it comes from memory.
const AHEAD: usize = 8;

/// Sections that are transformed together.
fn together(conv: &FastConv) -> usize {
    (TOGETHER / conv.view.depth).clamp(1, conv.sections().len())
}

/// Whether each thread reads all of the streamed weights for its share of `tiles` tiles.
fn reads_all(conv: &FastConv, tiles: usize, threads: usize) -> bool {
    tiles >= ENOUGH * threads && conv.weight_values() <= READ_BY_ALL
}

/// How tiles are cut into blocks.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cut {
    /// The most tiles of a block.
    pub(super) most: usize,
    /// Whether the weights come from memory.
    pub(super) streamed: bool,
}

impl Cut {
    /// Small weights stay in the L2 cache, beside V and M of a small block. Large ones stream by: they should meet as many
    /// tiles as possible.
    pub(super) fn new(conv: &FastConv) -> Self {
        let points = conv.tiling.points();
        let kernels = conv.level.micro_kernels();
        let sections = conv.sections().len();
        let streamed = conv.geometry.groups == 1 && conv.weight_values() > STREAMED;
        let vectors = PANEL.min(conv.outputs() / sections / kernels.lanes).max(1);
        let tallest = kernels.max_blocked_rows(vectors);
        // M of many products would leave the L2 cache.
        let most_tiles = MAX_TILES.min(MOST_PIXELS / conv.tiling.parts());
        let most = match (streamed, conv.view.narrow) {
            (true, _) => (TRANSFORMED / (points * conv.view.depth)).clamp(SMALL, most_tiles),
            (false, Some(_)) => narrow::MOST,
            (false, None) => tallest * SMALL.div_ceil(tallest),
        };
        Cut { most, streamed }
    }
}

/// How the work on a batch is cut. The bits of the result do not depend on it.
#[derive(Debug, Clone, Copy)]
struct Schedule {
    /// Blocks of tiles.
    blocks: usize,
    /// Whether all threads work on one block at a time and share its transformed input.
    shared: bool,
    /// Whether the weights come from memory.
    streamed: bool,
}

impl Schedule {
    fn new(conv: &FastConv, tiles: usize, threads: usize) -> Self {
        let Cut { most, streamed } = Cut::new(conv);
        let blocks = tiles.div_ceil(most);
        let few = match streamed {
            true => !reads_all(conv, tiles, threads),
            false => blocks < 2 * threads,
        };
        let shared = threads > 1 && conv.geometry.groups == 1 && few;
        let blocks = if shared || threads == 1 { blocks } else { blocks.next_multiple_of(threads) };
        Schedule { blocks: blocks.min(tiles), shared, streamed }
    }
}

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

    /// Values of a point of V for a section and a block of `tiles` tiles.
    fn section_len(&self, tiles: usize) -> usize {
        self.view.depth.next_multiple_of(self.lanes()) * tiles
    }

    /// Values between two points of V for some sections and a block of `tiles` tiles: a line more, so that points do not
    /// share cache sets.
    fn v_step(&self, tiles: usize, sections: usize) -> usize {
        self.section_len(tiles) * sections + LINE
    }

    /// The steps of V for a block of `tiles` tiles, whose points are `point` values apart.
    fn v_steps(&self, tiles: usize, point: usize) -> Steps {
        Steps { point, vector: tiles * self.lanes(), slot: self.lanes() }
    }

    /// Values between two slots of M for a panel of `width` channels; a line more, as for V.
    pub(super) fn m_step(&self, width: usize) -> usize {
        self.tiling.points() * width + LINE
    }

    /// Values of V, for some sections, and of M for a block of `tiles` tiles.
    pub(super) fn block_lens(&self, tiles: usize, sections: usize) -> [usize; 2] {
        let points = self.tiling.points();
        [points * self.v_step(tiles, sections), tiles * self.m_step(PANEL * self.lanes())]
    }
}

/// Cache lines that come while a block's products are made.
pub(super) enum Ahead {
    /// None are asked for.
    Nothing,
    /// Those of the next point's weights, which come from memory.
    Weights,
    /// Those of the input that the thread's next block reads.
    Input {
        next: *const f32,
        /// Lines that have not been asked for, and how many go with each vector of this block's input channels.
        left: usize,
        each: usize,
    },
}

impl Ahead {
    /// The first of the input's lines that go with each of `vectors` vectors, and how many go with one.
    fn take(&mut self, vectors: usize) -> Option<(*const f32, usize)> {
        match self {
            Ahead::Input { next, left, each } if *left > 0 => {
                let (from, lines) = (*next, *each * vectors);
                *next = next.wrapping_add(lines * LINE);
                *left = left.saturating_sub(lines);
                Some((from, *each))
            }
            _ => None,
        }
    }
}

/// Outputs that will be written, in evenly spaced rows.
struct Outputs {
    first: *const f32,
    /// Values between two rows.
    step: usize,
    rows: Range<usize>,
    /// Cache lines of a row.
    lines: usize,
}

impl Task for Outputs {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        for row in self.rows {
            for line in 0..self.lines {
                simd.prefetch(self.first.wrapping_add(row * self.step + line * LINE));
            }
        }
    }
}

/// The slots of one point, cut for the micro-kernels.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Pieces {
    start: usize,
    heights: Heights,
    /// Cache lines of the next weights to ask for with each vector of a piece.
    lines: usize,
}

/// The weights of a pass.
#[derive(Clone, Copy)]
pub(super) enum Weights<'a> {
    /// In the domain of products.
    Packed(&'a [f32]),
    /// HWIO: each panel is transformed when a block of tiles comes to it.
    Plain(&'a [f32]),
}

/// Products of a block of tiles with one panel of output channels, over some input channels.
struct Products<'a> {
    block: &'a Block,
    panel: &'a Panel,
    /// V from the first of the input channels on, and the values between two of its points.
    v: (*const f32, usize),
    /// The weights, `[point][input channel][width of the panel]`, and the values between two points.
    b: (*const f32, usize),
    /// Input channels.
    depth: usize,
    /// M, and the values between two of its slots.
    m: (*mut f32, usize),
    /// Whether the products are added to what M holds.
    add: bool,
}

/// One call of [`FastConv::forward`], whose arguments have been checked.
pub(super) struct Run<'a> {
    pub(super) conv: &'a FastConv,
    pub(super) cx: &'a Context,
    pub(super) x: &'a [f32],
    pub(super) prologue: Option<Prologue<'a>>,
    pub(super) weights: Weights<'a>,
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
        let schedule = Schedule::new(conv, tiles, threads);
        let (blocks, sections) = (schedule.blocks, conv.sections().len());
        let together = together(conv);
        let chunks = sections.div_ceil(together);
        let most = tiles.div_ceil(blocks);
        let Memory { block, shared, own } = memory;
        let chunk = if schedule.shared { 1 } else { together };
        let [v_len, m_len] = self.block_lens(most, chunk);
        let own = with_room(own, threads, most, [if schedule.shared { 0 } else { v_len }, m_len]);
        let range = |index: usize| tiles * index / blocks..tiles * (index + 1) / blocks;
        if !schedule.shared {
            self.cx.pool().run(blocks * chunks, |task| {
                let first = task % chunks * together;
                let chunk = first..sections.min(first + together);
                if let Some(group) = conv.view.narrow {
                    return with_free(own, |own| self.narrow::<T>(group, range(task / chunks), chunk, own));
                }
                // Threads take blocks in turn.
                let next = task / chunks + threads;
                let mut ahead = match schedule.streamed {
                    true => Ahead::Weights,
                    false if next < blocks => self.ahead(range(next)),
                    false => Ahead::Nothing,
                };
                with_free(own, |own| self.alone::<T>(range(task / chunks), chunk, &mut ahead, own));
            });
            return;
        }
        shared.grow(v_len);
        let v = SharedMut(shared.as_mut_ptr());
        let (panels, vectors) = (conv.panels(0), conv.vectors(0).len());
        for index in 0..blocks {
            let block = self.fill(block, range(index));
            let step = conv.v_step(block.tiles().len(), 1);
            let pieces = vectors.min(4 * threads);
            self.cx.pool().run(pieces, |piece| {
                let vectors = vectors * piece / pieces..vectors * (piece + 1) / pieces;
                let first = vectors.start * block.tiles().len() * conv.lanes();
                let steps = conv.v_steps(block.tiles().len(), step);
                self.transform::<T>(block, vectors, steps, v.get().wrapping_add(first));
            });
            self.cx.pool().run(panels.len(), |panel| {
                let Some(panel) = panels.clone().nth(panel) else { return };
                with_free(own, |Own { m, .. }| {
                    let mut ahead = if schedule.streamed { Ahead::Weights } else { Ahead::Nothing };
                    self.panel::<T>(&mut ahead, block, panel, (v.get(), step), m.as_mut_ptr());
                });
            });
        }
    }

    /// Values of V, for some sections, and of M for a block of `tiles` tiles, with the weights that are transformed in passing behind
    /// it.
    fn block_lens(&self, tiles: usize, sections: usize) -> [usize; 2] {
        let [v_len, m_len] = self.conv.block_lens(tiles, sections);
        let weights = match self.weights {
            Weights::Packed(_) => 0,
            Weights::Plain(_) => {
                let rows = IN_PASSING.min(self.conv.view.depth);
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
        Own { block, v, m, .. }: &mut Own,
    ) {
        let block = self.fill(block, tiles);
        let (conv, tiles) = (self.conv, block.tiles().len());
        let [v_len, m_len] = self.block_lens(tiles, chunk.len());
        v.grow(v_len);
        m.grow(m_len);
        let step = conv.v_step(tiles, chunk.len());
        let vectors = conv.vectors(chunk.start).start..conv.vectors(chunk.end - 1).end;
        self.transform::<T>(block, vectors, conv.v_steps(tiles, step), v.as_mut_ptr());
        for section in chunk.clone() {
            let v = v.as_ptr().wrapping_add((section - chunk.start) * conv.section_len(tiles));
            for panel in conv.panels(section) {
                self.panel::<T>(ahead, block, panel, (v, step), m.as_mut_ptr());
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

    /// Asks for a share of the outputs that the products of a panel become, one of `shares` equal ones. Only where tiles are
    /// pixels in a row do they stand in evenly spaced rows.
    fn expect(&self, block: &Block, panel: &Panel, share: usize, shares: usize) {
        let (conv, parts) = (self.conv, self.conv.tiling.parts());
        let [Some(first), Some(last)] = [block.tiles().first(), block.tiles().last()] else { return };
        let pixel = |tile: &Tile| tile.image * conv.output[0] * conv.output[1] + tile.columns.start;
        let rows = parts * (pixel(last) + last.columns.outputs - pixel(first));
        let channels = conv.geometry.out_channels;
        conv.level.run(Outputs {
            first: self.y.get().wrapping_add(pixel(first) * channels + panel.channels.start),
            step: channels / parts,
            rows: rows * share / shares..rows * (share + 1) / shares,
            lines: panel.channels.len().div_ceil(LINE),
        });
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
                let b = (b, depth * width);
                self.products::<T>(ahead, Products { block, panel, v: (v, v_step), b, depth, m, add: false });
            }
            Weights::Plain(weight) => {
                let slots = block.tiles().len();
                let b = m.0.wrapping_add(slots * m_step);
                for start in (0..depth).step_by(IN_PASSING) {
                    let depth = IN_PASSING.min(depth - start);
                    let step = depth * width + LINE;
                    // SAFETY: behind M there is room for so many weights, which nobody else uses.
                    let packed = unsafe { std::slice::from_raw_parts_mut(b, T::POINTS * step) };
                    let (geometry, view, inputs) = (&conv.geometry, &conv.view, start..start + depth);
                    let exact = false;
                    let pack = Pack { weight, geometry, view, panel, width, inputs, packed, step, exact };
                    self.cx.level().run(PackTask::<T> { pack, transform: PhantomData });
                    let v = (v.wrapping_add(start * slots), v_step);
                    let products = Products { block, panel, v, b: (b, step), depth, m, add: start > 0 };
                    self.products::<T>(&mut Ahead::Nothing, products);
                }
            }
        }
        self.back::<T>(block, panel.channels.clone(), m.0, m_step);
    }

    /// Products at all points.
    fn products<T: Transform>(&self, ahead: &mut Ahead, products: Products) {
        let Products { block, panel, v: (v, v_step), b: (b, b_step), depth, m: (m, m_step), add } = products;
        let (kernels, vectors) = (self.conv.level.micro_kernels(), panel.vectors);
        let (slots, width) = (block.tiles().len(), vectors * kernels.lanes);
        let (tallest, deep) = (kernels.max_blocked_rows(vectors), depth.div_ceil(kernels.lanes));
        // Cut once for each kind of point.
        let pieces = [false, true].map(|row| {
            [false, true].map(|column| {
                let slots = block.slots(row, column);
                let heights = Heights::new(slots.len(), tallest);
                let lines = match ahead {
                    Ahead::Weights => (depth * width / LINE).div_ceil((deep * heights.count()).max(1)),
                    Ahead::Nothing | Ahead::Input { .. } => 0,
                };
                Pieces { start: slots.start, heights, lines }
            })
        });
        let expects = self.conv.tiling.parts() > 1;
        // What is asked for in advance goes from point to point; products alone go through all points at once, if those have the
        // same slots.
        let alike = pieces.as_flattened().iter().all(|other| *other == pieces[0][0]);
        let points = if alike && !expects && matches!(ahead, Ahead::Nothing) { T::POINTS } else { 1 };
        let a_step = slots * kernels.lanes;
        let point_steps = [v_step, b_step, width];
        let mut arguments = Blocked {
            points,
            point_steps,
            a: v,
            a_step,
            depth,
            b,
            c: m,
            c_step: m_step,
            add,
            next: b,
            lines: 0,
        };
        for point in (0..T::POINTS).step_by(points) {
            let [row, column] = T::last(point);
            let Pieces { start, heights, lines } = pieces[usize::from(row)][usize::from(column)];
            let count = heights.count();
            arguments.b = b.wrapping_add(point * b_step);
            for index in 0..count {
                let piece = heights.block(index);
                if expects {
                    self.expect(block, panel, point * count + index, T::POINTS * count);
                }
                // The next point's weights, shared out over this point's pieces.
                let weights = arguments.b.wrapping_add(b_step + lines * LINE * index * deep);
                (arguments.next, arguments.lines) = ahead.take(deep).unwrap_or((weights, lines));
                let slot = start + piece.start;
                arguments.a = v.wrapping_add(point * v_step + slot * kernels.lanes);
                arguments.c = m.wrapping_add(slot * m_step + point * width);
                // SAFETY: V has `slots` rows for each point and vector of channels, M `width` values for each slot and
                // point (both buffers were grown to that), the panel `depth` rows of `width` for each point; there are no more
                // than the transform's.
                unsafe { kernels.blocked(vectors, piece.len(), &arguments) };
            }
        }
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
            residual: match self.epilogue.residual {
                Some(Residual::Tensor(values)) => values.as_ptr(),
                Some(Residual::InPlace) => self.y.get(),
                None => std::ptr::null(),
            },
            relu: self.epilogue.relu,
            transform: PhantomData,
        });
    }
}
