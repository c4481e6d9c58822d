//! Fast convolution, fused tile by tile: transform, products, transform back, epilogue.
//!
//! A block of tiles goes through all three steps while it is in the L2 cache, so that the transformed input and the
//! products never reach memory. The products of one point of all tiles of a block are one matrix product of
//! `tiles × in_channels` by `in_channels × out_channels`.

mod algorithm;
mod gradient;
mod memory;
mod narrow;
mod pack;
mod pooled;
mod products;
mod run;
mod schedule;
mod square;
mod strassen;
#[cfg(test)]
mod tests;
mod threes;
mod tiles;
mod tiling;
mod transform;
mod view;

pub use memory::FastScratch;
pub use pooled::PooledConv;
pub use tiling::{Tiling, TilingCost};

use self::algorithm::{F2, F3, F4, F4Of4, F5, S3};
use self::pack::{Pack, PackTask, TAPS};
use self::run::{Run, Weights};
use self::square::Square;
use self::strassen::{Strassen, Twice};
use self::threes::OfWeights;
use self::tiles::Span;
use self::transform::{MAX_POINTS, Transform};
use self::view::View;
use super::{ConvGeometry, GeometryError};
use crate::balance::balance;
use crate::buffer::{Aligned, LINE};
use crate::gemm::Epilogue;
use crate::parallel::SharedMut;
use crate::prologue::Source;
use crate::{Context, Level, Operands};
use std::marker::PhantomData;
use std::ops::Range;

/// Vectors of output channels that go through the products together: M holds no more.
const PANEL: usize = 2;

/// A fast convolution prepared for one input size and one instruction-set level.
#[derive(Debug, Clone)]
pub struct FastConv {
    geometry: ConvGeometry,
    tiling: Tiling,
    level: Level,
    input: [usize; 2],
    output: [usize; 2],
    view: View,
    rows: Vec<Span>,
    columns: Vec<Span>,
    zeros: Vec<f32>,
    /// The factors of the weights along one axis, one row a point.
    factors: Vec<[f64; TAPS]>,
    /// How transformed tiles and weights meet.
    operands: Operands,
    /// By what power of two the weights of each point are multiplied beside that which all of them are, of threes alone.
    scales: Vec<f32>,
}

/// Weights in the domain of products: `[panel][point][in_channel][width of the panel]`, with the input channels of a group
/// where groups share vectors, and a line behind each point.
#[derive(Debug, Clone)]
pub struct FastWeights {
    level: Level,
    values: Aligned,
    /// The power of two by which all of them were multiplied, of threes alone.
    factor: Option<f32>,
}

impl FastWeights {
    /// Moves them into large pages, where the system grants them and packing has made room for that.
    pub fn settle(&self) {
        self.values.settle();
    }
}

/// Output channels that are computed together.
#[derive(Debug, Clone)]
struct Panel {
    channels: Range<usize>,
    /// Vectors of channels.
    vectors: usize,
    /// The section that they belong to.
    section: usize,
}

impl FastConv {
    /// Prepares the convolution for inputs of `[height, width]` pixels.
    ///
    /// # Errors
    /// When the input is too small.
    ///
    /// # Panics
    /// When the tiling does not compute the geometry, see [`Tiling::cost`].
    pub fn new(
        level: Level,
        tiling: Tiling,
        geometry: ConvGeometry,
        input: [usize; 2],
    ) -> Result<Self, GeometryError> {
        let output = geometry.output_size(input)?;
        let view = tiling.view(level, &geometry, input);
        let view = view.unwrap_or_else(|| panic!("{tiling:?} cannot compute {geometry:?}"));
        let (rows, columns) = tiling.cut(output);
        let zeros = vec![0.0; view.size[1] * view.channels];
        let factors = tiling.factors();
        let (operands, scales) = (Operands::F32, Vec::new());
        Ok(FastConv {
            geometry,
            tiling,
            level,
            input,
            output,
            view,
            rows,
            columns,
            zeros,
            factors,
            operands,
            scales,
        })
    }

    /// The same with products in [threes](Operands::Threes), where it makes square tiles of one group and `operands` are those;
    /// others leave it as it is.
    pub fn with_operands(mut self, operands: Operands) -> Self {
        if operands == Operands::Threes && self.tiling.parts() == 1 && self.geometry.groups == 1 {
            self.scales = threes::scales(self.tiling);
            self.operands = operands;
        }
        self
    }

