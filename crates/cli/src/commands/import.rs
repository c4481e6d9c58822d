//! `stridenet import`.

use super::architecture;
use crate::arguments::{ArchFlags, Common, ImportFlags};
use crate::console::Console;
use crate::failure::Failure;
use serde::Serialize;
use std::fmt::Write as _;
use std::path::Path;
use stridenet::model::{ImportOptions, Imported, import};
use stridenet::weights::{Account, ModelFolder, NonFinite, UnusedTensors};

/// What `import --json` prints.
#[derive(Debug, Serialize)]
struct ImportOutcome<'a> {
    /// The file that was read.
    source: &'a Path,
    /// The file of weights that was written.
    model: &'a Path,
    arch: &'a str,
    num_classes: usize,
    in_chans: usize,
    img_size: [usize; 2],
    param_count: u64,
    /// Batch norms that the file has inside convolutions.
    folded: usize,
    account: &'a Account,
    assumptions: &'a [String],
}

/// Reads weights, fits them to a network, and writes a model folder.
pub(crate) fn run(console: &Console, common: &Common, flags: &ImportFlags) -> Result<(), Failure> {
    let ImportFlags { source, out, overwrite, .. } = flags;
    refuse_to_replace(out, *overwrite)?;
    let imported = import(source, &options(common, flags)?)?;
    let written = imported.save(out)?;
    let Imported { description, account, assumptions, weights, folded, .. } = &imported;
    for assumption in assumptions {
        console.message(format_args!("{}: {assumption}", weights.display()));
    }
    let structure = description.arch.structure().map_err(stridenet::Error::from)?;
    let outcome = ImportOutcome {
        source: weights,
        model: &written.weights,
        arch: &description.arch.name,
        num_classes: description.arch.num_classes,
        in_chans: description.arch.in_channels,
        img_size: description.preprocess.input_size,
        param_count: structure.param_count(),
        folded: *folded,
        account,
        assumptions,
    };
    match console.json {
        true => console.json(&outcome)?,
        false => console.result(&text(&outcome))?,
    }
    Ok(())
}

fn options(common: &Common, flags: &ImportFlags) -> Result<ImportOptions, Failure> {
    let arch = flags.arch.as_deref().map(|name| architecture(name, &ArchFlags::default())).transpose()?;
    Ok(ImportOptions {
        arch,
        img_size: flags.img_size,
        num_classes: flags.num_classes,
        in_channels: flags.in_chans,
        seed: common.seed.unwrap_or(42),
        unused: if flags.allow_unused { UnusedTensors::Allow } else { UnusedTensors::Refuse },
        non_finite: if flags.allow_nonfinite { NonFinite::Allow } else { NonFinite::Refuse },
    })
}

/// The outcome for people.
fn text(outcome: &ImportOutcome) -> String {
    let ImportOutcome {
        source,
        model,
        arch,
        num_classes,
        in_chans,
        img_size,
        param_count,
        folded,
        account,
        ..
    } = outcome;
    let [height, width] = img_size;
    // Writing to a string cannot fail.
    let mut text = format!("{}: {arch}, {param_count} parameters\n", source.display());
    let _ = writeln!(text, "  input    {in_chans} x {height} x {width}, {num_classes} classes");
    let _ = writeln!(text, "  tensors  {account}");
    if *folded > 0 {
        let _ = writeln!(
            text,
            "  note     {folded} batch norms were inside convolutions: predictions are the same, training would begin \
             without their statistics"
        );
    }
    let _ = writeln!(text, "  written  {}", model.display());
    text
}

/// Refuses to write a model over another one, unless told to.
pub(super) fn refuse_to_replace(out: &Path, overwrite: bool) -> Result<(), Failure> {
    match ModelFolder::target(out).existing()[..] {
        [first, ..] if !overwrite => Err(Failure::usage(format!(
            "{} is already there; choose another place or replace it with --overwrite",
            first.display()
        ))),
        _ => Ok(()),
    }
}
