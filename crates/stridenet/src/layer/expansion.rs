//! A 1×1 convolution of few channels to many and its batch norm, without the convolution's output.
//!
//! The output `x = a·W` is large where the input `a`, `[m, K]`, is small, and nothing but a linear map of it. So its moments follow
//! from those of a: `x̄ = āW`, and the variances are the diagonal of `WᵀCW / m` with `C = aᵀa − m āāᵀ`. Batch norm, the residual's
//! addition and the ReLU then happen while the products are made. With `α`, `β` and `c`, which batch norm's sums give, the gradient
//! of x is `dx = α g + β (x − x̄) + c` for each channel ([`norm::Coefficients`](crate::kernels::norm::Coefficients)). Put in, that
//! leaves products of g and of a:
//!
//! - `Σ g·(x − x̄) = diag(Wᵀ aᵀg) − x̄ Σg`, which the coefficients come from;
//! - `dW = aᵀdx = α aᵀg + β CW + m ā c`;
//! - `da = dx·Wᵀ = g·(α W)ᵀ + (a − ā)·(W β Wᵀ) + W c`.
//!
//! Neither x nor dx are written or read: memory would take longer than the products of a with itself and with a matrix of its width.
//! With operands of bf16 the moments stay those of a and W as they are, since C is a difference, and the products round `scale · W`:
//! the output is shifted by what the means of a lose by that, so that its own mean is batch norm's.
//! A variance has the roundings of the sums of products that make C, relative to `|w|² E[a²]`: it is less exact than one of values that
//! are there where what an output sums cancels itself, or has a mean far above its deviation. What batch norm and a ReLU leave has not.

use super::{Activation, BatchNorm, Conv, Gradient, NormSaved, Onward, Workspace};
use crate::Tensor;
use crate::algorithm::operands_for_training;
use crate::kernels::conv::{self, ConvGeometry, GeometryError};
use crate::kernels::gemm::{Epilogue, Residual};
use crate::kernels::norm::{Coefficients, Summed};
use crate::kernels::{Context, Level, Operands, Prologue, bf16, norm};

/// Channels of the input at most. For more, feature maps are smaller and the input's own products larger.
const MOST: usize = 128;

/// Channels whose moments are summed side by side.
const SIDE: usize = 16;

/// The passes that take the place of the convolution's own.
#[derive(Debug)]
pub(super) struct Expansion {
    /// From as many channels to as many, for products of the input with itself and with a matrix of its width.
    square: conv::Conv,
    /// Operands of the input's product with such a matrix.
    operands: Operands,
    /// The same convolution of an image of K pixels, for products of such matrices with the weights.
    matrix: conv::Conv,
}

/// What the backward pass needs besides the input.
#[derive(Debug)]
pub(super) struct Moments {
    /// ā, `[1, 1, 1, K]`.
    mean: Tensor,
    /// CW, `[1, 1, K, N]`.
    through: Tensor,
}

impl Moments {
    /// Gives everything back.
    fn discard(self, workspace: &mut Workspace) {
        [self.mean, self.through].into_iter().for_each(|tensor| workspace.give(tensor));
    }
}

impl Expansion {
    /// Whether a convolution is one that expands few channels.
    pub(super) fn is(geometry: &ConvGeometry) -> bool {
        let ConvGeometry { in_channels, out_channels, groups, .. } = *geometry;
        let pointwise = ConvGeometry::square(in_channels, out_channels, 1, 1);
        groups == 1 && *geometry == pointwise && in_channels <= MOST && 2 * in_channels <= out_channels
    }

    /// For a convolution of `[height, width]` pixels.
    ///
    /// # Errors
    /// When there are none.
    pub(super) fn new(
        level: Level,
        geometry: &ConvGeometry,
        input: [usize; 2],
    ) -> Result<Self, GeometryError> {
        let channels = geometry.in_channels;
        let square = ConvGeometry::square(channels, channels, 1, 1);
        let operands = operands_for_training(level, &square, Operands::F32);
        let square = conv::Conv::new(level, square, input)?;
        Ok(Expansion { square, operands, matrix: conv::Conv::new(level, *geometry, [1, channels])? })
    }

    /// Training: `relu?(norm(conv(x)) + residual)` with the batch's statistics, which also move the running ones.
    pub(super) fn forward(
        &self,
        cx: &Context,
        workspace: &mut Workspace,
        (conv, layer): (&Conv, &mut BatchNorm),
        x: Activation,
        residual: Option<&Tensor>,
    ) -> (Tensor, NormSaved, Moments) {
        let applied = x.applied(cx, workspace);
        let a = applied.as_ref().unwrap_or(x.tensor);
        let rows = a.data().len() / a.channels();
        let moments = self.moments(cx, workspace, a, &conv.weight.value);
        let saved = layer.batch_statistics(workspace, rows, |_, mean, var| {
            let through = moments.through.data();
            output_moments(&conv.weight.value, moments.mean.data(), through, rows, [mean, var]);
        });
        let y = self.output(cx, workspace, conv, a.into(), (&saved, &moments), residual);
        applied.into_iter().for_each(|applied| workspace.give(applied));
        (y, saved, moments)
    }

