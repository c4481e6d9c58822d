//! Where a model lies on disk.

use super::config::ModelConfig;
use super::error::WeightsError;
use super::safetensors::write_safetensors;
use super::state::StateDict;
use crate::file::FileError;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The weights in a model folder.
pub const WEIGHTS_FILE: &str = "model.safetensors";
/// The description in a model folder.
pub const CONFIG_FILE: &str = "config.json";
/// A run folder's model folders, the preferred one first.
const RUN: [&str; 2] = ["best", "last"];

/// The files of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelFolder {
    /// The safetensors file.
    pub weights: PathBuf,
    /// The `config.json` beside it, if there is one.
    pub config: Option<PathBuf>,
}

impl ModelFolder {
    /// Finds the model that `path` means: a `.safetensors` file, a model folder, or a run folder, of which `best` is
    /// preferred to `last`.
    ///
    /// # Errors
    /// When nothing is there, or only weights of another format.
    pub fn locate(path: &Path) -> Result<Self, WeightsError> {
        let no_model = |problem| WeightsError::NoModel { path: path.to_path_buf(), problem };
        if path.is_file() {
            return match extension(path).as_deref() {
                Some("safetensors") => Ok(Self::beside(path.to_path_buf())),
                _ => Err(unsupported(path)
                    .unwrap_or_else(|| no_model("the file's name does not end in .safetensors".to_string()))),
            };
        }
        if !path.is_dir() {
            return Err(no_model("there is no such file or folder".to_string()));
        }
        let folders = [path.to_path_buf()].into_iter().chain(RUN.map(|name| path.join(name)));
        let mut candidates = folders.map(|folder| folder.join(WEIGHTS_FILE));
        if let Some(weights) = candidates.find(|weights| weights.is_file()) {
            return Ok(Self::beside(weights));
        }
        let entries = std::fs::read_dir(path).map_err(|source| FileError::read(path, source))?;
        let mut files: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
        files.sort();
        if let Some(error) = files.iter().filter(|file| file.is_file()).find_map(|file| unsupported(file)) {
            return Err(error);
        }
        let [best, last] = RUN;
        Err(no_model(format!(
            "it contains neither {WEIGHTS_FILE} nor {best}/{WEIGHTS_FILE} nor {last}/{WEIGHTS_FILE}"
        )))
    }

    /// Writes a model folder, creating it if needed: first the weights, then the configuration, each atomically.
    ///
    /// # Errors
    /// When the configuration contradicts itself, or a file cannot be written.
    pub fn save(folder: &Path, state: &StateDict, config: &ModelConfig) -> Result<Self, WeightsError> {
        let (weights, description) = (folder.join(WEIGHTS_FILE), folder.join(CONFIG_FILE));
        config.check(&description)?;
        std::fs::create_dir_all(folder).map_err(|source| FileError::write(folder, source))?;
        write_safetensors(&weights, state, &BTreeMap::new())?;
        config.write(&description)?;
        Ok(ModelFolder { weights, config: Some(description) })
    }

    /// These weights with the configuration beside them.
    fn beside(weights: PathBuf) -> Self {
        let config = weights.with_file_name(CONFIG_FILE);
        let config = config.is_file().then_some(config);
        ModelFolder { weights, config }
    }
}

/// The extension in lower case.
fn extension(path: &Path) -> Option<String> {
    Some(path.extension()?.to_str()?.to_ascii_lowercase())
}

