//! What an exact resume needs, in one file: weights, the optimizer's states, averages, and how far the run is.

use super::{Optimizer, TrainError, TrainOptions};
use crate::Error;
use crate::kernels::Level;
use crate::layer::Parameter;
use crate::network::Network;
use crate::weights::{
    NamedTensor, NonFinite, StateDict, TensorValues, printable, read_safetensors_with_metadata,
    write_safetensors,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

const MODEL: &str = "model.";
const AVERAGE: &str = "ema.";
const PROGRESS: &str = "stridenet.progress";
const OPTIONS: &str = "stridenet.options";
const ARITHMETIC: &str = "stridenet.arithmetic";

/// An epoch's results.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EpochRow {
    /// Epoch, counted from 1.
    pub epoch: usize,
    /// Mean training loss, with label smoothing where it is on.
    pub train_loss: f64,
    /// Training accuracy on the augmented images as they came, in percent.
    pub train_top1: f64,
    /// Mean validation loss.
    pub val_loss: f64,
    /// Validation accuracy, in percent.
    pub val_top1: f64,
    /// Validation accuracy among the best five, in percent.
    pub val_top5: f64,
    /// Learning rate of the last step.
    pub lr: f64,
    /// Seconds of the epoch's training steps.
    pub seconds: f64,
    /// Training images a second.
    pub images_per_second: f64,
    /// Seconds that training waited for data.
    pub waited_seconds: f64,
    /// Mean norm of the steps' gradients before they were clipped, where they are.
    #[serde(default)]
    pub grad_norm: Option<f64>,
    /// Steps whose gradient was clipped, in percent, where gradients are.
    #[serde(default)]
    pub clipped: Option<f64>,
}

impl EpochRow {
    /// The share of the epoch's training that waited for data, in percent.
    pub fn waiting(&self) -> f64 {
        100.0 * self.waited_seconds / self.seconds.max(1e-9)
    }
}

/// How far a run is.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Epochs that are complete, validation included.
    pub epoch: usize,
    /// Steps done in the epoch that is not complete.
    pub step: usize,
    /// Sums over those steps.
    pub sums: StepSums,
    /// Results of the complete epochs.
    pub rows: Vec<EpochRow>,
    /// The epoch with the best validation accuracy, counted from 1.
    pub best_epoch: Option<usize>,
    /// Steps of the run.
    #[serde(default)]
    pub updates: u64,
}

/// Sums over the steps of an epoch that is not complete.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct StepSums {
    /// Images seen.
    pub images: usize,
    /// Sum of their losses.
    pub loss: f64,
    /// Images whose label had the largest logit.
    pub correct: usize,
    /// Seconds spent.
    pub seconds: f64,
    /// Seconds of them spent waiting for data.
    pub waited: f64,
    /// Sum of the norms of the steps' gradients, where they are clipped.
    #[serde(default)]
    pub grad_norms: f64,
    /// Steps whose gradient was clipped.
    #[serde(default)]
    pub clipped: usize,
}

/// A run as it was after some step.
#[derive(Debug)]
pub struct Checkpoint {
    /// The options that the run was started with.
    pub options: TrainOptions,
    /// How far it is.
    pub progress: Progress,
    /// The [arithmetic](arithmetic) that it was computed with, fit to be shown; older files do not say.
    pub arithmetic: Option<String>,
    /// The weights, under torch's names.
    pub state: StateDict,
    /// The moving average of the weights, where there is one, under torch's names.
    pub average: Option<StateDict>,
    /// The optimizer's states in torch's order, under names such as `velocity.PARAMETER`.
    pub optimizer: BTreeMap<String, Vec<f32>>,
}

impl Checkpoint {
    /// Writes the state of a run atomically.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(
        path: &Path,
        network: &Network,
        average: Option<&StateDict>,
        optimizer: &Optimizer,
        (options, progress): (&TrainOptions, &Progress),
    ) -> Result<(), Error> {
        let mut tensors = StateDict::new();
        let own = network.state()?;
        for (prefix, state) in std::iter::once((MODEL, &own)).chain(average.map(|average| (AVERAGE, average)))
        {
            for (name, entry) in state.iter() {
                let name = format!("{prefix}{name}");
                tensors.insert_values(name, entry.shape().to_vec(), entry.values().clone())?;
            }
        }
        for (state, Parameter { name, shape, .. }, values) in optimizer.states(network) {
            let name = format!("{state}.{name}");
            tensors.insert(NamedTensor { name, shape: shape.clone(), values })?;
        }
        let json = |value: serde_json::Result<String>| value.map_err(|error| resume(path, error.to_string()));
        let metadata = BTreeMap::from([
            (PROGRESS.to_owned(), json(serde_json::to_string(progress))?),
            (OPTIONS.to_owned(), json(serde_json::to_string(options))?),
            (ARITHMETIC.to_owned(), arithmetic(network.level(), options)),
        ]);
        write_safetensors(path, &tensors, &metadata)?;
        Ok(())
    }

    /// Reads the state of a run.
    ///
    /// # Errors
    /// When the file is missing, damaged or not of this form.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let (tensors, metadata) = read_safetensors_with_metadata(path, NonFinite::Refuse)?;
        let part = |key: &str| {
            metadata
                .get(key)
                .ok_or_else(|| resume(path, format!("its metadata has no {key}; start a new run")))
        };
        let wrong = |error: serde_json::Error| {
            resume(path, format!("its metadata is wrong ({error}); start a new run"))
        };
        let progress: Progress = serde_json::from_str(part(PROGRESS)?).map_err(wrong)?;
        let options: TrainOptions = serde_json::from_str(part(OPTIONS)?).map_err(wrong)?;
        let arithmetic = metadata.get(ARITHMETIC).map(|text| printable(text));
        let (mut state, mut average, mut optimizer) = (StateDict::new(), StateDict::new(), BTreeMap::new());
        for (name, entry) in tensors.iter() {
            let copy = |name: &str| (name.to_owned(), entry.shape().to_vec(), entry.values().clone());
            if let Some((name, shape, values)) = name.strip_prefix(MODEL).map(copy) {
                state.insert_values(name, shape, values)?;
            } else if let Some((name, shape, values)) = name.strip_prefix(AVERAGE).map(copy) {
                average.insert_values(name, shape, values)?;
            } else if let TensorValues::F32(values) = entry.values() {
                optimizer.insert(name.to_owned(), values.clone());
            }
        }
        let has_average = average.iter().next().is_some();
        let average = has_average.then_some(average);
        Ok(Checkpoint { options, progress, arithmetic, state, average, optimizer })
    }
}

/// What decides how a run's sums are rounded, in words: with the same arithmetic its weights come to the same bits on every CPU.
pub fn arithmetic(level: Level, options: &TrainOptions) -> String {
    let halves = options.amp.is_some() && level.multiplies_bf16();
    let halves = if halves { " with products of bf16" } else { "" };
    let threes = if level.adds_beside() { " with additions beside products" } else { "" };
    format!("{}{halves}{threes}", level.name())
}

fn resume(path: &Path, reason: String) -> Error {
    TrainError::Resume { path: path.to_path_buf(), reason }.into()
}
