//! `stridenet export`.

use super::import::refuse_to_replace;
use crate::arguments::ExportFlags;
use crate::console::Console;
use crate::failure::Failure;
use serde::Serialize;
use std::path::Path;
use stridenet::model::{ImportOptions, import};

/// What `export --json` prints.
#[derive(Debug, Serialize)]
struct ExportOutcome<'a> {
    /// The file that was read.
    source: &'a Path,
    /// The files that were written.
    files: Vec<&'a Path>,
    arch: &'a str,
    tensors: usize,
    bytes: u64,
}

/// Writes a model where other programs find it.
pub(crate) fn run(console: &Console, flags: &ExportFlags) -> Result<(), Failure> {
    let ExportFlags { model, out, overwrite } = flags;
    refuse_to_replace(out, *overwrite)?;
    let imported = import(model, &ImportOptions::default())?;
    let written = imported.save(out)?;
    let files = written.existing();
    let size = |path: &&Path| std::fs::metadata(path).map_or(0, |metadata| metadata.len());
    let outcome = ExportOutcome {
        source: &imported.weights,
        arch: &imported.description.arch.name,
        tensors: imported.state.len(),
        bytes: files.iter().map(size).sum(),
        files,
    };
    if console.json {
        console.json(&outcome)?;
        return Ok(());
    }
    let files: Vec<String> = outcome.files.iter().map(|path| path.display().to_string()).collect();
    let mebibytes = outcome.bytes as f64 / f64::from(1 << 20);
    let (arch, tensors) = (outcome.arch, outcome.tensors);
    console
        .result(&format!("{arch}: {tensors} tensors, {mebibytes:.1} MiB, in {}\n", files.join(" and ")))?;
    Ok(())
}
