//! From a file that somebody has to weights that fit a network.

use super::description::{Description, numbered};
use crate::Error;
use crate::arch::Arch;
use crate::image::Preprocess;
use crate::weights::{
    Account, Expected, FileContents, ModelConfig, ModelFolder, NonFinite, StateDict, UnusedTensors,
    WeightsError, fit, read_weights,
};
use std::path::{Path, PathBuf};

/// How a file of weights is read.
#[derive(Debug, Clone)]
pub struct ImportOptions {
    /// The network, where it is not what the configuration says.
    pub arch: Option<Arch>,
    /// The size `[height, width]` of the images that the network takes, where it is not the configuration's.
    pub img_size: Option<[usize; 2]>,
    /// What happens to values that are NaN or infinite.
    pub non_finite: NonFinite,
}

impl Default for ImportOptions {
    /// Everything as the files say; values that are not finite are refused.
    fn default() -> Self {
        ImportOptions { arch: None, img_size: None, non_finite: NonFinite::Refuse }
    }
}

/// Weights that fit the network of a description.
#[derive(Debug)]
pub struct Imported {
    /// The network, how images are prepared, and the classes' names.
    pub description: Description,
    /// The network's tensors.
    pub state: StateDict,
    /// What became of the file's tensors.
    pub account: Account,
    /// The file that the weights came from.
    pub weights: PathBuf,
}

impl Imported {
    /// Writes a model folder: `model.safetensors` with torch's names and `config.json` in timm's form. The tensors' bits are
    /// those of the file.
    ///
    /// # Errors
    /// When the folder or a file cannot be written.
    pub fn save(&self, folder: &Path) -> Result<ModelFolder, Error> {
        Ok(ModelFolder::save(folder, &self.state, &self.description.to_config(folder)?)?)
    }
}

/// Reads the model at `path`: a run folder, a model folder, or a file of weights in any [`Format`](crate::weights::Format),
/// with or without a `config.json` beside it.
///
/// # Errors
/// When files are missing or damaged, contradict each other, or do not fit the network.
pub fn import(path: &Path, options: &ImportOptions) -> Result<Imported, Error> {
    let ModelFolder { weights, config } = ModelFolder::locate(path)?;
    let described = match &config {
        Some(path) => Some(Description::from_config(ModelConfig::read(path)?, path)?),
        None => None,
    };
    let FileContents { state, part } = read_weights(&weights, options.non_finite)?;
    let mut description = match (described, &options.arch) {
        (described, Some(arch)) => replaced(described, arch),
        (Some(described), None) => described,
        (None, None) => {
            let problem =
                "there is no config.json beside the weights, so the architecture is not known".to_owned();
            return Err(WeightsError::NoModel { path: weights, problem }.into());
        }
    };
    if let Some(size) = options.img_size {
        description.preprocess.input_size = size;
    }
    description.preprocess.check()?;
    let tensors = description.arch.structure()?.tensors();
    let expected: Vec<Expected> =
        tensors.into_iter().map(|tensor| Expected { name: tensor.name, shape: tensor.shape }).collect();
    let (state, mut account) = fit(state, &description.arch.name, &expected);
    account.part = part;
    account.check(&weights, UnusedTensors::Refuse)?;
    Ok(Imported { description, state, account, weights })
}

/// The description with another network; without one, the usual preprocessing for that network.
fn replaced(described: Option<Description>, arch: &Arch) -> Description {
    let (arch, classes) = (arch.clone(), numbered(arch.num_classes));
    match described {
        Some(described) if described.classes.len() == classes.len() => Description { arch, ..described },
        Some(described) => Description { arch, classes, ..described },
        None => Description { preprocess: Preprocess::imagenet(arch.img_size), arch, classes },
    }
}
