//! Convolution over NHWC activations: forward, gradient of the input, gradient of the weights.

mod fast;
mod geometry;
mod rows;
#[cfg(test)]
mod tests;

pub use fast::{FastConv, FastScratch, FastWeights, PooledConv, Tiling, TilingCost};
pub use geometry::{AverageWindow, ConvGeometry, Edge, GeometryError, Window};
pub use rows::{RowConv, RowWeights};

use crate::balance::balance;
use crate::gemm::gather::{Axis, Gather, Scatter};
use crate::gemm::{Epilogue, PackedMatrix, PreparedScratch, Product, TransposedProduct, TransposedScratch};
use crate::prologue::Source;
use crate::{Context, Level, Operands};

/// Input channels below which the taps of a kernel row are read as one run of values.
const NARROW: usize = 8;

/// A convolution prepared for one input size and one instruction-set level.
///
/// All three passes are matrix products whose left side is gathered from the activations: the forward pass over the
/// kernel's taps; the gradient of the input over the taps that reach a pixel, one product for each of the
/// `stride_h · stride_w` phases of the input grid, so that no product with a stuffed zero is made; the gradient of the
/// weights as the transposed product of the same gathered rows.
#[derive(Debug, Clone)]
pub struct Conv {
    geometry: ConvGeometry,
    level: Level,
    input: [usize; 2],
    output: [usize; 2],
    /// Rows of the input for each output pixel.
    gather: Gather,
    /// Whether the input is copied between zero columns first, so that a kernel row is one run of values.
    widened: bool,
    scatter: Scatter,
    phases: Vec<Phase>,
}

/// The input pixels whose coordinates leave the same remainders when divided by the stride.
#[derive(Debug, Clone)]
struct Phase {
    /// Kernel taps (row-major index) that reach these pixels.
    taps: Vec<usize>,
    /// Rows of the output's gradient for each of these pixels.
    gather: Gather,
    scatter: Scatter,
}

/// Weights packed for [`Conv::forward`]: for each group, and perhaps more, which other weights have left there.
#[derive(Debug, Clone, Default)]
pub struct ForwardWeights(Vec<PackedMatrix>);

impl ForwardWeights {
    /// Moves them into large pages, where the system grants them and packing has made room for that.
    pub fn settle(&self) {
        self.0.iter().for_each(PackedMatrix::settle);
    }
}

/// Weights packed for [`Conv::grad_input`]: for each phase, for each group, and perhaps more, as in [`ForwardWeights`].
#[derive(Debug, Clone, Default)]
pub struct BackwardWeights(Vec<Vec<PackedMatrix>>);

/// Memory that convolutions use while they run, reused from one to the next.
#[derive(Debug, Default)]
pub struct ConvScratch {
    /// Weights that were packed for one pass.
    weights: BackwardWeights,
    widened: Vec<f32>,
    prepared: PreparedScratch,
    transposed: TransposedScratch,
}

impl Conv {
    /// Prepares the convolution for inputs of `[height, width]` pixels.
    ///
    /// # Errors
    /// When the geometry is invalid or the input too small for it.
    pub fn new(level: Level, geometry: ConvGeometry, input: [usize; 2]) -> Result<Self, GeometryError> {
        let output = geometry.output_size(input)?;
        let channels = geometry.in_channels;
        let widened =
            geometry.groups == 1 && channels < NARROW && geometry.kernel[1] > 1 && geometry.dilation[1] == 1;
        let gather = if widened {
            let width = input[1] + 2 * geometry.padding[1];
            let vertical = window_axis(&geometry.window(0), input[0], output[0], width * channels);
            let horizontal = Axis::new(output[1], 1, geometry.stride[1] * channels, |x, _| Some(x));
            Gather::new(vertical, horizontal, input[0] * width * channels, geometry.kernel[1] * channels)
        } else {
            let vertical = window_axis(&geometry.window(0), input[0], output[0], input[1] * channels);
            let horizontal = window_axis(&geometry.window(1), input[1], output[1], channels);
            Gather::new(vertical, horizontal, input[0] * input[1] * channels, geometry.group_in())
                .of_pixels(channels)
        };
        let scatter = Scatter::dense(output[0], output[1], geometry.out_channels);
        let mut phases = Vec::new();
        for y in 0..geometry.stride[0].min(input[0]) {
            for x in 0..geometry.stride[1].min(input[1]) {
                phases.push(Phase::new(&geometry, input, output, [y, x]));
            }
        }
        Ok(Conv { geometry, level, input, output, gather, widened, scatter, phases })
    }

    /// The convolution's parameters.
    pub fn geometry(&self) -> &ConvGeometry {
        &self.geometry
    }

