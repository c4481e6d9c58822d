//! From a run's outcomes to its page.

use crate::failure::Failure;
use serde_json::Value;
use std::sync::Arc;
use stridenet::arch::{Layer, LayerKind};
use stridenet::data::Dataset;
use stridenet::evaluate::Evaluation;
use stridenet::file::write_atomically;
use stridenet::model::Model;
use stridenet::report::{self, Confusion, LayerRow, Report, SamplePrediction};
use stridenet::train::{EpochRow, Finished, RunFolder, TrainOptions};

/// Sample predictions on the page.
const SAMPLES: usize = 16;

/// Writes `report.html` about a run whose best model is `model`.
pub(crate) fn write_report(
    model: &Model,
    options: &TrainOptions,
    val: &Arc<Dataset>,
    finished: &Finished,
    evaluation: &Evaluation,
    seconds: f64,
    folder: &RunFolder,
) -> Result<(), Failure> {
    let (arch, cx) = (model.network().arch(), model.context());
    let summary = arch.summary(arch.img_size).map_err(stridenet::Error::from)?;
    let report = Report {
        title: format!("{} on {}", arch.name, options.data),
        subtitle: vec![format!("stridenet {}, {}", env!("CARGO_PKG_VERSION"), folder.path().display())],
        result: Some(report::Evaluation {
            split: "validation".to_owned(),
            count: evaluation.count as u64,
            top1: evaluation.top1,
            top1_interval: evaluation.top1_ci95,
            top5: (model.classes.len() > 5).then_some(evaluation.top5),
            loss: evaluation.loss,
        }),
        facts: vec![
            ("Parameters".into(), grouped(summary.param_count)),
            ("Multiply-accumulates an image".into(), grouped(summary.macs)),
            ("Epochs".into(), format!("{} of {}", finished.rows.len(), options.epochs)),
            ("Wall time".into(), format!("{seconds:.0} s")),
            ("Machine".into(), format!("{} threads, {}", cx.threads(), cx.level().name())),
        ],
        epochs: finished.rows.iter().map(epoch_row).collect(),
        best_epoch: finished.best_epoch,
        layers: summary.layers.iter().map(layer_row).collect(),
        drawing: Some(arch.svg(arch.img_size).map_err(stridenet::Error::from)?),
        labels: model.classes.clone(),
        confusion: Some(Confusion { counts: evaluation.confusion.clone() }),
        samples: samples(model, val)?,
        options: option_rows(options),
    };
    let page = report.to_html();
    write_atomically(&folder.report(), |to| to.write_all(page.as_bytes())).map_err(stridenet::Error::from)?;
    Ok(())
}

/// 11,689,512 for 11689512.
fn grouped(count: u64) -> String {
    let digits = count.to_string();
    let groups: Vec<&str> =
        digits.as_bytes().rchunks(3).rev().filter_map(|g| std::str::from_utf8(g).ok()).collect();
    groups.join(",")
}

fn epoch_row(row: &EpochRow) -> report::EpochRow {
    report::EpochRow {
        epoch: row.epoch,
        train_loss: row.train_loss,
        train_top1: Some(row.train_top1),
        val_loss: Some(row.val_loss),
        val_top1: Some(row.val_top1),
        val_top5: Some(row.val_top5),
        lr: row.lr,
        seconds: row.seconds,
        images_per_second: row.images_per_second,
    }
}

fn layer_row(layer: &Layer) -> LayerRow {
    let shape = |[channels, height, width]: [usize; 3]| format!("{channels}×{height}×{width}");
    use LayerKind::{Add, BatchNorm, Gate, Linear, Relu};
    let pointwise = matches!(layer.kind, BatchNorm | Relu | Add | Gate | Linear);
    LayerRow {
        name: layer.name.clone(),
        kind: layer.kind.to_string().replace('_', " "),
        input: shape(layer.input),
        output: shape(layer.output),
        kernel: (!pointwise).then_some(layer.kernel[0]),
        stride: layer.stride[0],
        parameters: layer.param_count,
        macs: layer.macs,
        receptive_field: Some(layer.receptive_field),
    }
}

/// Predictions for images spread evenly over the data set.
fn samples(model: &Model, dataset: &Dataset) -> Result<Vec<SamplePrediction>, Failure> {
    let count = SAMPLES.min(dataset.len());
    let mut samples = Vec::with_capacity(count);
    for step in 0..count {
        let index = (2 * step + 1) * dataset.len() / (2 * count);
        let picture = dataset.picture(index)?;
        let predictions = model.classify(&picture)?;
        let shown = model.preprocess.fit(&picture).map_err(stridenet::Error::from)?;
        samples.push(SamplePrediction {
            height: shown.height(),
            width: shown.width(),
            channels: shown.channels(),
            pixels: shown.pixels().to_vec(),
            truth: dataset.label(index),
            predictions: predictions
                .into_iter()
                .take(3)
                .map(|prediction| (prediction.index, prediction.probability))
                .collect(),
        });
    }
    Ok(samples)
}

fn option_rows(options: &TrainOptions) -> Vec<(String, String)> {
    let Ok(Value::Object(options)) = serde_json::to_value(options) else { return Vec::new() };
    let text = |value: Value| match value {
        Value::String(text) => text,
        other => other.to_string(),
    };
    options.into_iter().map(|(key, value)| (key, text(value))).collect()
}
