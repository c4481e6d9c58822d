//! PyTorch's `.pth` and `.pt` files: a zip archive with a pickle that describes tensors, and their values.
//!
//! Nothing of a file is ever run. The pickle machine knows the few classes and functions that weights need by name, and what
//! they make of their arguments; everything else is an error that names it.

mod archive;
mod pickle;
mod tensors;
mod value;

use super::error::{WeightsError, printable};
use super::safetensors::NonFinite;
use super::state::StateDict;
use crate::file::FileError;
use archive::{Archive, Entry};
use std::fs::File;
use std::io::{self, Cursor, Read, Seek};
use std::path::Path;
use tensors::{named_tensors, read_tensors};

/// Where checkpoints keep a state dict beside other things, the one that is preferred first: an average of weights before the
/// weights, as timm does.
const PARTS: [&str; 11] = [
    "state_dict_ema",
    "model_ema",
    "ema_state_dict",
    "ema",
    "state_dict",
    "model_state_dict",
    "model",
    "net",
    "module",
    "params",
    "weights",
];
/// How deeply a state dict can lie in a checkpoint.
const DEEPEST: usize = 4;
/// The longest entry other than tensors and the pickle, in bytes.
const LONGEST_NOTE: u64 = 64;

/// What is wrong with a file, without its name.
#[derive(Debug)]
pub(super) enum Problem {
    Io(io::Error),
    /// What was found and what was expected; and what to do.
    Found(String, &'static str),
    /// A tensor with a type that weights have not.
    Dtype {
        tensor: String,
        dtype: String,
    },
    State(WeightsError),
}

impl Problem {
    /// The file is not as it was written.
    fn damaged(problem: String) -> Self {
        Problem::Found(problem, "copy or download it again")
    }

    /// The file is whole but has more, or something else, than weights.
    fn foreign(problem: String) -> Self {
        Problem::Found(problem, "save the weights alone, in Python: torch.save(model.state_dict(), target)")
    }

