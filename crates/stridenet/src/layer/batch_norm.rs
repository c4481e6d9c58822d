//! Batch normalisation (Ioffe & Szegedy 2015), with the residual's addition and the ReLU that follow it.

use super::{Activation, Conv, Parameter, Workspace};
use crate::Tensor;
use crate::kernels::norm::{Coefficients, Input, Relu, Statistics, Summed};
use crate::kernels::{Context, Prologue, norm};

/// Added to the variance, as in PyTorch.
pub(crate) const EPSILON: f32 = 1e-5;

/// Weight of the newest batch in the running statistics, as in PyTorch.
const MOMENTUM: f32 = 0.1;

/// Batch norm over the channels of NHWC activations.
#[derive(Debug)]
pub struct BatchNorm {
    /// Torch's name, for example `bn1`.
    pub name: String,
    /// The gain, `weight`.
    pub gamma: Parameter,
    /// The bias.
    pub beta: Parameter,
    /// Running mean of the batches' means.
    pub running_mean: Vec<f32>,
    /// Running mean of the batches' unbiased variances.
    pub running_var: Vec<f32>,
    /// Batches that the running statistics have seen.
    pub batches: i64,
}

/// What the backward pass needs besides the input and the output: four values for each channel, `[1, 1, 4, C]`.
#[derive(Debug)]
pub struct NormSaved(Tensor);

/// What a [`NormSaved`] holds, each `[C]`.
struct Vectors<T> {
    /// Mean over the batch.
    mean: T,
    /// 1 / √(variance + ε) over the batch.
    inv_std: T,
    /// The layer's output is `x · scale + shift`.
    scale: T,
    shift: T,
}

impl NormSaved {
    /// For channels with these gains and biases; `statistics` writes their mean and `1 / √(variance + ε)`.
    fn new(
        workspace: &mut Workspace,
        [gamma, beta]: [&[f32]; 2],
        statistics: impl FnOnce(&mut Workspace, &mut [f32], &mut [f32]),
    ) -> Self {
        let mut saved = NormSaved(workspace.tensor([1, 1, 4, gamma.len()]));
        let Vectors { mean, inv_std, scale, shift } = saved.vectors_mut();
        statistics(workspace, mean, inv_std);
        for (channel, (&gamma, &beta)) in gamma.iter().zip(beta).enumerate() {
            scale[channel] = gamma * inv_std[channel];
            shift[channel] = beta - mean[channel] * scale[channel];
        }
        saved
    }

    fn vectors(&self) -> Vectors<&[f32]> {
        let (statistics, affine) = self.0.data().split_at(2 * self.0.channels());
        let (mean, inv_std) = statistics.split_at(self.0.channels());
        let (scale, shift) = affine.split_at(self.0.channels());
        Vectors { mean, inv_std, scale, shift }
    }

    fn vectors_mut(&mut self) -> Vectors<&mut [f32]> {
        let channels = self.0.channels();
        let (statistics, affine) = self.0.data_mut().split_at_mut(2 * channels);
        let (mean, inv_std) = statistics.split_at_mut(channels);
        let (scale, shift) = affine.split_at_mut(channels);
        Vectors { mean, inv_std, scale, shift }
    }

    /// `relu?(γ·x̂ + β + residual)`; once more, it has the same bits as in the forward pass.
    pub fn apply(
        &self,
        cx: &Context,
        workspace: &mut Workspace,
        x: &Tensor,
        residual: Option<&Tensor>,
        relu: bool,
    ) -> Tensor {
        let mut y = workspace.tensor(x.shape());
        let Vectors { scale, shift, .. } = self.vectors();
        let residual = residual.map(Tensor::data);
        norm::apply(cx, norm::Apply { x: x.data(), scale, shift, residual, relu }, y.data_mut());
        y
    }

    /// The mean of each channel over the batch.
    pub(super) fn mean(&self) -> &[f32] {
        self.vectors().mean
    }

