//! `unif2ace train`.

use std::path::PathBuf;

use clap::Args;
use unif2ace_train::{Outcome as TrainOutcome, Recipe, Session};

use crate::outcome::{Failure, Outcome};

/// Train what a recipe names.
#[derive(Debug, Args)]
pub struct TrainArgs {
    /// The recipe.
    recipe: PathBuf,
    /// Continue from the newest checkpoint.
    #[arg(long)]
    resume: bool,
    /// Folder of the training data, in place of the recipe's.
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// No progress bar.
    #[arg(long, short)]
    quiet: bool,
}

/// Trains.
pub fn run(args: &TrainArgs) -> Outcome {
    let mut recipe = Recipe::read(&args.recipe)?;
    if let Some(data) = &args.data {
        recipe.data.path.clone_from(data);
    }
    match unif2ace_train::run(&recipe, Session { resume: args.resume, quiet: args.quiet })? {
        TrainOutcome::Finished => Ok(()),
        TrainOutcome::InterruptedBeforeTraining => Err(Failure::Interrupted("interrupted before the first step")),
        TrainOutcome::Interrupted => Err(Failure::Interrupted("interrupted: the run is saved\nhint: continue it with --resume")),
    }
}
