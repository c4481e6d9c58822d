//! How a command fails: one line on stderr, and an exit code.

use clap::error::ErrorKind::{DisplayHelpOnMissingArgumentOrSubcommand, MissingSubcommand};
use std::fmt::Display;
use std::io::{ErrorKind, Write};
use std::process::ExitCode;

/// Why a command ends early.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The arguments are wrong: exit code 2.
    Usage(String),
    /// The work failed: exit code 1.
    Failed(anyhow::Error),
    /// The work is done but not all of it succeeded, and everything has been said: exit code 1.
    Partial,
    /// The reader of stdout has left: no error.
    ClosedPipe,
    /// Help or the version was asked for and printed: no error.
    Answered,
}

impl Failure {
    /// Wrong arguments.
    pub(crate) fn usage(message: impl Display) -> Self {
        Failure::Usage(message.to_string())
    }

    /// Writes the failure to stderr and returns the exit code.
    pub(crate) fn report(self) -> ExitCode {
        let (message, code) = match self {
            Failure::Usage(message) => (message, 2),
            Failure::Failed(error) => (format!("{error:#}"), 1),
            Failure::Partial => return ExitCode::FAILURE,
            Failure::ClosedPipe | Failure::Answered => return ExitCode::SUCCESS,
        };
        let line = message.lines().map(str::trim).collect::<Vec<_>>().join(" ");
        // Where stderr is closed too, the exit code has to do.
        let _ = writeln!(std::io::stderr(), "error: {line}");
        ExitCode::from(code)
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        match error.kind() {
            ErrorKind::BrokenPipe => Failure::ClosedPipe,
            _ => Failure::Failed(anyhow::Error::new(error).context("cannot write to stdout")),
        }
    }
}

impl From<clap::Error> for Failure {
    /// Help and versions are printed; what is wrong with the arguments becomes one line.
    fn from(error: clap::Error) -> Self {
        if !error.use_stderr() {
            return match error.print() {
                Ok(()) => Failure::Answered,
                Err(error) => error.into(),
            };
        }
        if matches!(error.kind(), MissingSubcommand | DisplayHelpOnMissingArgumentOrSubcommand) {
            return Failure::usage("no command was given; `stridenet --help` lists them");
        }
        let text = error.to_string();
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        // What follows the usage is the same for every error.
        let said: Vec<&str> =
            lines.take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more")).collect();
        let said = said.join("; ").replace(":; ", ": ");
        let said = said.strip_prefix("error: ").unwrap_or(&said);
        Failure::usage(format!("{said}; --help after the command's name lists its flags"))
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Failure::Failed(error)
    }
}

impl From<stridenet::Error> for Failure {
    fn from(error: stridenet::Error) -> Self {
        use stridenet::train::TrainError;
        match error {
            stridenet::Error::Train(TrainError::Option { .. }) => Failure::usage(error),
            error => Failure::Failed(error.into()),
        }
    }
}

impl From<stridenet::data::DataError> for Failure {
    fn from(error: stridenet::data::DataError) -> Self {
        Failure::Failed(error.into())
    }
}
