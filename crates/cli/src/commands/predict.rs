//! `stridenet predict`.

use super::features::Keep;
use super::{open_model, tuning};
use crate::arguments::PredictFlags;
use crate::console::Console;
use crate::failure::Failure;
use crate::interrupt::Interrupt;
use anyhow::{Context as _, anyhow};
use serde::Serialize;
use std::fmt::Write;
use std::io::BufRead;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use stridenet::data::list_images;
use stridenet::image::Decoding;
use stridenet::kernels::Context;
use stridenet::model::{Model, Prediction};
use stridenet::weights::{read_npy, write_npy};
use stridenet::{Tensor, image};

/// What `predict --json` prints for a file.
#[derive(Debug, Serialize)]
struct Outcome {
    file: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    predictions: Option<Vec<Prediction>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

/// Predicts the classes of images, or the logits of a tensor.
pub(crate) fn run(cx: &Arc<Context>, console: &Console, flags: &PredictFlags) -> Result<(), Failure> {
    let model = open_model(cx, console, &flags.model, flags.img_size)?;
    let mut keep = Keep::new(flags, model.network().arch())?;
    if let (Some(tensor), Some(logits)) = (&flags.tensor, &flags.logits) {
        return predict_tensor(console, &model, flags, keep, tensor, logits);
    }
    let mut failed = false;
    let mut predict = |file: &Path| -> Result<(), Failure> {
        let decoding = Decoding::of(model.preprocess.channels, flags.orientation.orientation());
        let picture = image::open_with(file, decoding);
        let classified = picture.map_err(stridenet::Error::from).and_then(|picture| match &mut keep {
            Some(keep) => {
                let ([height, width], channels) = (model.preprocess.input_size, model.preprocess.channels);
                let mut x = Tensor::zeros([1, height, width, channels]);
                model.preprocess.apply(&picture, x.data_mut())?;
                Ok(model.rank(keep.infer(&model, &x)?.data()))
            }
            None => model.classify(&picture),
        });
        let file = file.display().to_string();
        match classified {
            Ok(mut predictions) => {
                predictions.truncate(flags.topk.get());
                match console.json {
                    true => console.json(&Outcome { file, predictions: Some(predictions), error: None })?,
                    false => console.result(&render(&file, &predictions))?,
                }
            }
            Err(error) => {
                failed = true;
                if console.json {
                    console.json(&Outcome { file, predictions: None, error: Some(error.to_string()) })?;
                } else {
                    console.error(format_args!("{error}"));
                }
            }
        }
        Ok(())
    };
    for input in &flags.inputs {
        for_each_file(input, &mut predict)?;
    }
    if let Some(keep) = keep {
        keep.write(console)?;
    }
    if failed { Err(Failure::Partial) } else { Ok(()) }
}

fn render(file: &str, predictions: &[Prediction]) -> String {
    let mut text = format!("{file}\n");
    for Prediction { label, probability, .. } in predictions {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "  {:6.2} %  {label}", 100.0 * probability);
    }
    text
}

/// Calls `predict` for each file that an input stands for.
pub(super) fn for_each_file(
    input: &str,
    predict: &mut impl FnMut(&Path) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let mut predict = |file: &Path| {
        if Interrupt::pressed() {
            return Err(anyhow!("interrupted; the results so far are printed").into());
        }
        predict(file)
    };
    if input == "-" {
        for line in std::io::stdin().lock().lines() {
            let line = line.context("cannot read paths from stdin")?;
            if !line.trim().is_empty() {
                predict(Path::new(line.trim_end_matches('\r')))?;
            }
        }
        return Ok(());
    }
    let path = Path::new(input);
    if path.is_dir() {
        let files = list_images(path)?;
        if files.is_empty() {
            return Err(anyhow!("{input} holds no images; name a folder that does").into());
        }
        return files.iter().try_for_each(|file| predict(file));
    }
    if path.exists() || !input.contains(['*', '?', '[']) {
        return predict(path);
    }
    let matches =
        glob::glob(input).map_err(|error| Failure::usage(format!("the pattern {input}: {error}")))?;
    let mut files: Vec<PathBuf> = matches.flatten().filter(|file| file.is_file()).collect();
    files.sort();
    if files.is_empty() {
        return Err(anyhow!("no file matches {input}; check the pattern").into());
    }
    files.iter().try_for_each(|file| predict(file))
}

/// Images of a tensor that are predicted at once.
const BATCH: usize = 32;

/// Logits, and what is to be kept on the way, of normalised images `[N, C, H, W]`.
fn predict_tensor(
    console: &Console,
    model: &Model,
    flags: &PredictFlags,
    keep: Option<Keep>,
    tensor: &Path,
    logits_path: &Path,
) -> Result<(), Failure> {
    let (shape, values) = read_npy(tensor).map_err(stridenet::Error::from)?;
    let ([height, width], channels) = (model.preprocess.input_size, model.preprocess.channels);
    let [images, found @ ..] = shape;
    if found != [channels, height, width] {
        let message = format!(
            "{} has the shape {shape:?}, expected [N, {channels}, {height}, {width}]; pass --img-size for another size",
            tensor.display()
        );
        return Err(anyhow!(message).into());
    }
    let batches = values.chunks(BATCH * channels * height * width).map(|images| {
        let count = images.len() / (channels * height * width);
        Tensor::from_nchw([count, channels, height, width], images).map_err(stridenet::Error::from)
    });
    let mut logits = Vec::with_capacity(images * model.classes.len());
    if let Some(mut keep) = keep {
        for x in batches {
            logits.extend_from_slice(keep.infer(model, &x?)?.data());
        }
        keep.write(console)?;
    } else {
        let plan = tuning::plan(console, model, &flags.model, BATCH.min(images))?;
        for x in batches {
            let x = x?;
            let mut y = Tensor::zeros([x.batch(), 1, 1, plan.classes()]);
            plan.run(&x, &mut y)?;
            logits.extend_from_slice(y.data());
        }
    }
    let shape = [images, model.classes.len()];
    write_npy(logits_path, &shape, &logits).map_err(stridenet::Error::from)?;
    console.message(format_args!("wrote {} {shape:?}", logits_path.display()));
    Ok(())
}
