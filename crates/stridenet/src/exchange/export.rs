//! From a network to an ONNX file, checked by computing it.

use super::encode::{Encoded, encode};
use super::error::ExchangeError;
use super::evaluate::{Array, evaluate};
use super::lower::lower;
use crate::algorithm::Choice;
use crate::file::write_checked;
use crate::kernels::Context;
use crate::network::Network;
use crate::plan::Plan;
use crate::random::random_images;
use crate::weights::onnx::OnnxModel;
use crate::{Error, Tensor};
use std::io;
use std::path::Path;
use std::sync::Arc;

/// The largest distance between the network's logits and the file's, as relative L2: ten times below what wrong layers show,
/// ten times above what the order of summation does.
const TOLERANCE: f64 = 1e-4;

/// How a network is written.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OnnxOptions {
    /// Whether batch norms go into the convolutions before them. Such a file is smaller and can be trained no further.
    pub folded: bool,
    /// Entries of the file's metadata.
    pub metadata: Vec<(String, String)>,
}

/// What was written and how it was checked.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct OnnxReport {
    /// Nodes of the graph.
    pub nodes: usize,
    /// Relative L2 distance between the network's logits and those computed from the written file, node by node.
    pub distance: f64,
}

/// Writes `network` as an ONNX file, then computes the file node by node for an image of noise and compares the logits with
/// the network's own. Only a file that agrees comes to be at `path`.
///
/// # Errors
/// When the file cannot be written, would be longer than 2 GiB, or does not compute what the network computes.
pub fn write_onnx(
    cx: &Arc<Context>,
    network: &Network,
    path: &Path,
    options: &OnnxOptions,
) -> Result<OnnxReport, Error> {
    let (arch, [height, width]) = (network.arch(), network.input());
    let dag = lower(&arch.structure()?, arch.in_channels);
    let mut encoded = encode(&dag, [height, width], options.folded);
    encoded.model.producer = ["stridenet".to_owned(), env!("CARGO_PKG_VERSION").to_owned()];
    encoded.model.name.clone_from(&arch.name);
    encoded.model.metadata.clone_from(&options.metadata);
    let image = random_images([1, height, width, arch.in_channels]);
    encoded.model.check().map_err(|problem| ExchangeError::Written { path: path.to_path_buf(), problem })?;
    // The plan's memory is given back before the file's is taken. Direct sums need no more of it than the weights; transformed
    // weights are several times as large.
    let expected = {
        let plan = Plan::choosing(network, 1, Arc::clone(cx), &|_, _| Some(Choice::Direct))?;
        let mut logits = Tensor::zeros([1, 1, 1, arch.num_classes]);
        plan.run(&image, &mut logits)?;
        logits
    };
    let mut distance = 0.0;
    write_checked(
        path,
        |to| {
            let state = network.state().map_err(io::Error::other)?;
            let Encoded { model, .. } = &encoded;
            model.write(to, |name| encoded.values(name, &state).map_err(io::Error::other))
        },
        |written| -> Result<(), Error> {
            let refuse = |problem| ExchangeError::Written { path: path.to_path_buf(), problem };
            let bytes = std::fs::read(written).map_err(|error| refuse(error.to_string()))?;
            let model = OnnxModel::from_bytes(path, &bytes)?;
            let images = Array { shape: vec![1, arch.in_channels, height, width], data: image.to_nchw() };
            let found = evaluate(cx, path, &model, images).map_err(refuse)?;
            distance = relative(&found.data, expected.data());
            // Also when it is NaN.
            if distance <= TOLERANCE {
                return Ok(());
            }
            Err(ExchangeError::SelfCheck { path: path.to_path_buf(), distance, tolerance: TOLERANCE }.into())
        },
    )?;
    Ok(OnnxReport { nodes: encoded.model.nodes.len(), distance })
}

/// `‖found − expected‖₂ / ‖expected‖₂`.
pub(super) fn relative(found: &[f32], expected: &[f32]) -> f64 {
    let square = |value: f64| value * value;
    let difference: f64 =
        found.iter().zip(expected).map(|(&f, &e)| square(f64::from(f) - f64::from(e))).sum();
    let size: f64 = expected.iter().map(|&e| square(f64::from(e))).sum();
    match found.len() == expected.len() {
        true => (difference / size).sqrt(),
        false => f64::INFINITY,
    }
}
