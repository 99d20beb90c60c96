//! The `unif2ace` command.

mod commands;
mod dashboard;
mod logging;
mod options;
mod outcome;

use std::fs::File;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tracing::Level;
use tracing_chrome::ChromeLayerBuilder;
use tracing_subscriber::filter::{EnvFilter, Targets};
use tracing_subscriber::prelude::*;
use unif2ace_ops::AlignedAllocator;

#[global_allocator]
static ALLOCATOR: AlignedAllocator = AlignedAllocator;

/// Generates faces from text and answers questions about them.
#[derive(Debug, Parser)]
#[command(name = "unif2ace", version, about, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Write where the time goes, by step, block and part, as a trace for chrome://tracing or ui.perfetto.dev.
    #[arg(long, global = true, value_name = "FILE", help_heading = "Output")]
    profile: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Command {
    Generate(commands::generate::GenerateArgs),
    Edit(commands::edit::EditArgs),
    Extend(commands::extend::ExtendArgs),
    Ask(commands::ask::AskArgs),
    Caption(commands::ask::CaptionArgs),
    Score(commands::score::ScoreArgs),
    Inspect(commands::inspect::InspectArgs),
    Train(commands::train::TrainArgs),
    Eval(commands::eval::EvalArgs),
    Import(commands::import::ImportArgs),
    Pack(commands::pack::PackArgs),
    Lora(commands::lora::LoraArgs),
    Doctor(commands::doctor::DoctorArgs),
}

fn main() -> ExitCode {
    unif2ace_ops::keep_freed_memory();
    let cli = Cli::parse();
    if let Some(found) = unif2ace_ops::unknown_cpu_mask() {
        let names = unif2ace_ops::CpuLevel::ALL.map(unif2ace_ops::CpuLevel::name).join(", ");
        let text = format!(
            "{} is '{found}', expected one of {names}\nhint: unset it to use all that this CPU has",
            unif2ace_ops::CPU_MASK
        );
        return outcome::report(Err(outcome::fail(text)));
    }
    let level = if matches!(cli.command, Command::Train(_) | Command::Eval(_)) { "info" } else { "warn" };
    let filter = EnvFilter::try_from_env("UNIF2ACE_LOG").unwrap_or_else(|_| EnvFilter::new(level));
    let lines = tracing_subscriber::fmt::layer()
        .with_target(false)
        .with_ansi(logging::coloured())
        .with_writer(logging::Lines)
        .with_filter(filter);
    let file = match cli.profile.as_ref().map(File::create).transpose() {
        Ok(file) => file,
        Err(error) => {
            let path = cli.profile.unwrap_or_default();
            let text = format!("profile {}: {error}\nhint: give a file in a folder that you can write to", path.display());
            return outcome::report(Err(outcome::fail(text)));
        }
    };
    // The guard writes the rest of the trace when the command is done.
    let (trace, _guard) = file.map(|file| ChromeLayerBuilder::new().writer(file).include_args(true).build()).unzip();
    let trace = trace.map(|trace| trace.with_filter(Targets::new().with_target("unif2ace", Level::DEBUG)));
    tracing_subscriber::registry().with(lines).with(trace).init();
    // These compute on this thread alone; training does so on one device only, which it finds out itself.
    if matches!(
        cli.command,
        Command::Generate(_)
            | Command::Edit(_)
            | Command::Extend(_)
            | Command::Ask(_)
            | Command::Caption(_)
            | Command::Score(_)
            | Command::Eval(_)
    ) {
        unif2ace_ops::join_pool();
    }
    outcome::report(match cli.command {
        Command::Generate(args) => commands::generate::run(&args),
        Command::Edit(args) => commands::edit::run(&args),
        Command::Extend(args) => commands::extend::run(&args),
        Command::Ask(args) => commands::ask::ask(&args),
        Command::Caption(args) => commands::ask::caption(&args),
        Command::Score(args) => commands::score::run(&args),
        Command::Inspect(args) => commands::inspect::run(&args),
        Command::Train(args) => commands::train::run(&args),
        Command::Eval(args) => commands::eval::run(args),
        Command::Import(args) => commands::import::run(&args),
        Command::Pack(args) => commands::pack::run(&args),
        Command::Lora(args) => commands::lora::run(&args),
        Command::Doctor(args) => commands::doctor::run(&args),
    })
}
