//! The flags of `train` that are the recipe.

use crate::arguments::{OnErrorChoice, memory};
use crate::failure::Failure;
use crate::pixels::{AugmentFlags, OrientationFlag};
use clap::{Args, ValueEnum};
use stridenet::train::{Amp, Decline, Opt, TrainOptions};

/// Which optimizer makes the steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum OptChoice {
    /// Stochastic gradient descent with momentum
    Sgd,
    /// Adam with decoupled weight decay
    #[value(name = "adamw")]
    AdamW,
    /// Adam's directions with a rate for each layer, for large batches
    Lamb,
}

impl From<OptChoice> for Opt {
    fn from(choice: OptChoice) -> Self {
        match choice {
            OptChoice::Sgd => Opt::Sgd,
            OptChoice::AdamW => Opt::AdamW,
            OptChoice::Lamb => Opt::Lamb,
        }
    }
}

/// What convolutions multiply in beside f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum AmpChoice {
    /// Operands of 16 bits with f32's range, sums in f32
    Bf16,
}

impl From<AmpChoice> for Amp {
    fn from(choice: AmpChoice) -> Self {
        match choice {
            AmpChoice::Bf16 => Amp::Bf16,
        }
    }
}

/// How the learning rate falls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Sched {
    /// Half a cosine down to 0
    Cosine,
    /// Not at all
    Constant,
}

/// Two numbers from `0.9,0.999`.
fn pair(text: &str) -> Result<[f64; 2], String> {
    let number = |text: &str| text.trim().parse::<f64>().ok();
    let pair = text.split_once(',').and_then(|(first, second)| Some([number(first)?, number(second)?]));
    pair.ok_or_else(|| "expected two numbers with a comma between, for example 0.9,0.999".to_owned())
}

/// The part of `train`'s flags that is the recipe.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Recipe")]
pub(crate) struct RecipeFlags {
    /// Passes over the training images [default: 10]
    #[arg(long, value_name = "N")]
    pub(crate) epochs: Option<usize>,
    /// Images of a batch [default: 128]
    #[arg(short, long, value_name = "N")]
    pub(crate) batch_size: Option<usize>,
    /// Batches whose gradients make a step: the step of a batch that is so many times larger, except that batch norms see
    /// each batch by itself [default: 1]
    #[arg(long, value_name = "N", visible_alias = "accumulate")]
    pub(crate) grad_accum_steps: Option<usize>,
    /// Mixed precision: multiply in bf16 where convolutions are faster so (1x1 and strided ones); weights, sums, batch norms and
    /// steps stay f32. It pays on CPUs with AVX512-BF16; others get the same precision by f32 arithmetic, more slowly
    #[arg(long, value_name = "PRECISION")]
    pub(crate) amp: Option<AmpChoice>,
    /// Keep only the outputs of residual blocks and compute their insides again in the backward pass: less memory, more time,
    /// the same results to the bit
    #[arg(long)]
    pub(crate) recompute: bool,
    /// Optimizer [default: sgd]
    #[arg(long, value_name = "NAME")]
    pub(crate) opt: Option<OptChoice>,
    /// Highest learning rate [default: 0.1; 0.001 with adamw, 0.005 with lamb]
    #[arg(long, value_name = "RATE", allow_negative_numbers = true)]
    pub(crate) lr: Option<f64>,
    /// Momentum of sgd [default: 0.9]
    #[arg(long, value_name = "M", allow_negative_numbers = true)]
    pub(crate) momentum: Option<f64>,
    /// Use classical momentum with sgd instead of Nesterov's
    #[arg(long)]
    pub(crate) no_nesterov: bool,
    /// Shares of the running means of the gradient and of its square that a step of adamw or lamb keeps [default: 0.9,0.999]
    #[arg(long, value_name = "B1,B2", value_parser = pair, allow_hyphen_values = true)]
    pub(crate) opt_betas: Option<[f64; 2]>,
    /// What adamw or lamb adds to the root of the mean square [default: 1e-8 with adamw, 1e-6 with lamb]
    #[arg(long, value_name = "E", allow_negative_numbers = true)]
    pub(crate) opt_eps: Option<f64>,
    /// L2 penalty of sgd, weight decay of adamw and lamb [default: 5e-4; 0.05 with adamw, 0.02 with lamb]
    #[arg(long, value_name = "W", allow_negative_numbers = true)]
    pub(crate) weight_decay: Option<f64>,
    /// Apply it to norms and biases too
    #[arg(long)]
    pub(crate) decay_norm_and_bias: bool,
    /// Scale the gradient down to this norm, over all parameters together, where it is larger. lamb does so by itself at 1
    #[arg(long, value_name = "NORM", visible_alias = "clip-norm", allow_negative_numbers = true)]
    pub(crate) clip_grad: Option<f64>,
    /// Keep an exponential moving average of the weights with this decay, which the first steps warm up to; it is what is
    /// validated and saved as last/ and best/
    #[arg(long, value_name = "DECAY", visible_alias = "ema-decay", allow_negative_numbers = true)]
    pub(crate) model_ema_decay: Option<f64>,
    /// How the learning rate falls [default: cosine]
    #[arg(long, value_name = "KIND")]
    pub(crate) sched: Option<Sched>,
    /// Epochs of linear warm-up; may be a fraction [default: 0.5]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub(crate) warmup_epochs: Option<f64>,
    /// Stochastic depth: probability that an image goes around the last block, rising from 0 at the first [default: 0]
    #[arg(long, value_name = "P")]
    pub(crate) drop_path: Option<f64>,
    /// DropBlock: share of the last two stages' feature maps that is left out in square blocks [default: 0]
    #[arg(long, value_name = "P")]
    pub(crate) drop_block: Option<f64>,
    /// Label smoothing [default: 0]
    #[arg(long, value_name = "E", allow_negative_numbers = true)]
    pub(crate) smoothing: Option<f64>,
    /// Begin the last batch norm of each block with gain 0, so that each block begins as its shortcut
    #[arg(long)]
    pub(crate) zero_init_last: bool,
    #[command(flatten)]
    pub(crate) augment: AugmentFlags,
    #[command(flatten)]
    pub(crate) orientation: OrientationFlag,
    /// Threads that decode and augment images ahead; with 0, the threads that compute do so between steps [default: 1]
    #[arg(long, value_name = "N")]
    pub(crate) workers: Option<usize>,
    /// Memory for decoded image files, which need no decoding in later epochs: bytes, or a size such as 500MiB; 0 keeps none
    /// [default: 1GiB]
    #[arg(long, value_name = "SIZE", value_parser = memory)]
    pub(crate) cache: Option<u64>,
    /// Share of the images held out for validation where the data set has no split of its own [default: 0.1]
    #[arg(long, value_name = "SHARE", allow_negative_numbers = true)]
    pub(crate) val_fraction: Option<f64>,
    /// What happens to images that cannot be decoded [default: fail]
    #[arg(long, value_name = "WHAT")]
    pub(crate) on_error: Option<OnErrorChoice>,
}

