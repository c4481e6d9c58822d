//! All options of a run, resolved.

use super::{
    AdamWOptions, Decline, LambOptions, Opt, OptimizerOptions, Rule, Schedule, SgdOptions, TrainError,
};
use crate::arch::{Arch, Order};
use crate::data::{Augment, Crop, OnError, OpenOptions};
use crate::kernels::Operands;
use crate::network::{DropRates, Initialise};
use serde::{Deserialize, Serialize};

/// A precision beside `f32` for what automatic mixed precision lets lose digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Amp {
    /// Operands of convolutions rounded to bf16, with sums in `f32`. Weights, their gradients and all that batch norms and
    /// the optimizer do stay `f32`.
    Bf16,
}

impl Amp {
    /// The operands of convolutions in training.
    pub fn operands(amp: Option<Amp>) -> Operands {
        match amp {
            Some(Amp::Bf16) => Operands::Bf16,
            None => Operands::F32,
        }
    }
}

/// How to train. The names are those of the flags, which are timm's where timm has one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainOptions {
    /// The data set, as `crate::data::open` takes it.
    pub data: String,
    /// Share of the training images that is held out for validation where the data set has no split of its own.
    pub val_fraction: f64,
    /// What happens to images that cannot be decoded.
    pub on_error: OnError,
    /// What is done to training images.
    pub augment: Augment,
    /// Whether image files are turned as their EXIF orientation says.
    #[serde(default = "turned")]
    pub exif: bool,
    /// Passes over the training images.
    pub epochs: usize,
    /// Images of a batch; the last, smaller batch of an epoch is left out.
    pub batch_size: usize,
    /// Batches whose gradients make a step; those at the end of an epoch that are fewer are left out.
    #[serde(default = "one")]
    pub grad_accum_steps: usize,
    /// How parameters follow from gradients.
    #[serde(default)]
    pub opt: Opt,
    /// The precision that convolutions multiply in where they are faster so, beside `f32` for everything else; without it
    /// everything is `f32`.
    #[serde(default)]
    pub amp: Option<Amp>,
    /// Whether the insides of blocks are computed again in the backward pass instead of being kept: less memory, more time, the
    /// same bits.
    #[serde(default)]
    pub recompute: bool,
    /// Highest learning rate.
    pub lr: f64,
    /// Share of the last step's velocity that is kept.
    pub momentum: f64,
    /// Whether the momentum is Nesterov's.
    pub nesterov: bool,
    /// Shares of the running means of AdamW and LAMB that a step keeps: of the gradient, and of its square.
    #[serde(default = "betas")]
    pub opt_betas: [f64; 2],
    /// What AdamW and LAMB add to the root of the mean square; PyTorch's and timm's value where there is none.
    #[serde(default)]
    pub opt_eps: Option<f64>,
    /// SGD's L2 penalty; AdamW's and LAMB's weight decay.
    pub weight_decay: f64,
    /// Whether it applies to norms and biases too.
    pub decay_norm_and_bias: bool,
    /// Largest norm of the gradient of all parameters together; a larger one is scaled down.
    #[serde(default)]
    pub clip_grad: Option<f64>,
    /// Decay of the moving average of the weights; without one, there is no average.
    #[serde(default)]
    pub model_ema_decay: Option<f64>,
    /// How the learning rate falls.
    pub sched: Decline,
    /// Epochs of linear warm-up; may be a fraction.
    pub warmup_epochs: f64,
    /// Label smoothing (Szegedy et al. 2016): share of the target that is spread over all classes.
    pub smoothing: f64,
    /// Whether each block begins as its shortcut.
    pub zero_init_last: bool,
    /// Probability that an image goes around the last block; it rises from 0 at the first one (timm's `drop_path_rate`).
    #[serde(default)]
    pub drop_path: f64,
    /// Share of the last two stages' feature maps that is left out in blocks (timm's `drop_block_rate`).
    #[serde(default)]
    pub drop_block: f64,
    /// Seed of everything random.
    pub seed: u64,
    /// Threads that decode and augment images ahead of the network; with 0, its own do so between steps.
    pub workers: usize,
    /// Bytes of decoded image files that may stay in memory.
    #[serde(default = "cache")]
    pub cache: u64,
}

/// What runs did before there was a choice.
fn turned() -> bool {
    true
}

/// What runs did before there was a choice.
fn one() -> usize {
    1
}

