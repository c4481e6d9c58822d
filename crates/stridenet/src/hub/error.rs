//! What can go wrong between here and a hub.

use std::path::PathBuf;
use thiserror::Error;

/// A model cannot be fetched.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum HubError {
    /// A name is not that of a model.
    #[error(
        "{name:?} is not a model of a hub; expected hf://ORGANISATION/NAME or hf://ORGANISATION/NAME@REVISION"
    )]
    Name {
        /// The name.
        name: String,
    },
    /// The hub cannot be reached, or the connection breaks again and again.
    #[error("cannot fetch {url}: {reason}; check the connection and try again, what was fetched is kept")]
    Offline {
        /// The address.
        url: String,
        /// What the system or the protocol says.
        reason: String,
    },
    /// The hub wants to know who asks.
    #[error(
        "{url} needs permission (HTTP status {status}); check the model's name, and give a token in HF_TOKEN where the model is \
         private or gated"
    )]
    Forbidden {
        /// The address.
        url: String,
        /// The status.
        status: u16,
    },
    /// There is no such model, or it has no weights.
    #[error("{model} has neither {files}; check the model's name")]
    Absent {
        /// The model.
        model: String,
        /// What was looked for.
        files: String,
    },
    /// The hub answers in a way that is not expected.
    #[error(
        "{url} answers with {found}, expected {expected}; try again later, or give the address of another hub"
    )]
    Answer {
        /// The address.
        url: String,
        /// What was found.
        found: String,
        /// What was expected.
        expected: &'static str,
    },
    /// The model changed between its files.
    #[error("{model} changed while it was being fetched; try again")]
    Moved {
        /// The model.
        model: String,
    },
    /// A file is larger than it should be.
    #[error("{url} has {size} bytes, at most {largest} are fetched; download the file by other means")]
    Large {
        /// The address.
        url: String,
        /// Bytes of the file.
        size: u64,
        /// The limit.
        largest: u64,
    },
    /// The bytes that came are not those that were promised.
    #[error(
        "{url} sent bytes with the checksum {found}, promised was {expected}; they were deleted, try again"
    )]
    Checksum {
        /// The address.
        url: String,
        /// The checksum of what came.
        found: String,
        /// The checksum that the hub had named.
        expected: String,
    },
    /// A file of the cache cannot be read or written.
    #[error(transparent)]
    File(#[from] crate::file::FileError),
    /// Somebody asked for an end.
    #[error("fetching {} was interrupted; the same command goes on with it", path.display())]
    Interrupted {
        /// The file that is not complete.
        path: PathBuf,
    },
}

impl HubError {
    /// Whether the hub could not be asked at all.
    pub(super) fn is_offline(&self) -> bool {
        matches!(self, HubError::Offline { .. })
    }
}
