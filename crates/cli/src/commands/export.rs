//! `stridenet export`.

use super::import::refuse_to_replace;
use super::open_model;
use crate::arguments::ExportFlags;
use crate::console::Console;
use crate::failure::Failure;
use anyhow::Context as _;
use serde::Serialize;
use std::path::Path;
use std::sync::Arc;
use stridenet::exchange::OnnxReport;
use stridenet::kernels::Context;
use stridenet::model::{ImportOptions, import};
use stridenet::weights::Format;

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

/// What `export --json` prints for a graph.
#[derive(Debug, Serialize)]
struct GraphOutcome<'a> {
    /// The model that was read.
    source: &'a Path,
    /// The file that was written.
    files: [&'a Path; 1],
    arch: &'a str,
    nodes: usize,
    bytes: u64,
    /// Relative L2 distance between the network's logits and those computed from the file.
    distance: f64,
}

/// Writes a model where other programs find it.
pub(crate) fn run(cx: &Arc<Context>, console: &Console, flags: &ExportFlags) -> Result<(), Failure> {
    let ExportFlags { model, out, fold, overwrite } = flags;
    if Format::of_name(out) == Some(Format::Onnx) {
        return graph(cx, console, flags);
    }
    if *fold {
        let message = format!("--fold is for ONNX, and {} does not end in .onnx", out.display());
        return Err(Failure::usage(message));
    }
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

/// Writes a model as an ONNX file.
fn graph(cx: &Arc<Context>, console: &Console, flags: &ExportFlags) -> Result<(), Failure> {
    let ExportFlags { model: source, out, fold, overwrite } = flags;
    if out.exists() && !overwrite {
        let out = out.display();
        let message = format!("{out} is already there; choose another place or replace it with --overwrite");
        return Err(Failure::usage(message));
    }
    let model = open_model(cx, console, source, None)?;
    if let Some(folder) = out.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    console.message(format_args!("writing {} and checking it", out.display()));
    let OnnxReport { nodes, distance } = model.export_onnx(out, *fold)?;
    let bytes = std::fs::metadata(out).map_or(0, |metadata| metadata.len());
    let arch = model.network().arch().name.as_str();
    if console.json {
        console.json(&GraphOutcome { source, files: [out], arch, nodes, bytes, distance })?;
        return Ok(());
    }
    let mebibytes = bytes as f64 / f64::from(1 << 20);
    console.result(&format!(
        "{arch}: {nodes} nodes, {mebibytes:.1} MiB, in {}; its logits differ from the network's by {distance:.1e}\n",
        out.display()
    ))?;
    Ok(())
}