    /// The convolution that takes the gradient of the output to that of the input, where it is one: of one group with stride 1.
    pub fn turned(geometry: &ConvGeometry) -> Option<ConvGeometry> {
        let padding = |axis: usize| (geometry.kernel[axis] - 1).checked_sub(geometry.padding[axis]);
        (geometry.stride == [1, 1] && geometry.groups == 1).then_some(ConvGeometry {
            in_channels: geometry.out_channels,
            out_channels: geometry.in_channels,
            padding: [padding(0)?, padding(1)?],
            ..*geometry
        })
    }

    /// The gradient of the input of a convolution of one group with stride 1, for inputs of `[height, width]` pixels: its
    /// [`forward`](Self::forward) takes the output's gradient to the input's, its weights are the convolution's own.
    /// Nothing where the tiling does not compute it.
    pub fn grad_input(
        level: Level,
        tiling: Tiling,
        geometry: ConvGeometry,
        input: [usize; 2],
    ) -> Option<Self> {
        let output = geometry.output_size(input).ok()?;
        let turned = FastConv::turned(&geometry)?;
        tiling.cost(level, &turned, output)?;
        let conv = FastConv::new(level, tiling, turned, output).ok()?;
        Some(FastConv { view: conv.view.transposed(), ..conv })
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

    /// Values of the weights in the domain of products.
    fn weight_values(&self) -> usize {
        self.tiling.points() * self.outputs() * self.view.summed()
    }

    /// Output channels of a part.
    fn outputs(&self) -> usize {
        self.geometry.out_channels / self.tiling.parts()
    }

    fn lanes(&self) -> usize {
        self.level.micro_kernels().lanes
    }

    /// The sections: channels that see each other and nothing else.
    fn sections(&self) -> Range<usize> {
        0..if self.geometry.groups == 1 { 1 } else { self.geometry.in_channels / self.view.depth }
    }

    /// The vectors of input channels of a section.
    fn vectors(&self, section: usize) -> Range<usize> {
        let each = self.view.depth.div_ceil(self.lanes());
        section * each..(section + 1) * each
    }

    /// The panels of output channels of a section.
    fn panels(&self, section: usize) -> impl ExactSizeIterator<Item = Panel> + Clone + use<> {
        let together = self.outputs() / self.sections().len();
        let (lanes, width, first) = (self.lanes(), PANEL * self.lanes(), section * together);
        (0..together.div_ceil(width)).map(move |panel| {
            let channels = first + panel * width..first + together.min((panel + 1) * width);
            let vectors = channels.len().div_ceil(lanes);
            Panel { channels, vectors, section }
        })
    }

    /// First value of a panel in the packed weights.
    fn panel_start(&self, first_channel: usize) -> usize {
        let vectors = first_channel.div_ceil(self.lanes());
        self.tiling.points() * (first_channel * self.weight_rows() + vectors * LINE)
    }

    /// Transforms weights (HWIO) and packs them. The transform is computed in `f64` and rounded once.
    ///
    /// # Panics
    /// When the number of weights is not the geometry's.
    pub fn pack(&self, cx: &Context, weight: &[f32]) -> FastWeights {
        let factor = self.balanced(None, weight);
        self.pack_into(cx, (weight, factor), Aligned::zeros_for_large_pages(self.packed_len()), true)
    }

    /// Values of the packed weights, with those that fill the last vector.
    fn packed_len(&self) -> usize {
        self.panel_start(self.outputs().next_multiple_of(self.lanes()))
    }

    /// By what power of two weights are multiplied before they meet such an input in threes; nothing where products are made one by one.
    fn balanced(&self, x: Option<Source>, weight: &[f32]) -> Option<f32> {
        let (operands, factor) = balance(self.operands, x, weight);
        (operands == Operands::Threes).then_some(factor)
    }

    fn pack_into(
        &self,
        cx: &Context,
        weights: (&[f32], Option<f32>),
        mut values: Aligned,
        exact: bool,
    ) -> FastWeights {
        let (weight, factor) = weights;
        assert_eq!(weight.len(), self.geometry.weight_len(), "number of weights");
        let to = SharedMut(values.as_mut_ptr());
        match self.tiling {
            Tiling::F2 => self.pack_panels::<Square<F2>>(cx, weights, to, exact),
            Tiling::F3 => self.pack_panels::<Square<F3>>(cx, weights, to, exact),
            Tiling::F4 => self.pack_panels::<Square<F4>>(cx, weights, to, exact),
            Tiling::F5 => self.pack_panels::<Square<F5>>(cx, weights, to, exact),
            Tiling::S3 => self.pack_panels::<Square<S3>>(cx, weights, to, exact),
            Tiling::S7 => self.pack_panels::<Square<F4Of4>>(cx, weights, to, exact),
            Tiling::Strassen => self.pack_panels::<Strassen>(cx, weights, to, exact),
            Tiling::Twice => self.pack_panels::<Twice>(cx, weights, to, exact),
        }
        FastWeights { level: self.level, values, factor }
    }

    /// Packs all panels to `to`, which has room for them.
    fn pack_panels<T: Transform>(
        &self,
        cx: &Context,
        (weight, factor): (&[f32], Option<f32>),
        to: SharedMut<f32>,
        exact: bool,
    ) {
        // As many panels in each section.
        let each = self.panels(0).len();
        cx.pool().run(self.sections().len() * each, |index| {
            let Some(panel) = &self.panels(index / each).nth(index % each) else { return };
            let width = panel.vectors * self.lanes();
            let step = self.weight_step(width);
            let start = self.panel_start(panel.channels.start);
            // SAFETY: panels are disjoint and lie within the packed weights.
            let packed = unsafe { std::slice::from_raw_parts_mut(to.get().add(start), T::POINTS * step) };
            let (geometry, view, inputs) = (&self.geometry, &self.view, 0..self.view.depth);
            let pack = Pack { weight, geometry, view, panel, width, inputs, packed, step, exact };
            cx.level().run(PackTask::<T> { pack, transform: PhantomData });
            if let Some(factor) = factor {
                let (weights, rows) = (packed.as_mut_ptr(), self.view.depth);
                let sums = (weights.wrapping_add(rows * width), step);
                let weights = (weights, step);
                cx.level().run(OfWeights {
                    scales: &self.scales,
                    factor,
                    weights,
                    rows,
                    width,
                    sums,
                    add: false,
                });
            }
        });
    }

    /// Makes room for [`forward`](Self::forward) on at most `images` images with `threads` threads, which then allocates
    /// nothing.
    pub fn reserve(&self, images: usize, threads: usize, scratch: &mut FastScratch) {
        scratch.copy.grow(self.view.copied(images));
        scratch.memory.reserve(self, images * self.rows.len() * self.columns.len(), threads);
    }

    /// `y = conv(x)`, then the epilogue; shapes as for [`Conv::forward`](super::Conv::forward).
    ///
    /// # Panics
    /// When a slice's length is not its shape's, the level is not the context's, or the input has a prologue that the algorithm
    /// [does not take](Self::takes_prologue).
    pub fn forward<'a>(
        &self,
        cx: &Context,
        x: impl Into<Source<'a>>,
        weights: &FastWeights,
        epilogue: Epilogue,
        scratch: &mut FastScratch,
        y: &mut [f32],
    ) {
        self.run(cx, x.into(), (self.packed(weights), weights.factor), epilogue, scratch, y);
    }

