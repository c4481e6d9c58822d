//! What turns gradients into steps: SGD, AdamW and LAMB, the clipping of gradients, and the moving average of weights. Each
//! works on all parameters at once, and takes no memory after its first step.

mod average;
mod options;
mod pieces;

pub use average::WeightAverage;
pub use options::{AdamWOptions, LambOptions, Opt, OptimizerOptions, Rule, SgdOptions};
pub(super) use pieces::Spread;

use crate::kernels::Context;
use crate::kernels::optimizer::{self as kernel, Lamb, Moments, MomentsOf};
use crate::layer::{Decay, Parameter};
use crate::network::Network;
use pieces::Piece;

/// Keeps the quotient of [`OptimizerOptions::clip_norm`] finite, as PyTorch does.
const CLIP_EPSILON: f64 = 1e-6;

/// An optimizer's options and what it remembers of each parameter.
#[derive(Debug)]
pub struct Optimizer {
    options: OptimizerOptions,
    /// For each of the rule's [`states`](Rule::states), a vector for each parameter, laid out as its value.
    states: [Vec<Vec<f32>>; 2],
    /// Steps made.
    steps: u64,
    spread: Spread,
    /// LAMB's rate for each parameter.
    rates: Vec<f32>,
}

/// What a step did.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Update {
    /// Norm of the gradient of all parameters before it was clipped, where [`OptimizerOptions::clip_norm`] asks for it.
    pub grad_norm: Option<f64>,
}

/// What a piece's update is made of.
#[derive(Debug, Clone, Copy)]
struct Rates {
    lr: f32,
    /// What the gradient is multiplied by.
    scale: f32,
}

impl Optimizer {
    /// An optimizer that has not made a step yet.
    pub fn new(network: &Network, options: OptimizerOptions) -> Self {
        let zeros = || network.parameters().map(|parameter| vec![0.0; parameter.value.len()]).collect();
        let mut states = [Vec::new(), Vec::new()];
        states[..options.rule.states().len()].fill_with(zeros);
        Optimizer { options, states, steps: 0, spread: Spread::default(), rates: Vec::new() }
    }

    /// An optimizer that goes on after `steps` steps of an earlier one with its states: `take` gives that of a name of
    /// [`Rule::states`] and a parameter, in torch's order.
    ///
    /// # Errors
    /// With the name of the first state that is missing or has another length.
    pub fn resume(
        network: &Network,
        options: OptimizerOptions,
        steps: u64,
        mut take: impl FnMut(&str, &Parameter) -> Option<Vec<f32>>,
    ) -> Result<Self, String> {
        let (mut states, mut space) = ([Vec::new(), Vec::new()], Vec::new());
        for (name, states) in options.rule.states().iter().zip(&mut states) {
            for parameter in network.parameters() {
                let found = take(name, parameter).filter(|values| values.len() == parameter.value.len());
                let values = found.ok_or_else(|| format!("{name}.{}", parameter.name))?;
                states.push(parameter.from_torch(values, &mut space));
            }
        }
        Ok(Optimizer { options, states, steps, spread: Spread::default(), rates: Vec::new() })
    }

    /// Steps made.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// Each state of each parameter: its name, the parameter, and the values in torch's order.
    pub fn states<'a>(
        &'a self,
        network: &'a Network,
    ) -> impl Iterator<Item = (&'static str, &'a Parameter, Vec<f32>)> {
        let named = self.options.rule.states().iter().zip(&self.states);
        named.flat_map(|(name, states)| {
            let pairs = network.parameters().zip(states);
            pairs.map(|(parameter, values)| (*name, parameter, parameter.to_torch(values)))
        })
    }

    /// Changes every parameter by `scale` times its gradient.
    pub fn step(&mut self, cx: &Context, network: &mut Network, scale: f32, lr: f32) -> Update {
        let Optimizer { options, states, steps, spread, rates } = self;
        let OptimizerOptions { rule, clip_norm, .. } = *options;
        *steps += 1;
        let mut pieces = spread.over(network, states);
        let lamb_norm =
            if let Rule::Lamb(LambOptions { max_grad_norm, .. }) = rule { max_grad_norm } else { None };
        let mut scale = f64::from(scale);
        let mut grad_norm = None;
        if clip_norm.is_some() || lamb_norm.is_some() {
            let mut norm = gradient_norm(cx, &mut pieces) * scale;
            if let Some(clip) = clip_norm {
                grad_norm = Some(norm);
                let share = (clip / (norm + CLIP_EPSILON)).min(1.0);
                (norm, scale) = (norm * share, scale * share);
            }
            if let Some(largest) = lamb_norm {
                scale /= (norm / largest).max(1.0);
            }
        }
        let to = Rates { lr, scale: scale as f32 };
        match rule {
            Rule::Sgd(sgd) => step_sgd(cx, &sgd, to, &mut pieces),
            Rule::AdamW(adamw) => step_adamw(cx, &adamw, *steps, to, &mut pieces),
            Rule::Lamb(lamb) => step_lamb(cx, &lamb, *steps, to, &mut pieces, rates),
        }
        spread.keep(pieces);
        Update { grad_norm }
    }
}

