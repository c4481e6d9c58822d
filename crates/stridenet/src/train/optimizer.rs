//! Stochastic gradient descent with momentum.

use crate::kernels::{Context, pointwise};
use crate::layer::{Decay, Parameter};
use crate::network::Network;
use serde::{Deserialize, Serialize};

/// Hyper-parameters of SGD, with PyTorch's meaning.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SgdOptions {
    /// Share of the last step's velocity that is kept.
    pub momentum: f32,
    /// Whether the step looks ahead along the velocity (Nesterov).
    pub nesterov: bool,
    /// L2 penalty: this times the value is added to the gradient.
    pub weight_decay: f32,
    /// Whether the penalty applies to norms and biases too.
    pub decay_norm_and_bias: bool,
}

/// SGD's hyper-parameters and the velocity of each parameter.
#[derive(Debug)]
pub struct Sgd {
    options: SgdOptions,
    velocities: Vec<Vec<f32>>,
    started: bool,
}

impl Sgd {
    /// An optimizer that has not made a step yet.
    pub fn new(network: &Network, options: SgdOptions) -> Self {
        let velocities = network.parameters().map(|parameter| vec![0.0; parameter.value.len()]).collect();
        Sgd { options, velocities, started: false }
    }

    /// An optimizer that goes on with the velocities of an earlier one, a vector for each parameter in torch's order.
    pub fn resume(network: &Network, options: SgdOptions, velocities: Vec<Vec<f32>>) -> Self {
        let velocities = network
            .parameters()
            .zip(velocities)
            .map(|(parameter, values)| parameter.from_torch(values))
            .collect();
        Sgd { options, velocities, started: true }
    }

    /// The velocity of each parameter in torch's order, or nothing before the first step.
    pub fn velocities<'a>(
        &'a self,
        network: &'a Network,
    ) -> Option<impl Iterator<Item = (&'a Parameter, Vec<f32>)>> {
        let pairs = network.parameters().zip(&self.velocities);
        self.started.then(|| pairs.map(|(parameter, velocity)| (parameter, parameter.to_torch(velocity))))
    }

    /// Changes every parameter by its gradient and packs the weights again.
    pub fn step(&mut self, cx: &Context, network: &mut Network, lr: f32) {
        let SgdOptions { momentum, nesterov, weight_decay, decay_norm_and_bias } = self.options;
        for (parameter, velocity) in network.parameters_mut().zip(&mut self.velocities) {
            let decays = decay_norm_and_bias || parameter.decay == Decay::Weight;
            let weight_decay = if decays { weight_decay } else { 0.0 };
            let sgd = pointwise::Sgd { lr, momentum, nesterov, weight_decay };
            let (value, grad) = parameter.value_and_grad();
            pointwise::sgd_step(cx, sgd, value, grad, velocity, !self.started);
        }
        self.started = true;
        network.refresh(cx);
    }
}
