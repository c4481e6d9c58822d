//! safetensors files: eight bytes of header length, a JSON header, then the values.
//!
//! The `safetensors` crate has the last word on whether a header is valid. Checked here before: what the crate lets pass
//! (duplicate names, of which it keeps the last; types that weights do not have; values that are not finite), and what it
//! refuses without saying which tensor is wrong and by how much. The values go from the file to their tensors piece by
//! piece, so that there are never two copies of them. The tensors of a large file are read on several threads: most of that
//! time the system makes their pages.

use super::dtype::{Dtype, PIECE};
use super::error::{WeightsError, count, printable};
use super::format::no_weights;
use super::source::Source;
use super::state::{StateDict, TensorEntry, TensorValues};
use crate::file::{FileError, write_atomically};
use crate::kernels::{Pool, physical_processors};
use ::safetensors::tensor::Metadata;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

/// The longest header that the format allows, in bytes.
const LONGEST_HEADER: usize = 100_000_000;
/// The header length in front of the header, in bytes.
const PREFIX: usize = 8;
/// Bytes that are looked at to recognise other formats.
const BEGINNING: usize = 32;

/// Bytes of values for each thread that reads them, at least; and threads at most.
const SHARE: usize = 1 << 22;
const READERS: usize = 4;

/// What to do with values that are NaN or infinite as `f32`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NonFinite {
    /// An error that names the tensors.
    Refuse,
    /// Read them; [`StateDict::non_finite`] names the tensors.
    Allow,
}

/// Reads a safetensors file. F16, BF16 and F64 become `f32`; I64 stays.
///
/// # Errors
/// When the file cannot be read, and as [`safetensors_from_bytes`].
pub fn read_safetensors(path: &Path, non_finite: NonFinite) -> Result<StateDict, WeightsError> {
    Ok(read_safetensors_with_metadata(path, non_finite)?.0)
}

/// As [`read_safetensors`], with the file's metadata.
///
/// # Errors
/// As [`read_safetensors`].
pub fn read_safetensors_with_metadata(
    path: &Path,
    non_finite: NonFinite,
) -> Result<(StateDict, BTreeMap<String, String>), WeightsError> {
    let unreadable = |source| FileError::read(path, source);
    let file = File::open(path).map_err(unreadable)?;
    let length = file.metadata().map_err(unreadable)?.len();
    read(path, &file, length, non_finite)
}

/// Reads the bytes of a safetensors file; `path` is only for messages.
///
/// # Errors
/// When the bytes are truncated or no valid safetensors file, a tensor has a type other than F32, F16, BF16, F64 and
/// I64, or values are not finite and `non_finite` refuses them.
pub fn safetensors_from_bytes(
    path: &Path,
    bytes: &[u8],
    non_finite: NonFinite,
) -> Result<StateDict, WeightsError> {
    Ok(read(path, bytes, bytes.len() as u64, non_finite)?.0)
}

