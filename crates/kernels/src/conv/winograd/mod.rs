//! Fast convolution of 3×3 kernels, fused tile by tile: transform, products, transform back, epilogue.
//!
//! A block of tiles goes through all three steps while it is in the L2 cache, so that the transformed input and the
//! products never reach memory. The products of one point of all tiles of a block are one matrix product of
//! `tiles × in_channels` by `in_channels × out_channels`.

mod algorithm;
#[cfg(test)]
mod tests;
mod tiles;
mod transform;
mod view;

use self::algorithm::{Algorithm, F2, F3Of4, F4, MAX, S3};
use self::tiles::{Block, MAX_TILES, Span};
use self::view::View;
use super::{ConvGeometry, GeometryError};
use crate::buffer::{Aligned, LINE};
use crate::gemm::micro::Blocked;
use crate::gemm::{Epilogue, Residual};
use crate::parallel::SharedMut;
use crate::simd::{Simd, Task};
use crate::{Context, Level};
use std::marker::PhantomData;
use std::ops::Range;
use std::sync::{Mutex, PoisonError, TryLockError};

/// Which fast algorithm a convolution uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Tiling {
    /// F(2×2, 3×3): 16 products for 4 outputs, 2.25 times fewer than the direct sum.
    F2,
    /// F(4×4, 3×3): 36 products for 16 outputs, 4 times fewer.
    F4,
    /// 3×3 with stride 2 by phases: 49 products for 9 outputs, 1.65 times fewer.
    S3,
    /// 7×7 with stride 2, the stem, by phases: squares of 2×2 pixels become pixels of four times the channels, and the
    /// kernel becomes one of 4×4 with stride 1 and F(3×3, 4×4): 144 products for 9 outputs, 3.06 times fewer.
    S7,
}

impl Tiling {
    /// All algorithms.
    pub const ALL: [Tiling; 4] = [Tiling::F2, Tiling::F4, Tiling::S3, Tiling::S7];

    /// Whether the algorithm computes this convolution.
    pub fn supports(self, geometry: &ConvGeometry) -> bool {
        let (kernel, stride) = match self {
            Tiling::F2 | Tiling::F4 => (3, 1),
            Tiling::S3 => (3, 2),
            Tiling::S7 => (7, 2),
        };
        // More channels would fill vectors without being put side by side.
        let folds = self != Tiling::S7 || (geometry.in_channels <= 4 && geometry.padding == [3, 3]);
        geometry.kernel == [kernel; 2]
            && geometry.stride == [stride; 2]
            && geometry.dilation == [1, 1]
            && geometry.groups == 1
            && folds
    }

    /// Products of one axis of a full tile.
    fn points(self) -> usize {
        match self {
            Tiling::F2 => F2::POINTS,
            Tiling::F4 => F4::POINTS,
            Tiling::S3 => S3::POINTS,
            Tiling::S7 => F3Of4::POINTS,
        }
    }

    /// Products for each pair of input and output channels of an image with `[height, width]` outputs, and values that a
    /// pair's weights are packed to.
    pub fn products(self, output: [usize; 2]) -> [usize; 2] {
        let (points, last) = (self.points(), self.last());
        let along = |outputs| -> usize {
            self.cut(outputs).iter().map(|span| points - if span.full { 0 } else { last }).sum()
        };
        let squares = if self == Tiling::S7 { 4 } else { 1 };
        [squares * along(output[0]) * along(output[1]), squares * points * points]
    }

    /// Points that only the last output needs.
    fn last(self) -> usize {
        match self {
            Tiling::F2 => F2::LAST.len(),
            Tiling::F4 => F4::LAST.len(),
            Tiling::S3 => S3::LAST.len(),
            Tiling::S7 => F3Of4::LAST.len(),
        }
    }

    fn cut(self, outputs: usize) -> Vec<Span> {
        match self {
            Tiling::F2 => tiles::cut::<F2>(outputs),
            Tiling::F4 => tiles::cut::<F4>(outputs),
            Tiling::S3 => tiles::cut::<S3>(outputs),
            Tiling::S7 => tiles::cut::<F3Of4>(outputs),
        }
    }

    /// Row `point` of G.
    fn weights(self, point: usize) -> Vec<f64> {
        match self {
            Tiling::F2 => F2::weights(point),
            Tiling::F4 => F4::weights(point),
            Tiling::S3 => S3::weights(point),
            Tiling::S7 => F3Of4::weights(point),
        }
    }
}

/// Vectors of output channels that go through the products together: M holds no more.
const PANEL: usize = 2;

