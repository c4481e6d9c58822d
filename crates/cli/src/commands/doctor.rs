//! `stridenet doctor`.

use super::open_model;
use super::predict::for_each_file;
use crate::console::Console;
use crate::failure::Failure;
use crate::pixels::DoctorFlags;
use anyhow::anyhow;
use serde::Serialize;
use std::fmt::Write;
use std::path::Path;
use std::sync::Arc;
use stridenet::doctor::{Doctor, Finding, Findings};
use stridenet::kernels::Context;

/// What `doctor --json` prints.
#[derive(Debug, Serialize)]
struct Outcome<'a> {
    model: String,
    /// Images that could not be read.
    failed: usize,
    #[serde(flatten)]
    findings: &'a Findings,
    /// The names of the ways under which answers are surer.
    suspects: Vec<&'static str>,
}

/// Predicts images prepared as the model says and in common wrong ways, and compares.
pub(crate) fn run(cx: &Arc<Context>, console: &Console, flags: &DoctorFlags) -> Result<(), Failure> {
    let model = open_model(cx, console, &flags.model, None)?;
    let mut doctor = Doctor::new(&model, flags.orientation.orientation())?;
    let mut files = Vec::new();
    for input in &flags.inputs {
        for_each_file(input, &mut |file: &Path| {
            files.push(file.to_owned());
            Ok(())
        })?;
    }
    let progress = console.progress(files.len(), "examining");
    let mut failed = 0;
    for (done, file) in (1..).zip(&files) {
        if crate::interrupt::Interrupt::pressed() {
            return Err(anyhow!("interrupted after {} of {} images", done - 1, files.len()).into());
        }
        if let Err(error) = doctor.examine(file) {
            failed += 1;
            console.error(format_args!("{error}"));
        }
        progress.update(done, String::new);
    }
    progress.finish();
    let findings = doctor.findings();
    if findings.count == 0 {
        return Err(anyhow!("none of the images can be read; name others").into());
    }
    if console.json {
        let suspects = findings.suspects().map(|way| way.name).collect();
        let model = flags.model.display().to_string();
        console.json(&Outcome { model, failed, findings: &findings, suspects })?;
    } else {
        console.result(&render(&findings))?;
    }
    if failed > 0 { Err(Failure::Partial) } else { Ok(()) }
}

fn render(findings: &Findings) -> String {
    let Findings { count, declared, confidence, ways } = findings;
    let [height, width] = declared.input_size;
    let name = |value: Result<serde_json::Value, _>| match value {
        Ok(serde_json::Value::String(name)) => name,
        Ok(_) | Err::<_, serde_json::Error>(_) => String::new(),
    };
    let filter = name(serde_json::to_value(declared.interpolation));
    let mode = name(serde_json::to_value(declared.crop_mode));
    // Writing to a string cannot fail.
    let mut text = format!(
        "declared: {height}x{width}, {filter}, crop_pct {}, {mode}, mean {:?}, std {:?}\n",
        declared.crop_pct, declared.mean, declared.std
    );
    let _ = writeln!(text, "{count} images, mean top-1 probability {confidence:.2} %\n");
    let _ = writeln!(text, "{:<44} other answer  distance  farthest  top-1 prob.", "prepared otherwise");
    for Finding { name, change, changed_percent, distance, farthest, confidence, .. } in ways {
        let what = format!("{name}: {change}");
        let _ = writeln!(
            text,
            "{what:<44} {changed_percent:10.2} %  {distance:8.4}  {farthest:8.4}  {confidence:9.2} %"
        );
    }
    text.push_str("\ndistance: how much of the probability moves to other classes, 0 to 1\n");
    let suspects: Vec<&str> = findings.suspects().map(|way| way.name).collect();
    match suspects[..] {
        [] => text.push_str("no other way gives surer answers: nothing speaks against the declared one\n"),
        _ => {
            let _ = writeln!(
                text,
                "surer than the declared way: {}; check the model's config.json",
                suspects.join(", ")
            );
        }
    }
    text
}
