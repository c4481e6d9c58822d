//! `stridenet predict`.

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
use stridenet::kernels::Context;
use stridenet::layer::Workspace;
use stridenet::model::{Model, Prediction};
use stridenet::network::Seen;
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
    if let (Some(tensor), Some(logits)) = (&flags.tensor, &flags.logits) {
        return predict_tensor(console, &model, flags, tensor, logits);
    }
    let mut failed = false;
    let mut predict = |file: &Path| -> Result<(), Failure> {
        let picture = image::open_with(file, flags.orientation.orientation());
        let classified = picture.map_err(stridenet::Error::from).and_then(|picture| model.classify(&picture));
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

/// Logits, and on request each stage's output, of normalised images `[N, C, H, W]`.
fn predict_tensor(
    console: &Console,
    model: &Model,
    flags: &PredictFlags,
    tensor: &Path,
    logits_path: &Path,
) -> Result<(), Failure> {
    let features = flags.features.as_deref();
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
    let mut stages: Vec<(Vec<usize>, Vec<f32>)> =
        vec![(Vec::new(), Vec::new()); model.network().arch().stages.len()];
    if features.is_some() {
        let mut workspace = Workspace::default();
        for x in batches {
            let keep = |seen: Seen, output: &Tensor| {
                let Seen::Feature(index @ 1..) = seen else { return };
                let [_, height, width, channels] = output.shape();
                stages[index - 1].0 = vec![channels, height, width];
                stages[index - 1].1.extend(output.to_nchw());
            };
            let y = model.network().infer_seeing(model.context(), &mut workspace, &x?, keep)?;
            logits.extend_from_slice(y.data());
        }
    } else {
        let plan = tuning::plan(console, model, &flags.model, BATCH.min(images))?;
        for x in batches {
            let x = x?;
            let mut y = Tensor::zeros([x.batch(), 1, 1, plan.classes()]);
            plan.run(&x, &mut y)?;
            logits.extend_from_slice(y.data());
        }
    }
    let write = |path: &Path, shape: &[usize], values: &[f32]| -> Result<(), Failure> {
        write_npy(path, shape, values).map_err(stridenet::Error::from)?;
        console.message(format_args!("wrote {} {shape:?}", path.display()));
        Ok(())
    };
    write(logits_path, &[images, model.classes.len()], &logits)?;
    if let Some(folder) = features {
        std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        for (index, (shape, values)) in stages.iter().enumerate() {
            let shape: Vec<usize> = std::iter::once(images).chain(shape.iter().copied()).collect();
            write(&folder.join(format!("stage{}.npy", index + 1)), &shape, values)?;
        }
    }
    Ok(())
}
