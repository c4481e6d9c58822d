//! Measuring how fast networks run on this machine. Answers are checked before anything is timed.

mod drawing;
mod layers;
mod memory;

pub use crate::random::random_images;
pub use drawing::drawing;
pub use layers::{LayerTime, Machine, layers};
pub use memory::peak_rss_bytes;

use crate::kernels::Context;
use crate::layer::Workspace;
use crate::network::Network;
use crate::plan::Plan;
use crate::{Error, Tensor};
use std::time::{Duration, Instant};
use thiserror::Error;

/// A measurement that means nothing.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum BenchError {
    /// The plan's logits are not the network's.
    #[error(
        "the plan's logits differ from the network's by {error:.1e} (relative L2), expected at most {limit:.0e}; this is a bug"
    )]
    Differs {
        /// Relative L2 distance.
        error: f64,
        /// The largest distance that rounding explains.
        limit: f64,
    },
}

/// Largest relative L2 distance of a plan's logits from those of the network that rounding explains. Depth magnifies
/// rounding: resnet152 with trained-like batch norms is 4e-4 away from `f64` with direct sums, and 1.5 times that with a plan.
const LIMIT: f64 = 2e-3;

/// Times of repeated calls.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Timing {
    /// The median.
    pub median: Duration,
    /// The shortest.
    pub min: Duration,
    /// Number of calls.
    pub calls: usize,
}

/// Compares the plan's logits with the layer-by-layer network's and returns their relative L2 distance.
///
/// # Errors
/// When the images are not the network's, or the distance is more than rounding explains.
pub fn check(cx: &Context, network: &Network, plan: &Plan, images: &Tensor) -> Result<f64, Error> {
    let expected = network.infer(cx, &mut Workspace::default(), images)?;
    let mut found = Tensor::zeros(expected.shape());
    plan.run(images, &mut found)?;
    let square = |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>();
    let pairs = || expected.data().iter().zip(found.data());
    let distance = square(&mut pairs().map(|(&a, &b)| f64::from(a) - f64::from(b)));
    let error = (distance / square(&mut pairs().map(|(&a, _)| f64::from(a))).max(f64::MIN_POSITIVE)).sqrt();
    if error <= LIMIT { Ok(error) } else { Err(BenchError::Differs { error, limit: LIMIT }.into()) }
}

/// Calls `work` until `budget` is spent, at least five times after two calls that do not count.
///
/// # Errors
/// With the first error of `work`.
pub fn time<E>(budget: Duration, mut work: impl FnMut() -> Result<(), E>) -> Result<Timing, E> {
    const WARM_UP: usize = 2;
    const LEAST: usize = 5;
    for _ in 0..WARM_UP {
        work()?;
    }
    let (mut times, begin) = (Vec::new(), Instant::now());
    while times.len() < LEAST || begin.elapsed() < budget {
        let start = Instant::now();
        work()?;
        times.push(start.elapsed());
    }
    times.sort_unstable();
    Ok(Timing { median: times[times.len() / 2], min: times[0], calls: times.len() })
}

#[cfg(test)]
mod tests;
