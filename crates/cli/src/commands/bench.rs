//! `stridenet bench`: how fast this machine runs networks.

use super::{architecture, is_model, note_bf16, open_model, random_network, tuning};
use crate::arguments::{BenchCommand, BenchInferFlags, BenchLayersFlags, BenchNetwork, BenchTrainFlags};
use crate::console::Console;
use crate::failure::Failure;
use anyhow::anyhow;
use serde::Serialize;
use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use stridenet::Tensor;
use stridenet::bench::{self, LayerTime, Machine, check, peak_rss_bytes, random_images, time};
use stridenet::file::write_atomically;
use stridenet::kernels::Context;
use stridenet::network::Network;
use stridenet::plan::{Plan, PlanOptions, Tuning};
use stridenet::train::{Amp, Descent, SgdOptions};

/// Runs the benchmark that was asked for.
pub(crate) fn run(cx: &Arc<Context>, console: &Console, command: &BenchCommand) -> Result<(), Failure> {
    match command {
        BenchCommand::Infer(flags) => infer(cx, console, flags),
        BenchCommand::Train(flags) => train(cx, console, flags),
        BenchCommand::Layers(flags) => layers(cx, console, flags),
    }
}

/// What `bench infer --json` prints.
#[derive(Debug, Serialize)]
struct InferOutcome {
    arch: String,
    batch: usize,
    threads: usize,
    precision: &'static str,
    img_size: [usize; 2],
    level: &'static str,
    ms_per_image: Milliseconds,
    images_per_second: f64,
    peak_rss_mb: Option<f64>,
    gmacs: f64,
    param_count: u64,
    /// Time to read (or draw), fold and pack the weights.
    load_ms: f64,
    /// Whether the algorithms were measured on this machine instead of estimated.
    tuned: bool,
}

