//! Training: the loop, the optimizer, the schedule, and what is kept of a run.

mod checkpoint;
mod optimizer;
mod options;
mod run_folder;
mod schedule;
mod step;
mod trainer;

pub use checkpoint::{Checkpoint, EpochRow, Progress, arithmetic};
pub use optimizer::{
    AdamWOptions, LambOptions, Opt, Optimizer, OptimizerOptions, Rule, SgdOptions, Update, WeightAverage,
};
pub use options::{Amp, TrainOptions};
pub use run_folder::{Existing, RunFolder};
pub use schedule::{Decline, Schedule};
pub use step::{Descent, Step};
pub use trainer::{Control, Event, Finished, Trainer};

use std::path::PathBuf;
use thiserror::Error;

/// Training cannot start or go on.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TrainError {
    /// An option has a value that cannot be used.
    #[error("{option} is {found}, expected {expected}")]
    Option {
        /// The option's flag.
        option: &'static str,
        /// The value found.
        found: String,
        /// What values there are.
        expected: &'static str,
    },
    /// The loss is no longer a number.
    #[error(
        "the loss became {loss} in epoch {epoch}, step {step}, at learning rate {lr}; {}: train again with a lower --lr or \
         a longer --warmup-epochs",
        what_is_kept(kept)
    )]
    Diverged {
        /// The loss found.
        loss: f64,
        /// Epoch, counted from 1.
        epoch: usize,
        /// Step of the epoch, counted from 1.
        step: usize,
        /// Learning rate of the step.
        lr: f32,
        /// The run's folder, if it holds a checkpoint.
        kept: Option<PathBuf>,
    },
    /// Weights are no longer numbers, though the loss is.
    #[error(
        "{parameter} became NaN or infinite in epoch {epoch}; {}: train again with a lower --lr or a longer \
         --warmup-epochs",
        what_is_kept(kept)
    )]
    Overflowed {
        /// The parameter's name.
        parameter: String,
        /// Epoch, counted from 1.
        epoch: usize,
        /// The run's folder, if it holds a checkpoint.
        kept: Option<PathBuf>,
    },
    /// The output folder is there already.
    #[error("the output folder {} exists already; pass --overwrite to replace it, --resume to go on with it, or another --out", path.display())]
    Exists {
        /// The folder.
        path: PathBuf,
    },
    /// A folder is to be replaced that is no run.
    #[error("{} is not a run of stridenet ({found}), so --overwrite does not delete it; choose another --out", path.display())]
    NotARun {
        /// The folder.
        path: PathBuf,
        /// What was found there.
        found: String,
    },
    /// There is nothing to go on with.
    #[error("{} cannot be resumed: {reason}", path.display())]
    Resume {
        /// The run's folder.
        path: PathBuf,
        /// Why.
        reason: String,
    },
}

/// What a failed run leaves behind.
fn what_is_kept(folder: &Option<PathBuf>) -> String {
    match folder {
        Some(folder) => format!("the last good checkpoint is kept in {}", folder.display()),
        None => "there was no checkpoint yet".to_owned(),
    }
}
