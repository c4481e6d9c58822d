//! From an ONNX file to a network's architecture and weights.

use super::dag::NormParts;
use super::decode::{Constant, decode};
use super::error::ExchangeError;
use super::fold::{identity, with_our_epsilon};
use super::lower::lower;
use super::observe::observe;
use super::unify::{Binding, Difference, NormSource, unify};
use crate::Error;
use crate::arch::Arch;
use crate::file::FileError;
use crate::weights::onnx::OnnxModel;
use crate::weights::{NamedTensor, NonFinite, StateDict, WeightsError, printable};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Protocol Buffers allow no longer message, in bytes.
const LONGEST: u64 = (1 << 31) - 1;
/// The smallest sum of a variance and its epsilon that a batch norm may divide by.
const LEAST_VARIANCE: f64 = 1e-30;

/// How many weights more than a file has bytes a network may have: exporters store equal vectors once.
const SHARED: u64 = 1 << 20;

/// An ONNX file in memory.
#[derive(Debug, Clone)]
pub struct OnnxFile {
    path: PathBuf,
    bytes: Vec<u8>,
}

/// The network that an ONNX file holds.
#[derive(Debug)]
pub struct OnnxNetwork {
    /// The architecture; its name is a preset's where it is that preset, else `resnet`.
    pub arch: Arch,
    /// Its tensors under torch's names. Where the file has a batch norm inside the convolution before it, the batch norm
    /// here changes nothing but adds the bias that is left.
    pub state: StateDict,
    /// How many batch norms the file has inside convolutions.
    pub folded: usize,
    /// The program that wrote the file, with its version.
    pub producer: String,
}

impl OnnxFile {
    /// Reads the file at `path`.
    ///
    /// # Errors
    /// When it cannot be read, or is longer than an ONNX file can be.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let unreadable = |source| FileError::read(path, source);
        let file = File::open(path).map_err(unreadable)?;
        let length = file.metadata().map_err(unreadable)?.len();
        if length > LONGEST {
            let problem = format!("it has {length} bytes, at most 2 GiB are possible");
            return Err(WeightsError::Onnx { path: path.to_path_buf(), problem }.into());
        }
        let mut bytes = Vec::with_capacity(length as usize);
        file.take(LONGEST).read_to_end(&mut bytes).map_err(unreadable)?;
        Ok(OnnxFile { path: path.to_path_buf(), bytes })
    }

    /// The bytes of a file; `path` is for messages, and for constants that lie beside it.
    pub fn from_bytes(path: &Path, bytes: Vec<u8>) -> Self {
        OnnxFile { path: path.to_path_buf(), bytes }
    }

    /// The file's metadata.
    ///
    /// # Errors
    /// When the bytes are no ONNX file.
    pub fn metadata(&self) -> Result<BTreeMap<String, String>, Error> {
        Ok(OnnxModel::from_bytes(&self.path, &self.bytes)?.metadata)
    }

    /// The network in the file: that of `arch` if it is given, else the one that the graph shows.
    ///
    /// # Errors
    /// When the bytes are no ONNX file, the graph is not that network's or no residual network's, or constants are missing or
    /// not finite where `non_finite` refuses that.
    pub fn network(&self, arch: Option<&Arch>, non_finite: NonFinite) -> Result<OnnxNetwork, Error> {
        let path = self.path.as_path();
        let model = OnnxModel::from_bytes(path, &self.bytes)?;
        let decoded = decode(path, &model)?;
        let graph = |problem: String| ExchangeError::Graph { path: path.to_path_buf(), problem };
        let arch = match arch {
            Some(arch) => arch.clone(),
            None => observe(&decoded.dag, decoded.size, decoded.classes).map_err(graph)?,
        };
        let structure = arch
            .structure()
            .map_err(|error| graph(format!("what the graph shows is no residual network here: {error}")))?;
        let pattern = lower(&structure, arch.in_channels);
        let bindings = unify(&pattern, &decoded.dag).map_err(|difference| {
            let Difference { expected: [ours, is], found: [theirs, has] } = difference;
            ExchangeError::Structure {
                path: path.to_path_buf(),
                architecture: printable(&arch.name),
                found: format!("{theirs} ({has})"),
                expected: format!("{is} ({ours})"),
            }
        })?;
        // The same constant may stand for many tensors, and a small file must not become a large network.
        let held = self.bytes.len() as u64 + bytes_beside(path, &model);
        if structure.param_count() > held + SHARED {
            let count = structure.param_count();
            return Err(graph(format!("its layers have {count} weights, the file holds {held} bytes")).into());
        }
        let shapes: BTreeMap<String, Vec<usize>> =
            structure.tensors().into_iter().map(|tensor| (tensor.name, tensor.shape)).collect();
        let mut reader = Reader { path, shapes: &shapes, state: StateDict::new(), folded: 0 };
        for binding in &bindings {
            reader.bind(binding)?;
        }
        let Reader { state, folded, .. } = reader;
        let tensors = match non_finite {
            NonFinite::Refuse => state.non_finite(),
            NonFinite::Allow => Vec::new(),
        };
        if !tensors.is_empty() {
            return Err(WeightsError::NonFinite { path: path.to_path_buf(), tensors }.into());
        }
        Ok(OnnxNetwork { arch, state, folded, producer: model.producer.clone() })
    }
}

