//! `stridenet evaluate`.

use super::{open_model, tuning, verify};
use crate::arguments::{Common, EvaluateFlags};
use crate::console::Console;
use crate::failure::Failure;
use crate::interrupt::Interrupt;
use anyhow::anyhow;
use serde::Serialize;
use serde_json::{Value, json};
use std::fmt::Write;
use std::path::Path;
use std::sync::Arc;
use stridenet::Tensor;
use stridenet::data::{Dataset, Loader, LoaderOptions, OpenOptions, open_evaluation};
use stridenet::evaluate::{self, Evaluation};
use stridenet::image::{CropMode, Decoding, Interpolation};
use stridenet::kernels::Context;
use stridenet::model::Model;

/// What `evaluate --json` prints.
#[derive(Debug, Serialize)]
struct Outcome<'a> {
    model: String,
    data: &'a str,
    count: usize,
    loss: f64,
    top1: f64,
    top1_err: f64,
    top5: f64,
    top5_err: f64,
    top1_ci95: [f64; 2],
    param_count: u64,
    img_size: Value,
    crop_pct: f64,
    crop_mode: CropMode,
    interpolation: Interpolation,
    level: &'static str,
    threads: usize,
}

/// Percentages as timm writes them: four decimals.
fn rounded(percent: f64) -> f64 {
    (percent * 1e4).round() / 1e4
}

/// Measures a model's accuracy.
pub(crate) fn run(
    cx: &Arc<Context>,
    console: &Console,
    common: &Common,
    flags: &EvaluateFlags,
) -> Result<(), Failure> {
    let model = open_model(cx, console, &flags.model, flags.img_size)?;
    let decoding = Decoding::of(model.preprocess.channels, flags.orientation.orientation());
    let (seed, cache_bytes) = (common.seed.unwrap_or(42), flags.cache);
    let options = OpenOptions { seed, cache_bytes, decoding, ..OpenOptions::default() };
    let mut dataset = open_evaluation(&flags.data, &options)?;
    verify(console, cx, &mut dataset, flags.on_error.into())?;
    let dataset = Arc::new(dataset);
    dataset.check_classes(&flags.data, &model.classes)?;
    let evaluation =
        measure(console, (&model, &flags.model), &dataset, [flags.batch_size.get(), flags.workers])?;
    let outcome = outcome(cx, &model, flags, &evaluation);
    if console.json {
        console.json(&outcome)?;
        return Ok(());
    }
    let mut text = String::new();
    let [low, high] = outcome.top1_ci95;
    let Outcome { count, loss, top1, top5, .. } = outcome;
    // Writing to a string cannot fail.
    let _ = writeln!(text, "top-1 {top1:.2} % (95 % interval {low:.2} to {high:.2})");
    let _ = writeln!(text, "top-5 {top5:.2} %");
    let _ = writeln!(text, "loss  {loss:.4}");
    let _ = writeln!(text, "on {count} images of {}", flags.data);
    console.result(&text)?;
    Ok(())
}

fn outcome<'a>(
    cx: &Context,
    model: &Model,
    flags: &'a EvaluateFlags,
    evaluation: &Evaluation,
) -> Outcome<'a> {
    let preprocess = &model.preprocess;
    let [height, width] = preprocess.input_size;
    Outcome {
        model: flags.model.display().to_string(),
        data: &flags.data,
        count: evaluation.count,
        loss: evaluation.loss,
        top1: rounded(evaluation.top1),
        top1_err: rounded(100.0 - evaluation.top1),
        top5: rounded(evaluation.top5),
        top5_err: rounded(100.0 - evaluation.top5),
        top1_ci95: evaluation.top1_ci95.map(rounded),
        param_count: model.network().parameters().map(|parameter| parameter.value.len() as u64).sum(),
        img_size: if height == width { json!(width) } else { json!([height, width]) },
        crop_pct: preprocess.crop_pct,
        crop_mode: preprocess.crop_mode,
        interpolation: preprocess.interpolation,
        level: cx.level().name(),
        threads: cx.threads(),
    }
}

/// Runs the plan of a model, opened at a path, over all images of a data set; Ctrl-C is a failure here, since part of an accuracy is none.
pub(super) fn measure(
    console: &Console,
    (model, path): (&Model, &Path),
    dataset: &Arc<Dataset>,
    [batch_size, workers]: [usize; 2],
) -> Result<Evaluation, Failure> {
    let total = dataset.len();
    let options = LoaderOptions { batch_size, workers };
    let loader = Loader::evaluate(model.context(), Arc::clone(dataset), model.preprocess.clone(), options)?;
    let progress = console.progress(total, "evaluating");
    let plan = tuning::plan(console, model, path, batch_size.min(total))?;
    let infer = |images: &Tensor, logits: &mut Tensor| plan.run(images, logits);
    let evaluation = evaluate::evaluate(model.context(), plan.classes(), loader, infer, |done| {
        progress.update(done, String::new);
        !Interrupt::pressed()
    })?;
    progress.finish();
    if evaluation.count < total {
        return Err(anyhow!(
            "interrupted after {} of {total} images; run it again to measure all",
            evaluation.count
        )
        .into());
    }
    Ok(evaluation)
}
