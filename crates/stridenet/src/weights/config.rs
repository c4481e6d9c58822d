//! `config.json`, the description of a model in the form that timm writes and reads.

use super::error::{WeightsError, count, printable};
use crate::file::{FileError, write_atomically};
use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};
use std::path::Path;

/// More classes or larger images than this are taken for a mistake, before anything is allocated for them.
const MOST_CLASSES: usize = 1 << 24;
const LARGEST_SIZE: usize = 1 << 16;

/// A model as `config.json` describes it. Keys not listed here are kept as they are.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelConfig {
    /// timm's name of the network, such as `resnet18`.
    pub architecture: String,
    /// Number of classes.
    #[serde(default)]
    pub num_classes: usize,
    /// Number of channels in front of the classifier.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub num_features: Option<usize>,
    /// The classes' names in the order of the outputs; empty when they are not known.
    #[serde(default, deserialize_with = "label_names", skip_serializing_if = "Vec::is_empty")]
    pub label_names: Vec<String>,
    /// Arguments with which timm builds the network.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub model_args: Map<String, Value>,
    /// Preprocessing, and the names of the first and the last layer.
    pub pretrained_cfg: PretrainedConfig,
    /// What stridenet needs beyond timm's keys; see [`ModelConfig::extension`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stridenet: Option<Value>,
    /// All other keys.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// timm's `pretrained_cfg`. Keys that are absent have timm's defaults; keys not listed here are kept as they are.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PretrainedConfig {
    /// Which of an architecture's weights these are, such as `a1_in1k`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tag: Option<String>,
    /// `[channels, height, width]` of an input.
    pub input_size: [usize; 3],
    /// timm's name of the resampling filter, such as `bicubic`.
    pub interpolation: String,
    /// The share of the resized image's side that the crop keeps, above 0; above 1, the crop is larger than the image.
    pub crop_pct: f64,
    /// timm's name of the crop, such as `center`.
    pub crop_mode: String,
    /// Each channel's mean, of values in [0, 1].
    pub mean: Vec<f32>,
    /// Each channel's standard deviation, of values in [0, 1].
    pub std: Vec<f32>,
    /// Number of classes; on reading, the number above it in the file wins, as in timm.
    pub num_classes: usize,
    /// Height and width of the last feature map at `input_size`.
    pub pool_size: Option<[usize; 2]>,
    /// The name of the first convolution, such as `conv1`.
    pub first_conv: Option<String>,
    /// The name of the classifier, such as `fc`.
    pub classifier: Option<String>,
    /// All other keys.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

impl Default for PretrainedConfig {
    /// timm's defaults (`timm.models.PretrainedCfg`): 1000 classes, 224 × 224, ImageNet's statistics.
    fn default() -> Self {
        PretrainedConfig {
            tag: None,
            input_size: [3, 224, 224],
            interpolation: "bicubic".to_string(),
            crop_pct: 0.875,
            crop_mode: "center".to_string(),
            mean: vec![0.485, 0.456, 0.406],
            std: vec![0.229, 0.224, 0.225],
            num_classes: 1000,
            pool_size: None,
            first_conv: None,
            classifier: None,
            other: Map::new(),
        }
    }
}

impl ModelConfig {
    /// Reads `config.json`.
    ///
    /// # Errors
    /// When the file cannot be read, and as [`ModelConfig::from_json`].
    pub fn read(path: &Path) -> Result<Self, WeightsError> {
        let bytes = std::fs::read(path).map_err(|source| FileError::read(path, source))?;
        Self::from_json(path, &bytes)
    }

    /// Reads the text of a `config.json`; `path` is only for messages.
    ///
    /// # Errors
    /// When the text is no JSON, a key is missing or has the wrong type, and as [`ModelConfig::check`].
    pub fn from_json(path: &Path, text: &[u8]) -> Result<Self, WeightsError> {
        let invalid = |error: serde_json::Error| WeightsError::ConfigJson {
            path: path.to_path_buf(),
            problem: printable(&error.to_string()),
        };
        let mut config: ModelConfig = serde_json::from_slice(text).map_err(invalid)?;
        // timm keeps the names here when a model that came with names is saved again.
        if let Some(inner) = config.pretrained_cfg.other.remove("label_names")
            && config.label_names.is_empty()
        {
            config.label_names = label_names(inner).map_err(invalid)?;
        }
        match config.num_classes {
            0 => config.num_classes = config.pretrained_cfg.num_classes,
            classes => config.pretrained_cfg.num_classes = classes,
        }
        config.check(path)?;
        Ok(config)
    }

    /// Writes `config.json` atomically, in timm's order of keys.
    ///
    /// # Errors
    /// When the file cannot be written, and as [`ModelConfig::check`].
    pub fn write(&self, path: &Path) -> Result<(), WeightsError> {
        self.check(path)?;
        write_atomically(path, |to| writeln!(to, "{}", self.to_json()))?;
        Ok(())
    }

    /// The text of a `config.json`, in timm's order of keys.
    pub fn to_json(&self) -> String {
        // Maps have string keys and numbers are finite or null: there is nothing that JSON cannot say.
        serde_json::to_string_pretty(self).expect("a configuration is JSON")
    }

    /// What stands under the key `stridenet`, or nothing when there is no such key.
    ///
    /// # Errors
    /// When it has not the form of `T`; `path` is only for messages.
    pub fn extension<T: DeserializeOwned>(&self, path: &Path) -> Result<Option<T>, WeightsError> {
        let read = |value| {
            T::deserialize(value).map_err(|error: serde_json::Error| WeightsError::Config {
                path: path.to_path_buf(),
                problem: format!("the key stridenet has {}", printable(&error.to_string())),
                remedy: "correct the key, or remove it to use the architecture that timm's keys name".into(),
            })
        };
        self.stridenet.as_ref().map(read).transpose()
    }

