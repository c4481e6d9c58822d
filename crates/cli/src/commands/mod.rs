//! One file a command.

pub(crate) mod bench;
pub(crate) mod doctor;
pub(crate) mod evaluate;
pub(crate) mod export;
mod features;
pub(crate) mod hub;
pub(crate) mod import;
pub(crate) mod inspect;
pub(crate) mod predict;
mod report;
mod tensors;
pub(crate) mod train;
mod tuning;

use crate::arguments::{ArchFlags, OnErrorChoice};
use crate::console::Console;
use crate::failure::Failure;
use anyhow::Context as _;
use std::path::Path;
use std::sync::Arc;
use stridenet::arch::{Arch, ArchError, preset_names};
use stridenet::data::{Dataset, OnError, Skipped};
use stridenet::kernels::Context;
use stridenet::model::{ImportOptions, Model, OpenOptions, Opened};
use stridenet::network::{Initialise, Network};
use stridenet::train::Amp;

impl From<OnErrorChoice> for OnError {
    fn from(choice: OnErrorChoice) -> Self {
        match choice {
            OnErrorChoice::Fail => OnError::Fail,
            OnErrorChoice::Skip => OnError::Skip,
        }
    }
}

/// The architecture that flags describe: a preset or a JSON file, with changes.
fn architecture(name: &str, changes: &ArchFlags) -> Result<Arch, Failure> {
    let base = if Path::new(name).extension().is_some_and(|extension| extension == "json") {
        let text = std::fs::read_to_string(name).with_context(|| format!("cannot read {name}"))?;
        Arch::from_json(&text).with_context(|| name.to_owned())?
    } else {
        Arch::preset(name).map_err(Failure::usage)?
    };
    base.with(&changes.overrides()).map_err(|error: ArchError| Failure::usage(error))
}

/// Whether a network's name is that of a model on disk, and not of an architecture.
fn is_model(name: &str) -> bool {
    !preset_names().contains(&name) && !name.ends_with(".json") && Path::new(name).exists()
}

/// A network that `arch` describes, with random weights.
fn random_network(cx: &Context, arch: &Arch) -> Result<Network, Failure> {
    Ok(Network::new(arch, arch.img_size, cx.level(), Initialise::default())?)
}

/// Says so where mixed precision is made of f32 arithmetic.
fn note_bf16(cx: &Context, console: &Console, amp: Option<Amp>) {
    if amp == Some(Amp::Bf16) && !cx.level().multiplies_bf16() {
        console.message(format_args!(
            "--amp bf16 takes longer than f32 here: instructions for bf16 (AVX512-BF16) are missing or switched off"
        ));
    }
}

/// Opens a model and says so to those who asked for more.
fn open_model(
    cx: &Arc<Context>,
    console: &Console,
    path: &Path,
    img_size: Option<[usize; 2]>,
) -> Result<Model, Failure> {
    let options = OpenOptions {
        context: Arc::clone(cx),
        import: ImportOptions { img_size, ..ImportOptions::default() },
    };
    let Opened { model, account, assumptions, weights } = Model::open_with(path, &options)?;
    for assumption in assumptions {
        console.message(format_args!("{}: {assumption}", weights.display()));
    }
    let arch = model.network().arch();
    console.detail(format_args!(
        "{}: {} with {} classes, {} tensors applied",
        weights.display(),
        arch.name,
        arch.num_classes,
        account.applied.len()
    ));
    Ok(model)
}

/// Decodes every image once, so that a damaged one is found now, and says which ones were left out.
fn verify(console: &Console, cx: &Context, dataset: &mut Dataset, on_error: OnError) -> Result<(), Failure> {
    let progress = console.progress(dataset.len(), "reading images");
    let skipped =
        dataset.verify(on_error, cx.threads(), &mut |done, _| progress.update(done, String::new))?;
    progress.finish();
    for Skipped { error, .. } in &skipped {
        console.detail(format_args!("left out: {error}"));
    }
    if !skipped.is_empty() {
        console.message(format_args!(
            "left out {} of {} images that cannot be decoded",
            skipped.len(),
            skipped.len() + dataset.len()
        ));
    }
    Ok(())
}
