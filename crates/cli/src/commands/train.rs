//! `stridenet train`.

use super::evaluate::measure;
use super::report::write_report;
use super::{architecture, note_bf16, open_model, verify};
use crate::arguments::{Common, TrainFlags};
use crate::console::{Console, Progress};
use crate::failure::Failure;
use crate::interrupt::Interrupt;
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;
use stridenet::arch::{Arch, Overrides};
use stridenet::data::{Dataset, OpenOptions, Splits};
use stridenet::image::{Decoding, Normalisation, Orientation, Preprocess};
use stridenet::kernels::Context;
use stridenet::model::Model;
use stridenet::network::Network;
use stridenet::train::{
    Checkpoint, Control, EpochRow, Event, Existing, Finished, Opt, RunFolder, TrainOptions, Trainer,
    arithmetic,
};

/// Trains a network and writes the run's folder.
pub(crate) fn run(
    cx: &Arc<Context>,
    console: &Console,
    common: &Common,
    flags: &TrainFlags,
) -> Result<(), Failure> {
    let start = Instant::now();
    let (mut trainer, folder) = match flags.resume {
        true => resume(cx, console, common, flags)?,
        false => begin(cx, console, common, flags)?,
    };
    let finished = train(console, &mut trainer)?;
    // A run that was stopped is not measured: whoever pressed Ctrl-C wants to leave.
    let summary = match finished.best_epoch {
        Some(best) if finished.complete => {
            let best_model = open_model(cx, console, &folder.best(), None)?;
            let (val, options) = (trainer.validation(), trainer.options());
            let evaluation =
                measure(console, (&best_model, &folder.best()), val, [options.batch_size, options.workers])?;
            let seconds = start.elapsed().as_secs_f64();
            write_report(&best_model, trainer.options(), val, &finished, &evaluation, seconds, &folder)?;
            Some((best, evaluation))
        }
        _ => None,
    };
    if console.json {
        console.json(&json!({
            "out": folder.path(),
            "complete": finished.complete,
            "epochs": finished.rows.len(),
            "best_epoch": finished.best_epoch,
            "top1": summary.as_ref().map(|(_, evaluation)| evaluation.top1),
            "top5": summary.as_ref().map(|(_, evaluation)| evaluation.top5),
            "loss": summary.as_ref().map(|(_, evaluation)| evaluation.loss),
            "top1_ci95": summary.as_ref().map(|(_, evaluation)| evaluation.top1_ci95),
            "seconds": start.elapsed().as_secs_f64(),
            "train_seconds": finished.rows.iter().map(|row| row.seconds).sum::<f64>(),
            "waited_seconds": finished.rows.iter().map(|row| row.waited_seconds).sum::<f64>(),
            "report": summary.is_some().then(|| folder.report()),
        }))?;
        return Ok(());
    }
    let path = folder.path().display();
    let mut text = String::new();
    if let Some((best, evaluation)) = summary {
        let [low, high] = evaluation.top1_ci95;
        let report = folder.report();
        text += &format!(
            "top-1 {:.2} % (95 % interval {low:.2} to {high:.2}) on {} images, best of epoch {best}\n",
            evaluation.top1, evaluation.count
        );
        text += &format!("model  {}\nreport {}\n", folder.best().display(), report.display());
    }
    if !finished.complete {
        text += &format!("stopped and saved; go on with: stridenet train --resume --out {path}\n");
    }
    console.result(&text)?;
    Ok(())
}

/// A new run.
fn begin<'a>(
    cx: &'a Arc<Context>,
    console: &Console,
    common: &Common,
    flags: &TrainFlags,
) -> Result<(Trainer<'a>, RunFolder), Failure> {
    let opt = flags.recipe.opt.map_or(Opt::default(), Opt::from);
    let mut options = flags.recipe.over(TrainOptions::with(opt))?;
    options.data = flags.data.clone().unwrap_or(options.data);
    options.seed = common.seed.unwrap_or(options.seed);
    options.validate().map_err(stridenet::Error::from)?;
    let name = flags.arch.as_deref().unwrap_or("resnet20");
    // The architecture's flags are checked before the data is read.
    let arch = architecture(name, &flags.shape)?;
    options.check_network(&arch).map_err(stridenet::Error::from)?;
    // A description of a network for other than coloured pictures means it.
    let described = Some(arch.in_channels).filter(|&channels| channels != 3);
    let in_chans = flags.shape.in_chans.or(described);
    let [train, val] = open_data(cx, console, &options, in_chans.unwrap_or(3))?;
    let img_size = flags.shape.img_size.or(train.picture_size()).unwrap_or(arch.img_size);
    let changes = Overrides {
        num_classes: Some(train.classes().len()),
        in_channels: Some(in_chans.unwrap_or(train.channels())),
        img_size: Some(img_size),
        ..Overrides::default()
    };
    let arch = arch.with(&changes).map_err(Failure::usage)?;
    options.augment = flags.recipe.augment.augment(img_size).map_err(Failure::usage)?;
    options.augment.check().map_err(Failure::usage)?;
    let preprocess = flags.preprocess.over(preprocessing(&arch, &train)?).map_err(Failure::usage)?;
    let network = Network::new(&arch, img_size, cx.level(), options.initialise())?;
    let classes = train.classes().to_vec();
    let existing = if flags.overwrite { Existing::Overwrite } else { Existing::Refuse };
    let out = flags.out.clone().unwrap_or_else(|| free_folder(&arch.name, &options.data));
    let folder = RunFolder::open(&out, existing)?;
    folder.write_options(&resolved(cx, &arch, &options))?;
    announce(console, &arch, &options, [&train, &val], &folder);
    note_bf16(cx, console, options.amp);
    let model = Model::new(Arc::clone(cx), network, preprocess, classes);
    Ok((Trainer::new(cx, model, options, [train, val], folder.clone()), folder))
}