    /// Puts `extension` under the key `stridenet`; `path` is only for messages.
    ///
    /// # Errors
    /// When it cannot be written as JSON.
    pub fn set_extension<T: Serialize>(&mut self, path: &Path, extension: &T) -> Result<(), WeightsError> {
        let value = serde_json::to_value(extension).map_err(|error| WeightsError::ConfigJson {
            path: path.to_path_buf(),
            problem: printable(&error.to_string()),
        })?;
        self.stridenet = Some(value);
        Ok(())
    }

    /// Checks that the values are possible and agree with each other; `path` is only for messages.
    ///
    /// # Errors
    /// When they do not.
    pub fn check(&self, path: &Path) -> Result<(), WeightsError> {
        let wrong = self.wrong_classes().or_else(|| self.wrong_input());
        match wrong {
            None => Ok(()),
            Some((problem, remedy)) => {
                Err(WeightsError::Config { path: path.to_path_buf(), problem, remedy })
            }
        }
    }

    /// What is wrong with the architecture or the classes, and what to do.
    fn wrong_classes(&self) -> Option<(String, String)> {
        let classes = self.num_classes;
        let names = self.label_names.len();
        if self.architecture.is_empty() {
            return Some(("architecture is empty".into(), "name the network, such as resnet18".into()));
        }
        if classes == 0 || classes > MOST_CLASSES {
            let problem = format!("num_classes is {classes}, expected 1 to {MOST_CLASSES}");
            return Some((problem, "give the number of the classifier's outputs".into()));
        }
        if names != 0 && names != classes {
            let problem = format!("label_names has {}, num_classes is {classes}", count(names, "name"));
            return Some((problem, "give one name for each class, in the order of the outputs".into()));
        }
        let inner = self.pretrained_cfg.num_classes;
        let argument = self.model_args.get("num_classes").and_then(Value::as_u64);
        let other = [("pretrained_cfg", Some(inner as u64)), ("model_args", argument)]
            .into_iter()
            .find_map(|(key, found)| Some((key, found.filter(|&found| found != classes as u64)?)));
        other.map(|(key, found)| {
            let problem = format!("{key}.num_classes is {found}, num_classes is {classes}");
            (problem, format!("set {key}.num_classes to {classes}"))
        })
    }

    /// What is wrong with the preprocessing, and what to do.
    fn wrong_input(&self) -> Option<(String, String)> {
        let PretrainedConfig { input_size, crop_pct, mean, std, .. } = &self.pretrained_cfg;
        let channels = input_size[0];
        if input_size.iter().any(|size| !(1..=LARGEST_SIZE).contains(size)) {
            let problem = format!(
                "pretrained_cfg.input_size is {input_size:?}, expected sizes from 1 to {LARGEST_SIZE}"
            );
            return Some((problem, "give [channels, height, width]".into()));
        }
        if let Some(argument) = self.model_args.get("in_chans").and_then(Value::as_u64)
            && argument != channels as u64
        {
            let problem = format!(
                "model_args.in_chans is {argument}, pretrained_cfg.input_size has {}",
                count(channels, "channel")
            );
            let remedy = "set input_size, mean and std to the channels of the first convolution";
            return Some((problem, remedy.into()));
        }
        for (key, values) in [("mean", mean), ("std", std)] {
            let allowed = |value: &&f32| value.is_finite() && (key == "mean" || **value > 0.0);
            if values.len() != channels {
                let problem = format!(
                    "pretrained_cfg.{key} has {}, input_size has {}",
                    count(values.len(), "value"),
                    count(channels, "channel")
                );
                return Some((problem, format!("give one {key} for each channel")));
            }
            if let Some(value) = values.iter().find(|value| !allowed(value)) {
                let expected = if key == "mean" { "finite numbers" } else { "finite numbers greater than 0" };
                let problem = format!("pretrained_cfg.{key} contains {value}, expected {expected}");
                return Some((problem, "give statistics of images with values in [0, 1]".into()));
            }
        }
        if !(*crop_pct > 0.0 && *crop_pct <= 10.0) {
            let problem =
                format!("pretrained_cfg.crop_pct is {crop_pct}, expected more than 0 and at most 10");
            return Some((problem, "give the share of the side that the crop keeps, such as 0.875".into()));
        }
        None
    }
}

/// Names as a list, or as timm also writes them, an object from index to name; null is none.
fn label_names<'de, D: Deserializer<'de>>(names: D) -> Result<Vec<String>, D::Error> {
    match Value::deserialize(names)? {
        Value::Null => Ok(Vec::new()),
        Value::Object(names) => {
            let mut ordered = vec![None; names.len()];
            for (index, name) in &names {
                let place = index.parse::<usize>().ok().and_then(|index| ordered.get_mut(index));
                let (Some(place), Some(name)) = (place, name.as_str()) else {
                    let last = names.len() - 1;
                    return Err(D::Error::custom(format_args!(
                        "label_names with the entry {index}: {name}, expected the indices 0 to {last}, each with a string"
                    )));
                };
                *place = Some(name.to_string());
            }
            // Indices such as 1 and 01 leave a gap elsewhere.
            let gap = || D::Error::custom("label_names with an index twice");
            ordered.into_iter().map(|name| name.ok_or_else(gap)).collect()
        }
        list => {
            Vec::deserialize(list).map_err(|error| D::Error::custom(format_args!("label_names with {error}")))
        }
    }
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