fn betas() -> [f64; 2] {
    [0.9, 0.999]
}

fn cache() -> u64 {
    OpenOptions::default().cache_bytes
}

impl Default for TrainOptions {
    fn default() -> Self {
        TrainOptions {
            data: "sample".to_owned(),
            val_fraction: 0.1,
            on_error: OnError::Fail,
            augment: Augment { crop: Crop::Pad(2), hflip: 0.5, vflip: 0.0 },
            exif: true,
            epochs: 10,
            batch_size: 128,
            grad_accum_steps: 1,
            opt: Opt::Sgd,
            amp: None,
            recompute: false,
            lr: 0.1,
            momentum: 0.9,
            nesterov: true,
            opt_betas: betas(),
            opt_eps: None,
            weight_decay: 5e-4,
            decay_norm_and_bias: false,
            clip_grad: None,
            model_ema_decay: None,
            sched: Decline::Cosine,
            warmup_epochs: 0.5,
            smoothing: 0.0,
            zero_init_last: false,
            drop_path: 0.0,
            drop_block: 0.0,
            seed: 42,
            workers: 1,
            cache: cache(),
        }
    }
}

impl TrainOptions {
    /// The usual options with an optimizer's usual learning rate and weight decay: for AdamW those of the ViT and ConvNeXt
    /// recipes, for LAMB those of "ResNet strikes back" (Wightman et al. 2021).
    pub fn with(opt: Opt) -> Self {
        let usual = TrainOptions { opt, ..TrainOptions::default() };
        match opt {
            Opt::Sgd => usual,
            Opt::AdamW => TrainOptions { lr: 1e-3, weight_decay: 0.05, ..usual },
            Opt::Lamb => TrainOptions { lr: 5e-3, weight_decay: 0.02, ..usual },
        }
    }

    /// Checks each value.
    ///
    /// # Errors
    /// With the first value that cannot be used, named by its flag.
    pub fn validate(&self) -> Result<(), TrainError> {
        let refuse = |option, found: &dyn std::fmt::Display, expected| {
            Err(TrainError::Option { option, found: found.to_string(), expected })
        };
        if self.epochs == 0 {
            return refuse("--epochs", &0, "1 or more");
        }
        if self.batch_size == 0 {
            return refuse("--batch-size", &0, "1 or more");
        }
        if self.grad_accum_steps == 0 {
            return refuse("--grad-accum-steps", &0, "1 or more");
        }
        let positive = |value: f64| value.is_finite() && value > 0.0;
        if !positive(self.lr) {
            return refuse("--lr", &self.lr, "a number above 0");
        }
        if let Some(beta) = self.opt_betas.iter().find(|beta| !(0.0..1.0).contains(*beta)) {
            return refuse("--opt-betas", beta, "two numbers from 0 up to, but not including, 1");
        }
        if let Some(epsilon) = self.opt_eps.filter(|&epsilon| !positive(epsilon)) {
            return refuse("--opt-eps", &epsilon, "a number above 0");
        }
        if let Some(norm) = self.clip_grad.filter(|&norm| !positive(norm)) {
            return refuse("--clip-grad", &norm, "a number above 0");
        }
        if let Some(decay) = self.model_ema_decay.filter(|decay| !(*decay > 0.0 && *decay < 1.0)) {
            return refuse("--model-ema-decay", &decay, "a number between 0 and 1");
        }
        if !(0.0..1.0).contains(&self.momentum) {
            return refuse("--momentum", &self.momentum, "a number from 0 up to, but not including, 1");
        }
        if !(self.weight_decay.is_finite() && self.weight_decay >= 0.0) {
            return refuse("--weight-decay", &self.weight_decay, "a number from 0 up");
        }
        if !(self.warmup_epochs.is_finite() && self.warmup_epochs >= 0.0) {
            return refuse("--warmup-epochs", &self.warmup_epochs, "a number from 0 up");
        }
        if !(0.0..1.0).contains(&self.smoothing) {
            return refuse("--smoothing", &self.smoothing, "a number from 0 up to, but not including, 1");
        }
        for (flag, rate) in [("--drop-path", self.drop_path), ("--drop-block", self.drop_block)] {
            if !(0.0..1.0).contains(&rate) {
                return refuse(flag, &rate, "a number from 0 up to, but not including, 1");
            }
        }
        if !(self.val_fraction > 0.0 && self.val_fraction < 1.0) {
            return refuse("--val-fraction", &self.val_fraction, "a number between 0 and 1");
        }
        Ok(())
    }

