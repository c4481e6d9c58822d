//! Where a model lies on disk.

use super::config::ModelConfig;
use super::error::WeightsError;
use super::format::{Format, expected_names};
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
    /// The file of weights.
    pub weights: PathBuf,
    /// The `config.json` beside it, if there is one.
    pub config: Option<PathBuf>,
}

impl ModelFolder {
    /// Finds the model that `path` means: a file of weights, a model folder, or a run folder, of which `best` is preferred
    /// to `last`. In a folder without `model.safetensors` the only file of weights is the model.
    ///
    /// # Errors
    /// When nothing is there, or several files could be meant.
    pub fn locate(path: &Path) -> Result<Self, WeightsError> {
        let no_model = |problem| WeightsError::NoModel { path: path.to_path_buf(), problem };
        if path.is_file() {
            return Ok(Self::beside(path.to_path_buf()));
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
        files.retain(|file| Format::of_name(file).is_some() && file.is_file());
        files.sort();
        let [best, last] = RUN;
        match &mut files[..] {
            [only] => Ok(Self::beside(std::mem::take(only))),
            [] => Err(no_model(format!(
                "it contains neither {WEIGHTS_FILE} nor {best}/{WEIGHTS_FILE} nor {last}/{WEIGHTS_FILE} nor a file \
                 that ends in one of {}",
                expected_names()
            ))),
            [first, second, ..] => Err(no_model(format!(
                "it contains several files of weights ({} and {} are two of them), give one of them",
                first.display(),
                second.display()
            ))),
        }
    }

    /// Where a model that is saved at `path` lies: in the file itself where its name ends in `.safetensors`, else in a
    /// folder; the configuration is beside the weights.
    pub fn target(path: &Path) -> Self {
        let weights = match Format::of_name(path) {
            Some(Format::Safetensors) => path.to_path_buf(),
            _ => path.join(WEIGHTS_FILE),
        };
        let config = Some(weights.with_file_name(CONFIG_FILE));
        ModelFolder { weights, config }
    }

    /// The files that are already there.
    pub fn existing(&self) -> Vec<&Path> {
        [Some(&self.weights), self.config.as_ref()]
            .into_iter()
            .flatten()
            .map(PathBuf::as_path)
            .filter(|path| path.exists())
            .collect()
    }

    /// Writes a model, as [`target`](Self::target) says where, creating the folder if needed: first the weights, then the
    /// configuration, each atomically.
    ///
    /// # Errors
    /// When the configuration contradicts itself, or a file cannot be written.
    pub fn save(path: &Path, state: &StateDict, config: &ModelConfig) -> Result<Self, WeightsError> {
        let files = Self::target(path);
        let description = files.weights.with_file_name(CONFIG_FILE);
        config.check(&description)?;
        if let Some(folder) = files.weights.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            std::fs::create_dir_all(folder).map_err(|source| FileError::write(folder, source))?;
        }
        write_safetensors(&files.weights, state, &BTreeMap::new())?;
        config.write(&description)?;
        Ok(files)
    }

    /// These weights with the configuration beside them.
    fn beside(weights: PathBuf) -> Self {
        let config = weights.with_file_name(CONFIG_FILE);
        let config = config.is_file().then_some(config);
        ModelFolder { weights, config }
    }
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
        // The same model as a single file, with its configuration beside it.
        let file = folder.path().join("one/net.safetensors");
        assert!(ModelFolder::target(&file).existing().is_empty());
        let single = ModelFolder::save(&file, &state, &config).unwrap();
        assert_eq!(single.existing(), [&*file, &folder.path().join("one/config.json")]);
        assert_eq!(std::fs::read(&file).unwrap(), std::fs::read(path.join(WEIGHTS_FILE)).unwrap());
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
        touch(&folder.path().join("hub/model_int8.safetensors"));
        let only = ModelFolder::locate(&folder.path().join("hub")).unwrap();
        assert_eq!(only.weights, folder.path().join("hub/model_int8.safetensors"));
        touch(&folder.path().join("hub/other.Safetensors"));
        assert!(message("hub").contains("several files of weights") && message("hub").contains("other.Safe"));
    }
}