    /// `relu?(norm(conv(x)) + residual)` with statistics that are known; once more, it has the same bits as in the forward pass.
    pub(super) fn output(
        &self,
        cx: &Context,
        workspace: &mut Workspace,
        conv: &Conv,
        x: Activation,
        (saved, moments): (&NormSaved, &Moments),
        residual: Option<&Tensor>,
    ) -> Tensor {
        let applied = x.applied(cx, workspace);
        let a = applied.as_ref().unwrap_or(x.tensor);
        let Prologue { scale, shift } = saved.prologue();
        let mut scaled = workspace.tensor([1, 1, a.channels(), scale.len()]);
        let mut bias = workspace.tensor([1, 1, 1, scale.len()]);
        scale_columns(&conv.weight.value, scale, scaled.data_mut());
        bias.data_mut().copy_from_slice(shift);
        if conv.operands() == Operands::Bf16 {
            round_columns(moments.mean.data(), scaled.data_mut(), bias.data_mut());
        }
        let (relu, residual) =
            (residual.is_some(), residual.map(|residual| Residual::Tensor(residual.data())));
        let epilogue = Epilogue { bias: Some(bias.data()), residual, relu, follow: None };
        let y = conv.forward_by(cx, workspace, scaled.data(), a.into(), epilogue);
        [scaled, bias].into_iter().chain(applied).for_each(|tensor| workspace.give(tensor));
        y
    }

    /// The parameters' gradients and the input's, from what passes the ReLU and its sums, of which the second ones are not there yet.
    pub(super) fn backward(
        &self,
        cx: &Context,
        workspace: &mut Workspace,
        (conv, layer): (&mut Conv, &mut BatchNorm),
        (x, saved, moments): (Activation, &NormSaved, Moments),
        (dy, summed): (&Tensor, Summed),
        Onward { also, wanted }: Onward,
    ) -> Gradient {
        let applied = x.applied(cx, workspace);
        let a = applied.as_ref().unwrap_or(x.tensor);
        let (inputs, outputs) = (a.channels(), dy.channels());
        let (rows, mean) = (a.data().len() / inputs, moments.mean.data());
        conv.grad_weight(cx, workspace, a, dy);
        let (weight, grad) = conv.weight.value_and_grad();
        let summed = summed.with_products(|totals| add_products(weight, grad, mean, totals));
        let mut scratch = std::mem::take(&mut workspace.norm);
        let Coefficients { gradient, distance, constant } =
            layer.coefficients(&mut scratch, saved, summed, rows);

        let terms = grad.chunks_mut(outputs).zip(moments.through.data().chunks(outputs));
        for ((grad, through), mean) in terms.zip(mean) {
            let mean = rows as f32 * mean;
            for (index, (grad, through)) in grad.iter_mut().zip(through).enumerate() {
                *grad = gradient[index] * *grad + (distance[index] * through + mean * constant[index]);
            }
        }
        let mut scaled = workspace.tensor([1, 1, inputs, outputs]);
        let mut square = workspace.tensor([1, 1, inputs, inputs]);
        let mut bias = workspace.tensor([1, 1, 1, inputs]);
        scale_columns(weight, distance, scaled.data_mut());
        let (weights, direct) = ((Operands::F32, &*weight), &mut workspace.direct);
        let (plain, out) = (Epilogue::default(), square.data_mut());
        self.matrix.pack_and_grad_input(cx, scaled.data(), weights, plain, direct, out);
        scale_columns(weight, gradient, scaled.data_mut());
        let matrices = weight.chunks(outputs).zip(square.data().chunks(inputs));
        for (bias, (weight, square)) in bias.data_mut().iter_mut().zip(matrices) {
            *bias = (dot(weight, constant) - dot(square, mean)) as f32;
        }
        workspace.norm = scratch;

        let dx = Gradient::written(cx, workspace, wanted, |workspace, follow| {
            let residual = also.as_ref().map(|_| Residual::InPlace);
            let epilogue = Epilogue { bias: Some(bias.data()), residual, ..Epilogue::default() };
            let mut dx = also.unwrap_or_else(|| workspace.tensor(a.shape()));
            let (weight, direct) = ((self.operands, square.data()), &mut workspace.direct);
            self.square.pack_and_forward(cx, a.data(), weight, epilogue, direct, dx.data_mut());
            let epilogue = Epilogue { residual: Some(Residual::InPlace), follow, ..Epilogue::default() };
            conv.grad_input(cx, workspace, scaled.data(), dy, epilogue, &mut dx);
            dx
        });
        moments.discard(workspace);
        [scaled, square, bias].into_iter().chain(applied).for_each(|tensor| workspace.give(tensor));
        dx
    }

