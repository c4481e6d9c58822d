//! The formats that weights come in, and the one way to read any of them.

use super::error::WeightsError;
use super::pytorch::read_pytorch;
use super::safetensors::{NonFinite, read_safetensors};
use super::state::StateDict;
use crate::file::FileError;
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// Bytes that are looked at to recognise a format.
const BEGINNING: u64 = 64;

/// A format of files with weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// safetensors: a JSON header, then the values.
    Safetensors,
    /// What `torch.save` writes: a zip archive with a pickle and the values.
    Pytorch,
    /// ONNX: a graph with its constants, which are weights once they are matched with a network.
    Onnx,
}

impl Format {
    /// All formats.
    pub const ALL: [Format; 3] = [Format::Safetensors, Format::Pytorch, Format::Onnx];

    /// What files of this format are called.
    pub const fn name(self) -> &'static str {
        match self {
            Format::Safetensors => "safetensors",
            Format::Pytorch => "PyTorch",
            Format::Onnx => "ONNX",
        }
    }

    /// The extensions of file names that mean this format, the usual one first.
    pub const fn extensions(self) -> &'static [&'static str] {
        match self {
            Format::Safetensors => &["safetensors"],
            Format::Pytorch => &["pth", "pt", "bin", "ckpt", "tar"],
            Format::Onnx => &["onnx"],
        }
    }

    /// The format that a file's name promises.
    pub fn of_name(path: &Path) -> Option<Self> {
        let extension = path.extension()?.to_str()?.to_ascii_lowercase();
        Format::ALL.into_iter().find(|format| format.extensions().contains(&extension.as_str()))
    }

    /// The format of the file at `path`: by its first bytes where they tell, else by its name.
    ///
    /// # Errors
    /// When the file cannot be read, is no file of weights, or neither its bytes nor its name say what it is.
    pub fn of(path: &Path) -> Result<Self, WeightsError> {
        let unreadable = |source| FileError::read(path, source);
        let mut beginning = Vec::new();
        File::open(path)
            .map_err(unreadable)?
            .take(BEGINNING)
            .read_to_end(&mut beginning)
            .map_err(unreadable)?;
        if let Some((format, remedy)) = no_weights(&beginning) {
            return Err(WeightsError::Format { path: path.to_path_buf(), format, remedy });
        }
        let found = Format::of_bytes(&beginning).or_else(|| Format::of_name(path));
        found.ok_or_else(|| WeightsError::UnknownFormat {
            path: path.to_path_buf(),
            expected: expected_names(),
        })
    }

    /// The format that a file's first bytes show.
    fn of_bytes(bytes: &[u8]) -> Option<Self> {
        // A zip archive, or a pickle of a protocol from 2 on.
        if bytes.starts_with(b"PK\x03\x04") || matches!(bytes, [0x80, 2..=5, ..]) {
            return Some(Format::Pytorch);
        }
        // The header's length, then the header, which is a JSON object.
        if bytes.get(8) == Some(&b'{') {
            return Some(Format::Safetensors);
        }
        // The version of the format, then the name of the program that wrote it.
        matches!(bytes, [0x08, 1..=0x7f, 0x12, ..]).then_some(Format::Onnx)
    }
}

/// `.safetensors or .pth`, for messages.
pub(super) fn expected_names() -> String {
    let names: Vec<String> =
        Format::ALL.iter().flat_map(|format| format.extensions()).map(|name| format!(".{name}")).collect();
    names.join(", ")
}

/// Files that are often taken for weights, by their first bytes; with what to do.
pub(super) fn no_weights(bytes: &[u8]) -> Option<(&'static str, &'static str)> {
    let text = bytes.trim_ascii_start();
    let begins = |with: &[u8]| text.get(..with.len()).is_some_and(|start| start.eq_ignore_ascii_case(with));
    if begins(b"version https://git-lfs") {
        Some(("a Git LFS pointer", "fetch the file itself with `git lfs pull`"))
    } else if begins(b"<!doctype") || begins(b"<html") {
        Some(("a web page", "download the file itself, not the page about it"))
    } else {
        None
    }
}

/// What a file of weights contains.
#[derive(Debug)]
pub struct FileContents {
    /// The tensors, under the names they have in the file.
    pub state: StateDict,
    /// Under which keys of a checkpoint they were, such as `state_dict`; empty where the file is nothing but weights.
    pub part: String,
}

/// Reads the tensors of a file in any format.
///
/// # Errors
/// As [`Format::of`], and when the file is damaged, contains what weights do not need, or values are not finite and
/// `non_finite` refuses them.
pub fn read_weights(path: &Path, non_finite: NonFinite) -> Result<FileContents, WeightsError> {
    Ok(match Format::of(path)? {
        Format::Safetensors => {
            FileContents { state: read_safetensors(path, non_finite)?, part: String::new() }
        }
        Format::Pytorch => {
            let (state, part) = read_pytorch(path, non_finite)?;
            FileContents { state, part }
        }
        Format::Onnx => {
            let (format, remedy) =
                ("a graph, whose constants have no names of their own", "open it as a model");
            return Err(WeightsError::Format { path: path.to_path_buf(), format, remedy });
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(name: &str, bytes: &[u8]) -> Result<Format, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        Format::of(&path).map_err(|error| error.to_string())
    }

    #[test]
    fn bytes_tell_more_than_names() {
        assert_eq!(of("net.pth", b"\x10\0\0\0\0\0\0\0{}"), Ok(Format::Safetensors));
        assert_eq!(of("net.safetensors", b"PK\x03\x04"), Ok(Format::Pytorch));
        assert_eq!(of("net", b"\x80\x02\x8a"), Ok(Format::Pytorch));
        assert_eq!(of("net.SafeTensors", b""), Ok(Format::Safetensors));
        assert_eq!(of("net.tar", b"anything"), Ok(Format::Pytorch));
        assert_eq!(of("net", b"\x08\x08\x12\x07pytorch"), Ok(Format::Onnx));
        assert_eq!(of("net.onnx", b"anything"), Ok(Format::Onnx));
        let unknown = of("net.dat", b"anything").unwrap_err();
        assert!(
            unknown.contains("net.dat is not a file of weights") && unknown.contains(".safetensors, .pth"),
            "{unknown}"
        );
    }

    #[test]
    fn pages_and_pointers_are_named() {
        for (bytes, expected) in [
            (
                &b"version https://git-lfs.github.com/spec/v1\n"[..],
                "is a Git LFS pointer; fetch the file itself",
            ),
            (b" \n<!doctype html><html>", "is a web page; download the file itself"),
            (b"<HTML>", "is a web page"),
        ] {
            let message = of("net.pth", bytes).unwrap_err();
            assert!(message.contains(expected), "{message}");
        }
    }
}
