//! What an exact resume needs, in one file: weights, velocities, and how far the run is.

use super::{TrainError, TrainOptions};
use crate::Error;
use crate::layer::Parameter;
use crate::network::Network;
use crate::train::Sgd;
use crate::weights::{
    NamedTensor, NonFinite, StateDict, TensorValues, read_safetensors_with_metadata, write_safetensors,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

const MODEL: &str = "model.";
const VELOCITY: &str = "velocity.";
const PROGRESS: &str = "stridenet.progress";
const OPTIONS: &str = "stridenet.options";

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
}

/// A run as it was after some step.
#[derive(Debug)]
pub struct Checkpoint {
    /// The options that the run was started with.
    pub options: TrainOptions,
    /// How far it is.
    pub progress: Progress,
    /// The weights, under torch's names.
    pub state: StateDict,
    /// The velocity of each parameter that has one, under the parameter's name, in torch's order.
    pub velocities: BTreeMap<String, Vec<f32>>,
}

impl Checkpoint {
    /// Writes the state of a run atomically.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(
        path: &Path,
        network: &Network,
        optimizer: &Sgd,
        options: &TrainOptions,
        progress: &Progress,
    ) -> Result<(), Error> {
        let mut tensors = StateDict::new();
        for (name, entry) in network.state()?.iter() {
            tensors.insert_values(
                format!("{MODEL}{name}"),
                entry.shape().to_vec(),
                entry.values().clone(),
            )?;
        }
        for (Parameter { name, shape, .. }, values) in optimizer.velocities(network).into_iter().flatten() {
            tensors.insert(NamedTensor {
                name: format!("{VELOCITY}{name}"),
                shape: shape.clone(),
                values,
            })?;
        }
        let json = |value: serde_json::Result<String>| value.map_err(|error| resume(path, error.to_string()));
        let metadata = BTreeMap::from([
            (PROGRESS.to_owned(), json(serde_json::to_string(progress))?),
            (OPTIONS.to_owned(), json(serde_json::to_string(options))?),
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
        let (mut state, mut velocities) = (StateDict::new(), BTreeMap::new());
        for (name, entry) in tensors.iter() {
            if let Some(name) = name.strip_prefix(MODEL) {
                state.insert_values(name.to_owned(), entry.shape().to_vec(), entry.values().clone())?;
            } else if let (Some(name), TensorValues::F32(values)) =
                (name.strip_prefix(VELOCITY), entry.values())
            {
                velocities.insert(name.to_owned(), values.clone());
            }
        }
        Ok(Checkpoint { options, progress, state, velocities })
    }
}

fn resume(path: &Path, reason: String) -> Error {
    TrainError::Resume { path: path.to_path_buf(), reason }.into()
}
