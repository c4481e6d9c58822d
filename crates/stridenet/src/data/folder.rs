//! Folders of class folders.

use super::DataError;
use crate::file::FileError;
use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Files with other extensions (notes, thumbnails' data bases) are left alone.
const EXTENSIONS: [&str; 10] = ["jpg", "jpeg", "jpe", "jfif", "png", "bmp", "webp", "gif", "tif", "tiff"];

/// The class folders of a folder, by name, and their images, by path.
pub(super) struct ClassFolders {
    /// Names of the classes, sorted.
    pub(super) classes: Vec<String>,
    /// Every image with its class.
    pub(super) images: Vec<(PathBuf, usize)>,
}

/// Lists the class folders below `root`.
pub(super) fn list_classes(root: &Path) -> Result<ClassFolders, DataError> {
    let entries = entries(root)?;
    let mut folders: Vec<(String, PathBuf)> =
        entries.into_iter().filter(|entry| entry.is_dir()).map(|path| (file_name(&path), path)).collect();
    folders.sort();
    if folders.is_empty() {
        return Err(match has_images(root)? {
            true => DataError::LooseImages { path: root.into() },
            false => DataError::NothingFound { path: root.into() },
        });
    }
    let mut images = Vec::new();
    for (label, (_, folder)) in folders.iter().enumerate() {
        let found = list_images(folder)?;
        if found.is_empty() {
            return Err(DataError::EmptyClass { path: folder.clone() });
        }
        images.extend(found.into_iter().map(|path| (path, label)));
    }
    Ok(ClassFolders { classes: folders.into_iter().map(|(name, _)| name).collect(), images })
}

/// The folder that `names` calls, the first that is there. A folder is taken for a split only if it holds folders and
/// no images: `train` may also be the class of trains.
pub(super) fn find_split(root: &Path, names: &[&str]) -> Result<Option<PathBuf>, DataError> {
    for name in names {
        let path = root.join(name);
        if path.is_dir() && entries(&path)?.iter().any(|entry| entry.is_dir()) && !has_images(&path)? {
            return Ok(Some(path));
        }
    }
    Ok(None)
}

/// The images in a folder and the folders below it, by their extension, sorted. Links are followed; a folder that was seen
/// already, or that the folder itself lies in, is not entered again. Hidden files are left alone.
///
/// # Errors
/// When a folder cannot be read.
pub fn list_images(folder: &Path) -> Result<Vec<PathBuf>, DataError> {
    let canonical = |path: &Path| fs::canonicalize(path).map_err(|source| FileError::read(path, source));
    let top = canonical(folder)?;
    let mut seen = HashSet::from([top.clone()]);
    let mut to_visit = vec![folder.to_path_buf()];
    let mut images = Vec::new();
    while let Some(folder) = to_visit.pop() {
        for path in entries(&folder)? {
            if path.is_dir() {
                let real = canonical(&path)?;
                if !top.starts_with(&real) && seen.insert(real) {
                    to_visit.push(path);
                }
            } else if is_image(&path) {
                images.push(path);
            }
        }
    }
    images.sort();
    Ok(images)
}

/// The entries of a folder, sorted, without hidden ones.
fn entries(folder: &Path) -> Result<Vec<PathBuf>, DataError> {
    let failed = |source| FileError::read(folder, source);
    let mut paths = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if !file_name(&path).starts_with('.') {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

fn has_images(folder: &Path) -> Result<bool, DataError> {
    Ok(entries(folder)?.iter().any(|path| !path.is_dir() && is_image(path)))
}

fn is_image(path: &Path) -> bool {
    let extension = path.extension().map(|extension| extension.to_string_lossy().to_ascii_lowercase());
    extension.is_some_and(|extension| EXTENSIONS.contains(&extension.as_str()))
}

fn file_name(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}