    /// The ReLU behind the batch norm: where a residual was added, it is told by the sum's `output`.
    pub(super) fn relu<'a>(&'a self, output: Option<&'a Tensor>, relu: bool) -> Relu<'a> {
        let Vectors { scale, shift, .. } = self.vectors();
        match output {
            Some(output) => Relu::Output(output.data()),
            None if relu => Relu::Recomputed { scale, shift },
            None => Relu::None,
        }
    }

    /// What [`apply`](Self::apply) multiplies by and adds: without a residual and with a ReLU, for a layer that does it on its way in.
    pub(super) fn prologue(&self) -> Prologue<'_> {
        let Vectors { scale, shift, .. } = self.vectors();
        Prologue { scale, shift }
    }

    /// Gives everything back.
    pub fn discard(self, workspace: &mut Workspace) {
        workspace.give(self.0);
    }
}

impl BatchNorm {
    /// A batch norm of `channels` with bias 0 and the given gain.
    pub fn new(name: &str, channels: usize, gain: f32) -> Self {
        BatchNorm {
            name: name.to_owned(),
            gamma: Parameter::vector(format!("{name}.weight"), vec![gain; channels]),
            beta: Parameter::vector(format!("{name}.bias"), vec![0.0; channels]),
            running_mean: vec![0.0; channels],
            running_var: vec![1.0; channels],
            batches: 0,
        }
    }

    /// The parameters, in torch's order.
    pub fn parameters(&self) -> [&Parameter; 2] {
        [&self.gamma, &self.beta]
    }

    /// The parameters, in torch's order.
    pub fn parameters_mut(&mut self) -> [&mut Parameter; 2] {
        [&mut self.gamma, &mut self.beta]
    }

    /// What the layer does to each channel with the running statistics: a factor, and what is added.
    pub(crate) fn affine(&self) -> impl Iterator<Item = (f64, f64)> {
        let statistics = self.running_mean.iter().zip(&self.running_var);
        let parameters = self.gamma.value.iter().zip(&self.beta.value);
        statistics.zip(parameters).map(|((&mean, &var), (&gamma, &beta))| {
            let scale = f64::from(gamma) / (f64::from(var) + f64::from(EPSILON)).sqrt();
            (scale, f64::from(beta) - f64::from(mean) * scale)
        })
    }

    /// Training: `y = relu?(γ·x̂ + β + residual)` with the batch's statistics, which also move the running ones.
    pub fn forward(
        &mut self,
        cx: &Context,
        workspace: &mut Workspace,
        x: &Tensor,
        residual: Option<&Tensor>,
        relu: bool,
    ) -> (Tensor, NormSaved) {
        let rows = x.data().len() / x.channels().max(1);
        let saved = self.batch_statistics(workspace, rows, |workspace, mean, var| {
            norm::statistics(cx, (x.data(), x.shape()), &mut workspace.norm, mean, var);
        });
        (saved.apply(cx, workspace, x, residual, relu), saved)
    }

    /// Training: the output of the convolution before the batch norm, `conv(x)`, and its statistics over the batch, taken while it is
    /// written; they also move the running ones.
    pub(super) fn behind(
        &mut self,
        cx: &Context,
        workspace: &mut Workspace,
        conv: &Conv,
        x: Activation,
    ) -> (Tensor, NormSaved) {
        let shape = conv.output_shape(x.tensor.batch());
        let mut y = None;
        let saved = self.batch_statistics(workspace, shape[..3].iter().product(), |workspace, mean, var| {
            let mut scratch = std::mem::take(&mut workspace.norm);
            let mut statistics = Statistics::new(cx, &mut scratch, shape);
            y = Some(conv.forward(cx, workspace, x, None, Some(statistics.follow())));
            statistics.finish(cx, mean, var);
            workspace.norm = scratch;
        });
        (y.expect("written while its statistics were taken"), saved)
    }

