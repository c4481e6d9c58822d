//! What a model is apart from its weights, and how `config.json` says it.

use super::adapt::adapt_preprocess;
use super::timm;
use crate::Error;
use crate::arch::{Arch, LayerKind, Overrides, Stem, preset_names};
use crate::image::{Normalisation, Preprocess};
use crate::network::DropRates;
use crate::weights::{ModelConfig, PretrainedConfig, WeightsError};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::path::Path;

/// A network's description with how images are prepared for it and what its classes are called.
#[derive(Debug, Clone)]
pub struct Description {
    /// The network.
    pub arch: Arch,
    /// How images are prepared.
    pub preprocess: Preprocess,
    /// The classes' names, in the order of the logits.
    pub classes: Vec<String>,
    /// What training leaves out at random.
    pub drop: DropRates,
}

/// What stridenet writes under its key of `config.json`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Extension {
    /// The network's description.
    arch: Arch,
}

impl Description {
    /// What a configuration describes; `path` is only for messages.
    ///
    /// # Errors
    /// When the architecture or a setting is not known, or they contradict each other.
    pub fn from_config(config: &ModelConfig, path: &Path) -> Result<Self, Error> {
        let arch = named_arch(config, path)?.ok_or_else(|| {
            let problem = format!("the architecture {:?} is not known", config.architecture);
            let remedy = "`stridenet inspect --help` lists those that are".to_owned();
            WeightsError::Config { path: path.to_path_buf(), problem, remedy }
        })?;
        Description::of(arch, Some((config, path)))
    }

    /// A network whose images and classes are those of a configuration, if there is one. Without it, images are prepared as
    /// usual for ImageNet's networks, and classes are called by their numbers.
    pub(super) fn of(arch: Arch, config: Option<(&ModelConfig, &Path)>) -> Result<Self, Error> {
        let mut preprocess = match config {
            Some((config, path)) => preprocess_of(&config.pretrained_cfg, path)?,
            None if arch.stem == Stem::Cifar => Preprocess::exact(arch.img_size, Normalisation::imagenet()),
            None => Preprocess::imagenet(arch.img_size),
        };
        if preprocess.channels != arch.in_channels {
            adapt_preprocess(&mut preprocess, arch.in_channels);
        }
        let names = config.map(|(config, _)| config.label_names.clone());
        let classes = names.filter(|names| names.len() == arch.num_classes);
        let classes = classes.unwrap_or_else(|| numbered(arch.num_classes));
        let drop =
            config.map_or(Ok(DropRates::default()), |(config, path)| timm::drop_rates(config, path))?;
        Ok(Description { preprocess, classes, arch, drop })
    }

    /// The configuration, in timm's form; `path` is only for messages.
    ///
    /// # Errors
    /// When the network's description is invalid or does not fit the images.
    pub fn to_config(&self, path: &Path) -> Result<ModelConfig, Error> {
        let Description { arch, preprocess, classes, drop } = self;
        let structure = arch.structure()?;
        let [height, width] = preprocess.input_size;
        // A name that timm does not know is refused there; one that it knows would be another network in silence.
        let (architecture, mut model_args) = match timm::write(arch) {
            Some(words) => words,
            None if arch.stem == Stem::Cifar => {
                (arch.preset_name().unwrap_or(&arch.name).to_owned(), Map::new())
            }
            None => (format!("stridenet_{}", arch.name), Map::new()),
        };
        model_args.insert("in_chans".into(), arch.in_channels.into());
        model_args.extend(timm::drop_arguments(*drop));
        let summary = arch.summary(preprocess.input_size)?;
        let last = summary.layers.iter().find(|layer| layer.kind == LayerKind::GlobalAvgPool);
        let mut config = ModelConfig {
            architecture,
            num_classes: arch.num_classes,
            num_features: Some(structure.head.in_features),
            label_names: classes.clone(),
            model_args,
            pretrained_cfg: PretrainedConfig {
                input_size: [preprocess.channels, height, width],
                interpolation: name_of(preprocess.interpolation),
                crop_pct: preprocess.crop_pct,
                crop_mode: name_of(preprocess.crop_mode),
                mean: preprocess.mean.clone(),
                std: preprocess.std.clone(),
                num_classes: arch.num_classes,
                pool_size: last.map(|layer| [layer.input[1], layer.input[2]]),
                first_conv: structure.stem.first().map(|unit| unit.conv.clone()),
                classifier: Some(structure.head.name),
                ..PretrainedConfig::default()
            },
            stridenet: None,
            other: Map::new(),
        };
        config.set_extension(path, &Extension { arch: arch.clone() })?;
        Ok(config)
    }
}

/// The names of classes that have none: their numbers.
pub(super) fn numbered(classes: usize) -> Vec<String> {
    (0..classes).map(|class| class.to_string()).collect()
}

/// The name under which serde knows a unit variant.
fn name_of(value: impl Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(Value::String(name)) => name,
        other => unreachable!("a unit variant is a string, not {other:?}"),
    }
}

/// The network that a configuration describes: in stridenet's own words where it has them, else by the preset's name and
/// timm's arguments; nothing where there is no such preset.
pub(super) fn named_arch(config: &ModelConfig, path: &Path) -> Result<Option<Arch>, Error> {
    let refuse = |problem: String, remedy: String| -> Error {
        WeightsError::Config { path: path.to_path_buf(), problem, remedy }.into()
    };
    let [in_channels, height, width] = config.pretrained_cfg.input_size;
    let arch = match config.extension::<Extension>(path)? {
        Some(Extension { arch }) => {
            arch.validate()?;
            arch
        }
        None if !preset_names().contains(&config.architecture.as_str()) => return Ok(None),
        None => timm::read(&Arch::preset(&config.architecture)?, &config.model_args)
            .map_err(|(problem, remedy)| refuse(problem, remedy))??
            .with(&Overrides {
                num_classes: Some(config.num_classes),
                in_channels: Some(in_channels),
                img_size: Some([height, width]),
                ..Overrides::default()
            })?,
    };
    if arch.num_classes != config.num_classes || arch.in_channels != in_channels {
        let problem = format!(
            "num_classes {} and {in_channels} input channels contradict the architecture's {} and {}",
            config.num_classes, arch.num_classes, arch.in_channels
        );
        return Err(refuse(problem, "make them agree with the weights".into()));
    }
    Ok(Some(arch))
}

fn preprocess_of(config: &PretrainedConfig, path: &Path) -> Result<Preprocess, Error> {
    let [_, height, width] = config.input_size;
    let normalisation = Normalisation { mean: config.mean.clone(), std: config.std.clone() };
    Ok(Preprocess {
        interpolation: variant("interpolation", &config.interpolation, path)?,
        crop_mode: variant("crop_mode", &config.crop_mode, path)?,
        crop_pct: config.crop_pct,
        ..Preprocess::exact([height, width], normalisation)
    })
}

/// The variant that serde knows under this name.
fn variant<T: DeserializeOwned>(key: &str, name: &str, path: &Path) -> Result<T, Error> {
    serde_json::from_value(Value::String(name.to_owned())).map_err(|error| {
        let (problem, remedy) = (format!("{key}: {error}"), "choose one of those".to_owned());
        WeightsError::Config { path: path.to_path_buf(), problem, remedy }.into()
    })
}
