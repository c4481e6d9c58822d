//! Tunings for the commands: measured on request, kept beside the model or in the user's cache.

use crate::console::Console;
use crate::failure::Failure;
use crate::interrupt::Interrupt;
use anyhow::anyhow;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use stridenet::file::FileError;
use stridenet::kernels::Context;
use stridenet::model::Model;
use stridenet::network::Network;
use stridenet::plan::{Conditions, Plan, PlanOptions, Tuning};
use stridenet::weights::ModelFolder;

/// The files that may hold tunings, the preferred one first: in the model's folder where the network came from a model, and
/// in the user's cache where the system names one.
fn files(model: Option<&Path>) -> Result<Vec<PathBuf>, Failure> {
    let beside = match model {
        Some(model) => {
            let weights = ModelFolder::locate(model).map_err(stridenet::Error::from)?.weights;
            Some(weights.with_file_name(Tuning::FILE))
        }
        None => None,
    };
    // The XDG base directory specification ignores relative paths.
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let cache = cache.or_else(|| Some(std::env::home_dir()?.join(".cache")));
    Ok(beside.into_iter().chain(cache.map(|cache| cache.join("stridenet").join(Tuning::FILE))).collect())
}

/// The saved tuning for exactly these conditions, if there is one.
pub(super) fn saved(
    cx: &Context,
    console: &Console,
    network: &Network,
    batch: usize,
    model: Option<&Path>,
) -> Result<Option<Arc<Tuning>>, Failure> {
    let conditions = Conditions::new(network, batch, cx);
    for file in files(model)? {
        match Tuning::load(&file, &conditions) {
            Ok(Some(tuning)) => {
                console.detail(format_args!("uses the algorithms measured in {}", file.display()));
                return Ok(Some(Arc::new(tuning)));
            }
            Ok(None) => {}
            // Another user's cache is none of ours.
            Err(stridenet::Error::File(FileError::Read { source, .. }))
                if source.kind() == ErrorKind::PermissionDenied =>
            {
                console.detail(format_args!("cannot read {}: {source}", file.display()));
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(None)
}

/// A model's plan for up to `batch` images, with the algorithms that were measured for it, if any were. `path` is where the
/// model was opened.
pub(super) fn plan(console: &Console, model: &Model, path: &Path, batch: usize) -> Result<Plan, Failure> {
    let (context, network) = (model.context(), model.network());
    let tuning = saved(context, console, network, batch, Some(path))?;
    Ok(Plan::compile(network, PlanOptions { batch, context: Arc::clone(context), tuning })?)
}

/// Measures a tuning and saves it.
pub(super) fn measured(
    cx: &Arc<Context>,
    console: &Console,
    network: &Network,
    batch: usize,
    model: Option<&Path>,
) -> Result<Arc<Tuning>, Failure> {
    let files = files(model)?;
    let mut progress = None;
    let tuning = Tuning::measure(network, batch, cx, |done, total| {
        progress
            .get_or_insert_with(|| console.progress(total, "measuring algorithms"))
            .update(done, String::new);
        !Interrupt::pressed()
    });
    progress.inspect(|progress| progress.finish());
    let tuning = tuning?;
    let mut refused = None;
    for file in &files {
        match tuning.save(file) {
            Ok(()) => {
                let layers = tuning.choices().len();
                console
                    .message(format_args!("measured the algorithms of {layers} layers: {}", file.display()));
                return Ok(Arc::new(tuning));
            }
            // A model that others share may not be ours to write beside.
            Err(stridenet::Error::File(FileError::Write { source, .. }))
                if matches!(source.kind(), ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem) =>
            {
                refused = Some(anyhow!(
                    "cannot write {}: {source}; set XDG_CACHE_HOME to a folder that can be written",
                    file.display()
                ));
            }
            Err(error) => return Err(error.into()),
        }
    }
    let homeless =
        || anyhow!("there is no folder for tunings; set XDG_CACHE_HOME to one that can be written");
    Err(refused.unwrap_or_else(homeless).into())
}