/// Reads `length` bytes.
fn read(
    path: &Path,
    source: &(impl Source + ?Sized),
    length: u64,
    non_finite: NonFinite,
) -> Result<(StateDict, BTreeMap<String, String>), WeightsError> {
    let unreadable = |source| WeightsError::from(FileError::read(path, source));
    let invalid = |problem| WeightsError::Safetensors { path: path.to_path_buf(), problem };
    let mut beginning = [0; BEGINNING];
    let beginning = &mut beginning[..BEGINNING.min(usize::try_from(length).unwrap_or(BEGINNING))];
    source.from(0).read_exact(beginning).map_err(unreadable)?;
    if let Some((format, remedy)) = other_format(beginning) {
        return Err(WeightsError::Format { path: path.to_path_buf(), format, remedy });
    }
    let mut header = vec![0; header_length(beginning, length).map_err(invalid)?];
    source.from(PREFIX as u64).read_exact(&mut header).map_err(unreadable)?;
    let Declarations(declarations) = serde_json::from_slice(&header)
        .map_err(|error| invalid(format!("its header has {}", printable(&error.to_string()))))?;

    let first = (PREFIX + header.len()) as u64;
    let held = usize::try_from(length - first).unwrap_or(usize::MAX);
    let mut tensors = Vec::with_capacity(declarations.len());
    for (name, declaration) in declarations {
        let declaration: Declaration = serde_json::from_value(declaration).map_err(|error| {
            invalid(format!("the tensor {} has {}", printable(&name), printable(&error.to_string())))
        })?;
        let Some(dtype) = Dtype::from_name(&declaration.dtype) else {
            let (tensor, dtype) = (printable(&name), printable(&declaration.dtype));
            return Err(WeightsError::Dtype { path: path.to_path_buf(), tensor, dtype });
        };
        declaration.check(&name, dtype, held).map_err(invalid)?;
        tensors.push(Tensor { name, dtype, declaration });
    }
    check_order(&mut tensors, held).map_err(invalid)?;
    let accepted: Metadata =
        serde_json::from_slice(&header).map_err(|error| invalid(printable(&error.to_string())))?;

    let nothing = || Ok(TensorValues::F32(Vec::new()));
    let contents = tensors.into_iter().map(|tensor| Contents { tensor, values: nothing(), non_finite: 0 });
    let mut contents: Vec<Contents> = contents.collect();
    // Asking for the processors reads files, which a small one is not worth.
    let shares = (held / SHARE).clamp(1, READERS);
    let threads = if shares > 1 { shares.min(physical_processors()) } else { 1 };
    Pool::new(threads).pieces(&mut contents, 1, |_, contents| {
        let Contents { tensor: Tensor { dtype, declaration, .. }, values, non_finite: found } =
            &mut contents[0];
        let [start, end] = declaration.data_offsets;
        let count = declaration.shape.iter().product();
        let mut piece = vec![0; PIECE.min(end - start)];
        *values = dtype.decode(&mut source.from(first + start as u64), &mut piece, count);
        // Now, while the values are in the cache.
        if let (Ok(values), NonFinite::Refuse) = (values, non_finite) {
            *found = values.non_finite();
        }
    });
    let (mut state, mut refused) = (StateDict::new(), Vec::new());
    for Contents { tensor: Tensor { name, declaration, .. }, values, non_finite } in contents {
        if non_finite > 0 {
            refused.push((name.clone(), non_finite));
        }
        state.insert_values(name, declaration.shape, values.map_err(unreadable)?)?;
    }
    if !refused.is_empty() {
        refused.sort_unstable();
        return Err(WeightsError::NonFinite { path: path.to_path_buf(), tensors: refused });
    }
    let metadata = accepted.metadata().iter().flatten();
    Ok((state, metadata.map(|(key, value)| (key.clone(), value.clone())).collect()))
}

/// Writes a safetensors file atomically, F32 and I64. The same tensors and metadata give the same bytes. The entry
/// `format: pt`, which torch's loaders ask for, is added to the metadata unless it has a `format`.
///
/// # Errors
/// When the file cannot be written.
pub fn write_safetensors(
    path: &Path,
    state: &StateDict,
    metadata: &BTreeMap<String, String>,
) -> Result<(), WeightsError> {
    let mut metadata = metadata.clone();
    metadata.entry("format".to_string()).or_insert_with(|| "pt".to_string());
    // 8-byte values first, so that every tensor is aligned, and readers may map the file.
    let mut tensors: Vec<(&str, &TensorEntry)> = state.iter().collect();
    tensors.sort_by_key(|(_, entry)| entry.as_i64().is_none());

    let mut offset = 0;
    let mut header = Header { metadata: &metadata, tensors: BTreeMap::new() };
    for (name, entry) in &tensors {
        let dtype = Dtype::of(entry.values());
        let end = offset + entry.values().len() * dtype.size();
        let declaration =
            HeaderEntry { dtype: dtype.name(), shape: entry.shape(), data_offsets: [offset, end] };
        header.tensors.insert(name, declaration);
        offset = end;
    }
    write_atomically(path, |to| {
        let mut header = serde_json::to_vec(&header)?;
        header.resize(header.len().next_multiple_of(PREFIX), b' ');
        if header.len() > LONGEST_HEADER {
            let problem = format!("{} need a header longer than 100 MB", count(tensors.len(), "tensor"));
            return Err(io::Error::new(io::ErrorKind::InvalidInput, problem));
        }
        to.write_all(&(header.len() as u64).to_le_bytes())?;
        to.write_all(&header)?;
        for (_, entry) in &tensors {
            match entry.values() {
                TensorValues::F32(values) => write_values(to, values, f32::to_le_bytes)?,
                TensorValues::I64(values) => write_values(to, values, i64::to_le_bytes)?,
            }
        }
        Ok(())
    })?;
    Ok(())
}

fn write_values<T: Copy, const SIZE: usize>(
    to: &mut dyn Write,
    values: &[T],
    bytes: impl Fn(T) -> [u8; SIZE],
) -> io::Result<()> {
    let mut buffer = Vec::with_capacity(values.len().min(8192) * SIZE);
    for chunk in values.chunks(8192) {
        buffer.clear();
        buffer.extend(chunk.iter().flat_map(|&value| bytes(value)));
        to.write_all(&buffer)?;
    }
    Ok(())
}