/// The run in the folder, as it was when it was saved.
fn resume<'a>(
    cx: &'a Arc<Context>,
    console: &Console,
    common: &Common,
    flags: &TrainFlags,
) -> Result<(Trainer<'a>, RunFolder), Failure> {
    let out = flags.out.clone().unwrap_or_default();
    let folder = RunFolder::open(&out, Existing::Resume)?;
    let checkpoint = Checkpoint::read(&folder.state_file())?;
    let stored = checkpoint.options.clone();
    let mut options = flags.recipe.over(stored.clone())?;
    options.data = flags.data.clone().unwrap_or(options.data);
    options.seed = common.seed.unwrap_or(options.seed);
    if flags.recipe.augment.any() || flags.preprocess.any() {
        return Err(Failure::usage(
            "how images are prepared cannot change when a run is resumed; leave its flags out",
        ));
    }
    refuse_changes(&stored, &options)?;
    options.validate().map_err(stridenet::Error::from)?;
    let model = open_model(cx, console, &folder.last(), None)?;
    let arch = model.network().arch().clone();
    if flags.arch.as_ref().is_some_and(|name| *name != arch.name)
        || arch.with(&flags.shape.overrides()).ok().as_ref() != Some(&arch)
    {
        return Err(Failure::usage(
            "the architecture cannot change when a run is resumed; leave its flags out",
        ));
    }
    let [train, val] = open_data(cx, console, &options, arch.in_channels)?;
    folder.write_options(&resolved(cx, &arch, &options))?;
    note_bf16(cx, console, options.amp);
    note_arithmetic(cx, console, &checkpoint, &options);
    let done = checkpoint.progress.epoch;
    let mut trainer = Trainer::new(cx, model, options, [train, val], folder.clone());
    trainer.resume(checkpoint)?;
    console.message(format_args!("resuming {} after {done} epochs", folder.path().display()));
    Ok((trainer, folder))
}

/// Says so where the run does not come to the bits that it would have come to uninterrupted.
fn note_arithmetic(cx: &Context, console: &Console, checkpoint: &Checkpoint, options: &TrainOptions) {
    let here = arithmetic(cx.level(), options);
    if let Some(before) = checkpoint.arithmetic.as_ref().filter(|before| **before != here) {
        console.message(format_args!(
            "the run was computed with {before} and goes on with {here}, which rounds otherwise: its last bits will differ"
        ));
    }
}

/// A resumed run keeps its recipe; only the number of epochs and what changes no result may change: how images are loaded, and
/// whether blocks are computed again.
fn refuse_changes(stored: &TrainOptions, wanted: &TrainOptions) -> Result<(), Failure> {
    let TrainOptions { epochs, workers, cache, recompute, .. } = *stored;
    let kept = TrainOptions { epochs, workers, cache, recompute, ..wanted.clone() };
    let (Ok(Value::Object(stored)), Ok(Value::Object(kept))) =
        (serde_json::to_value(stored), serde_json::to_value(&kept))
    else {
        return Ok(());
    };
    match stored.iter().find(|(key, value)| kept.get(*key) != Some(*value)) {
        None => Ok(()),
        Some((key, value)) => Err(Failure::usage(format!(
            "{key} of the run is {value}, {} was asked for; leave it out, or start a new run",
            kept[key]
        ))),
    }
}

/// How the images of a data set are prepared for a network.
fn preprocessing(arch: &Arch, train: &Dataset) -> Result<Preprocess, Failure> {
    let mut normalisation = train.default_normalisation()?;
    if normalisation.mean.len() != arch.in_channels {
        normalisation = match arch.in_channels {
            3 => Normalisation::imagenet(),
            _ => stridenet::data::channel_statistics(train, arch.in_channels, 10_000)?,
        };
    }
    let exact = Preprocess::exact(arch.img_size, normalisation);
    let large = arch.img_size.iter().all(|&side| side > 64);
    let preprocess = if large { Preprocess { crop_pct: 0.875, ..exact } } else { exact };
    preprocess.check().map_err(stridenet::Error::from)?;
    Ok(preprocess)
}