/// A fast convolution prepared for one input size and one instruction-set level.
#[derive(Debug, Clone)]
pub struct Winograd {
    geometry: ConvGeometry,
    tiling: Tiling,
    level: Level,
    input: [usize; 2],
    output: [usize; 2],
    view: View,
    rows: Vec<Span>,
    columns: Vec<Span>,
    zeros: Vec<f32>,
}

/// Weights in the domain of products: `[panel][point][in_channel][width of the panel]`.
#[derive(Debug, Clone)]
pub struct WinogradWeights {
    level: Level,
    values: Aligned,
}

/// Memory that fast convolutions use while they run, reused from one to the next.
#[derive(Debug, Default)]
pub struct WinogradScratch {
    /// The input as the tiles read it, where that is not as it stands.
    copy: Aligned,
    /// The transformed input, where threads share it.
    shared: Aligned,
    /// What each thread has for itself.
    own: Vec<Mutex<Own>>,
}

#[derive(Debug, Default)]
struct Own {
    v: Aligned,
    m: Aligned,
}

impl WinogradScratch {
    /// Calls `work` with memory that no other thread uses meanwhile.
    fn with(own: &[Mutex<Own>], work: impl FnOnce(&mut Own)) {
        for slot in own {
            match slot.try_lock() {
                Ok(mut slot) => return work(&mut slot),
                Err(TryLockError::Poisoned(slot)) => return work(&mut slot.into_inner()),
                Err(TryLockError::WouldBlock) => {}
            }
        }
        // More threads than places: wait for the first.
        work(&mut own[0].lock().unwrap_or_else(PoisonError::into_inner));
    }
}

/// How the work on a batch is cut.
#[derive(Debug, Clone, Copy)]
struct Schedule {
    /// Blocks of tiles.
    blocks: usize,
    /// Whether all threads work on one block at a time and share its transformed input.
    shared: bool,
}

impl Winograd {
    /// Prepares the convolution for inputs of `[height, width]` pixels.
    ///
    /// # Errors
    /// When the input is too small.
    ///
    /// # Panics
    /// When the tiling does not [support](Tiling::supports) the geometry.
    pub fn new(
        level: Level,
        tiling: Tiling,
        geometry: ConvGeometry,
        input: [usize; 2],
    ) -> Result<Self, GeometryError> {
        assert!(tiling.supports(&geometry), "{tiling:?} cannot compute {geometry:?}");
        let output = geometry.output_size(input)?;
        let (rows, columns) = (tiling.cut(output[0]), tiling.cut(output[1]));
        let view = match tiling {
            Tiling::F2 | Tiling::F4 | Tiling::S3 => View::plain(&geometry, input),
            Tiling::S7 => View::squares(&geometry, input),
        };
        let zeros = vec![0.0; view.size[1] * view.channels];
        Ok(Winograd { geometry, tiling, level, input, output, view, rows, columns, zeros })
    }

    /// The convolution's parameters.
    pub fn geometry(&self) -> &ConvGeometry {
        &self.geometry
    }

    /// The algorithm.
    pub fn tiling(&self) -> Tiling {
        self.tiling
    }

    /// Output size `[height, width]`.
    pub fn output(&self) -> [usize; 2] {
        self.output
    }

    /// Values of the packed weights.
    fn weight_values(&self) -> usize {
        self.panel_start(self.geometry.out_channels)
    }

    fn lanes(&self) -> usize {
        self.level.micro_kernels().lanes
    }

    /// The panels of output channels: first channel, channels, vectors.
    fn panels(&self) -> impl ExactSizeIterator<Item = (Range<usize>, usize)> + Clone + use<> {
        let (width, lanes, channels) = (PANEL * self.lanes(), self.lanes(), self.geometry.out_channels);
        (0..channels.div_ceil(width)).map(move |panel| {
            let range = panel * width..channels.min((panel + 1) * width);
            let vectors = range.len().div_ceil(lanes);
            (range, vectors)
        })
    }

    /// First value of a panel in the packed weights.
    fn panel_start(&self, first_channel: usize) -> usize {
        first_channel * self.view.channels * self.tiling.points() * self.tiling.points()
    }

