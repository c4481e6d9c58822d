//! Between files' graphs and networks.
//!
//! Both sides are brought to the same form: `decode` turns a file's graph into steps, `lower` walks a network's structure
//! and names the tensor that each step needs. Import reads the architecture off the file's steps, lowers it, and lays one
//! over the other: nothing is taken from a file that does not have exactly the network's steps. Export writes the network's
//! steps as nodes.

mod dag;
mod decode;
mod encode;
mod error;
mod evaluate;
mod export;
mod fold;
mod import;
mod lower;
mod observe;
#[cfg(test)]
mod tests;
mod unify;

pub use error::{ExchangeError, Unsupported};
pub use export::{OnnxOptions, OnnxReport, write_onnx};
pub use import::{OnnxFile, OnnxNetwork};
