//! The `stridenet` command: arguments become typed options, options become library calls, results are rendered.
#![forbid(unsafe_code)]

mod arguments;
mod commands;
mod console;
mod failure;
mod interrupt;
mod pixels;
mod recipe;

use arguments::{Arguments, Command};
use clap::Parser;
use console::Console;
use failure::Failure;
use interrupt::Interrupt;
use std::num::NonZeroUsize;
use std::process::ExitCode;
use std::sync::Arc;
use stridenet::kernels::{Context, Level, UnknownLevel, physical_processors};

fn main() -> ExitCode {
    let done = Arguments::try_parse().map_err(Failure::from).and_then(|mut arguments| run(&mut arguments));
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

fn run(arguments: &mut Arguments) -> Result<(), Failure> {
    let Arguments { common, command } = arguments;
    let console = Console::new(common);
    let level = Level::from_env().map_err(|error| {
        Failure::usage(match error {
            UnknownLevel::Name { .. } => format!("{}: {error}", Level::VARIABLE),
            UnknownLevel::Bf16 { .. } => error.to_string(),
        })
    })?;
    let threads = common.threads.map_or_else(physical_processors, NonZeroUsize::get);
    let cx = Arc::new(Context::new(level, threads));
    console.detail(format_args!("{} instructions, {threads} threads", level.name()));
    Interrupt::listen()?;
    commands::hub::fetch_named(&console, command)?;
    match command {
        Command::Train(flags) => commands::train::run(&cx, &console, common, flags),
        Command::Evaluate(flags) => commands::evaluate::run(&cx, &console, common, flags),
        Command::Predict(flags) => commands::predict::run(&cx, &console, flags),
        Command::Doctor(flags) => commands::doctor::run(&cx, &console, flags),
        Command::Inspect(flags) => commands::inspect::run(&cx, &console, flags),
        Command::Import(flags) => commands::import::run(&console, common, flags),
        Command::Export(flags) => commands::export::run(&cx, &console, flags),
        Command::Bench(command) => commands::bench::run(&cx, &console, command),
    }
}