    /// Transforms weights (HWIO, `[3, 3, in, out]`) and packs them. The transform is computed in `f64` and rounded once.
    ///
    /// # Panics
    /// When the number of weights is not the geometry's.
    pub fn pack(&self, cx: &Context, weight: &[f32]) -> WinogradWeights {
        assert_eq!(weight.len(), self.geometry.weight_len(), "number of weights");
        let points = self.tiling.points();
        let channels = self.geometry.out_channels.next_multiple_of(self.lanes());
        let mut values = Aligned::zeros(self.panel_start(channels));
        let mut factors = [[0.0; TAPS]; MAX];
        for (point, factors) in factors.iter_mut().enumerate().take(points) {
            let weights = self.tiling.weights(point);
            factors[..weights.len()].copy_from_slice(&weights);
        }
        let out = SharedMut(values.as_mut_ptr());
        let panels = self.panels();
        cx.pool().run(panels.len(), |panel| {
            let Some((channels, vectors)) = panels.clone().nth(panel) else { return };
            let depth = self.view.channels;
            let width = vectors * self.lanes();
            let start = self.panel_start(channels.start);
            // SAFETY: panels are disjoint and lie within `values`.
            let packed = unsafe {
                std::slice::from_raw_parts_mut(out.get().add(start), points * points * depth * width)
            };
            cx.level().run(Pack {
                weight,
                geometry: &self.geometry,
                view: &self.view,
                factors: &factors[..points],
                channels,
                width,
                packed,
            });
        });
        WinogradWeights { level: self.level, values }
    }

    /// `y = conv(x)`, then the epilogue; shapes as for [`Conv::forward`](super::Conv::forward).
    ///
    /// # Panics
    /// When a slice's length is not its shape's, or the level is not the context's.
    pub fn forward(
        &self,
        cx: &Context,
        x: &[f32],
        weights: &WinogradWeights,
        epilogue: Epilogue,
        scratch: &mut WinogradScratch,
        y: &mut [f32],
    ) {
        let input_len = self.input[0] * self.input[1] * self.geometry.in_channels;
        let output_len = self.output[0] * self.output[1] * self.geometry.out_channels;
        let images = x.len() / input_len;
        assert_eq!(x.len(), images * input_len, "values of the input");
        assert_eq!(y.len(), images * output_len, "values of the output");
        assert!(
            weights.level == self.level && cx.level() == self.level,
            "packed for another instruction-set level"
        );
        let padded = self.geometry.out_channels.next_multiple_of(self.lanes());
        assert!(weights.values.len() >= self.panel_start(padded), "packed for another convolution");
        assert!(
            epilogue.bias.is_none_or(|bias| bias.len() == self.geometry.out_channels),
            "the bias's length"
        );
        assert!(epilogue.other().is_none_or(|residual| residual.len() == y.len()), "the residual's length");
        let WinogradScratch { copy, shared, own } = scratch;
        let x = self.view.of(cx, &self.geometry, self.input, x, copy);
        let run = Run { conv: self, cx, x, weights, epilogue, y: SharedMut(y.as_mut_ptr()) };
        match self.tiling {
            Tiling::F2 => run.batch::<F2>(images, shared, own),
            Tiling::F4 => run.batch::<F4>(images, shared, own),
            Tiling::S3 => run.batch::<S3>(images, shared, own),
            Tiling::S7 => run.batch::<F3Of4>(images, shared, own),
        }
    }

    /// Makes room for [`forward`](Self::forward) on at most `images` images with `threads` threads, which then allocates
    /// nothing.
    pub fn reserve(&self, images: usize, threads: usize, scratch: &mut WinogradScratch) {
        let WinogradScratch { copy, shared, own } = scratch;
        copy.grow(self.view.copied(images));
        let (most, streamed) = self.most_tiles();
        let [v_len, m_len] = self.block_lens(most.min(images * self.rows.len() * self.columns.len()));
        if own.len() < threads {
            own.resize_with(threads, Mutex::default);
        }
        for own in &mut own[..threads] {
            let Own { v, m } = own.get_mut().unwrap_or_else(PoisonError::into_inner);
            v.grow(if streamed && threads > 1 { 0 } else { v_len });
            m.grow(m_len);
        }
        shared.grow(if threads > 1 { v_len } else { 0 });
    }

    /// The most tiles of a block, and whether the weights stream by.
    fn most_tiles(&self) -> (usize, bool) {
        let points = self.tiling.points() * self.tiling.points();
        // Small weights stay in the L2 cache, beside V and M of a small block. Large ones stream by: they should meet as
        // many tiles as possible.
        let streamed = self.weight_values() > STREAMED;
        let most = match streamed {
            true => (TRANSFORMED / (points * self.view.channels)).clamp(16, MAX_TILES),
            false => 14,
        };
        (most, streamed)
    }

    /// Values of V and of M for a block of `tiles` tiles.
    fn block_lens(&self, tiles: usize) -> [usize; 2] {
        let points = self.tiling.points() * self.tiling.points();
        [points * self.v_step(tiles), tiles * self.m_step(PANEL * self.lanes())]
    }

