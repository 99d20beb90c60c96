//! The `unif2ace` command.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(version, about)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Train what a recipe names.
    Train {
        /// The recipe.
        recipe: PathBuf,
        /// Continue from the newest checkpoint.
        #[arg(long)]
        resume: bool,
        /// No progress bar.
        #[arg(long)]
        quiet: bool,
    },
}

fn main() -> ExitCode {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let Command::Train { recipe, resume, quiet } = Args::parse().command;
    let outcome = unif2ace_train::Recipe::read(&recipe)
        .and_then(|recipe| unif2ace_train::run(&recipe, unif2ace_train::Session { resume, quiet }));
    match outcome {
        Ok(_) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error}");
            ExitCode::FAILURE
        }
    }
}