    /// The batch's statistics over so many rows, which `take` writes, mean and variance; they also move the running ones.
    pub(super) fn batch_statistics(
        &mut self,
        workspace: &mut Workspace,
        rows: usize,
        take: impl FnOnce(&mut Workspace, &mut [f32], &mut [f32]),
    ) -> NormSaved {
        let rows = rows as f32;
        // With one value a channel the unbiased variance does not exist; the biased one (0) is the honest answer.
        let unbias = if rows > 1.0 { rows / (rows - 1.0) } else { 1.0 };
        let BatchNorm { gamma, beta, running_mean, running_var, batches, .. } = self;
        *batches += 1;
        NormSaved::new(workspace, [&gamma.value, &beta.value], |workspace, mean, var| {
            take(workspace, mean, var);
            for (channel, (mean, var)) in mean.iter().zip(var).enumerate() {
                running_mean[channel] += MOMENTUM * (mean - running_mean[channel]);
                running_var[channel] += MOMENTUM * (*var * unbias - running_var[channel]);
                *var = 1.0 / (*var + EPSILON).sqrt();
            }
        })
    }

    /// Gradients of γ and β; that of the input takes the place of `dy`, of which the sums may have been taken. There was no residual.
    pub fn backward(
        &mut self,
        cx: &Context,
        workspace: &mut Workspace,
        x: &Tensor,
        saved: NormSaved,
        (dy, summed): (&mut Tensor, Option<Summed>),
        relu: bool,
    ) {
        let relu = saved.relu(None, relu);
        self.gradients(cx, workspace, &saved, Input::Kept(x.data()), relu, (dy, summed));
        saved.discard(workspace);
    }

    /// Gradients of γ and β, where a residual and a ReLU followed, whose output was `y`: the gradient of the input takes the
    /// place of x, that of the residual the place of `dy`, of which the sums may have been taken.
    pub fn backward_residual(
        &mut self,
        cx: &Context,
        workspace: &mut Workspace,
        x: &mut Tensor,
        saved: NormSaved,
        (dy, summed): (&mut Tensor, Option<Summed>),
        y: &Tensor,
    ) {
        let (x, relu) = (Input::Replaced(x.data_mut()), saved.relu(Some(y), true));
        self.gradients(cx, workspace, &saved, x, relu, (dy, summed));
        saved.discard(workspace);
    }

    fn gradients(
        &mut self,
        cx: &Context,
        workspace: &mut Workspace,
        saved: &NormSaved,
        x: Input,
        relu: Relu,
        (dy, summed): (&mut Tensor, Option<Summed>),
    ) {
        let (gamma, dgamma) = self.gamma.value_and_grad();
        let Vectors { mean, inv_std, .. } = saved.vectors();
        let [_, _, line, _] = dy.shape();
        let input = norm::Backward { relu, mean, inv_std, gamma, line };
        let out = norm::Gradients { x, dy: dy.data_mut(), dgamma, dbeta: self.beta.grad_mut() };
        norm::backward(cx, input, &mut workspace.norm, summed, out);
    }

    /// Gradients of γ and β from the sums over so many rows alone, and what the gradient of the input is made of.
    pub(super) fn coefficients<'a>(
        &mut self,
        scratch: &'a mut norm::Scratch,
        saved: &NormSaved,
        summed: Summed,
        rows: usize,
    ) -> &'a Coefficients {
        let (gamma, dgamma) = self.gamma.value_and_grad();
        let Vectors { inv_std, .. } = saved.vectors();
        norm::coefficients(scratch, summed, rows, [inv_std, gamma], [dgamma, self.beta.grad_mut()])
    }

    /// Inference: `y = relu?(γ·x̂ + β + residual)` with the running statistics.
    pub fn infer(
        &self,
        cx: &Context,
        workspace: &mut Workspace,
        x: &Tensor,
        residual: Option<&Tensor>,
        relu: bool,
    ) -> Tensor {
        let parameters = [&self.gamma.value[..], &self.beta.value];
        let running = NormSaved::new(workspace, parameters, |_, mean, inv_std| {
            mean.copy_from_slice(&self.running_mean);
            inv_std
                .iter_mut()
                .zip(&self.running_var)
                .for_each(|(to, var)| *to = 1.0 / (var + EPSILON).sqrt());
        });
        let y = running.apply(cx, workspace, x, residual, relu);
        running.discard(workspace);
        y
    }
}
