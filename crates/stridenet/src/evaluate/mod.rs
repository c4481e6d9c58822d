//! From predictions to accuracy, its interval, and the confusion of classes.

mod metrics;

pub use metrics::{Evaluation, Metrics, wilson_interval};

use crate::data::{Batch, DataError};
use crate::kernels::Context;
use crate::{Error, Tensor};

/// Evaluates a classifier of `classes` classes on batches of prepared images. `infer` turns images `[N, H, W, C]` into
/// logits `[N, 1, 1, classes]`. `progress` is told the number of images done after each batch and may stop by returning
/// `false`, upon which what was done so far is returned.
///
/// # Errors
/// When a batch cannot be had, and with the first error of `infer`.
pub fn evaluate(
    cx: &Context,
    classes: usize,
    batches: impl Iterator<Item = Result<Batch, DataError>>,
    mut infer: impl FnMut(&Tensor, &mut Tensor) -> Result<(), Error>,
    mut progress: impl FnMut(usize) -> bool,
) -> Result<Evaluation, Error> {
    let mut metrics = Metrics::new(classes);
    for batch in batches {
        let Batch { images, labels, .. } = batch?;
        let mut logits = Tensor::zeros([images.batch(), 1, 1, classes]);
        infer(&images, &mut logits)?;
        metrics.update(cx, logits.data(), &labels, 0.0);
        if !progress(metrics.count()) {
            break;
        }
    }
    Ok(metrics.finish())
}