    /// Values between two points of V for a block of `tiles` tiles: a line more, so that points do not share cache sets.
    fn v_step(&self, tiles: usize) -> usize {
        self.view.channels.next_multiple_of(self.lanes()) * tiles + LINE
    }

    /// Values between two slots of M for a panel of `width` channels; a line more, as for V.
    fn m_step(&self, width: usize) -> usize {
        self.tiling.points() * self.tiling.points() * width + LINE
    }

    /// Cuts `tiles` tiles for `threads` threads. The bits of the result do not depend on it.
    fn schedule(&self, tiles: usize, threads: usize) -> Schedule {
        let (most, streamed) = self.most_tiles();
        let blocks = tiles.div_ceil(most);
        let shared = threads > 1 && (streamed || blocks < 2 * threads);
        let blocks = if shared || threads == 1 { blocks } else { blocks.next_multiple_of(threads) };
        Schedule { blocks: blocks.min(tiles), shared }
    }
}

/// Values of packed weights beyond which threads share out the panels, so that each reads only a part of them.
const STREAMED: usize = 1 << 20;

/// Values of V at most, where the weights stream by.
const TRANSFORMED: usize = 3 << 19;

/// Most taps of a kernel along one axis.
const TAPS: usize = 4;

/// Transforms the weights of one panel.
struct Pack<'a> {
    weight: &'a [f32],
    geometry: &'a ConvGeometry,
    view: &'a View,
    factors: &'a [[f64; TAPS]],
    channels: Range<usize>,
    width: usize,
    packed: &'a mut [f32],
}

impl Task for Pack<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let (depth, points, taps) = (self.view.channels, self.factors.len(), self.view.taps);
        for input in 0..depth {
            for first in self.channels.clone().step_by(LINE) {
                let count = (self.channels.end - first).min(LINE);
                let mut kernel = [[[0.0; LINE]; TAPS]; TAPS];
                for (ky, row) in kernel.iter_mut().enumerate().take(taps) {
                    for (kx, tap) in row.iter_mut().enumerate().take(taps) {
                        let Some(at) = self.view.weight(self.geometry, self.weight, [ky, kx], input) else {
                            continue;
                        };
                        let weights = &self.weight[at + first..at + first + count];
                        for (tap, &weight) in tap.iter_mut().zip(weights) {
                            *tap = f64::from(weight);
                        }
                    }
                }
                for (p, vertical) in self.factors.iter().enumerate() {
                    let mut row = [[0.0; LINE]; TAPS];
                    for (ky, factor) in vertical.iter().enumerate().take(taps) {
                        for (row, tap) in row.iter_mut().zip(&kernel[ky]) {
                            row.iter_mut().zip(tap).for_each(|(row, tap)| *row += factor * tap);
                        }
                    }
                    for (q, horizontal) in self.factors.iter().enumerate() {
                        let at =
                            ((p * points + q) * depth + input) * self.width + first - self.channels.start;
                        let mut values = [0.0; LINE];
                        for (factor, row) in horizontal.iter().zip(&row).take(taps) {
                            values.iter_mut().zip(row).for_each(|(value, row)| *value += factor * row);
                        }
                        for (to, value) in self.packed[at..at + count].iter_mut().zip(values) {
                            *to = value as f32;
                        }
                    }
                }
            }
        }
    }
}

/// One call of [`Winograd::forward`], whose arguments have been checked.
struct Run<'a> {
    conv: &'a Winograd,
    cx: &'a Context,
    x: &'a [f32],
    weights: &'a WinogradWeights,
    epilogue: Epilogue<'a>,
    y: SharedMut<f32>,
}

