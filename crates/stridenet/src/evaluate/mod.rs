//! From predictions to accuracy, its interval, and the confusion of classes.

mod metrics;

pub use metrics::{Evaluation, Metrics, wilson_interval};

use crate::Error;
use crate::data::{Batch, DataError};
use crate::kernels::Context;
use crate::layer::Workspace;
use crate::network::Network;

/// Evaluates a network on batches of prepared images; `progress` is told the number of images done after each batch and
/// may stop by returning `false`, upon which what was done so far is returned.
///
/// # Errors
/// When a batch cannot be had or does not fit the network.
pub fn evaluate(
    cx: &Context,
    workspace: &mut Workspace,
    network: &Network,
    batches: impl Iterator<Item = Result<Batch, DataError>>,
    mut progress: impl FnMut(usize) -> bool,
) -> Result<Evaluation, Error> {
    let mut metrics = Metrics::new(network.arch().num_classes);
    for batch in batches {
        let Batch { images, labels, .. } = batch?;
        let logits = network.infer(cx, workspace, &images)?;
        metrics.update(cx, logits.data(), &labels, 0.0);
        workspace.give(logits);
        if !progress(metrics.count()) {
            break;
        }
    }
    Ok(metrics.finish())
}
