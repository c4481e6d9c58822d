//! Models by name from a hub of Hugging Face's kind, kept in a folder of the user's.
//!
//! A model is two files, its weights and `config.json`, at one commit. Every file has a checksum that the hub names before it is
//! fetched. A file appears under its name only when it is whole and has that checksum; what an interruption leaves is continued.

mod download;
mod error;
mod remote;

pub use error::HubError;

use crate::file::{FileError, write_atomically};
use crate::weights::{CONFIG_FILE, WEIGHTS_FILE};
use download::Download;
use remote::{Remote, Server};
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// What a name begins with.
pub const SCHEME: &str = "hf://";
/// The hub that is meant unless another one is named.
pub const ENDPOINT: &str = "https://huggingface.co";
/// The weights that are looked for, the preferred ones first.
const WEIGHTS: [&str; 2] = [WEIGHTS_FILE, "pytorch_model.bin"];
/// The largest configuration and the largest weights that are fetched, in bytes.
const LARGEST: [u64; 2] = [16 << 20, 64 << 30];
/// The longest name of an organisation, a repository or a revision.
const LONGEST_NAME: usize = 96;

/// A hub, and where its models are kept.
#[derive(Debug, Clone)]
pub struct Hub {
    /// The hub's address, such as [`ENDPOINT`].
    pub endpoint: String,
    /// The folder of models that were fetched.
    pub cache: PathBuf,
    /// What the hub asks for before it gives a private or gated model.
    pub token: Option<String>,
}

/// A model of a hub: `hf://ORGANISATION/NAME`, or `hf://ORGANISATION/NAME@REVISION`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    organisation: String,
    name: String,
    revision: String,
}

/// How far fetching is.
#[derive(Debug, Clone, Copy)]
pub struct Progress<'a> {
    /// The file that is being fetched.
    pub file: &'a str,
    /// Its bytes that are there.
    pub done: u64,
    /// All of its bytes.
    pub total: u64,
}

/// A model that has been fetched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetched {
    /// The model's folder.
    pub folder: PathBuf,
    /// Why the hub could not be asked, where the model is what was fetched earlier.
    pub offline: Option<String>,
}

impl FromStr for Reference {
    type Err = HubError;

    fn from_str(text: &str) -> Result<Self, HubError> {
        let parse = || {
            let (model, revision) = match text.strip_prefix(SCHEME)?.split_once('@') {
                Some((model, revision)) => (model, revision),
                None => (text.strip_prefix(SCHEME)?, "main"),
            };
            let (organisation, name) = model.split_once('/')?;
            let parts = [organisation, name, revision];
            let [organisation, name, revision] = parts.map(|part| is_name(part).then(|| part.to_owned()));
            Some(Reference { organisation: organisation?, name: name?, revision: revision? })
        };
        parse().ok_or_else(|| HubError::Name { name: text.to_owned() })
    }
}

/// Whether a part of a reference is safe in an address and as the name of a folder.
fn is_name(part: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    (1..=LONGEST_NAME).contains(&part.len()) && part.chars().all(allowed) && !part.starts_with('.')
}

impl fmt::Display for Reference {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        let Reference { organisation, name, revision } = self;
        write!(formatter, "{SCHEME}{organisation}/{name}@{revision}")
    }
}

impl Hub {
    /// Fetches a model, or what of it is not yet there; `observer` is told how far it is, and ends it by answering false. Where the hub cannot be reached, the
    /// model that was fetched last is taken.
    ///
    /// # Errors
    /// When the hub cannot be reached and the model is not there, the hub refuses, has no such model, or sends something else
    /// than it promises; when a file cannot be written.
    pub fn fetch(
        &self,
        reference: &Reference,
        observer: &mut dyn FnMut(Progress) -> bool,
    ) -> Result<Fetched, HubError> {
        let Reference { organisation, name, revision } = reference;
        let folder = self.cache.join(format!("{organisation}--{name}"));
        let pointer = folder.join(format!("{revision}.commit"));
        match self.fetch_into(reference, &folder, observer) {
            Ok((commit, fetched)) => {
                write_atomically(&pointer, |to| to.write_all(commit.as_bytes()))?;
                Ok(Fetched { folder: fetched, offline: None })
            }
            Err(error) if error.is_offline() => match earlier(&folder, &pointer) {
                Some(folder) => Ok(Fetched { folder, offline: Some(error.to_string()) }),
                None => Err(error),
            },
            Err(error) => Err(error),
        }
    }

    /// Fetches a model into a folder of its commit below `folder`. Returns the commit and that folder.
    fn fetch_into(
        &self,
        reference: &Reference,
        folder: &Path,
        observer: &mut dyn FnMut(Progress) -> bool,
    ) -> Result<(String, PathBuf), HubError> {
        let server = Server::new(self);
        let config = server.describe(reference, CONFIG_FILE)?;
        let mut weights = None;
        for file in WEIGHTS {
            if let Some(found) = server.describe(reference, file)? {
                weights = Some((file, found));
                break;
            }
        }
        let Some((file, weights)) = weights else {
            return Err(HubError::Absent { model: reference.to_string(), files: WEIGHTS.join(" nor ") });
        };
        let commit = weights.commit.clone();
        let target = folder.join(&commit);
        std::fs::create_dir_all(&target).map_err(|source| FileError::write(&target, source))?;
        // The weights last: where they are, everything is.
        let files = [(CONFIG_FILE, config, LARGEST[0]), (file, Some(weights), LARGEST[1])];
        for (file, remote, largest) in files {
            let Some(remote) = remote else { continue };
            if remote.commit != commit {
                return Err(HubError::Moved { model: reference.to_string() });
            }
            let Remote { size, .. } = remote;
            if size > largest {
                return Err(HubError::Large { url: remote.url, size, largest });
            }
            Download { server: &server, remote: &remote, file, target: &target.join(file) }.run(observer)?;
        }
        Ok((commit, target))
    }
}

/// The folder of the commit that was fetched last, if it is whole.
fn earlier(folder: &Path, pointer: &Path) -> Option<PathBuf> {
    let commit = std::fs::read_to_string(pointer).ok()?;
    let folder = folder.join(Some(commit).filter(|commit| is_name(commit))?);
    WEIGHTS.iter().any(|file| folder.join(file).is_file()).then_some(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_safe_in_addresses_and_folders() {
        let reference: Reference = "hf://timm/resnet50.a1_in1k".parse().unwrap();
        assert_eq!(reference.to_string(), "hf://timm/resnet50.a1_in1k@main");
        let reference: Reference = "hf://timm/resnet50.a1_in1k@v1.0-beta".parse().unwrap();
        assert_eq!(reference.revision, "v1.0-beta");
        for wrong in [
            "timm/resnet50",
            "hf://resnet50",
            "hf://timm/",
            "hf:///resnet50",
            "hf://a/b/c",
            "hf://../b",
            "hf://a/..",
            "hf://a/b@",
            "hf://a/b@../x",
            "hf://a/b?c",
            "hf://a/b c",
            "hf://a/b#c",
            "hf://a/%2e%2e",
            "hf://a/b\n",
            "hf://ä/b",
            "hf://a/b@c@d",
        ] {
            let error = wrong.parse::<Reference>().unwrap_err().to_string();
            assert!(error.contains("hf://ORGANISATION/NAME") && !error.contains('\n'), "{error}");
        }
        assert!(format!("hf://a/{}", "x".repeat(97)).parse::<Reference>().is_err());
    }
}
