//! `stridenet inspect --tensors`.

use crate::console::Console;
use crate::failure::Failure;
use serde::Serialize;
use std::fmt::Write as _;
use std::path::Path;
use stridenet::model::{ImportOptions, Imported, import};
use stridenet::weights::{Account, FileContents, Format, ModelFolder, NonFinite, read_weights};

/// What `inspect --tensors --json` prints.
#[derive(Debug, Serialize)]
struct TensorsOutcome<'a> {
    file: &'a Path,
    format: &'static str,
    /// Under which keys of a checkpoint the tensors are.
    part: &'a str,
    tensors: Vec<TensorOutcome<'a>>,
    /// The network that the tensors fit, if there is one.
    arch: Option<&'a str>,
    account: Option<&'a Account>,
    /// Why there is none.
    problem: Option<String>,
}

/// One tensor.
#[derive(Debug, Serialize)]
struct TensorOutcome<'a> {
    name: &'a str,
    shape: &'a [usize],
    values: usize,
    /// How many of them are NaN or infinite.
    non_finite: usize,
}

/// Lists the tensors of a file of weights, and says which network they fit.
pub(super) fn run(console: &Console, model: &Path) -> Result<(), Failure> {
    let ModelFolder { weights, .. } = ModelFolder::locate(model).map_err(stridenet::Error::from)?;
    let format = Format::of(&weights).map_err(stridenet::Error::from)?;
    let FileContents { state, part } =
        read_weights(&weights, NonFinite::Allow).map_err(stridenet::Error::from)?;
    let rows = state.iter().map(|(name, tensor)| TensorOutcome {
        name,
        shape: tensor.shape(),
        values: tensor.values().len(),
        non_finite: tensor.values().non_finite(),
    });
    let fitted = import(model, &ImportOptions { non_finite: NonFinite::Allow, ..ImportOptions::default() });
    let (fitted, problem) = match fitted {
        Ok(Imported { description, account, .. }) => (Some((description.arch.name, account)), None),
        Err(error) => (None, Some(error.to_string())),
    };
    let outcome = TensorsOutcome {
        file: &weights,
        format: format.name(),
        part: &part,
        tensors: rows.collect(),
        arch: fitted.as_ref().map(|(arch, _)| arch.as_str()),
        account: fitted.as_ref().map(|(_, account)| account),
        problem,
    };
    match console.json {
        true => console.json(&outcome)?,
        false => console.result(&text(&outcome))?,
    }
    Ok(())
}

/// The outcome for people.
fn text(outcome: &TensorsOutcome) -> String {
    let TensorsOutcome { file, format, part, tensors, arch, account, problem } = outcome;
    let widest = tensors.iter().map(|tensor| tensor.name.chars().count()).max().unwrap_or(0).clamp(4, 60);
    // Writing to a string cannot fail.
    let mut text = format!("{:<widest$}  {:>18}  {:>10}\n", "name", "shape", "values");
    for TensorOutcome { name, shape, values, non_finite } in tensors {
        let shape: Vec<String> = shape.iter().map(usize::to_string).collect();
        // Names are those of the file, and may have anything in them.
        let name: String = name
            .chars()
            .flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] })
            .collect();
        let _ = write!(text, "{name:<widest$}  {:>18}  {values:>10}", shape.join("x"));
        let _ = match non_finite {
            0 => writeln!(text),
            count => writeln!(text, "  {count} NaN or infinite"),
        };
    }
    let values: usize = tensors.iter().map(|tensor| tensor.values).sum();
    let part = if part.is_empty() { String::new() } else { format!(", in {part}") };
    let _ = writeln!(text, "{}: {format}{part}, {} tensors, {values} values", file.display(), tensors.len());
    let _ = match (arch, account, problem) {
        (Some(arch), Some(account), _) => writeln!(text, "fits {arch}: {account}"),
        (_, _, problem) => writeln!(text, "fits no network: {}", problem.as_deref().unwrap_or_default()),
    };
    text
}
