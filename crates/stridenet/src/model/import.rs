//! From a file that somebody has to weights that fit a network.

use super::adapt::{adapt_input, adapt_preprocess, reset_head};
use super::description::{Description, named_arch, numbered};
use crate::Error;
use crate::arch::{Arch, BlockKind, Recognised, Shapes, is_known_name, recognise};
use crate::exchange::{OnnxFile, OnnxNetwork};
use crate::image::Preprocess;
use crate::weights::{
    Account, Expected, Format, ModelConfig, ModelFolder, NonFinite, StateDict, UnusedTensors, Unwrapped,
    WeightsError, fit_unwrapped, read_weights, unwrap,
};
use std::collections::HashSet;
use std::path::{Path, PathBuf};

/// How a file of weights is read.
#[derive(Debug, Clone)]
pub struct ImportOptions {
    /// The network, where it is not what the configuration says.
    pub arch: Option<Arch>,
    /// The size `[height, width]` of the images that the network takes, where it is not the configuration's.
    pub img_size: Option<[usize; 2]>,
    /// The number of classes that the network is to have. Where it is another one than the weights', the classifier is
    /// initialised anew; a classifier of the wrong size is an error otherwise.
    pub num_classes: Option<usize>,
    /// The number of input channels that the network is to have. Where it is another one than the weights', those of the
    /// first convolution are summed or repeated as timm does.
    pub in_channels: Option<usize>,
    /// Seed of a new classifier.
    pub seed: u64,
    /// What happens to tensors that the network has not.
    pub unused: UnusedTensors,
    /// What happens to values that are NaN or infinite.
    pub non_finite: NonFinite,
}

