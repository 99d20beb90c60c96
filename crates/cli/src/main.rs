//! The `unif2ace` command.

mod commands;
mod options;
mod outcome;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tracing_subscriber::EnvFilter;

/// Generates faces from text and answers questions about them.
#[derive(Debug, Parser)]
#[command(name = "unif2ace", version, about, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
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
    Doctor(commands::doctor::DoctorArgs),
}

fn main() -> ExitCode {
    unif2ace_ops::keep_freed_memory();
    let cli = Cli::parse();
    let level = if matches!(cli.command, Command::Train(_) | Command::Eval(_)) { "info" } else { "warn" };
    let filter = EnvFilter::try_from_env("UNIF2ACE_LOG").unwrap_or_else(|_| EnvFilter::new(level));
    tracing_subscriber::fmt().with_env_filter(filter).with_target(false).with_writer(std::io::stderr).init();
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
        Command::Doctor(args) => commands::doctor::run(&args),
    })
}
