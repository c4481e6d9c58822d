//! A network with everything that belongs to its use: how images are prepared, and what its classes are called.
//!
//! ```no_run
//! use stridenet::image;
//! use stridenet::kernels::{Context, Level};
//! use stridenet::layer::Workspace;
//! use stridenet::model::Model;
//!
//! # fn main() -> Result<(), stridenet::Error> {
//! let context = Context::new(Level::detect(), 2);
//! let model = Model::open("runs/first".as_ref(), &context, None)?.model;
//! let picture = image::open("shirt.png".as_ref())?;
//! for prediction in model.classify(&context, &mut Workspace::default(), &picture, 3)? {
//!     println!("{:5.1} %  {}", 100.0 * prediction.probability, prediction.label);
//! }
//! # Ok(())
//! # }
//! ```

use crate::arch::{Arch, LayerKind, Overrides, preset_names};
use crate::image::{Normalisation, Picture, Preprocess};
use crate::kernels::{Context, Level, loss};
use crate::layer::Workspace;
use crate::network::Network;
use crate::weights::{
    Account, ModelConfig, ModelFolder, NonFinite, PretrainedConfig, WeightsError, read_safetensors,
};
use crate::{Error, Tensor};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};

/// A classifier: network, preprocessing, class names.
#[derive(Debug)]
pub struct Model {
    /// The network.
    pub network: Network,
    /// How images are prepared.
    pub preprocess: Preprocess,
    /// The classes' names, in the order of the logits.
    pub classes: Vec<String>,
}

/// A class with its probability.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Prediction {
    /// The class's place in the logits.
    pub index: usize,
    /// The class's name.
    pub label: String,
    /// Softmax of the logits.
    pub probability: f32,
}

/// What stridenet writes under its key of `config.json`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Extension {
    /// The network's description.
    arch: Arch,
}

/// A model with what was found while opening it.
#[derive(Debug)]
pub struct Opened {
    /// The model.
    pub model: Model,
    /// What became of the file's tensors.
    pub account: Account,
    /// The weights' file.
    pub weights: PathBuf,
}

impl Model {
    /// Opens a run folder, a model folder or a safetensors file with a `config.json` beside it. `img_size` replaces the
    /// size of the images that the configuration names.
    ///
    /// # Errors
    /// When files are missing, damaged or contradict each other.
    pub fn open(path: &Path, cx: &Context, img_size: Option<[usize; 2]>) -> Result<Opened, Error> {
        let files = ModelFolder::locate(path)?;
        let Some(config_path) = files.config else {
            let problem =
                "there is no config.json beside the weights, so the architecture is not known".to_owned();
            return Err(WeightsError::NoModel { path: files.weights, problem }.into());
        };
        let config = ModelConfig::read(&config_path)?;
        let arch = describe(&config, &config_path)?;
        let mut preprocess = preprocess_of(&config.pretrained_cfg, &config_path)?;
        if let Some(size) = img_size {
            preprocess.input_size = size;
        }
        preprocess.check()?;
        let classes = match config.label_names.is_empty() {
            true => (0..arch.num_classes).map(|class| class.to_string()).collect(),
            false => config.label_names,
        };
        let state = read_safetensors(&files.weights, NonFinite::Refuse)?;
        let (network, account) =
            Network::from_state(cx, &arch, preprocess.input_size, &files.weights, state)?;
        Ok(Opened { model: Model { network, preprocess, classes }, account, weights: files.weights })
    }

    /// Writes a model folder: `model.safetensors` with torch's names and `config.json` in timm's form.
    ///
    /// # Errors
    /// When the folder or a file cannot be written.
    pub fn save(&self, folder: &Path) -> Result<(), Error> {
        ModelFolder::save(folder, &self.network.state()?, &self.config(folder)?)?;
        Ok(())
    }

    /// The configuration, in timm's form; `folder` is only for messages.
    fn config(&self, folder: &Path) -> Result<ModelConfig, Error> {
        let (arch, preprocess) = (self.network.arch(), &self.preprocess);
        let [height, width] = preprocess.input_size;
        let mut model_args = Map::new();
        model_args.insert("in_chans".into(), arch.in_channels.into());
        let summary = arch.summary(preprocess.input_size)?;
        let last = summary.layers.iter().find(|layer| layer.kind == LayerKind::GlobalAvgPool);
        let mut config = ModelConfig {
            architecture: arch.name.clone(),
            num_classes: arch.num_classes,
            num_features: Some(arch.structure()?.head.in_features),
            label_names: self.classes.clone(),
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
                first_conv: Some("conv1".into()),
                classifier: Some("fc".into()),
                ..PretrainedConfig::default()
            },
            stridenet: None,
            other: Map::new(),
        };
        config.set_extension(folder, &Extension { arch: arch.clone() })?;
        Ok(config)
    }

    /// The `topk` most probable classes of a picture, the best first.
    ///
    /// # Errors
    /// When the picture cannot be prepared.
    pub fn classify(
        &self,
        cx: &Context,
        workspace: &mut Workspace,
        picture: &Picture,
        topk: usize,
    ) -> Result<Vec<Prediction>, Error> {
        let [height, width] = self.preprocess.input_size;
        let mut x = Tensor::zeros([1, height, width, self.preprocess.channels]);
        self.preprocess.apply(picture, x.data_mut())?;
        let logits = self.network.infer(cx, workspace, &x)?;
        let predictions = self.rank(cx, logits.data(), topk);
        workspace.give(logits);
        Ok(predictions)
    }

    /// The `topk` most probable classes of one row of logits, the best first.
    pub fn rank(&self, cx: &Context, logits: &[f32], topk: usize) -> Vec<Prediction> {
        let mut probabilities = vec![0.0; logits.len()];
        loss::softmax(cx, logits.len().max(1), logits, &mut probabilities);
        let mut order: Vec<usize> = (0..logits.len()).collect();
        order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
        order.truncate(topk);
        let prediction = |index| Prediction {
            index,
            label: self.classes[index].clone(),
            probability: probabilities[index],
        };
        order.into_iter().map(prediction).collect()
    }

    /// The instruction-set level that the model's weights are packed for.
    pub fn level(&self) -> Level {
        self.network.level()
    }
}