impl Default for ImportOptions {
    /// Everything as the files say; tensors that the network has not and values that are not finite are refused.
    fn default() -> Self {
        ImportOptions {
            arch: None,
            img_size: None,
            num_classes: None,
            in_channels: None,
            seed: 42,
            unused: UnusedTensors::Refuse,
            non_finite: NonFinite::Refuse,
        }
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
    /// What neither files nor options say and was assumed; a sentence for each, for the user to read.
    pub assumptions: Vec<String>,
    /// How many batch norms an ONNX file has inside convolutions; the network's do nothing but add the biases that are left,
    /// and its training would begin without their statistics.
    pub folded: usize,
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

/// Reads the model at `path`: a run folder, a model folder, or a file of weights in any [`Format`](crate::weights::Format).
/// The network is that of the options, else that of the `config.json` beside the weights, else it is recognised from them.
///
/// # Errors
/// When files are missing or damaged, contradict each other, or do not fit the network; when the network is not known and
/// cannot be recognised.
pub fn import(path: &Path, options: &ImportOptions) -> Result<Imported, Error> {
    let ModelFolder { weights, config } = ModelFolder::locate(path)?;
    let config = config.map(|path| Ok::<_, Error>((ModelConfig::read(&path)?, path))).transpose()?;
    let config = config.as_ref().map(|(config, path)| (config, path.as_path()));
    if Format::of(&weights)? == Format::Onnx {
        return import_onnx(weights, config, options);
    }
    let arch = named(options, config)?;
    let contents = read_weights(&weights, options.non_finite)?;
    match arch {
        Some(arch) => {
            let names: HashSet<String> = expected(&arch)?.into_iter().map(|tensor| tensor.name).collect();
            let unwrapped = unwrap(contents.state, &|name| names.contains(name));
            let described =
                Described { description: Description::of(arch, config)?, assumptions: Vec::new() };
            fitted(described, unwrapped, contents.part, weights, options)
        }
        None => {
            let unwrapped = unwrap(contents.state, &is_known_name);
            let described = recognised(&unwrapped.state, config, options, &weights)?;
            fitted(described, unwrapped, contents.part, weights, options)
        }
    }
}

/// A configuration and the file that it came from.
type Configured<'a> = Option<(&'a ModelConfig, &'a Path)>;

/// The network that the options or a configuration name.
fn named(options: &ImportOptions, config: Configured) -> Result<Option<Arch>, Error> {
    match (&options.arch, config) {
        (Some(arch), _) => Ok(Some(arch.clone())),
        (None, Some((config, path))) => named_arch(config, path),
        (None, None) => Ok(None),
    }
}

/// Under which key of an ONNX file's metadata its `config.json` stands.
pub(super) const ONNX_CONFIG: &str = "config.json";

/// As [`import`], for a graph. What it says of itself comes before the configuration beside it; without either the graph
/// shows what it is.
fn import_onnx(weights: PathBuf, beside: Configured, options: &ImportOptions) -> Result<Imported, Error> {
    let file = OnnxFile::read(&weights)?;
    let own = file.metadata()?.get(ONNX_CONFIG).map(|text| ModelConfig::from_json(&weights, text.as_bytes()));
    let (own, path) = (own.transpose()?, weights.clone());
    let config = own.as_ref().map(|config| (config, path.as_path())).or(beside);
    let known = named(options, config)?;
    let OnnxNetwork { arch, state, folded, .. } = file.network(known.as_ref(), options.non_finite)?;
    drop(file);
    let described = Described { description: Description::of(arch, config)?, assumptions: Vec::new() };
    let imported = fitted(described, unwrap(state, &|_| true), String::new(), weights, options)?;
    Ok(Imported { folded, ..imported })
}

/// A description, and what in it was assumed.
struct Described {
    description: Description,
    assumptions: Vec<String>,
}

/// The network that has these weights, with what a configuration of a network that is not known says about images.
fn recognised(
    state: &StateDict,
    config: Configured,
    options: &ImportOptions,
    path: &Path,
) -> Result<Described, Error> {
    let shapes: Shapes =
        state.iter().map(|(name, tensor)| (name.to_owned(), tensor.shape().to_vec())).collect();
    let classes = options.num_classes.or(config.map(|(config, _)| config.num_classes));
    let Recognised { arch, alike } = recognise(&shapes, classes).map_err(|error| {
        let problem = error.to_string();
        WeightsError::Unrecognised { path: path.to_path_buf(), problem }
    })?;
    let mut assumptions = vec![match config {
        Some((config, _)) => {
            format!(
                "the architecture {:?} is not known; from the weights it is taken for {}",
                config.architecture, arch.name
            )
        }
        None => {
            format!("there is no config.json; from the weights the architecture is taken for {}", arch.name)
        }
    }];
    let strides: Vec<String> = arch.stages.iter().map(|stage| stage.stride.to_string()).collect();
    assumptions.push(format!(
        "weights do not show strides and pools: assumed are strides {} on {} convolutions, downsample {}, shortcut {}{}",
        strides.join(","),
        if arch.block == BlockKind::Basic { "the first 3x3" } else { "the 3x3 (v1.5)" },
        arch.downsample,
        arch.shortcut,
        match alike.is_empty() {
            true => String::new(),
            false => format!(" (--arch chooses {} instead)", alike.join(" or ")),
        }
    ));
    let description = Description::of(arch, config)?;
    if config.is_none() {
        let Preprocess { input_size, crop_pct, .. } = description.preprocess;
        let [height, width] = options.img_size.unwrap_or(input_size);
        assumptions.push(format!(
            "images are assumed to be prepared as ImageNet's: {height}x{width}, bilinear, crop_pct {crop_pct}, its mean and std"
        ));
    }
    Ok(Described { description, assumptions })
}

/// Changes what the options ask for, and fits the weights to the network.
fn fitted(
    described: Described,
    mut unwrapped: Unwrapped,
    part: String,
    weights: PathBuf,
    options: &ImportOptions,
) -> Result<Imported, Error> {
    let Described { mut description, assumptions } = described;
    if let Some(size) = options.img_size {
        description.preprocess.input_size = size;
    }
    let [reinitialised, adapted] = change(&mut unwrapped.state, &mut description, options, &weights)?;
    description.preprocess.check()?;
    let (state, mut account) =
        fit_unwrapped(unwrapped, &description.arch.name, &expected(&description.arch)?);
    account.applied.retain(|name| !reinitialised.contains(name) && !adapted.contains(name));
    (account.part, account.reinitialised, account.adapted) = (part, reinitialised, adapted);
    account.check(&weights, options.unused)?;
    let state = known_alone(state, &account);
    Ok(Imported { description, state, account, assumptions, folded: 0, weights })
}

/// The tensors that a network has.
fn expected(arch: &Arch) -> Result<Vec<Expected>, Error> {
    let tensors = arch.structure()?.tensors().into_iter();
    Ok(tensors.map(|tensor| Expected { name: tensor.name, shape: tensor.shape }).collect())
}

/// Makes the changes that are asked for: first the classifier, then the first convolution. Returns the names of the tensors
/// of each.
fn change(
    state: &mut StateDict,
    description: &mut Description,
    options: &ImportOptions,
    path: &Path,
) -> Result<[Vec<String>; 2], Error> {
    let (mut reinitialised, mut adapted) = (Vec::new(), Vec::new());
    if let Some(classes) = options.num_classes {
        let head = description.arch.structure()?.head.name;
        let headless = state.get(&format!("{head}.weight")).is_none();
        if headless || classes != description.arch.num_classes {
            reinitialised = reset_head(state, &mut description.arch, classes, options.seed)?;
            description.classes = numbered(classes);
        }
    }
    if let Some(channels) = options.in_channels.filter(|&channels| channels != description.arch.in_channels) {
        adapted = adapt_input(state, &mut description.arch, channels, path)?;
        adapt_preprocess(&mut description.preprocess, channels);
    }
    Ok([reinitialised, adapted])
}

/// The tensors without those that the network has not.
fn known_alone(mut state: StateDict, account: &Account) -> StateDict {
    for unused in &account.unused {
        state.take(&unused.name);
    }
    state
}
