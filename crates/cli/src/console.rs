//! What users see: results on stdout, messages and progress on stderr.

use crate::arguments::Common;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use std::cell::Cell;
use std::fmt::Arguments;
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// Between two progress lines where stderr is no terminal.
const PLAIN_INTERVAL: Duration = Duration::from_secs(10);

/// Where messages go, and how many of them.
#[derive(Debug)]
pub(crate) struct Console {
    /// Whether results are JSON.
    pub(crate) json: bool,
    quiet: bool,
    verbose: bool,
    terminal: bool,
}

impl Console {
    /// The console that the flags ask for.
    pub(crate) fn new(common: &Common) -> Self {
        let Common { json, quiet, verbose, .. } = *common;
        Console { json, quiet, verbose, terminal: std::io::stderr().is_terminal() }
    }

    /// A message for everybody who did not ask for quiet.
    pub(crate) fn message(&self, message: Arguments) {
        if !self.quiet {
            // Messages are lost where stderr is closed; results are not.
            let _ = writeln!(std::io::stderr(), "{message}");
        }
    }

    /// A message for those who asked for more.
    pub(crate) fn detail(&self, message: Arguments) {
        if self.verbose {
            self.message(message);
        }
    }

    /// An error that does not end the command; not even `--quiet` hides it.
    pub(crate) fn error(&self, message: Arguments) {
        let _ = writeln!(std::io::stderr(), "error: {message}");
    }

    /// Results as text.
    pub(crate) fn result(&self, text: &str) -> std::io::Result<()> {
        let mut stdout = std::io::stdout().lock();
        stdout.write_all(text.as_bytes())?;
        stdout.flush()
    }

    /// Results as one line of JSON.
    pub(crate) fn json(&self, value: &impl Serialize) -> std::io::Result<()> {
        let mut line = serde_json::to_string(value)?;
        line.push('\n');
        self.result(&line)
    }

    /// Progress over `total` things: a bar on a terminal, a line now and then elsewhere.
    pub(crate) fn progress(&self, total: usize, what: &str) -> Progress {
        let target = match self.terminal && !self.quiet {
            true => ProgressDrawTarget::stderr(),
            false => ProgressDrawTarget::hidden(),
        };
        let bar = ProgressBar::with_draw_target(Some(total as u64), target);
        if let Ok(style) = ProgressStyle::with_template("{prefix} {bar:24} {pos}/{len} {eta:>4} {msg}") {
            bar.set_style(style.progress_chars("━╸ "));
        }
        bar.set_prefix(what.to_owned());
        Progress {
            bar,
            what: what.to_owned(),
            plain: !self.terminal && !self.quiet,
            last: Cell::new(Instant::now()),
        }
    }
}

/// Progress of something that takes a while.
#[derive(Debug)]
pub(crate) struct Progress {
    bar: ProgressBar,
    what: String,
    plain: bool,
    last: Cell<Instant>,
}

impl Progress {
    /// `done` things are done; `message` says how it goes.
    pub(crate) fn update(&self, done: usize, message: impl FnOnce() -> String) {
        self.bar.set_position(done as u64);
        let due = self.plain && self.last.get().elapsed() >= PLAIN_INTERVAL;
        if due || !self.bar.is_hidden() {
            let message = message();
            if due {
                self.last.set(Instant::now());
                let total = self.bar.length().unwrap_or(0);
                let left = self.bar.eta().as_secs();
                let _ = writeln!(std::io::stderr(), "{} {done}/{total} {left}s left {message}", self.what);
            }
            self.bar.set_message(message);
        }
    }

    /// A message that does not move the bar.
    pub(crate) fn note(&self, message: impl FnOnce() -> String) {
        if !self.bar.is_hidden() {
            self.bar.set_message(message());
        }
    }

    /// Removes the bar.
    pub(crate) fn finish(&self) {
        self.bar.finish_and_clear();
    }
}
