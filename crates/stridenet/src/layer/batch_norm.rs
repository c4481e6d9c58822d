//! Batch normalisation (Ioffe & Szegedy 2015), with the residual's addition and the ReLU that follow it.

use super::{Parameter, Workspace};
use crate::Tensor;
use crate::kernels::norm::{Input, Relu};
use crate::kernels::{Context, norm};

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

/// What the backward pass needs besides the input and the output.
#[derive(Debug)]
pub struct NormSaved {
    /// Mean of each channel over the batch.
    mean: Vec<f32>,
    /// 1 / √(variance + ε) of each channel over the batch.
    inv_std: Vec<f32>,
    /// What the layer did to each channel.
    affine: Affine,
}

/// `x · scale + shift` for each channel.
#[derive(Debug)]
struct Affine {
    scale: Vec<f32>,
    shift: Vec<f32>,
}

impl NormSaved {
    /// `relu?(γ·x̂ + β)` once more, with the same bits as in the forward pass.
    pub fn apply(&self, cx: &Context, workspace: &mut Workspace, x: &Tensor, relu: bool) -> Tensor {
        self.affine.apply(cx, workspace, x, None, relu)
    }
}

impl Affine {
    fn apply(
        &self,
        cx: &Context,
        workspace: &mut Workspace,
        x: &Tensor,
        residual: Option<&Tensor>,
        relu: bool,
    ) -> Tensor {
        let mut y = workspace.tensor(x.shape());
        let Affine { scale, shift } = self;
        let residual = residual.map(Tensor::data);
        norm::apply(cx, norm::Apply { x: x.data(), scale, shift, residual, relu }, y.data_mut());
        y
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
        let channels = x.channels();
        let (mut mean, mut var) = (vec![0.0; channels], vec![0.0; channels]);
        norm::statistics(cx, x.data(), &mut mean, &mut var);
        let rows = (x.data().len() / channels.max(1)) as f32;
        // With one value a channel the unbiased variance does not exist; the biased one (0) is the honest answer.
        let unbias = if rows > 1.0 { rows / (rows - 1.0) } else { 1.0 };
        for c in 0..channels {
            self.running_mean[c] += MOMENTUM * (mean[c] - self.running_mean[c]);
            self.running_var[c] += MOMENTUM * (var[c] * unbias - self.running_var[c]);
        }
        self.batches += 1;
        let inv_std: Vec<f32> = var.iter().map(|var| 1.0 / (var + EPSILON).sqrt()).collect();
        let affine = self.scale_and_shift(&mean, &inv_std);
        let y = affine.apply(cx, workspace, x, residual, relu);
        (y, NormSaved { mean, inv_std, affine })
    }

    /// Gradients of γ and β; that of the input takes the place of `dy`. There was no residual.
    pub fn backward(&mut self, cx: &Context, x: &Tensor, saved: &NormSaved, dy: &mut Tensor, relu: bool) {
        let Affine { scale, shift } = &saved.affine;
        let relu = if relu { Relu::Recomputed { scale, shift } } else { Relu::None };
        self.gradients(cx, saved, Input::Kept(x.data()), relu, dy);
    }

    /// Gradients of γ and β, where a residual and a ReLU followed, whose output was `y`: the gradient of the input takes the
    /// place of x, that of the residual the place of `dy`.
    pub fn backward_residual(
        &mut self,
        cx: &Context,
        x: &mut Tensor,
        saved: &NormSaved,
        dy: &mut Tensor,
        y: &Tensor,
    ) {
        self.gradients(cx, saved, Input::Replaced(x.data_mut()), Relu::Output(y.data()), dy);
    }

    fn gradients(&mut self, cx: &Context, saved: &NormSaved, x: Input, relu: Relu, dy: &mut Tensor) {
        let (gamma, dgamma) = self.gamma.value_and_grad();
        let NormSaved { mean, inv_std, .. } = saved;
        let input = norm::Backward { relu, mean, inv_std, gamma };
        let out = norm::Gradients { x, dy: dy.data_mut(), dgamma, dbeta: self.beta.grad_mut() };
        norm::backward(cx, input, out);
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
        let inv_std: Vec<f32> = self.running_var.iter().map(|var| 1.0 / (var + EPSILON).sqrt()).collect();
        self.scale_and_shift(&self.running_mean, &inv_std).apply(cx, workspace, x, residual, relu)
    }

    fn scale_and_shift(&self, mean: &[f32], inv_std: &[f32]) -> Affine {
        let scale: Vec<f32> = self.gamma.value.iter().zip(inv_std).map(|(gamma, inv)| gamma * inv).collect();
        let means = mean.iter().zip(&scale);
        let shift =
            self.beta.value.iter().zip(means).map(|(beta, (mean, scale))| beta - mean * scale).collect();
        Affine { scale, shift }
    }
}