/// The penalty of a parameter.
fn penalty(weight_decay: f32, decay_norm_and_bias: bool, decay: Decay) -> f32 {
    if decay_norm_and_bias || decay == Decay::Weight { weight_decay } else { 0.0 }
}

/// The norm of all gradients together. The sums of the pieces are added in the parameters' order.
fn gradient_norm(cx: &Context, pieces: &mut [Piece]) -> f64 {
    cx.pool()
        .pieces(pieces, 1, |_, piece| piece[0].sums[0] = kernel::sum_of_squares(cx.level(), piece[0].grad));
    pieces.iter().map(|piece| piece.sums[0]).sum::<f64>().sqrt()
}

fn step_sgd(cx: &Context, options: &SgdOptions, to: Rates, pieces: &mut [Piece]) {
    let &SgdOptions { momentum, nesterov, weight_decay, decay_norm_and_bias } = options;
    cx.pool().pieces(pieces, 1, |_, piece| {
        let Piece { decay, value, grad, states: [velocity, _], .. } = &mut piece[0];
        let weight_decay = penalty(weight_decay, decay_norm_and_bias, *decay);
        let sgd = kernel::Sgd { lr: to.lr, momentum, nesterov, weight_decay };
        kernel::sgd(cx.level(), &sgd, to.scale, value, grad, velocity);
    });
}

/// The moments' part of step `step`, counted from 1.
fn moments([beta1, beta2]: [f64; 2], epsilon: f64, step: u64) -> Moments {
    let left = |beta: f64| 1.0 - beta.powf(step as f64);
    Moments {
        newest: (1.0 - beta1) as f32,
        newest_square: (1.0 - beta2) as f32,
        kept_square: beta2 as f32,
        correction: left(beta1) as f32,
        correction_square: left(beta2).sqrt() as f32,
        epsilon: epsilon as f32,
    }
}

fn step_adamw(cx: &Context, options: &AdamWOptions, step: u64, to: Rates, pieces: &mut [Piece]) {
    let &AdamWOptions { betas, epsilon, weight_decay, decay_norm_and_bias } = options;
    let moments = moments(betas, epsilon, step);
    cx.pool().pieces(pieces, 1, |_, piece| {
        let Piece { decay, value, grad, states: [mean, square], .. } = &mut piece[0];
        let of = MomentsOf { mean, square };
        let weight_decay = penalty(weight_decay, decay_norm_and_bias, *decay);
        kernel::adamw(cx.level(), &moments, [to.lr, weight_decay], to.scale, value, grad, of);
    });
}

fn step_lamb(
    cx: &Context,
    options: &LambOptions,
    step: u64,
    to: Rates,
    pieces: &mut [Piece],
    rates: &mut Vec<f32>,
) {
    let &LambOptions { betas, epsilon, weight_decay, decay_norm_and_bias, .. } = options;
    let moments = moments(betas, epsilon, step);
    let rule = |decay| Lamb { moments, weight_decay: penalty(weight_decay, decay_norm_and_bias, decay) };
    cx.pool().pieces(pieces, 1, |_, piece| {
        let Piece { decay, value, grad, states: [mean, square], sums, .. } = &mut piece[0];
        let of = MomentsOf { mean, square };
        *sums = kernel::lamb_move(cx.level(), &rule(*decay), to.scale, value, grad, of);
    });
    rates.clear();
    for pieces in pieces.chunk_by(|a, b| a.parameter == b.parameter) {
        let [value, direction] =
            [0, 1].map(|of| pieces.iter().map(|piece| piece.sums[of]).sum::<f64>().sqrt());
        // As timm has it, parameters without a penalty go by the learning rate alone.
        let adapts = rule(pieces[0].decay).weight_decay != 0.0 && value > 0.0 && direction > 0.0;
        rates.push(if adapts { to.lr * (value / direction) as f32 } else { to.lr });
    }
    let rates = &*rates;
    cx.pool().pieces(pieces, 1, |_, piece| {
        let Piece { parameter, decay, value, states: [mean, square], .. } = &mut piece[0];
        kernel::lamb_apply(cx.level(), &rule(*decay), rates[*parameter], value, mean, square);
    });
}