/// Files that are often taken for safetensors, by their first bytes; with what to do.
fn other_format(bytes: &[u8]) -> Option<(&'static str, &'static str)> {
    let zip = ("a zip archive such as torch.save writes", "give it a name that ends in .pth");
    no_weights(bytes).or_else(|| bytes.starts_with(b"PK\x03\x04").then_some(zip))
}

/// The length of the JSON header, which lies within the file's `length` bytes.
fn header_length(beginning: &[u8], length: u64) -> Result<usize, String> {
    let Some((header, _)) = beginning.split_first_chunk::<PREFIX>() else {
        return Err(match beginning.len() {
            0 => "the file is empty".to_string(),
            held => format!("it has {}, too few for the header's length", count(held, "byte")),
        });
    };
    let (header, held) = (u64::from_le_bytes(*header), length - PREFIX as u64);
    if header > LONGEST_HEADER as u64 {
        return Err(format!(
            "its first bytes ask for a header of {header} bytes, at most 100 MB are allowed"
        ));
    }
    if header > held {
        return Err(format!("its header should have {header} bytes, the file holds {held}: it is truncated"));
    }
    Ok(header as usize)
}

/// A tensor of the file whose declaration has been checked by itself.
struct Tensor {
    name: String,
    dtype: Dtype,
    declaration: Declaration,
}

/// What was read of a tensor.
struct Contents {
    tensor: Tensor,
    values: io::Result<TensorValues>,
    /// Values that are refused because they are not finite.
    non_finite: usize,
}

/// Sorts tensors by place, and checks that they fill the `held` bytes without gap or overlap.
fn check_order(tensors: &mut [Tensor], held: usize) -> Result<(), String> {
    tensors.sort_by_key(|tensor| tensor.declaration.data_offsets);
    let (mut before, mut filled) = ("the header", 0);
    for Tensor { name, declaration: Declaration { data_offsets: [start, end], .. }, .. } in tensors {
        if *start != filled {
            let (name, before) = (printable(name), printable(before));
            return Err(format!(
                "the values of the tensor {name} start at byte {start}, those of {before} end at byte {filled}"
            ));
        }
        (before, filled) = (name, *end);
    }
    match held - filled {
        0 => Ok(()),
        rest => Err(format!("it has {} after the last tensor", count(rest, "byte"))),
    }
}

/// A tensor as the header declares it.
#[derive(Deserialize)]
struct Declaration {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: [usize; 2],
}

impl Declaration {
    /// Checks the declaration by itself; `held` is the number of bytes of values in the file.
    fn check(&self, name: &str, dtype: Dtype, held: usize) -> Result<(), String> {
        let name = printable(name);
        let bytes = self.shape.iter().try_fold(dtype.size(), |product, &size| product.checked_mul(size));
        let Some(bytes) = bytes else {
            return Err(format!("the shape of the tensor {name} is too large"));
        };
        let [start, end] = self.data_offsets;
        if end.checked_sub(start) != Some(bytes) {
            let (dtype, shape) = (dtype.name(), &self.shape);
            return Err(format!(
                "the tensor {name} of type {dtype} and shape {shape:?} needs {bytes} bytes, its data_offsets are [{start}, {end}]"
            ));
        }
        if end > held {
            return Err(format!(
                "the tensor {name} ends at byte {end} of the values, the file holds {held}: it is truncated"
            ));
        }
        Ok(())
    }
}

/// The header's tensors in the order of the file, without `__metadata__`; a name that comes twice is an error.
struct Declarations(Vec<(String, serde_json::Value)>);

impl<'de> Deserialize<'de> for Declarations {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Collect;
        impl<'de> Visitor<'de> for Collect {
            type Value = Declarations;

            fn expecting(&self, formatter: &mut std::fmt::Formatter) -> std::fmt::Result {
                formatter.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Declarations, A::Error> {
                let mut seen = HashSet::new();
                let mut tensors = Vec::new();
                while let Some((name, value)) = map.next_entry::<String, serde_json::Value>()? {
                    if !seen.insert(name.clone()) {
                        return Err(serde::de::Error::custom(format_args!("the name {name} twice")));
                    }
                    if name != "__metadata__" {
                        tensors.push((name, value));
                    }
                }
                Ok(Declarations(tensors))
            }
        }
        deserializer.deserialize_map(Collect)
    }
}

#[derive(Serialize)]
struct Header<'a> {
    #[serde(rename = "__metadata__")]
    metadata: &'a BTreeMap<String, String>,
    #[serde(flatten)]
    tensors: BTreeMap<&'a str, HeaderEntry<'a>>,
}

#[derive(Serialize)]
struct HeaderEntry<'a> {
    dtype: &'static str,
    shape: &'a [usize],
    data_offsets: [usize; 2],
}

#[cfg(test)]
#[path = "safetensors_tests.rs"]
mod tests;