    /// The input's moments, and C's product with the weights.
    fn moments(&self, cx: &Context, workspace: &mut Workspace, a: &Tensor, weight: &[f32]) -> Moments {
        let (channels, rows) = (a.channels(), (a.data().len() / a.channels()) as f64);
        let [mut mean, mut var] = [(); 2].map(|()| workspace.tensor([1, 1, 1, channels]));
        let (of, scratch) = ((a.data(), a.shape()), &mut workspace.norm);
        norm::statistics(cx, of, scratch, mean.data_mut(), var.data_mut());
        let mut covariances = workspace.tensor([1, 1, channels, channels]);
        let (values, direct) = (a.data(), &mut workspace.direct);
        self.square.grad_weight(cx, Operands::F32, values, values, direct, covariances.data_mut());
        centre(covariances.data_mut(), mean.data(), var.data(), rows);
        let mut through = workspace.tensor([1, 1, channels, weight.len() / channels]);
        let (weights, direct) = ((Operands::F32, weight), &mut workspace.direct);
        let (plain, out) = (Epilogue::default(), through.data_mut());
        self.matrix.pack_and_forward(cx, covariances.data(), weights, plain, direct, out);
        [var, covariances].into_iter().for_each(|tensor| workspace.give(tensor));
        Moments { mean, through }
    }
}

/// Makes C of `aᵀa`. The diagonal is known better; a channel that is constant goes with no other.
fn centre(products: &mut [f32], mean: &[f32], var: &[f32], rows: f64) {
    for (row, products) in products.chunks_mut(mean.len()).enumerate() {
        for (column, product) in products.iter_mut().enumerate() {
            let centred = f64::from(*product) - rows * f64::from(mean[row]) * f64::from(mean[column]);
            *product = match () {
                () if row == column => rows as f32 * var[row],
                () if var[row] == 0.0 || var[column] == 0.0 => 0.0,
                () => centred as f32,
            };
        }
    }
}

/// The mean and the variance of each output over so many rows, from W, ā and CW.
fn output_moments(
    weight: &[f32],
    inputs: &[f32],
    through: &[f32],
    rows: usize,
    [mean, var]: [&mut [f32]; 2],
) {
    let outputs = mean.len();
    for (start, (mean, var)) in (0..).step_by(SIDE).zip(mean.chunks_mut(SIDE).zip(var.chunks_mut(SIDE))) {
        let [mut means, mut squares] = [[0.0; SIDE]; 2];
        for (input, &a) in inputs.iter().enumerate() {
            let [weight, through] =
                [weight, through].map(|matrix| &matrix[input * outputs + start..][..mean.len()]);
            for (side, (&weight, &through)) in weight.iter().zip(through).enumerate() {
                means[side] += f64::from(a) * f64::from(weight);
                squares[side] += f64::from(weight) * f64::from(through);
            }
        }
        mean.iter_mut().zip(means).for_each(|(to, mean)| *to = mean as f32);
        for (to, sum) in var.iter_mut().zip(squares) {
            // Roundings may leave less than nothing; a NaN stays a NaN.
            *to = if sum < 0.0 { 0.0 } else { (sum / rows as f64) as f32 };
        }
    }
}

/// Adds `Σ g·(x − x̄)` behind each channel's `Σg`, from W and `aᵀg`.
fn add_products(weight: &[f32], grad: &[f32], mean: &[f32], totals: &mut [[f64; 2]]) {
    let outputs = totals.len();
    for ((weight, grad), &mean) in weight.chunks(outputs).zip(grad.chunks(outputs)).zip(mean) {
        for (([sum, product], &weight), &grad) in totals.iter_mut().zip(weight).zip(grad) {
            *product += f64::from(weight) * (f64::from(grad) - f64::from(mean) * *sum);
        }
    }
}

/// Multiplies each column of W by its factor.
fn scale_columns(weight: &[f32], factors: &[f32], scaled: &mut [f32]) {
    let outputs = factors.len();
    for (scaled, weight) in scaled.chunks_mut(outputs).zip(weight.chunks(outputs)) {
        let products = weight.iter().zip(factors).map(|(weight, factor)| weight * factor);
        scaled.iter_mut().zip(products).for_each(|(scaled, product)| *scaled = product);
    }
}

/// Rounds W to bf16, which the products would do, and keeps the mean of what it makes of inputs with such means: the difference goes
/// to the bias.
fn round_columns(means: &[f32], weight: &mut [f32], bias: &mut [f32]) {
    for (mean, weight) in means.iter().zip(weight.chunks_mut(bias.len())) {
        for (bias, weight) in bias.iter_mut().zip(weight) {
            let rounded = bf16::to_f32(bf16::from_f32(*weight));
            *bias += mean * (*weight - rounded);
            *weight = rounded;
        }
    }
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
}
