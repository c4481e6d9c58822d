//! Models that are named as `hf://ORGANISATION/NAME`.

use crate::arguments::{BenchCommand, Command};
use crate::console::Console;
use crate::failure::Failure;
use std::path::PathBuf;

/// What the names of a hub's models begin with.
const SCHEME: &str = "hf://";

/// Fetches the model that a command names, if it is one of a hub, and puts its folder in the place of the name.
pub(crate) fn fetch_named(console: &Console, command: &mut Command) -> Result<(), Failure> {
    match command {
        Command::Train(_) => Ok(()),
        Command::Evaluate(flags) => fetch_path(console, &mut flags.model),
        Command::Doctor(flags) => fetch_path(console, &mut flags.model),
        Command::Predict(flags) => fetch_path(console, &mut flags.model),
        Command::Import(flags) => fetch_path(console, &mut flags.source),
        Command::Export(flags) => fetch_path(console, &mut flags.model),
        Command::Inspect(flags) => fetch_text(console, &mut flags.network),
        Command::Bench(BenchCommand::Infer(flags)) => fetch_text(console, &mut flags.network.network),
        Command::Bench(BenchCommand::Layers(flags)) => fetch_text(console, &mut flags.network.network),
        Command::Bench(BenchCommand::Train(flags)) => fetch_text(console, &mut flags.network),
    }
}

fn fetch_path(console: &Console, path: &mut PathBuf) -> Result<(), Failure> {
    if let Some(name) = path.to_str().filter(|path| path.starts_with(SCHEME)) {
        *path = fetched(console, name)?;
    }
    Ok(())
}

fn fetch_text(console: &Console, name: &mut String) -> Result<(), Failure> {
    if name.starts_with(SCHEME) {
        let folder = fetched(console, name)?;
        *name = folder.into_os_string().into_string().map_err(|folder| {
            Failure::usage(format!("the cache {} is not UTF-8; set XDG_CACHE_HOME", folder.display()))
        })?;
    }
    Ok(())
}

#[cfg(not(feature = "hub"))]
fn fetched(_: &Console, name: &str) -> Result<PathBuf, Failure> {
    Err(Failure::usage(format!(
        "{name} is a model of a hub, and this program was built without fetching; build it with `--features hub`, or \
         download the model and name its folder"
    )))
}

/// The folder of a model. `HF_ENDPOINT` and `HF_TOKEN` say where it is fetched from and who asks, `XDG_CACHE_HOME` where it is
/// kept.
#[cfg(feature = "hub")]
fn fetched(console: &Console, name: &str) -> Result<PathBuf, Failure> {
    use crate::interrupt::Interrupt;
    use stridenet::hub::{ENDPOINT, Fetched, Hub, Reference};

    let reference: Reference = name.parse().map_err(Failure::usage)?;
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let home = || Some(PathBuf::from(variable("HOME")?).join(".cache"));
    let cache = variable("XDG_CACHE_HOME").map(PathBuf::from).or_else(home).ok_or_else(|| {
        Failure::usage("there is no folder for models; set XDG_CACHE_HOME to one that can be written")
    })?;
    let hub = Hub {
        endpoint: variable("HF_ENDPOINT").unwrap_or_else(|| ENDPOINT.to_owned()),
        cache: cache.join("stridenet").join("hub"),
        token: variable("HF_TOKEN"),
    };
    let mut shown = None;
    let fetched = hub.fetch(&reference, &mut |progress| {
        let kibibytes = |bytes: u64| (bytes / 1024) as usize;
        let started = matches!(&shown, Some((file, _)) if *file == progress.file);
        if !started {
            let bar =
                console.progress(kibibytes(progress.total), &format!("fetching {} (KiB)", progress.file));
            shown = Some((progress.file.to_owned(), bar));
        }
        if let Some((_, bar)) = &shown {
            bar.update(kibibytes(progress.done), String::new);
            if progress.done == progress.total {
                bar.finish();
            }
        }
        !Interrupt::pressed()
    });
    let Fetched { folder, offline } = fetched.map_err(stridenet::Error::from)?;
    match offline {
        Some(reason) => console.message(format_args!("{reason}; taking the model that was fetched earlier")),
        None => console.detail(format_args!("{reference} is in {}", folder.display())),
    }
    Ok(folder)
}