    /// Input size `[height, width]`.
    pub fn input(&self) -> [usize; 2] {
        self.input
    }

    /// Output size `[height, width]`.
    pub fn output(&self) -> [usize; 2] {
        self.output
    }

    fn input_len(&self) -> usize {
        self.input[0] * self.input[1] * self.geometry.in_channels
    }

    fn output_len(&self) -> usize {
        self.output[0] * self.output[1] * self.geometry.out_channels
    }

    /// Packs weights (HWIO, `[kernel_h, kernel_w, in / groups, out]`) for the forward pass, which then multiplies such
    /// operands.
    ///
    /// # Panics
    /// When the number of weights is not the geometry's.
    pub fn pack_forward(&self, cx: &Context, operands: Operands, weight: &[f32]) -> ForwardWeights {
        let (g, mut packed) = (&self.geometry, ForwardWeights::default());
        for matrix in self.matrices(&mut packed.0) {
            matrix.reserve_large_pages(g.taps() * g.group_in(), g.group_out());
        }
        self.repack_forward(cx, balance(operands, None, weight), weight, &mut packed);
        packed
    }

    /// As [`pack_forward`](Self::pack_forward), into memory that other weights, of any convolution, were packed in.
    fn repack_forward(
        &self,
        cx: &Context,
        (operands, factor): (Operands, f32),
        weight: &[f32],
        packed: &mut ForwardWeights,
    ) {
        let g = &self.geometry;
        assert_eq!(weight.len(), g.weight_len(), "number of weights");
        let (depth, columns) = (g.taps() * g.group_in(), g.group_out());
        for (group, matrix) in self.matrices(&mut packed.0).iter_mut().enumerate() {
            matrix.reset(self.level, operands, depth, columns);
            matrix.scale(factor);
            matrix.refill_rows(cx, |k| &weight[k * g.out_channels + group * columns..][..columns]);
        }
    }

    /// Packs weights (HWIO) for the gradient of the input, which then multiplies such operands.
    ///
    /// # Panics
    /// When the number of weights is not the geometry's.
    pub fn pack_backward(&self, cx: &Context, operands: Operands, weight: &[f32]) -> BackwardWeights {
        let mut packed = BackwardWeights::default();
        self.repack_backward(cx, balance(operands, None, weight), weight, &mut packed);
        packed
    }

    /// As [`pack_backward`](Self::pack_backward), into memory that other weights, of any convolution, were packed in.
    fn repack_backward(
        &self,
        cx: &Context,
        (operands, factor): (Operands, f32),
        weight: &[f32],
        packed: &mut BackwardWeights,
    ) {
        let g = &self.geometry;
        assert_eq!(weight.len(), g.weight_len(), "number of weights");
        let phases = packed.0.len().max(self.phases.len());
        packed.0.resize_with(phases, Vec::new);
        for (phase, matrices) in self.phases.iter().zip(&mut packed.0) {
            for (group, matrix) in self.matrices(matrices).iter_mut().enumerate() {
                matrix.reset(self.level, operands, phase.depth(g), g.group_in());
                matrix.scale(factor);
                matrix.refill_columns(cx, g.group_out(), |tap, j| {
                    let row = phase.taps[tap] * g.group_in() + j;
                    &weight[row * g.out_channels + group * g.group_out()..][..g.group_out()]
                });
            }
        }
    }