    fn at(self, path: &Path) -> WeightsError {
        let path = path.to_path_buf();
        match self {
            Problem::Io(source) => FileError::read(path, source).into(),
            Problem::Found(problem, remedy) => WeightsError::Pytorch { path, problem, remedy },
            Problem::Dtype { tensor, dtype } => WeightsError::Dtype { path, tensor, dtype },
            Problem::State(error) => error,
        }
    }
}

impl From<io::Error> for Problem {
    fn from(error: io::Error) -> Self {
        Problem::Io(error)
    }
}

/// Reads a `.pth` or `.pt` file: a state dict, or a checkpoint that contains one. Halves and doubles become `f32`; `int64`
/// stays. Returns the tensors, and under which keys of the checkpoint they were, such as `state_dict`.
///
/// # Errors
/// When the file cannot be read, and as [`pytorch_from_bytes`].
pub fn read_pytorch(path: &Path, non_finite: NonFinite) -> Result<(StateDict, String), WeightsError> {
    let unreadable = |source| FileError::read(path, source);
    let file = File::open(path).map_err(unreadable)?;
    let length = file.metadata().map_err(unreadable)?.len();
    let read = read(file, length).map_err(|problem| problem.at(path))?;
    finite(path, read, non_finite)
}

/// As [`read_pytorch`], from the bytes of a file; `path` is only for messages.
///
/// # Errors
/// When the bytes are damaged, compressed, in the format from before PyTorch 1.6, a TorchScript archive or of a big-endian
/// machine; contain classes, functions or opcodes that weights do not need, tensors of another type than float32, float16,
/// bfloat16, float64 and int64, or no tensors; or values are not finite and `non_finite` refuses them.
pub fn pytorch_from_bytes(
    path: &Path,
    bytes: &[u8],
    non_finite: NonFinite,
) -> Result<(StateDict, String), WeightsError> {
    let read = read(Cursor::new(bytes), bytes.len() as u64).map_err(|problem| problem.at(path))?;
    finite(path, read, non_finite)
}

fn finite(
    path: &Path,
    (state, part): (StateDict, String),
    non_finite: NonFinite,
) -> Result<(StateDict, String), WeightsError> {
    let tensors = if non_finite == NonFinite::Refuse { state.non_finite() } else { Vec::new() };
    match tensors.is_empty() {
        true => Ok((state, part)),
        false => Err(WeightsError::NonFinite { path: path.to_path_buf(), tensors }),
    }
}

fn read(mut from: impl Read + Seek, length: u64) -> Result<(StateDict, String), Problem> {
    refuse_legacy(&mut from, length)?;
    let mut archive = Archive::open(from, length)?;
    let (pickle, folder) = find_pickle(&archive)?;
    check_byte_order(&mut archive, &folder)?;
    let bytes = archive.read(&pickle, pickle::LONGEST)?;
    let pickle = pickle::load(&bytes)?;
    drop(bytes);
    let (tensors, part) = named_tensors(&pickle)?;
    Ok((read_tensors(&mut archive, &folder, &pickle.heap, tensors)?, part))
}

/// Names the formats that `torch.save` wrote before version 1.6.
fn refuse_legacy(from: &mut (impl Read + Seek), length: u64) -> Result<(), Problem> {
    const REMEDY: &str =
        "save it again, in Python: torch.save(torch.load(source, weights_only=True), target)";
    /// A pickled number that begins every such file, after the pickle's protocol.
    const MAGIC: &[u8] = b"\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19";
    let mut beginning = [0; 512];
    let beginning = &mut beginning[..512.min(length as usize)];
    from.read_exact(beginning)?;
    let legacy = if beginning.get(2..2 + MAGIC.len()) == Some(MAGIC) {
        "is in the format that PyTorch wrote before version 1.6"
    } else if beginning.get(257..262) == Some(b"ustar") {
        "is in the tar format that PyTorch wrote before version 0.1.10"
    } else if beginning.starts_with(b"\x80") {
        "is a pickle, but not in PyTorch's zip format"
    } else if beginning.starts_with(b"PK\x03\x04") {
        return Ok(());
    } else {
        let problem = match length {
            0 => "it is empty".to_owned(),
            _ => "it does not begin like a zip archive".to_owned(),
        };
        return Err(Problem::damaged(problem));
    };
    Err(Problem::Found(format!("it {legacy}"), REMEDY))
}

/// The pickle's entry, and the folder that all entries are in.
fn find_pickle(archive: &Archive<impl Read + Seek>) -> Result<(Entry, String), Problem> {
    let pickles: Vec<(&Entry, &str)> = archive
        .entries()
        .filter_map(|entry| Some((entry, entry.name.strip_suffix("data.pkl")?)))
        .filter(|(_, folder)| folder.is_empty() || folder.find('/') == Some(folder.len() - 1))
        .collect();
    let [(entry, folder)] = pickles[..] else {
        let found = if pickles.is_empty() { "no data.pkl" } else { "more than one data.pkl" };
        let problem = format!("it is a zip archive with {found}, so torch.save has not written it");
        return Err(Problem::foreign(problem));
    };
    if archive.entry(&format!("{folder}constants.pkl")).is_some() {
        let remedy =
            "save the weights alone, in Python: torch.save(torch.jit.load(source).state_dict(), target)";
        return Err(Problem::Found("it is a TorchScript program".to_owned(), remedy));
    }
    Ok((entry.clone(), folder.to_owned()))
}

/// Refuses values in the order of big-endian machines.
fn check_byte_order(archive: &mut Archive<impl Read + Seek>, folder: &str) -> Result<(), Problem> {
    let Some(entry) = archive.entry(&format!("{folder}byteorder")).cloned() else {
        return Ok(());
    };
    let order = archive.read(&entry, LONGEST_NOTE)?;
    if order == b"little" {
        return Ok(());
    }
    let (order, remedy) = (
        printable(&String::from_utf8_lossy(&order)),
        "save it again on a machine with little-endian numbers",
    );
    Err(Problem::Found(format!("its byte order is {order}, expected little"), remedy))
}

#[cfg(test)]
mod tests;