impl Run<'_> {
    fn batch<A: Algorithm>(&self, images: usize, v: &mut Aligned, own: &mut Vec<Mutex<Own>>) {
        let conv = self.conv;
        let tiles = images * conv.rows.len() * conv.columns.len();
        if tiles == 0 {
            return;
        }
        let threads = self.cx.pool().available();
        let Schedule { blocks, shared } = conv.schedule(tiles, threads);
        let most = tiles.div_ceil(blocks);
        if own.len() < threads {
            own.resize_with(threads, Mutex::default);
        }
        let [v_len, m_len] = conv.block_lens(most);
        let own = &own[..];
        if !shared {
            self.cx.pool().run(blocks, |index| {
                let block = self.block(tiles * index / blocks, tiles * (index + 1) / blocks);
                WinogradScratch::with(own, |Own { v, m }| {
                    v.grow(v_len);
                    m.grow(m_len);
                    let vectors = conv.view.channels.div_ceil(conv.lanes());
                    self.transform::<A>(&block, 0..vectors, v.as_mut_ptr());
                    for (channels, vectors) in conv.panels() {
                        self.panel::<A>(&block, channels, vectors, v.as_ptr(), m.as_mut_ptr());
                    }
                });
            });
            return;
        }
        v.grow(v_len);
        let v = SharedMut(v.as_mut_ptr());
        let (panels, vectors) = (conv.panels(), conv.view.channels.div_ceil(conv.lanes()));
        for index in 0..blocks {
            let block = self.block(tiles * index / blocks, tiles * (index + 1) / blocks);
            let pieces = vectors.min(4 * threads);
            self.cx.pool().run(pieces, |piece| {
                let vectors = vectors * piece / pieces..vectors * (piece + 1) / pieces;
                self.transform::<A>(&block, vectors, v.get());
            });
            self.cx.pool().run(panels.len(), |panel| {
                let Some((channels, vectors)) = panels.clone().nth(panel) else { return };
                WinogradScratch::with(own, |Own { m, .. }| {
                    m.grow(m_len);
                    self.panel::<A>(&block, channels, vectors, v.get(), m.as_mut_ptr());
                });
            });
        }
    }

    fn block(&self, from: usize, to: usize) -> Block {
        Block::new([&self.conv.rows, &self.conv.columns], from, to)
    }

    fn transform<A: Algorithm>(&self, block: &Block, vectors: Range<usize>, v: *mut f32) {
        let slots = block.tiles().len();
        self.cx.level().run(transform::Input::<A> {
            block,
            x: self.x.as_ptr(),
            size: self.conv.view.size,
            padding: self.conv.view.padding,
            channels: self.conv.view.channels,
            vectors,
            zeros: self.conv.zeros.as_ptr(),
            v,
            point_step: self.conv.v_step(slots),
            slots,
            algorithm: PhantomData,
        });
    }

    /// The products of one panel of output channels, and their way back.
    fn panel<A: Algorithm>(
        &self,
        block: &Block,
        channels: Range<usize>,
        vectors: usize,
        v: *const f32,
        m: *mut f32,
    ) {
        let conv = self.conv;
        let (kernels, depth) = (conv.level.micro_kernels(), conv.view.channels);
        let (slots, width) = (block.tiles().len(), vectors * kernels.lanes);
        let (v_step, m_step) = (conv.v_step(slots), conv.m_step(width));
        let tallest = kernels.max_blocked_rows(vectors);
        let streamed = conv.weight_values() > STREAMED;
        let mut b = self.weights.values.as_ptr().wrapping_add(conv.panel_start(channels.start));
        for p in 0..A::POINTS {
            for q in 0..A::POINTS {
                let (point, range) = (p * A::POINTS + q, block.slots::<A>(p, q));
                let pieces = range.len().div_ceil(tallest);
                // The next point's weights, shared out over this point's pieces and the steps of each.
                let steps = depth.div_ceil(kernels.lanes) * pieces.max(1);
                let lines = if streamed { (depth * width / LINE).div_ceil(steps) } else { 0 };
                for piece in 0..pieces {
                    // Heights as equal as can be: a short last piece would waste the registers.
                    let from = range.start + range.len() * piece / pieces;
                    let to = range.start + range.len() * (piece + 1) / pieces;
                    let arguments = Blocked {
                        a: v.wrapping_add(point * v_step + from * kernels.lanes),
                        a_step: slots * kernels.lanes,
                        depth,
                        b,
                        c: m.wrapping_add(from * m_step + point * width),
                        c_step: m_step,
                        next: b.wrapping_add((depth + depth * piece / pieces) * width),
                        lines,
                    };
                    // SAFETY: V has `slots` rows for each point and vector of channels, M `width` values for each slot
                    // and point (both buffers were grown to that), the panel `depth` rows of `width` for each point.
                    unsafe { kernels.blocked(vectors, to - from, &arguments) };
                }
                b = b.wrapping_add(depth * width);
            }
        }
        self.cx.level().run(transform::Output::<A> {
            block,
            m,
            slot_step: m_step,
            y: self.y.get(),
            size: conv.output,
            channels: conv.geometry.out_channels,
            panel: channels,
            bias: self.epilogue.bias.map_or(std::ptr::null(), <[f32]>::as_ptr),
            residual: match self.epilogue.residual {
                Some(Residual::Tensor(values)) => values.as_ptr(),
                Some(Residual::InPlace) => self.y.get(),
                None => std::ptr::null(),
            },
            relu: self.epilogue.relu,
            algorithm: PhantomData,
        });
    }
}
