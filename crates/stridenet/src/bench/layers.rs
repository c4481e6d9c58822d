//! Where a plan's time goes, layer by layer, beside what the machine could do at best.

use crate::kernels::{Context, roofline};
use crate::plan::{Plan, StepInfo};
use crate::{Error, Tensor};
use serde::Serialize;
use std::time::Duration;

/// What the machine does at most, measured.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Machine {
    /// Multiply-adds in registers, in FLOP/s over all threads.
    pub peak_flops: f64,
    /// Reading memory, in bytes a second over all threads.
    pub read_bandwidth: f64,
}

impl Machine {
    /// Measures the machine with the context's instructions and threads; takes about half a second.
    pub fn measure(cx: &Context) -> Self {
        let peak = || roofline::peak_flops(cx, 8);
        let (early, read_bandwidth) = (peak(), roofline::read_bandwidth(cx, 3));
        // Threads that have just begun may share a processor for as long as a measurement takes.
        Machine { peak_flops: early.max(peak()), read_bandwidth }
    }

    /// The least time in which a step's own products can be made and its packed weights be read, for `batch` images.
    pub fn floor(&self, step: &StepInfo, batch: usize) -> Duration {
        let products = 2.0 * step.products as f64 * batch as f64 / self.peak_flops;
        Duration::from_secs_f64(products.max(step.weight_bytes as f64 / self.read_bandwidth))
    }
}

/// One step's time.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LayerTime {
    /// The step.
    #[serde(flatten)]
    pub step: StepInfo,
    /// Milliseconds for the batch: the median over rounds.
    pub ms: f64,
    /// Share of the sum over all steps, in percent.
    pub share: f64,
    /// Rate of the direct sum's arithmetic, in GFLOP/s; above the machine's peak where the algorithm needs fewer products.
    pub gflops: f64,
    /// The floor as a share of the time, in percent: 100 is as fast as this algorithm can be on this machine.
    pub of_floor: f64,
}

/// Measures each step of a plan on `images` in `rounds` rounds of `runs` runs.
///
/// # Errors
/// When the images do not fit the plan.
pub fn layers(
    plan: &Plan,
    machine: &Machine,
    images: &Tensor,
    [rounds, runs]: [usize; 2],
) -> Result<Vec<LayerTime>, Error> {
    let mut times = vec![Vec::new(); plan.steps().len()];
    for _ in 0..rounds.max(1) {
        for (times, time) in times.iter_mut().zip(plan.profile(images, runs)?) {
            times.push(time);
        }
    }
    let median = |times: &mut Vec<Duration>| {
        times.sort_unstable();
        times[times.len() / 2].as_secs_f64()
    };
    let seconds: Vec<f64> = times.iter_mut().map(median).collect();
    let total: f64 = seconds.iter().sum();
    let measured = |(step, &seconds): (&StepInfo, &f64)| LayerTime {
        step: step.clone(),
        ms: seconds * 1e3,
        share: 100.0 * seconds / total,
        gflops: 2.0 * step.macs as f64 * images.batch() as f64 / seconds / 1e9,
        of_floor: 100.0 * machine.floor(step, images.batch()).as_secs_f64() / seconds,
    };
    Ok(plan.steps().iter().zip(&seconds).map(measured).collect())
}
