//! An exponential moving average of a network's weights.

use super::pieces::Spread;
use crate::kernels::{Context, optimizer as kernel};
use crate::network::Network;

/// The decay rises as `1 − (1 + step)^−POWER`: timm's choice.
const POWER: f64 = 2.0 / 3.0;

/// The exponential moving average of all parameters and running statistics over the steps of a run, as timm's `ModelEmaV3`
/// with `use_warmup` computes it: the first step begins it, and its memory grows with the steps up to `decay`.
#[derive(Debug)]
pub struct WeightAverage {
    decay: f64,
    steps: u64,
    /// A vector for each parameter, laid out as its value; the second list stays empty.
    values: [Vec<Vec<f32>>; 2],
    /// Running mean and variance of each batch norm.
    statistics: Vec<[Vec<f32>; 2]>,
    spread: Spread,
}

impl WeightAverage {
    /// The average that `network`, as it is, has come to after `steps` steps.
    pub fn of(network: &Network, decay: f64, steps: u64) -> Self {
        let values = network.parameters().map(|parameter| parameter.value.clone()).collect();
        let statistics = network.norms().map(|norm| [norm.running_mean.clone(), norm.running_var.clone()]);
        let statistics = statistics.collect();
        WeightAverage { decay, steps, values: [values, Vec::new()], statistics, spread: Spread::default() }
    }

    /// Share of the average that the next step keeps.
    pub fn decay(&self) -> f64 {
        (1.0 - (1.0 + self.steps as f64).powf(-POWER)).min(self.decay)
    }

    /// Moves the average towards the network's weights and statistics.
    pub fn update(&mut self, cx: &Context, network: &mut Network) {
        let weight = (1.0 - self.decay()) as f32;
        self.steps += 1;
        let mut pieces = self.spread.over(network, &mut self.values);
        cx.pool().pieces(&mut pieces, 1, |_, piece| {
            let piece = &mut piece[0];
            kernel::move_average(cx.level(), weight, piece.value, piece.states[0]);
        });
        self.spread.keep(pieces);
        for (norm, [mean, var]) in network.norms().zip(&mut self.statistics) {
            kernel::move_average(cx.level(), weight, &norm.running_mean, mean);
            kernel::move_average(cx.level(), weight, &norm.running_var, var);
        }
    }

    /// Gives the network the average's weights and statistics and keeps its own, or the other way round.
    pub fn exchange(&mut self, network: &mut Network) {
        for (parameter, values) in network.parameters_mut().zip(&mut self.values[0]) {
            std::mem::swap(&mut parameter.value, values);
        }
        for (norm, [mean, var]) in network.norms_mut().zip(&mut self.statistics) {
            std::mem::swap(&mut norm.running_mean, mean);
            std::mem::swap(&mut norm.running_var, var);
        }
    }
}
