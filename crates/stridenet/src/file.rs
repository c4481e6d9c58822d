//! Writing files so that nobody ever sees half of one.

use std::ffi::OsStr;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use tempfile::NamedTempFile;
use thiserror::Error;

/// A file or folder cannot be read or written.
#[derive(Debug, Error)]
pub enum FileError {
    /// Reading failed.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// Writing failed.
    #[error("cannot write {}: {source}; free some space or choose another folder, nothing was lost", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
}

/// How the names of temporary files begin.
const PREFIX: &str = ".stridenet-";
/// How the names of temporary files end.
const SUFFIX: &str = ".tmp";

/// Whether a file's name is that of a temporary of [`write_atomically`], left by a process that was killed.
pub(crate) fn is_temporary(name: &OsStr) -> bool {
    name.to_str().is_some_and(|name| name.starts_with(PREFIX) && name.ends_with(SUFFIX))
}

impl FileError {
    /// Reading `path` failed.
    pub fn read(path: impl Into<PathBuf>, source: std::io::Error) -> Self {
        FileError::Read { path: path.into(), source }
    }

    /// Writing `path` failed.
    pub fn write(path: impl Into<PathBuf>, source: std::io::Error) -> Self {
        FileError::Write { path: path.into(), source }
    }
}

/// Writes `path` through a temporary file beside it: write, sync, rename. A reader sees the old file or the new one;
/// on any error the old one stays.
///
/// # Errors
/// When the folder is not writable, the disk is full, or `fill` fails.
pub fn write_atomically(
    path: &Path,
    fill: impl FnOnce(&mut dyn Write) -> std::io::Result<()>,
) -> Result<(), FileError> {
    write_checked(path, fill, |_| Ok(()))
}

/// As [`write_atomically`]; `check` sees the temporary before it is renamed, and on its error the old file stays.
///
/// # Errors
/// As [`write_atomically`], and those of `check`.
pub fn write_checked<E: From<FileError>>(
    path: &Path,
    fill: impl FnOnce(&mut dyn Write) -> std::io::Result<()>,
    check: impl FnOnce(&Path) -> Result<(), E>,
) -> Result<(), E> {
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let write = || -> std::io::Result<NamedTempFile> {
        let mut builder = tempfile::Builder::new();
        // A private temporary would keep its 0600 mode after the rename and hide the model from other users.
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
        let mut temporary = builder.prefix(PREFIX).suffix(SUFFIX).tempfile_in(folder)?;
        let mut writer = BufWriter::new(temporary.as_file_mut());
        fill(&mut writer)?;
        writer.flush()?;
        drop(writer);
        temporary.as_file().sync_all()?;
        Ok(temporary)
    };
    let failed = |source| FileError::write(path, source);
    let temporary = write().map_err(failed)?;
    check(temporary.path())?;
    temporary.persist(path).map_err(|error| failed(error.error))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_write_keeps_the_old_file_and_leaves_no_litter() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model");
        write_atomically(&path, |to| to.write_all(b"old")).unwrap();
        let error = write_atomically(&path, |to| {
            to.write_all(b"new")?;
            Err(std::io::Error::from(std::io::ErrorKind::StorageFull))
        })
        .unwrap_err();
        assert!(error.to_string().contains("model"), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        let refused = |written: &Path| -> Result<(), FileError> {
            assert_eq!(std::fs::read(written).unwrap(), b"new");
            Err(FileError::read(written, std::io::Error::other("no")))
        };
        let error = write_checked(&path, |to| to.write_all(b"new"), refused).unwrap_err();
        assert!(matches!(error, FileError::Read { .. }));
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