/// The name under which serde knows a unit variant.
fn name_of(value: impl Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(Value::String(name)) => name,
        other => unreachable!("a unit variant is a string, not {other:?}"),
    }
}

/// The network that a configuration describes: in stridenet's own words where it has them, else by the preset's name.
fn describe(config: &ModelConfig, path: &Path) -> Result<Arch, Error> {
    let refuse = |problem: String, remedy: String| -> Result<Arch, Error> {
        Err(WeightsError::Config { path: path.to_path_buf(), problem, remedy }.into())
    };
    let [in_channels, height, width] = config.pretrained_cfg.input_size;
    let given = config.extension::<Extension>(path)?;
    let arch = match given {
        Some(Extension { arch }) => {
            arch.validate()?;
            arch
        }
        None if !preset_names().contains(&config.architecture.as_str()) => {
            let problem = format!("the architecture {:?} is not known", config.architecture);
            return refuse(problem, format!("known are {}", preset_names().join(", ")));
        }
        None => Arch::preset(&config.architecture)?.with(&Overrides {
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
        return refuse(problem, "make them agree with the weights".into());
    }
    Ok(arch)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::Initialise;

    /// A small network of 10 classes, saved in `folder`, and its logits for one image.
    fn saved(cx: &Context, folder: &Path) -> Vec<f32> {
        let arch = Arch::preset("resnet20").unwrap();
        let network = Network::new(&arch, [32, 32], cx.level(), Initialise::default()).unwrap();
        let preprocess = Preprocess::exact([32, 32], Normalisation::imagenet());
        let classes = (0..10).map(|class| format!("class {class}")).collect();
        let model = Model { network, preprocess, classes };
        model.save(folder).unwrap();
        logits(cx, &model)
    }

    fn logits(cx: &Context, model: &Model) -> Vec<f32> {
        let values = (0..32 * 32 * 3).map(|value| (value % 11) as f32 / 5.0 - 1.0).collect();
        let x = Tensor::new([1, 32, 32, 3], values).unwrap();
        model.network.infer(cx, &mut Workspace::default(), &x).unwrap().into_data()
    }

    #[test]
    fn a_saved_model_opens_to_the_same_bits_with_and_without_our_own_key() {
        let (cx, folder) = (Context::new(Level::detect(), 2), tempfile::tempdir().unwrap());
        let expected = saved(&cx, folder.path());
        let opened = Model::open(folder.path(), &cx, None).unwrap();
        assert_eq!(logits(&cx, &opened.model), expected);
        assert_eq!(opened.model.classes[3], "class 3");
        // What timm or torchvision would leave: the architecture's name alone.
        let path = folder.path().join("config.json");
        let mut config = ModelConfig::read(&path).unwrap();
        config.stridenet = None;
        config.label_names.clear();
        config.write(&path).unwrap();
        let opened = Model::open(folder.path(), &cx, None).unwrap();
        assert_eq!(logits(&cx, &opened.model), expected);
        assert_eq!(opened.model.classes[3], "3");
    }

    #[test]
    fn configurations_that_contradict_the_network_are_refused() {
        let (cx, folder) = (Context::new(Level::detect(), 1), tempfile::tempdir().unwrap());
        saved(&cx, folder.path());
        let path = folder.path().join("config.json");
        let original = ModelConfig::read(&path).unwrap();
        let refusal = |change: &dyn Fn(&mut ModelConfig)| {
            let mut config = original.clone();
            change(&mut config);
            config.write(&path).unwrap();
            Model::open(folder.path(), &cx, None).unwrap_err().to_string()
        };
        let cases = [
            (
                refusal(&|config| (config.stridenet, config.architecture) = (None, "vgg16".into())),
                "\"vgg16\" is not known",
            ),
            (
                refusal(&|config| config.pretrained_cfg.interpolation = "magic".into()),
                "unknown variant `magic`",
            ),
            (refusal(&|config| config.pretrained_cfg.crop_mode = "round".into()), "unknown variant `round`"),
            (refusal(&|config| config.stridenet = Some(Value::Bool(true))), "the key stridenet"),
        ];
        for (message, part) in cases {
            assert!(message.contains(part) && message.contains("config.json"), "{message}");
        }
        std::fs::remove_file(&path).unwrap();
        let message = Model::open(folder.path(), &cx, None).unwrap_err().to_string();
        assert!(message.contains("no config.json beside the weights"), "{message}");
    }
}