#[derive(Debug, Serialize)]
struct Milliseconds {
    median: f64,
    min: f64,
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// Images whose logits are compared with the layer-by-layer network's.
const CHECKED: usize = 2;

fn infer(cx: &Arc<Context>, console: &Console, flags: &BenchInferFlags) -> Result<(), Failure> {
    let batch = flags.network.batch_size.get();
    let start = Instant::now();
    let network = network(cx, console, &flags.network.network, flags.network.img_size)?;
    let read = start.elapsed();
    let tuning = tuning(cx, console, &network, &flags.network)?;
    let tuned = tuning.is_some();
    let start = Instant::now();
    let summary = network.arch().summary(network.input()).map_err(stridenet::Error::from)?;
    let arch = network.arch().name.clone();
    let plan = Plan::compile_owned(network, PlanOptions { batch, context: Arc::clone(cx), tuning })?;
    let load = read + start.elapsed();
    plan.settle();
    let [height, width, channels] = plan.input();
    let images = random_images([batch, height, width, channels]);
    let mut logits = Tensor::zeros([batch, 1, 1, plan.classes()]);
    plan.run(&images, &mut logits)?;
    // What opening and running needs, before the check opens the unfused network too.
    let peak_rss = peak_rss_bytes();
    let few = random_images([CHECKED.min(batch), height, width, channels]);
    let error =
        check(cx, &self::network(cx, console, &flags.network.network, flags.network.img_size)?, &plan, &few)?;
    console.detail(format_args!("logits agree with the unfused network to {error:.1e} (relative L2)"));
    let timing = time(Duration::from_secs_f64(flags.seconds), || plan.run(&images, &mut logits))?;
    let median = milliseconds(timing.median) / batch as f64;
    let outcome = InferOutcome {
        arch,
        batch,
        threads: cx.threads(),
        precision: "f32",
        img_size: [height, width],
        level: cx.level().name(),
        ms_per_image: Milliseconds { median, min: milliseconds(timing.min) / batch as f64 },
        images_per_second: 1e3 / median,
        peak_rss_mb: peak_rss.map(|bytes| bytes as f64 / f64::from(1 << 20)),
        gmacs: summary.macs as f64 / 1e9,
        param_count: summary.param_count,
        load_ms: milliseconds(load),
        tuned,
    };
    match console.json {
        true => console.json(&outcome)?,
        false => console.result(&format!(
            "{} at {height}x{width}, batch {batch}, {} threads, {}: {:.3} ms an image (best {:.3}), {:.1} images a second\n",
            outcome.arch, outcome.threads, outcome.level, median, outcome.ms_per_image.min, outcome.images_per_second
        ))?,
    }
    Ok(())
}

/// What `bench train --json` prints.
#[derive(Debug, Serialize)]
struct TrainOutcome {
    arch: String,
    batch: usize,
    threads: usize,
    precision: &'static str,
    img_size: [usize; 2],
    level: &'static str,
    recompute: bool,
    ms_per_step: Milliseconds,
    images_per_second: f64,
    peak_rss_mb: Option<f64>,
}

/// The measured steps' learning rate and optimizer: small steps, with all the arithmetic of real ones.
const LR: f32 = 0.01;
const SGD: SgdOptions =
    SgdOptions { momentum: 0.9, nesterov: false, weight_decay: 1e-4, decay_norm_and_bias: true };

/// Steps on the measured batch after which its loss must have fallen.
const LEARNED: usize = 4;

fn train(cx: &Arc<Context>, console: &Console, flags: &BenchTrainFlags) -> Result<(), Failure> {
    let batch = flags.batch_size.get();
    let mut network = network(cx, console, &flags.network, flags.img_size)?;
    let ([height, width], arch) = (network.input(), network.arch().clone());
    let shape = [batch, height, width, arch.in_channels];
    let labels: Vec<usize> = (0..batch).map(|image| image % arch.num_classes).collect();
    let amp = flags.amp.map(Amp::from);
    network.set_operands(Amp::operands(amp));
    network.set_recompute(flags.recompute);
    note_bf16(cx, console, amp);
    let mut descent = Descent::new(&network, SGD);
    let mut step = || {
        // The network gives back the images that it took.
        let images = descent.take_images().unwrap_or_else(|| random_images(shape));
        descent.step(cx, &mut network, images, &labels, 0.0, LR)
    };
    let first = step()?.loss;
    let mut last = first;
    for _ in 0..LEARNED {
        last = step()?.loss;
    }
    if arch.num_classes > 1 && (last.is_nan() || last >= first) {
        let message = format!(
            "the loss of one batch went from {first} to {last} in {LEARNED} steps, expected it to fall"
        );
        return Err(anyhow!(message).into());
    }
    console.detail(format_args!(
        "the loss of the measured batch fell from {first:.3} to {last:.3} in {LEARNED} steps"
    ));
    let timing = time(Duration::from_secs_f64(flags.seconds), || step().map(drop))?;
    let median = milliseconds(timing.median);
    let outcome = TrainOutcome {
        arch: arch.name,
        batch,
        threads: cx.threads(),
        precision: if amp.is_some() { "bf16" } else { "f32" },
        img_size: [height, width],
        level: cx.level().name(),
        recompute: flags.recompute,
        ms_per_step: Milliseconds { median, min: milliseconds(timing.min) },
        images_per_second: 1e3 * batch as f64 / median,
        peak_rss_mb: peak_rss_bytes().map(|bytes| bytes as f64 / f64::from(1 << 20)),
    };
    let memory = outcome.peak_rss_mb.map_or_else(String::new, |peak| format!(", {peak:.0} MiB at most"));
    match console.json {
        true => console.json(&outcome)?,
        false => console.result(&format!(
            "{} at {height}x{width}, batch {batch}, {}, {} threads, {}{}: {median:.1} ms a step (best {:.1}), {:.1} images a second{memory}\n",
            outcome.arch,
            outcome.precision,
            outcome.threads,
            outcome.level,
            if outcome.recompute { ", recomputing blocks" } else { "" },
            outcome.ms_per_step.min,
            outcome.images_per_second
        ))?,
    }
    Ok(())
}

/// What `bench layers --json` prints.
#[derive(Debug, Serialize)]
struct LayersOutcome {
    arch: String,
    batch: usize,
    threads: usize,
    level: &'static str,
    machine: Machine,
    ms: f64,
    layers: Vec<LayerTime>,
}

/// Rounds of the measurement, and runs in each.
const ROUNDS: [usize; 2] = [5, 4];

fn layers(cx: &Arc<Context>, console: &Console, flags: &BenchLayersFlags) -> Result<(), Failure> {
    let batch = flags.network.batch_size.get();
    let network = network(cx, console, &flags.network.network, flags.network.img_size)?;
    let tuning = tuning(cx, console, &network, &flags.network)?;
    let plan = Plan::compile(&network, PlanOptions { batch, context: Arc::clone(cx), tuning })?;
    plan.settle();
    let [height, width, channels] = plan.input();
    let images = random_images([batch, height, width, channels]);
    check(cx, &network, &plan, &images)?;
    let machine = Machine::measure(cx);
    let layers = bench::layers(&plan, &machine, &images, ROUNDS)?;
    let ms = layers.iter().map(|layer| layer.ms).sum();
    let arch = network.arch().name.clone();
    if let Some(path) = &flags.svg {
        let network = format!("{arch}, batch {batch}, {} threads, {}", cx.threads(), cx.level().name());
        let drawing = bench::drawing(&network, &machine, batch, &layers);
        write_atomically(path, |to| to.write_all(drawing.as_bytes())).map_err(stridenet::Error::from)?;
        console.message(format_args!("wrote {}", path.display()));
    }
    let outcome =
        LayersOutcome { arch, batch, threads: cx.threads(), level: cx.level().name(), machine, ms, layers };
    match console.json {
        true => console.json(&outcome)?,
        false => console.result(&table(&outcome))?,
    }
    Ok(())
}

fn table(outcome: &LayersOutcome) -> String {
    let Machine { peak_flops, read_bandwidth } = outcome.machine;
    let mut text = format!(
        "{}, batch {}, {} threads, {}: peak {:.0} GFLOP/s, memory {:.1} GB/s\n{:<24} {:<30} {:>14} {:>14} {:>9} {:>6} {:>8} {:>6}\n",
        outcome.arch,
        outcome.batch,
        outcome.threads,
        outcome.level,
        peak_flops / 1e9,
        read_bandwidth / 1e9,
        "layer",
        "algorithm",
        "input",
        "output",
        "ms",
        "share",
        "GFLOP/s",
        "floor"
    );
    let shape = |[height, width, channels]: [usize; 3]| format!("{height}x{width}x{channels}");
    for LayerTime { step, ms, share, gflops, of_floor } in &outcome.layers {
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "{:<24} {:<30} {:>14} {:>14} {ms:>9.3} {share:>5.1}% {gflops:>8.0} {of_floor:>5.0}%",
            step.title(),
            step.algorithm,
            shape(step.input),
            shape(step.output)
        );
    }
    let _ = writeln!(text, "{:<24} {:>70.3}", "sum", outcome.ms);
    text
}

/// The model that a benchmark names, where it does not name an architecture.
fn model(network: &str) -> Option<&Path> {
    is_model(network).then_some(Path::new(network))
}

/// The tuning that `--tune` measures, or a saved one.
fn tuning(
    cx: &Arc<Context>,
    console: &Console,
    network: &Network,
    flags: &BenchNetwork,
) -> Result<Option<Arc<Tuning>>, Failure> {
    let (batch, model) = (flags.batch_size.get(), model(&flags.network));
    match flags.tune {
        true => tuning::measured(cx, console, network, batch, model).map(Some),
        false => tuning::saved(cx, console, network, batch, model),
    }
}

/// A model's network, or a preset's with random weights.
fn network(
    cx: &Arc<Context>,
    console: &Console,
    network: &str,
    img_size: Option<[usize; 2]>,
) -> Result<Network, Failure> {
    if let Some(model) = model(network) {
        return Ok(open_model(cx, console, model, img_size)?.into_network());
    }
    let mut arch = architecture(network, &Default::default())?;
    if let Some(size) = img_size {
        arch.img_size = size;
    }
    random_network(cx, &arch)
}