    /// A matrix for each group. Those beyond stay, for convolutions that need them again.
    fn matrices<'a>(&self, matrices: &'a mut Vec<PackedMatrix>) -> &'a mut [PackedMatrix] {
        let groups = self.geometry.groups;
        matrices.resize_with(matrices.len().max(groups), || PackedMatrix::empty(self.level));
        &mut matrices[..groups]
    }

    /// Makes room for [`forward`](Self::forward) on at most `images` images, which then allocates nothing.
    pub fn reserve(&self, images: usize, scratch: &mut ConvScratch) {
        let length = if self.widened { images * self.input[0] * self.widened_row() } else { 0 };
        scratch.widened.reserve(length.saturating_sub(scratch.widened.len()));
    }

    /// `y = conv(x)`, then the epilogue. x is `[batch, height, width, in_channels]`, y
    /// `[batch, out_height, out_width, out_channels]`.
    ///
    /// # Panics
    /// When a slice's length is not its shape's, the level is not the context's, or the input has a prologue that the convolution
    /// [does not take](Self::takes_prologue).
    pub fn forward<'a>(
        &self,
        cx: &Context,
        x: impl Into<Source<'a>>,
        weights: &ForwardWeights,
        epilogue: Epilogue,
        scratch: &mut ConvScratch,
        y: &mut [f32],
    ) {
        let Source { values: x, prologue } = self.source(x);
        let images = self.images(x.len(), y.len());
        let ConvScratch { widened, prepared, .. } = scratch;
        let input = Source { values: self.widen(cx, x, widened), prologue };
        epilogue.follow.inspect(|follow| follow.begin(y.len(), 1));
        for (group, b) in weights.0.iter().take(self.geometry.groups).enumerate() {
            let (offset, column) = (group * self.geometry.group_in(), group * self.geometry.group_out());
            assert_eq!(b.columns(), self.geometry.group_out(), "columns of a group's weights");
            let (gather, scatter) = (&self.gather, &self.scatter);
            Product { images, input, offset, gather, b, scatter, column, epilogue }.run(cx, prepared, y);
        }
    }

    /// As [`forward`](Self::forward), with weights (HWIO) that are used once: they are packed in the scratch memory, for such
    /// operands.
    ///
    /// # Panics
    /// As [`pack_forward`](Self::pack_forward) and [`forward`](Self::forward).
    pub fn pack_and_forward<'a>(
        &self,
        cx: &Context,
        x: impl Into<Source<'a>>,
        (operands, weight): (Operands, &[f32]),
        epilogue: Epilogue,
        scratch: &mut ConvScratch,
        y: &mut [f32],
    ) {
        let mut weights = std::mem::take(&mut scratch.weights);
        // In the place of the first phase.
        let phases = weights.0.len().max(1);
        weights.0.resize_with(phases, Vec::new);
        let mut forward = ForwardWeights(std::mem::take(&mut weights.0[0]));
        let x = x.into();
        self.repack_forward(cx, balance(operands, Some(x), weight), weight, &mut forward);
        self.forward(cx, x, &forward, epilogue, scratch, y);
        weights.0[0] = forward.0;
        scratch.weights = weights;
    }

    /// `dx = Σ dy · w` over the outputs that each input pixel reaches, then the epilogue (its residual adds another
    /// gradient of the same input).
    ///
    /// # Panics
    /// When a slice's length is not its shape's, or the level is not the context's.
    pub fn grad_input(
        &self,
        cx: &Context,
        dy: &[f32],
        weights: &BackwardWeights,
        epilogue: Epilogue,
        scratch: &mut ConvScratch,
        dx: &mut [f32],
    ) {
        let images = self.images(dx.len(), dy.len());
        epilogue.follow.inspect(|follow| follow.begin(dx.len(), 1));
        // Only one phase writes row after row.
        let (follow, before) = match self.phases[..] {
            [_] => (epilogue.follow, None),
            _ => (None, epilogue.follow),
        };
        let epilogue = Epilogue { follow, ..epilogue };
        for (phase, matrices) in self.phases.iter().zip(&weights.0) {
            for (group, b) in matrices.iter().take(self.geometry.groups).enumerate() {
                let (offset, column) = (group * self.geometry.group_out(), group * self.geometry.group_in());
                assert_eq!(b.columns(), self.geometry.group_in(), "columns of a group's weights");
                let (gather, scatter) = (&phase.gather, &phase.scatter);
                Product { images, input: dy.into(), offset, gather, b, scatter, column, epilogue }.run(
                    cx,
                    &mut scratch.prepared,
                    dx,
                );
            }
        }
        if let Some(follow) = before {
            follow.all_done(cx, dx);
        }
    }

    /// As [`grad_input`](Self::grad_input), with weights (HWIO) that are used once: they are packed in the scratch memory, for such
    /// operands.
    ///
    /// # Panics
    /// As [`pack_backward`](Self::pack_backward) and [`grad_input`](Self::grad_input).
    pub fn pack_and_grad_input(
        &self,
        cx: &Context,
        dy: &[f32],
        (operands, weight): (Operands, &[f32]),
        epilogue: Epilogue,
        scratch: &mut ConvScratch,
        dx: &mut [f32],
    ) {
        let mut weights = std::mem::take(&mut scratch.weights);
        self.repack_backward(cx, balance(operands, Some(dy.into()), weight), weight, &mut weights);
        self.grad_input(cx, dy, &weights, epilogue, scratch, dx);
        scratch.weights = weights;
    }

    /// `dw = Σ x · dy` over the batch's pixels, as HWIO, with such operands.
    ///
    /// # Panics
    /// When a slice's length is not its shape's, or the input has a prologue that the convolution
    /// [does not take](Self::takes_prologue).
    pub fn grad_weight<'a>(
        &self,
        cx: &Context,
        operands: Operands,
        x: impl Into<Source<'a>>,
        dy: &[f32],
        scratch: &mut ConvScratch,
        dw: &mut [f32],
    ) {
        let Source { values: x, prologue } = self.source(x);
        let images = self.images(x.len(), dy.len());
        let (operands, factor) = balance(operands, Some(Source { values: x, prologue }), dy);
        let ConvScratch { widened, transposed, .. } = scratch;
        let input = Source { values: self.widen(cx, x, widened), prologue };
        let (gather, groups, columns) = (&self.gather, self.geometry.groups, self.geometry.out_channels);
        TransposedProduct { images, input, gather, groups, b: dy, columns, operands, factor }
            .run(cx, transposed, dw);
    }

    /// Whether the input may have a prologue: not where so few channels are read together with the padding.
    pub fn takes_prologue(&self) -> bool {
        !self.widened
    }

    /// The input, checked.
    fn source<'a>(&self, x: impl Into<Source<'a>>) -> Source<'a> {
        let x = x.into();
        x.check(self.geometry.in_channels);
        assert!(
            x.prologue.is_none() || self.takes_prologue(),
            "{} channels take no prologue",
            self.geometry.in_channels
        );
        x
    }

    /// Number of images in activations of these lengths.
    fn images(&self, input: usize, output: usize) -> usize {
        let images = input / self.input_len();
        assert_eq!(input, images * self.input_len(), "values of the input");
        assert_eq!(output, images * self.output_len(), "values of the output");
        images
    }

    /// Values of a row between its zero columns.
    fn widened_row(&self) -> usize {
        (self.input[1] + 2 * self.geometry.padding[1]) * self.geometry.in_channels
    }

    /// The input as the gather reads it: itself, or a copy with the horizontal padding written out.
    fn widen<'a>(&self, cx: &Context, x: &'a [f32], widened: &'a mut Vec<f32>) -> &'a [f32] {
        if !self.widened {
            return x;
        }
        let (channels, margin) =
            (self.geometry.in_channels, self.geometry.padding[1] * self.geometry.in_channels);
        let width = self.input[1] * channels;
        let (rows, widened_row) = (x.len() / width, self.widened_row());
        widened.resize(rows * widened_row, 0.0);
        let rows_a_task = rows.div_ceil(16).max(16);
        cx.pool().pieces(widened, rows_a_task * widened_row, |task, piece| {
            let from = x[task * rows_a_task * width..].chunks_exact(width);
            for (row, from) in piece.chunks_exact_mut(widened_row).zip(from) {
                row[..margin].fill(0.0);
                row[margin..margin + width].copy_from_slice(from);
                row[margin + width..].fill(0.0);
            }
        });
        widened
    }
}

