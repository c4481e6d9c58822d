//! All options of a run, resolved.

use super::{Decline, Schedule, SgdOptions, TrainError};
use crate::arch::{Arch, Order};
use crate::data::{Augment, Crop, OnError};
use crate::network::{DropRates, Initialise};
use serde::{Deserialize, Serialize};

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
    /// Images a step; the last, smaller batch of an epoch is left out.
    pub batch_size: usize,
    /// Highest learning rate.
    pub lr: f64,
    /// Share of the last step's velocity that is kept.
    pub momentum: f64,
    /// Whether the momentum is Nesterov's.
    pub nesterov: bool,
    /// L2 penalty.
    pub weight_decay: f64,
    /// Whether the penalty applies to norms and biases too.
    pub decay_norm_and_bias: bool,
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
    /// Threads that decode and augment images.
    pub workers: usize,
}

/// What runs did before there was a choice.
fn turned() -> bool {
    true
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
            lr: 0.1,
            momentum: 0.9,
            nesterov: true,
            weight_decay: 5e-4,
            decay_norm_and_bias: false,
            sched: Decline::Cosine,
            warmup_epochs: 0.5,
            smoothing: 0.0,
            zero_init_last: false,
            drop_path: 0.0,
            drop_block: 0.0,
            seed: 42,
            workers: 1,
        }
    }
}

impl TrainOptions {
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
        if !(self.lr.is_finite() && self.lr > 0.0) {
            return refuse("--lr", &self.lr, "a number above 0");
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
        if self.workers == 0 {
            return refuse("--workers", &0, "1 or more");
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
    pub fn sgd(&self) -> SgdOptions {
        SgdOptions {
            momentum: self.momentum as f32,
            nesterov: self.nesterov && self.momentum > 0.0,
            weight_decay: self.weight_decay as f32,
            decay_norm_and_bias: self.decay_norm_and_bias,
        }
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
            TrainOptions { lr: f64::NAN, ..TrainOptions::default() },
            TrainOptions { momentum: 1.0, ..TrainOptions::default() },
            TrainOptions { weight_decay: -1.0, ..TrainOptions::default() },
            TrainOptions { warmup_epochs: f64::INFINITY, ..TrainOptions::default() },
            TrainOptions { smoothing: 1.0, ..TrainOptions::default() },
            TrainOptions { drop_path: 1.0, ..TrainOptions::default() },
            TrainOptions { drop_block: -0.1, ..TrainOptions::default() },
            TrainOptions { val_fraction: 1.0, ..TrainOptions::default() },
            TrainOptions { workers: 0, ..TrainOptions::default() },
        ];
        let flags = refusals.map(|options| match options.validate() {
            Err(TrainError::Option { option, .. }) => option,
            other => panic!("{other:?}"),
        });
        let expected = [
            "--epochs",
            "--batch-size",
            "--lr",
            "--momentum",
            "--weight-decay",
            "--warmup-epochs",
            "--smoothing",
            "--drop-path",
            "--drop-block",
            "--val-fraction",
            "--workers",
        ];
        assert_eq!(flags, expected);
    }
}
