//! The folder of a run: options, a row an epoch, events, models, state, report.

use super::TrainError;
use super::checkpoint::EpochRow;
use crate::Error;
use crate::file::{FileError, is_temporary, write_atomically};
use serde::Serialize;
use serde_json::{Map, Value};
use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};

/// What to do with a folder that is there already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Existing {
    /// An error.
    Refuse,
    /// Delete the run in it. A folder that holds no run is refused.
    Overwrite,
    /// Go on with the run in it.
    Resume,
}

/// The folder of a run.
#[derive(Debug, Clone)]
pub struct RunFolder {
    path: PathBuf,
}

const OPTIONS: &str = "args.yaml";
const SUMMARY: &str = "summary.csv";
const EVENTS: &str = "events.jsonl";
const REPORT: &str = "report.html";
const FOLDERS: [&str; 3] = ["last", "best", "state"];

impl RunFolder {
    /// Makes the folder, or takes the one that is there.
    ///
    /// # Errors
    /// When it exists and may not be used, or cannot be made.
    pub fn open(path: &Path, existing: Existing) -> Result<Self, Error> {
        let run = RunFolder { path: path.to_path_buf() };
        let occupied = path.is_file() || path.read_dir().is_ok_and(|mut entries| entries.next().is_some());
        match existing {
            Existing::Refuse if occupied => return Err(TrainError::Exists { path: run.path }.into()),
            Existing::Overwrite if occupied => {
                run.remove_temporaries()?;
                run.clear()?;
            }
            Existing::Resume if !run.state_file().is_file() => {
                let reason =
                    "it has no state/checkpoint.safetensors; leave --resume out to start a run".to_owned();
                return Err(TrainError::Resume { path: run.path, reason }.into());
            }
            Existing::Resume => run.remove_temporaries()?,
            _ => {}
        }
        std::fs::create_dir_all(run.path.join("state")).map_err(|source| FileError::write(path, source))?;
        Ok(run)
    }

    /// Deletes the temporary files of a run that was killed while it wrote.
    fn remove_temporaries(&self) -> Result<(), Error> {
        for folder in FOLDERS.map(|name| self.path.join(name)).iter().chain([&self.path]) {
            for entry in folder.read_dir().into_iter().flatten().flatten() {
                if is_temporary(&entry.file_name()) {
                    let path = entry.path();
                    std::fs::remove_file(&path).map_err(|source| FileError::write(path, source))?;
                }
            }
        }
        Ok(())
    }

    /// Deletes what a run consists of, and nothing else.
    fn clear(&self) -> Result<(), Error> {
        let entries = self.path.read_dir().map_err(|source| FileError::read(&self.path, source))?;
        for entry in entries {
            let entry = entry.map_err(|source| FileError::read(&self.path, source))?;
            let name = entry.file_name();
            let ours = [OPTIONS, SUMMARY, EVENTS, REPORT].iter().chain(&FOLDERS).any(|known| name == **known);
            if !ours {
                let found = format!("it holds {}", name.display());
                return Err(TrainError::NotARun { path: self.path.clone(), found }.into());
            }
        }
        let failed = |path: PathBuf| move |source| FileError::write(path, source);
        for name in [OPTIONS, SUMMARY, EVENTS, REPORT].map(|name| self.path.join(name)) {
            if name.exists() {
                std::fs::remove_file(&name).map_err(failed(name))?;
            }
        }
        for name in FOLDERS.map(|name| self.path.join(name)) {
            if name.exists() {
                std::fs::remove_dir_all(&name).map_err(failed(name))?;
            }
        }
        Ok(())
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The model folder of the last step that was saved.
    pub fn last(&self) -> PathBuf {
        self.path.join("last")
    }

    /// The model folder of the best epoch.
    pub fn best(&self) -> PathBuf {
        self.path.join("best")
    }

    /// The file of an exact resume.
    pub fn state_file(&self) -> PathBuf {
        self.path.join("state").join("checkpoint.safetensors")
    }

    /// The folder, if a run can be resumed from it.
    pub(super) fn kept(&self) -> Option<PathBuf> {
        self.state_file().is_file().then(|| self.path.clone())
    }

    /// The page about the run.
    pub fn report(&self) -> PathBuf {
        self.path.join(REPORT)
    }

    /// Writes `args.yaml`: one `key: value` a line, the values as JSON, which YAML contains.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write_options(&self, options: &Map<String, Value>) -> Result<(), Error> {
        write_atomically(&self.path.join(OPTIONS), |to| {
            options.iter().try_for_each(|(key, value)| writeln!(to, "{key}: {value}"))
        })?;
        Ok(())
    }

    /// Writes `summary.csv`: a row an epoch.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write_summary(&self, rows: &[EpochRow]) -> Result<(), Error> {
        write_atomically(&self.path.join(SUMMARY), |to| {
            writeln!(
                to,
                "epoch,train_loss,train_top1,eval_loss,eval_top1,eval_top5,lr,seconds,images_per_second,waited_seconds"
            )?;
            for row in rows {
                let EpochRow { epoch, train_loss, train_top1, val_loss, val_top1, val_top5, lr, .. } = row;
                write!(
                    to,
                    "{epoch},{train_loss:.6},{train_top1:.4},{val_loss:.6},{val_top1:.4},{val_top5:.4},{lr:.8},"
                )?;
                writeln!(to, "{:.3},{:.1},{:.3}", row.seconds, row.images_per_second, row.waited_seconds)?;
            }
            Ok(())
        })?;
        Ok(())
    }

    /// Appends a line to `events.jsonl`.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn append_event(&self, event: &impl Serialize) -> Result<(), Error> {
        let path = self.path.join(EVENTS);
        let append = || -> std::io::Result<()> {
            let mut line = serde_json::to_string(event)?;
            line.push('\n');
            OpenOptions::new().create(true).append(true).open(&path)?.write_all(line.as_bytes())
        };
        append().map_err(|source| FileError::write(&path, source))?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_are_refused_replaced_or_resumed() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("run");
        let run = RunFolder::open(&path, Existing::Refuse).unwrap();
        let message = RunFolder::open(&path, Existing::Resume).unwrap_err().to_string();
        assert!(message.contains("cannot be resumed") && message.contains("--resume"), "{message}");
        run.write_options(&Map::from_iter([("lr".to_owned(), 0.1.into())])).unwrap();
        assert_eq!(std::fs::read_to_string(path.join("args.yaml")).unwrap(), "lr: 0.1\n");
        let message = RunFolder::open(&path, Existing::Refuse).unwrap_err().to_string();
        assert!(message.contains("--overwrite") && message.contains("--resume"), "{message}");
        std::fs::write(run.state_file(), "").unwrap();
        assert!(RunFolder::open(&path, Existing::Resume).is_ok());
        RunFolder::open(&path, Existing::Overwrite).unwrap();
        assert!(!path.join("args.yaml").exists() && !run.state_file().exists());
    }

    #[test]
    fn a_folder_with_other_things_is_not_deleted() {
        let parent = tempfile::tempdir().unwrap();
        std::fs::write(parent.path().join("thesis.tex"), "years of work").unwrap();
        std::fs::write(parent.path().join("args.yaml"), "").unwrap();
        let message = RunFolder::open(parent.path(), Existing::Overwrite).unwrap_err().to_string();
        assert!(message.contains("thesis.tex"), "{message}");
        assert!(parent.path().join("thesis.tex").exists() && parent.path().join("args.yaml").exists());
        // An empty folder is as good as none.
        let empty = tempfile::tempdir().unwrap();
        assert!(RunFolder::open(empty.path(), Existing::Refuse).is_ok());
    }
}