    /// By what products are multiplied at each point, where weights were multiplied by such a factor.
    fn factors_of(&self, factor: Option<f32>) -> Option<[f32; MAX_POINTS]> {
        factor.map(|factor| threes::inverse(&self.scales, factor))
    }

    /// Packed weights, checked.
    fn packed<'a>(&self, weights: &'a FastWeights) -> Weights<'a> {
        assert!(weights.level == self.level, "packed for another instruction-set level");
        assert!(weights.values.len() >= self.packed_len(), "packed for another convolution");
        Weights::Packed(weights.values.values())
    }

    fn run(
        &self,
        cx: &Context,
        x: Source,
        (weights, factor): (Weights, Option<f32>),
        epilogue: Epilogue,
        scratch: &mut FastScratch,
        y: &mut [f32],
    ) {
        let Source { values: x, prologue } = self.source(x);
        let images = self.check(cx, x, &epilogue);
        let output_len = self.output[0] * self.output[1] * self.geometry.out_channels;
        assert_eq!(y.len(), images * output_len, "values of the output");
        assert!(epilogue.other().is_none_or(|residual| residual.len() == y.len()), "the residual's length");
        // Tiles report lines of pixels.
        epilogue.follow.inspect(|follow| follow.begin(y.len(), self.output[1]));
        let tiles = images * self.rows.len() * self.columns.len();
        let reports = schedule::completes(self, tiles, cx.pool().available());
        let follow = epilogue.follow.filter(|_| reports);
        let later = epilogue.follow.filter(|_| !reports);
        let epilogue = Epilogue { follow, ..epilogue };
        let x = self.view.of(cx, &self.geometry, self.input, x, &mut scratch.copy);
        let factors = self.factors_of(factor);
        let out = SharedMut(y.as_mut_ptr());
        let run = Run { conv: self, cx, x, prologue, weights, factor, factors, epilogue, y: out };
        let memory = &mut scratch.memory;
        match self.tiling {
            Tiling::F2 => run.batch::<Square<F2>>(images, memory),
            Tiling::F3 => run.batch::<Square<F3>>(images, memory),
            Tiling::F4 => run.batch::<Square<F4>>(images, memory),
            Tiling::F5 => run.batch::<Square<F5>>(images, memory),
            Tiling::S3 => run.batch::<Square<S3>>(images, memory),
            Tiling::S7 => run.batch::<Square<F4Of4>>(images, memory),
            Tiling::Strassen => run.batch::<Strassen>(images, memory),
            Tiling::Twice => run.batch::<Twice>(images, memory),
        }
        if let Some(follow) = later {
            follow.all_done(cx, y);
        }
    }

    /// Whether the input may have a prologue: not where it is rearranged first, or by Strassen's algorithm.
    pub fn takes_prologue(&self) -> bool {
        self.tiling.parts() == 1 && self.view.copied(1) == 0
    }

    /// The input, checked.
    fn source<'a>(&self, x: impl Into<Source<'a>>) -> Source<'a> {
        let x = x.into();
        x.check(self.geometry.in_channels);
        assert!(x.prologue.is_none() || self.takes_prologue(), "{:?} takes no prologue", self.tiling);
        x
    }

    /// As [`forward`](Self::forward), with weights (HWIO) that are used once: they are packed in the scratch memory, by each thread
    /// for itself where they are few, or panel by panel where they are many, by transforms in `f32`.
    ///
    /// # Panics
    /// As [`pack`](Self::pack) and [`forward`](Self::forward).
    pub fn pack_and_forward<'a>(
        &self,
        cx: &Context,
        x: impl Into<Source<'a>>,
        weight: &[f32],
        epilogue: Epilogue,
        scratch: &mut FastScratch,
        y: &mut [f32],
    ) {
        let x = x.into();
        let tiles = self.images(x.values) * self.rows.len() * self.columns.len();
        let factor = self.balanced(Some(x), weight);
        if let Some(weights) = schedule::plain_weights(self, tiles, cx.pool().available(), weight) {
            assert_eq!(weight.len(), self.geometry.weight_len(), "number of weights");
            return self.run(cx, x, (weights, factor), epilogue, scratch, y);
        }
        scratch.weights.reset(self.packed_len());
        let weights = self.pack_into(cx, (weight, factor), std::mem::take(&mut scratch.weights), false);
        self.forward(cx, x, &weights, epilogue, scratch, y);
        scratch.weights = weights.values;
    }

    /// The number of images of `x`.
    fn images(&self, x: &[f32]) -> usize {
        let input_len = self.input[0] * self.input[1] * self.geometry.in_channels;
        let images = x.len() / input_len;
        assert_eq!(x.len(), images * input_len, "values of the input");
        images
    }

    /// The number of images, after checking what all passes are given.
    fn check(&self, cx: &Context, x: &[f32], epilogue: &Epilogue) -> usize {
        let images = self.images(x);
        assert!(cx.level() == self.level, "prepared for another instruction-set level");
        assert!(
            epilogue.bias.is_none_or(|bias| bias.len() == self.geometry.out_channels),
            "the bias's length"
        );
        images
    }
}