/// The error for weights in a format that cannot be read, by the file's extension.
fn unsupported(path: &Path) -> Option<WeightsError> {
    let (format, remedy) = match extension(path)?.as_str() {
        "pth" | "pt" | "ckpt" | "bin" => (
            "a PyTorch file, which can run code when it is opened",
            "convert it in Python: safetensors.torch.save_file(torch.load(source, weights_only=True), target)",
        ),
        "onnx" => ("an ONNX file", "save the network it was exported from with safetensors.torch.save_file"),
        _ => return None,
    };
    Some(WeightsError::Format { path: path.to_path_buf(), format, remedy })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::{NamedTensor, NonFinite, PretrainedConfig, read_safetensors};

    fn touch(path: &Path) {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, b"").unwrap();
    }

    fn model() -> (StateDict, ModelConfig) {
        let mut state = StateDict::new();
        let bias = NamedTensor { name: "fc.bias".into(), shape: vec![2], values: vec![0.5, -0.5] };
        state.insert(bias).unwrap();
        let text = br#"{"architecture": "resnet18", "num_classes": 2, "pretrained_cfg": {}}"#;
        (state, ModelConfig::from_json(Path::new("config.json"), text).unwrap())
    }

    #[test]
    fn a_saved_model_is_found_and_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("runs/one/best");
        let (state, config) = model();
        let saved = ModelFolder::save(&path, &state, &config).unwrap();
        for place in [path.clone(), path.join(WEIGHTS_FILE), folder.path().join("runs/one")] {
            assert_eq!(ModelFolder::locate(&place).unwrap(), saved);
        }
        assert_eq!(read_safetensors(&saved.weights, NonFinite::Refuse).unwrap(), state);
        assert_eq!(ModelConfig::read(&saved.config.unwrap()).unwrap(), config);
        assert_eq!(std::fs::read_dir(&path).unwrap().count(), 2);
    }

    #[test]
    fn a_model_whose_configuration_is_wrong_is_not_saved() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model");
        let (state, mut config) = model();
        config.pretrained_cfg = PretrainedConfig::default();
        assert!(ModelFolder::save(&path, &state, &config).is_err());
        assert!(!path.exists());
    }

    #[test]
    fn best_is_preferred_to_last() {
        let folder = tempfile::tempdir().unwrap();
        let run = folder.path();
        let weights = |place: &Path| ModelFolder::locate(place).unwrap().weights;
        touch(&run.join("best/config.json"));
        touch(&run.join("last/model.safetensors"));
        let last = ModelFolder::locate(run).unwrap();
        assert_eq!(last, ModelFolder { weights: run.join("last/model.safetensors"), config: None });
        touch(&run.join("best/model.safetensors"));
        assert_eq!(weights(run), run.join("best/model.safetensors"));
        assert_eq!(weights(&run.join("last")), run.join("last/model.safetensors"));
        touch(&run.join("model.safetensors"));
        assert_eq!(weights(run), run.join("model.safetensors"));
    }

    #[test]
    fn a_single_file_takes_the_configuration_beside_it() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("Other.SafeTensors");
        touch(&file);
        assert_eq!(ModelFolder::locate(&file).unwrap().config, None);
        touch(&folder.path().join("config.json"));
        assert_eq!(ModelFolder::locate(&file).unwrap().config, Some(folder.path().join("config.json")));
    }

    #[test]
    fn what_is_not_there_is_said() {
        let folder = tempfile::tempdir().unwrap();
        let message = |name: &str| {
            let message = ModelFolder::locate(&folder.path().join(name)).unwrap_err().to_string();
            assert!(
                message.contains(folder.path().to_str().unwrap()) && !message.contains('\n'),
                "{message}"
            );
            message
        };
        assert!(
            message("absent").contains("there is no such file or folder; train one with `stridenet train")
        );
        assert!(message("").contains("neither model.safetensors nor best/model.safetensors nor last/model"));
        touch(&folder.path().join("notes.txt"));
        assert!(message("notes.txt").contains("does not end in .safetensors"));
        for (name, expected) in [
            ("net.onnx", "is an ONNX file, expected a safetensors file; save the network"),
            ("hub/pytorch_model.bin", "is a PyTorch file, which can run code when it is opened"),
            ("net.PTH", "convert it in Python: safetensors.torch.save_file"),
        ] {
            touch(&folder.path().join(name));
            assert!(message(name).contains(expected), "{}", message(name));
        }
        assert!(message("hub").contains("pytorch_model.bin is a PyTorch file"));
    }
}
