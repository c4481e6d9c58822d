//! ONNX files: bytes ↔ a graph with its constants. <https://onnx.ai/onnx/repo-docs/IR.html>
//!
//! Only the messages that inference graphs use are known, and only what they can hold is kept: names, attributes, shapes, and
//! where each constant's values lie. Values are borrowed from the file's bytes until somebody asks for them.

mod graph;
mod tensor;
#[cfg(test)]
mod tests;
mod wire;
mod write;

pub use graph::{Attribute, Graph, Node, OnnxModel, ValueInfo};
pub use tensor::OnnxTensor;
pub use write::{NewConstant, NewModel, OPSET, Size};

use super::error::WeightsError;
use std::path::Path;

impl<'a> OnnxModel<'a> {
    /// Reads the bytes of an ONNX file; `path` is only for messages.
    ///
    /// # Errors
    /// When they are truncated or damaged, or hold what inference graphs do not.
    pub fn from_bytes(path: &Path, bytes: &'a [u8]) -> Result<Self, WeightsError> {
        let read = if bytes.is_empty() {
            Err("the file is empty".to_owned())
        } else {
            graph::Parser::default().model(bytes)
        };
        read.map_err(|problem| WeightsError::Onnx { path: path.to_path_buf(), problem })
    }
}
