//! The backward pass of a 1×1 convolution of few channels to many and of its batch norm, without the convolution's output.
//!
//! The output `x = a·W` is large where the input `a`, `[rows, K]`, is small, and nothing but a linear map of it. With `α`, `β` and `c`,
//! which batch norm's sums give, the gradient of x is `dx = α g + β (x − x̄) + c` for each channel
//! ([`norm::Coefficients`](crate::kernels::norm::Coefficients)). Put in, that leaves products of g and of a:
//!
//! - `Σ g·(x − x̄) = diag(Wᵀ aᵀg) − x̄ Σg`, which the coefficients come from;
//! - `dW = aᵀdx = α aᵀg + β (aᵀa − m āāᵀ) W + m ā c`, over m rows;
//! - `da = dx·Wᵀ = g·(α W)ᵀ + (a − ā)·(W β Wᵀ) + W c`.
//!
//! Neither x nor dx are written or read: memory would take longer than the products of a with itself and with a matrix of its width.

use super::{Activation, BatchNorm, Conv, Gradient, NormSaved, Onward, Workspace};
use crate::Tensor;
use crate::kernels::conv::{self, ConvGeometry, GeometryError};
use crate::kernels::gemm::{Epilogue, Residual};
use crate::kernels::norm::{Coefficients, Summed};
use crate::kernels::{Context, Level, Operands, norm};

/// Channels of the input at most. For more, feature maps are smaller and the input's own products larger.
const MOST: usize = 128;

/// The passes that take the place of the convolution's own.
#[derive(Debug)]
pub(super) struct Expansion {
    /// From as many channels to as many, for products of the input with itself and with a matrix of its width.
    square: conv::Conv,
    /// The same convolution of an image of K pixels, for products of such matrices with the weights.
    matrix: conv::Conv,
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
        let square = conv::Conv::new(level, ConvGeometry::square(channels, channels, 1, 1), input)?;
        Ok(Expansion { square, matrix: conv::Conv::new(level, *geometry, [1, channels])? })
    }

    /// The parameters' gradients and the input's, from what passes the ReLU and its sums, of which the second ones are not there yet.
    pub(super) fn backward(
        &self,
        cx: &Context,
        workspace: &mut Workspace,
        (conv, layer): (&mut Conv, &mut BatchNorm),
        (x, saved): (Activation, &NormSaved),
        (dy, mut summed): (&Tensor, Summed),
        Onward { also, wanted }: Onward,
    ) -> Gradient {
        let applied = x.applied(cx, workspace);
        let a = applied.as_ref().unwrap_or(x.tensor);
        let (inputs, outputs) = (a.channels(), dy.channels());
        let rows = a.data().len() / inputs;
        conv.grad_weight(cx, workspace, a, dy);
        let [means, covariances] = self.moments(cx, workspace, a);
        let mean = &means.data()[..inputs];
        let (weight, grad) = conv.weight.value_and_grad();
        add_products(weight, grad, mean, summed.totals_mut());
        let mut scratch = std::mem::take(&mut workspace.norm);
        let Coefficients { gradient, distance, constant } =
            layer.coefficients(&mut scratch, saved, summed, rows);

        let [mut scaled, mut through] = [(); 2].map(|()| workspace.tensor([1, 1, inputs, outputs]));
        let (mut square, mut bias) =
            (workspace.tensor(covariances.shape()), workspace.tensor([1, 1, 1, inputs]));
        let (weights, direct) = ((Operands::F32, &*weight), &mut workspace.direct);
        let (plain, out) = (Epilogue::default, through.data_mut());
        self.matrix.pack_and_forward(cx, covariances.data(), weights, plain(), direct, out);
        let terms = grad.chunks_mut(outputs).zip(through.data().chunks(outputs));
        for ((grad, through), mean) in terms.zip(mean) {
            let mean = rows as f32 * mean;
            for (index, (grad, through)) in grad.iter_mut().zip(through).enumerate() {
                *grad = gradient[index] * *grad + (distance[index] * through + mean * constant[index]);
            }
        }
        scale(weight, distance, scaled.data_mut());
        self.matrix.pack_and_grad_input(cx, scaled.data(), weights, plain(), direct, square.data_mut());
        scale(weight, gradient, scaled.data_mut());
        let rows = weight.chunks(outputs).zip(square.data().chunks(inputs));
        for (bias, (weight, square)) in bias.data_mut().iter_mut().zip(rows) {
            *bias = (dot(weight, constant) - dot(square, mean)) as f32;
        }
        workspace.norm = scratch;

        let dx = Gradient::written(cx, workspace, wanted, |workspace, follow| {
            let residual = also.as_ref().map(|_| Residual::InPlace);
            let epilogue = Epilogue { bias: Some(bias.data()), residual, ..Epilogue::default() };
            let mut dx = also.unwrap_or_else(|| workspace.tensor(a.shape()));
            let (weight, direct) = ((Operands::F32, square.data()), &mut workspace.direct);
            self.square.pack_and_forward(cx, a.data(), weight, epilogue, direct, dx.data_mut());
            let epilogue = Epilogue { residual: Some(Residual::InPlace), follow, ..Epilogue::default() };
            conv.grad_input(cx, workspace, scaled.data(), dy, epilogue, &mut dx);
            dx
        });
        let used = [means, covariances, scaled, through, square, bias].into_iter().chain(applied);
        used.for_each(|tensor| workspace.give(tensor));
        dx
    }

    /// ā, with the variances behind it, and `aᵀa − m āāᵀ`.
    fn moments(&self, cx: &Context, workspace: &mut Workspace, a: &Tensor) -> [Tensor; 2] {
        let (channels, rows) = (a.channels(), a.data().len() / a.channels());
        let mut means = workspace.tensor([1, 1, 2, channels]);
        let (mean, var) = means.data_mut().split_at_mut(channels);
        norm::statistics(cx, (a.data(), a.shape()), &mut workspace.norm, mean, var);
        let mut covariances = workspace.tensor([1, 1, channels, channels]);
        let (values, direct) = (a.data(), &mut workspace.direct);
        self.square.grad_weight(cx, Operands::F32, values, values, direct, covariances.data_mut());
        for (covariances, &row) in covariances.data_mut().chunks_mut(channels).zip(&*mean) {
            for (covariance, &column) in covariances.iter_mut().zip(&*mean) {
                *covariance =
                    (f64::from(*covariance) - rows as f64 * f64::from(row) * f64::from(column)) as f32;
            }
        }
        [means, covariances]
    }
}

/// Leaves `Σ g·(x − x̄)` behind each channel's `Σg`, from W and `aᵀg`.
fn add_products(weight: &[f32], grad: &[f32], mean: &[f32], totals: &mut [[f64; 2]]) {
    totals.iter_mut().for_each(|[_, product]| *product = 0.0);
    let outputs = totals.len();
    for ((weight, grad), &mean) in weight.chunks(outputs).zip(grad.chunks(outputs)).zip(mean) {
        for (([sum, product], &weight), &grad) in totals.iter_mut().zip(weight).zip(grad) {
            *product += f64::from(weight) * (f64::from(grad) - f64::from(mean) * *sum);
        }
    }
}

/// Multiplies each column of W by its factor.
fn scale(weight: &[f32], factors: &[f32], scaled: &mut [f32]) {
    let outputs = factors.len();
    for (scaled, weight) in scaled.chunks_mut(outputs).zip(weight.chunks(outputs)) {
        let products = weight.iter().zip(factors).map(|(weight, factor)| weight * factor);
        scaled.iter_mut().zip(products).for_each(|(scaled, product)| *scaled = product);
    }
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
}
