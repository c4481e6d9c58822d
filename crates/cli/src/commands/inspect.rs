//! `stridenet inspect`.

use super::{architecture, is_model, open_model, random_network, tuning};
use crate::arguments::InspectFlags;
use crate::console::Console;
use crate::failure::Failure;
use serde::Serialize;
use std::fmt::Write as _;
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;
use stridenet::arch::{Arch, Overrides};
use stridenet::file::write_atomically;
use stridenet::kernels::Context;
use stridenet::network::Network;
use stridenet::plan::{Plan, PlanOptions, StepInfo};

/// Prints a network's layers and totals, or its plan's steps.
pub(crate) fn run(cx: &Arc<Context>, console: &Console, flags: &InspectFlags) -> Result<(), Failure> {
    let InspectFlags { network, shape, svg, plan, tensors, batch_size } = flags;
    if *tensors {
        return super::tensors::run(console, network.as_ref());
    }
    let (arch, network) = if is_model(network) {
        let changes = Overrides { img_size: None, ..shape.overrides() };
        if changes != Overrides::default() {
            return Err(Failure::usage(format!(
                "{network} is a model, whose architecture is fixed; only --img-size can change"
            )));
        }
        let model = open_model(cx, console, network.as_ref(), shape.img_size)?;
        let img_size = Some(model.preprocess.input_size);
        let overrides = Overrides { img_size, ..Overrides::default() };
        let arch = model.network().arch().with(&overrides).map_err(Failure::usage)?;
        (arch, Some(model.into_network()))
    } else {
        (architecture(network, shape)?, None)
    };
    let summary = arch.summary(arch.img_size).map_err(Failure::usage)?;
    if let Some(path) = svg {
        let drawing = arch.svg(arch.img_size).map_err(Failure::usage)?;
        write_atomically(path, |to| to.write_all(drawing.as_bytes())).map_err(stridenet::Error::from)?;
        console.message(format_args!("wrote {}", path.display()));
    }
    if *plan {
        let batch = batch_size.map_or(1, NonZeroUsize::get);
        let model = network.is_some().then(|| Path::new(&flags.network));
        return inspect_plan(cx, console, &arch, (network, model), batch);
    }
    match console.json {
        true => console.json(&summary)?,
        false => console.result(&summary.to_table())?,
    }
    Ok(())
}

/// What `inspect --plan --json` prints.
#[derive(Debug, Serialize)]
struct PlanOutcome<'a> {
    arch: &'a str,
    batch: usize,
    threads: usize,
    level: &'static str,
    img_size: [usize; 2],
    /// Bytes of the activations that a run needs.
    activation_bytes: usize,
    /// Bytes of the packed weights.
    weight_bytes: u64,
    steps: &'a [StepInfo],
}

/// Prints the steps that a network is compiled to; without weights, random ones do.
fn inspect_plan(
    cx: &Arc<Context>,
    console: &Console,
    arch: &Arch,
    (network, model): (Option<Network>, Option<&Path>),
    batch: usize,
) -> Result<(), Failure> {
    let network = network.map_or_else(|| random_network(cx, arch), Ok)?;
    let tuning = tuning::saved(cx, console, &network, batch, model)?;
    let options = PlanOptions { batch, context: Arc::clone(cx), tuning };
    let plan = Plan::compile(&network, options)?;
    let outcome = PlanOutcome {
        arch: &arch.name,
        batch,
        threads: cx.threads(),
        level: cx.level().name(),
        img_size: network.input(),
        activation_bytes: plan.activation_bytes(),
        weight_bytes: plan.weight_bytes(),
        steps: plan.steps(),
    };
    match console.json {
        true => console.json(&outcome)?,
        false => console.result(&plan_table(&outcome))?,
    }
    Ok(())
}

fn plan_table(outcome: &PlanOutcome) -> String {
    let mebibytes = |bytes: f64| bytes / f64::from(1 << 20);
    let shape = |[height, width, channels]: [usize; 3]| format!("{height}x{width}x{channels}");
    let mut text = format!(
        "{}, batch {}, {} threads, {}\n{:<24} {:>13} {:>13} {:<30} {:>8}  {}\n",
        outcome.arch,
        outcome.batch,
        outcome.threads,
        outcome.level,
        "step",
        "input",
        "output",
        "algorithm",
        "MiB",
        "reason"
    );
    for step in outcome.steps {
        let weights = match step.weight_bytes {
            0 => String::new(),
            bytes => format!("{:.2}", mebibytes(bytes as f64)),
        };
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "{:<24} {:>13} {:>13} {:<30} {weights:>8}  {}",
            step.title(),
            shape(step.input),
            shape(step.output),
            step.algorithm,
            step.reason
        );
    }
    let _ = writeln!(
        text,
        "{} steps, weights {:.1} MiB, activations {:.1} MiB",
        outcome.steps.len(),
        mebibytes(outcome.weight_bytes as f64),
        mebibytes(outcome.activation_bytes as f64)
    );
    text
}