/// The lengths of the files beside the model that hold its constants.
fn bytes_beside(path: &Path, model: &OnnxModel) -> u64 {
    let beside: BTreeSet<PathBuf> =
        model.graph.initializers.values().filter_map(|tensor| tensor.file_beside(path)).collect();
    beside.iter().filter_map(|file| std::fs::metadata(file).ok()).map(|metadata| metadata.len()).sum()
}

/// Reads the constants that a network's tensors were found to be.
struct Reader<'r> {
    path: &'r Path,
    /// The shapes of the network's tensors.
    shapes: &'r BTreeMap<String, Vec<usize>>,
    state: StateDict,
    folded: usize,
}

impl Reader<'_> {
    fn bind(&mut self, binding: &Binding<Constant>) -> Result<(), Error> {
        match *binding {
            Binding::Weight { name, from } => {
                let values = self.values(from)?;
                self.insert(name, values)
            }
            Binding::Bias { name, from } => {
                let length = self.shapes.get(name).map_or(0, |shape| shape.iter().product());
                let values = from.map_or_else(|| Ok(vec![0.0; length]), |from| self.values(from))?;
                self.insert(name, values)
            }
            Binding::Norm { names, channels, ref from } => {
                let [weight, bias, mean, var] = match *from {
                    NormSource::Parts { norm, shift } => self.norm(norm, shift)?,
                    NormSource::Folded(bias) => {
                        self.folded += 1;
                        identity(bias.map_or_else(|| Ok(vec![0.0; channels]), |bias| self.values(bias))?)
                    }
                };
                let NormParts { weight: w, bias: b, mean: m, var: v, .. } = names;
                for (name, values) in [(w, weight), (b, bias), (m, mean), (v, var)] {
                    self.insert(name, values)?;
                }
                Ok(())
            }
        }
    }

    /// A batch norm of the file: weight, bias, mean and variance. A bias before it is taken from the mean.
    fn norm(&self, norm: &NormParts<Constant>, shift: Option<&Constant>) -> Result<[Vec<f32>; 4], Error> {
        let [weight, bias] = [self.values(&norm.weight)?, self.values(&norm.bias)?];
        let [mut mean, mut var] = [self.values(&norm.mean)?, self.values(&norm.var)?];
        if let Some(shift) = shift {
            for (mean, shift) in mean.iter_mut().zip(self.values(shift)?) {
                *mean = (f64::from(*mean) - f64::from(shift)) as f32;
            }
        }
        for value in &mut var {
            let sum = f64::from(*value) + f64::from(norm.epsilon);
            // NaN is not refused here, but with all values that are not finite.
            if sum < LEAST_VARIANCE {
                return Err(self.constant(&norm.var.name, format!("is {value}, expected a variance")));
            }
            *value = with_our_epsilon(*value, norm.epsilon);
        }
        Ok([weight, bias, mean, var])
    }

    fn values(&self, constant: &Constant) -> Result<Vec<f32>, Error> {
        constant.values(self.path).map_err(|problem| self.constant(&constant.name, problem))
    }

    fn insert(&mut self, name: &str, values: Vec<f32>) -> Result<(), Error> {
        // The shapes of both sides' steps agree; this is where a tensor takes its network's form of them.
        let shape = self.shapes.get(name).cloned().unwrap_or_default();
        Ok(self.state.insert(NamedTensor { name: name.to_owned(), shape, values })?)
    }

    fn constant(&self, name: &str, problem: String) -> Error {
        ExchangeError::Constant { path: self.path.to_path_buf(), name: printable(name), problem }.into()
    }
}