/// The images of both splits, with alpha where a network of this many input channels takes it.
fn open_data(
    cx: &Context,
    console: &Console,
    options: &TrainOptions,
    channels: usize,
) -> Result<[Arc<Dataset>; 2], Failure> {
    let orientation = if options.exif { Orientation::Exif } else { Orientation::Stored };
    let open = OpenOptions {
        val_fraction: options.val_fraction,
        seed: options.seed,
        cache_bytes: options.cache,
        decoding: Decoding::of(channels, orientation),
    };
    let Splits { mut train, mut val } = stridenet::data::open(&options.data, &open)?;
    verify(console, cx, &mut train, options.on_error)?;
    verify(console, cx, &mut val, options.on_error)?;
    Ok([Arc::new(train), Arc::new(val)])
}

/// `runs/ARCH-DATA`, with a number where that exists.
fn free_folder(arch: &str, data: &str) -> PathBuf {
    let data = Path::new(data).file_name().map_or("data".into(), |name| name.to_string_lossy());
    let base = Path::new("runs").join(format!("{arch}-{data}"));
    let numbered = (2..).map(|number| base.with_file_name(format!("{arch}-{data}-{number}")));
    std::iter::once(base.clone()).chain(numbered).find(|path| !path.exists()).unwrap_or(base)
}

/// All resolved options, for `args.yaml`.
fn resolved(cx: &Context, arch: &Arch, options: &TrainOptions) -> Map<String, Value> {
    let mut all = Map::new();
    all.insert("stridenet_version".into(), env!("CARGO_PKG_VERSION").into());
    if let Ok(Value::Object(options)) = serde_json::to_value(options) {
        all.extend(options);
    }
    if let Ok(arch) = serde_json::to_value(arch) {
        all.insert("arch".into(), arch);
    }
    all.insert("level".into(), cx.level().name().into());
    if options.amp.is_some() {
        all.insert("bf16_instructions".into(), cx.level().multiplies_bf16().into());
    }
    all.insert("threads".into(), cx.threads().into());
    all
}

fn announce(
    console: &Console,
    arch: &Arch,
    options: &TrainOptions,
    [train, val]: [&Dataset; 2],
    folder: &RunFolder,
) {
    let [height, width] = arch.img_size;
    console.message(format_args!(
        "training {} on {} ({} + {} images, {} classes, {height}x{width}), {} epochs, into {}",
        arch.name,
        options.data,
        train.len(),
        val.len(),
        train.classes().len(),
        options.epochs,
        folder.path().display()
    ));
    for (class, count) in train.classes().iter().zip(train.class_counts()) {
        console.detail(format_args!("  {count:6} images of {class}"));
    }
}

/// Runs the trainer and shows its progress.
fn train(console: &Console, trainer: &mut Trainer) -> Result<Finished, Failure> {
    let epochs = trainer.options().epochs;
    let mut progress: Option<(usize, Progress)> = None;
    let finished = trainer.run(|event| {
        match event {
            Event::Step { epoch, step, steps, loss, lr, images_per_second, waiting, grad_norm } => {
                if progress.as_ref().is_none_or(|(shown, _)| shown != epoch) {
                    progress = Some((*epoch, console.progress(*steps, &format!("epoch {epoch}/{epochs}"))));
                }
                if let Some((_, bar)) = &progress {
                    bar.update(*step, || {
                        let waiting = 100.0 * waiting;
                        let norm = grad_norm.map_or(String::new(), |norm| format!(" norm {norm:.2}"));
                        format!(
                            "loss {loss:.4}{norm} lr {lr:.4} {images_per_second:.0} img/s, waiting for data {waiting:.1} %"
                        )
                    });
                }
            }
            Event::Validated { done, total, .. } => {
                if let Some((_, bar)) = &progress {
                    bar.note(|| format!("validating {done}/{total}"));
                }
            }
            Event::Epoch { row, best } => {
                if let Some((_, bar)) = progress.take() {
                    bar.finish();
                }
                console.message(format_args!("{}", epoch_line(row, epochs, *best)));
            }
            Event::Stopped { epoch, step } => {
                if let Some((_, bar)) = progress.take() {
                    bar.finish();
                }
                console.message(format_args!("stopped after {epoch} epochs and {step} steps; saved"));
            }
        }
        if Interrupt::pressed() { Control::Stop } else { Control::Continue }
    })?;
    Ok(finished)
}

fn epoch_line(row: &EpochRow, epochs: usize, best: bool) -> String {
    let EpochRow { epoch, train_loss, train_top1, val_loss, val_top1, seconds, images_per_second, .. } = row;
    let waiting = row.waiting();
    format!(
        "epoch {epoch}/{epochs}: train loss {train_loss:.4} top-1 {train_top1:.2} %, validation loss {val_loss:.4} top-1 \
         {val_top1:.2} %{}, {seconds:.1} s, {images_per_second:.0} img/s, waited for data {waiting:.1} %",
        if best { " (best)" } else { "" }
    )
}