/// The gather's axis of a sliding window over `input` positions that are `step` values apart.
fn window_axis(window: &Window, input: usize, output: usize, step: usize) -> Axis {
    Axis::new(output, window.kernel, step, |position, tap| window.source(position, tap, input))
}

impl Phase {
    fn new(g: &ConvGeometry, input: [usize; 2], output: [usize; 2], remainder: [usize; 2]) -> Self {
        // Input pixel `i` is read by tap `t` of output `o` where `i + padding = o · stride + t · dilation`.
        let reaching = |axis: usize| -> Vec<usize> {
            let (window, first) = (g.window(axis), remainder[axis] + g.padding[axis]);
            (0..window.kernel)
                .filter(|tap| first % window.stride == tap * window.dilation % window.stride)
                .collect()
        };
        let pixels = |axis: usize| (remainder[axis]..input[axis]).step_by(g.stride[axis]);
        let taps = [reaching(0), reaching(1)];
        let positions = [pixels(0).len(), pixels(1).len()];
        let steps = [output[1] * g.out_channels, g.out_channels];
        let axis = |axis: usize| {
            let (window, taps) = (g.window(axis), &taps[axis]);
            Axis::new(positions[axis], taps.len(), steps[axis], |position, tap| {
                let pixel = remainder[axis] + position * window.stride + window.padding;
                let output = pixel.checked_sub(taps[tap] * window.dilation).map(|at| at / window.stride);
                output.filter(|&at| at < window.output(input[axis]).unwrap_or(0))
            })
        };
        let image = output[0] * output[1] * g.out_channels;
        let gather = if taps.iter().any(Vec::is_empty) {
            Gather::empty(positions, image)
        } else {
            Gather::new(axis(0), axis(1), image, g.group_out())
        };
        let rows = pixels(0).map(|y| y * input[1] * g.in_channels).collect();
        let columns = pixels(1).map(|x| x * g.in_channels).collect();
        Phase {
            taps: taps[0].iter().flat_map(|y| taps[1].iter().map(move |x| y * g.kernel[1] + x)).collect(),
            gather,
            scatter: Scatter::new(rows, columns, input[0] * input[1] * g.in_channels),
        }
    }

    /// Rows of the packed weights.
    fn depth(&self, g: &ConvGeometry) -> usize {
        self.taps.len() * g.group_out()
    }
}
