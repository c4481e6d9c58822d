//! Hyper-parameters, with the meaning that PyTorch and timm give them.

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

/// Hyper-parameters of AdamW (Loshchilov & Hutter 2019), with PyTorch's meaning.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamWOptions {
    /// Shares of the running means of the gradient and of its square that a step keeps.
    pub betas: [f64; 2],
    /// Added to the root of the mean square.
    pub epsilon: f64,
    /// Share of the value that is taken away, times the learning rate.
    pub weight_decay: f32,
    /// Whether that applies to norms and biases too.
    pub decay_norm_and_bias: bool,
}

/// Hyper-parameters of LAMB (You et al. 2020), with the meaning of timm's `Lamb`, which is NVIDIA's.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LambOptions {
    /// Shares of the running means of the gradient and of its square that a step keeps.
    pub betas: [f64; 2],
    /// Added to the root of the mean square.
    pub epsilon: f64,
    /// This times the value is added to the direction.
    pub weight_decay: f32,
    /// Whether that applies to norms and biases too. Those that it does not apply to have no trust ratio.
    pub decay_norm_and_bias: bool,
    /// Largest norm of the gradient of all parameters together; a larger one is scaled down.
    pub max_grad_norm: Option<f64>,
}

impl AdamWOptions {
    /// PyTorch's default of `epsilon`.
    pub const EPSILON: f64 = 1e-8;
}

impl LambOptions {
    /// timm's default of `epsilon`.
    pub const EPSILON: f64 = 1e-6;

    /// timm's default of `max_grad_norm`.
    pub const MAX_GRAD_NORM: f64 = 1.0;
}

/// How parameters follow from gradients.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Rule {
    /// Stochastic gradient descent.
    Sgd(SgdOptions),
    /// Adam with decoupled weight decay.
    AdamW(AdamWOptions),
    /// Adam's directions with a rate for each parameter.
    Lamb(LambOptions),
}

impl Rule {
    /// What is remembered of each parameter, by PyTorch's names.
    pub fn states(&self) -> &'static [&'static str] {
        match self {
            Rule::Sgd(_) => &["velocity"],
            Rule::AdamW(_) | Rule::Lamb(_) => &["exp_avg", "exp_avg_sq"],
        }
    }
}

/// How steps are made.
///
/// ```
/// use stridenet::train::{OptimizerOptions, SgdOptions};
/// let sgd = SgdOptions { momentum: 0.9, nesterov: true, weight_decay: 1e-4, decay_norm_and_bias: false };
/// let options = OptimizerOptions { clip_norm: Some(1.0), ema_decay: Some(0.999), ..sgd.into() };
/// assert_eq!(options.rule.states(), ["velocity"]);
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct OptimizerOptions {
    /// How parameters follow from gradients.
    pub rule: Rule,
    /// Largest norm of the gradient of all parameters together; a larger one is scaled down, as PyTorch's `clip_grad_norm_`
    /// does.
    pub clip_norm: Option<f64>,
    /// Share of an exponential moving average of the weights that a step keeps, once it is warm. See
    /// [`WeightAverage`](super::WeightAverage).
    pub ema_decay: Option<f64>,
}

impl From<SgdOptions> for OptimizerOptions {
    fn from(options: SgdOptions) -> Self {
        OptimizerOptions { rule: Rule::Sgd(options), clip_norm: None, ema_decay: None }
    }
}

/// Which [`Rule`] a run goes by.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Opt {
    /// [`Rule::Sgd`].
    #[default]
    Sgd,
    /// [`Rule::AdamW`].
    AdamW,
    /// [`Rule::Lamb`].
    Lamb,
}
