//! The library's one error type. Each room has its own cases; this enum gathers them.

use thiserror::Error;

/// What can go wrong in this library. The message is one line that says what was found and what to do.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// A tensor's shape does not fit.
    #[error(transparent)]
    Shape(#[from] crate::ShapeError),
    /// A file cannot be written.
    #[error(transparent)]
    File(#[from] crate::file::FileError),
}
