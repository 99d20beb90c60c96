//! The `unif2ace` command.

mod eval;

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
    /// Measure a model on a split of the face set.
    Eval(eval::EvalArgs),
}

fn main() -> ExitCode {
    unif2ace_ops::keep_freed_memory();
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let (recipe, resume, quiet) = match Args::parse().command {
        Command::Train { recipe, resume, quiet } => (recipe, resume, quiet),
        Command::Eval(args) => {
            return match eval::run(args) {
                Ok(report) => {
                    use std::io::Write;
                    let _ = writeln!(std::io::stdout(), "{report}");
                    ExitCode::SUCCESS
                }
                Err(error) => {
                    tracing::error!("{error}");
                    ExitCode::FAILURE
                }
            };
        }
    };
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
