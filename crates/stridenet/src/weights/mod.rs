//! Model folders, safetensors and NPY files, and an account of what was loaded.
//!
//! Everything here is between bytes and named tensors in torch's layouts: convolutions are OIHW
//! (`[out_channels, in_channels / groups, height, width]`), linear layers `[out_features, in_features]`, vectors `[C]`.
//! Every file is treated as hostile: sizes are checked against what the file holds before anything is allocated.

mod account;
mod config;
mod dtype;
mod error;
mod folder;
mod format;
mod layout;
mod npy;
pub mod onnx;
mod prefix;
mod pytorch;
mod safetensors;
mod source;
mod state;

pub use account::{Account, Expected, Mismatch, Unused, UnusedTensors, fit, fit_unwrapped};
pub use config::{ModelConfig, PretrainedConfig};
pub use error::WeightsError;
pub(crate) use error::printable;
pub use folder::{CONFIG_FILE, ModelFolder, WEIGHTS_FILE};
pub use format::{FileContents, Format, read_weights};
pub use layout::{conv_from_hwio, conv_to_hwio};
pub use npy::{read_npy, write_npy};
pub use prefix::{Unwrapped, unwrap};
pub use pytorch::{pytorch_from_bytes, read_pytorch};
pub use safetensors::{
    NonFinite, read_safetensors, read_safetensors_with_metadata, safetensors_from_bytes, write_safetensors,
};
pub use state::{NamedTensor, StateDict, TensorEntry, TensorValues};