impl RecipeFlags {
    /// The recipe that the flags describe, over `base`.
    pub(crate) fn over(&self, base: TrainOptions) -> Result<TrainOptions, Failure> {
        let flags = self;
        let opt = flags.opt.map_or(base.opt, Opt::from);
        let of_sgd = [("--momentum", flags.momentum.is_some()), ("--no-nesterov", flags.no_nesterov)];
        let of_adam = [("--opt-betas", flags.opt_betas.is_some()), ("--opt-eps", flags.opt_eps.is_some())];
        let (others, owner) = if opt == Opt::Sgd { (of_adam, "adamw and lamb") } else { (of_sgd, "sgd") };
        if let Some((flag, _)) = others.iter().find(|(_, given)| *given) {
            return Err(Failure::usage(format!(
                "{flag} belongs to --opt {owner}; leave it out, or choose another --opt"
            )));
        }
        let sched = flags.sched.map(|sched| match sched {
            Sched::Cosine => Decline::Cosine,
            Sched::Constant => Decline::Constant,
        });
        Ok(TrainOptions {
            epochs: flags.epochs.unwrap_or(base.epochs),
            batch_size: flags.batch_size.unwrap_or(base.batch_size),
            grad_accum_steps: flags.grad_accum_steps.unwrap_or(base.grad_accum_steps),
            opt,
            amp: flags.amp.map(Amp::from).or(base.amp),
            recompute: base.recompute || flags.recompute,
            lr: flags.lr.unwrap_or(base.lr),
            momentum: flags.momentum.unwrap_or(base.momentum),
            nesterov: base.nesterov && !flags.no_nesterov,
            opt_betas: flags.opt_betas.unwrap_or(base.opt_betas),
            opt_eps: flags.opt_eps.or(base.opt_eps),
            weight_decay: flags.weight_decay.unwrap_or(base.weight_decay),
            decay_norm_and_bias: base.decay_norm_and_bias || flags.decay_norm_and_bias,
            clip_grad: flags.clip_grad.or(base.clip_grad),
            model_ema_decay: flags.model_ema_decay.or(base.model_ema_decay),
            sched: sched.unwrap_or(base.sched),
            warmup_epochs: flags.warmup_epochs.unwrap_or(base.warmup_epochs),
            smoothing: flags.smoothing.unwrap_or(base.smoothing),
            drop_path: flags.drop_path.unwrap_or(base.drop_path),
            drop_block: flags.drop_block.unwrap_or(base.drop_block),
            zero_init_last: base.zero_init_last || flags.zero_init_last,
            workers: flags.workers.unwrap_or(base.workers),
            cache: flags.cache.unwrap_or(base.cache),
            val_fraction: flags.val_fraction.unwrap_or(base.val_fraction),
            on_error: flags.on_error.map_or(base.on_error, Into::into),
            exif: base.exif && !flags.orientation.no_exif,
            ..base
        })
    }
}