    /// Checks that a network can be trained in this way.
    ///
    /// # Errors
    /// When blocks of a pre-activation network are to be dropped, which timm does not define.
    pub fn check_network(&self, arch: &Arch) -> Result<(), TrainError> {
        if self.drop_block > 0.0 && arch.order == Order::Pre {
            let (option, found) = ("--drop-block", self.drop_block.to_string());
            return Err(TrainError::Option { option, found, expected: "0 for a pre-activation network" });
        }
        Ok(())
    }

    /// What training leaves out at random.
    pub fn drop_rates(&self) -> DropRates {
        DropRates { path: self.drop_path, block: self.drop_block }
    }

    /// The optimizer's part.
    pub fn optimizer(&self) -> OptimizerOptions {
        let &TrainOptions { momentum, opt_betas: betas, opt_eps, decay_norm_and_bias, .. } = self;
        let weight_decay = self.weight_decay as f32;
        let rule = match self.opt {
            Opt::Sgd => Rule::Sgd(SgdOptions {
                momentum: momentum as f32,
                nesterov: self.nesterov && momentum > 0.0,
                weight_decay,
                decay_norm_and_bias,
            }),
            Opt::AdamW => {
                let epsilon = opt_eps.unwrap_or(AdamWOptions::EPSILON);
                Rule::AdamW(AdamWOptions { betas, epsilon, weight_decay, decay_norm_and_bias })
            }
            Opt::Lamb => Rule::Lamb(LambOptions {
                betas,
                epsilon: opt_eps.unwrap_or(LambOptions::EPSILON),
                weight_decay,
                decay_norm_and_bias,
                max_grad_norm: Some(LambOptions::MAX_GRAD_NORM),
            }),
        };
        OptimizerOptions { rule, clip_norm: self.clip_grad, ema_decay: self.model_ema_decay }
    }

    /// The learning rate over epochs of `steps` steps.
    pub fn schedule(&self, steps: usize) -> Schedule {
        let warmup = (self.warmup_epochs * steps as f64).round() as usize;
        Schedule { lr: self.lr, warmup, steps: self.epochs * steps, decline: self.sched }
    }

    /// How the weights begin.
    pub fn initialise(&self) -> Initialise {
        Initialise { seed: self.seed, zero_init_last: self.zero_init_last }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_values_are_named_by_their_flag() {
        assert!(TrainOptions::default().validate().is_ok());
        let refusals = [
            TrainOptions { epochs: 0, ..TrainOptions::default() },
            TrainOptions { batch_size: 0, ..TrainOptions::default() },
            TrainOptions { grad_accum_steps: 0, ..TrainOptions::default() },
            TrainOptions { lr: f64::NAN, ..TrainOptions::default() },
            TrainOptions { opt_betas: [0.9, 1.0], ..TrainOptions::default() },
            TrainOptions { opt_eps: Some(0.0), ..TrainOptions::default() },
            TrainOptions { clip_grad: Some(-1.0), ..TrainOptions::default() },
            TrainOptions { model_ema_decay: Some(1.0), ..TrainOptions::default() },
            TrainOptions { momentum: 1.0, ..TrainOptions::default() },
            TrainOptions { weight_decay: -1.0, ..TrainOptions::default() },
            TrainOptions { warmup_epochs: f64::INFINITY, ..TrainOptions::default() },
            TrainOptions { smoothing: 1.0, ..TrainOptions::default() },
            TrainOptions { drop_path: 1.0, ..TrainOptions::default() },
            TrainOptions { drop_block: -0.1, ..TrainOptions::default() },
            TrainOptions { val_fraction: 1.0, ..TrainOptions::default() },
        ];
        let flags = refusals.map(|options| match options.validate() {
            Err(TrainError::Option { option, .. }) => option,
            other => panic!("{other:?}"),
        });
        let expected = [
            "--epochs",
            "--batch-size",
            "--grad-accum-steps",
            "--lr",
            "--opt-betas",
            "--opt-eps",
            "--clip-grad",
            "--model-ema-decay",
            "--momentum",
            "--weight-decay",
            "--warmup-epochs",
            "--smoothing",
            "--drop-path",
            "--drop-block",
            "--val-fraction",
        ];
        assert_eq!(flags, expected);
    }
}
