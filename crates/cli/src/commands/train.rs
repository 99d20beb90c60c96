//! `unif2ace train`.

use std::path::PathBuf;

use clap::Args;
use unif2ace_train::{Outcome as TrainOutcome, Recipe, Session};

use crate::outcome::{Failure, Outcome, remark, say};

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
    /// Print parameters, memory, steps and data, and train nothing; nothing is written.
    #[arg(long)]
    dry_run: bool,
    /// Print the numbers of --dry-run as JSON.
    #[arg(long, requires = "dry_run")]
    json: bool,
}

/// Trains.
pub fn run(args: &TrainArgs) -> Outcome {
    let mut recipe = Recipe::read(&args.recipe)?;
    if let Some(data) = &args.data {
        recipe.data.path.clone_from(data);
    }
    if args.dry_run {
        let plan = unif2ace_train::plan(&recipe)?;
        return say(&if args.json { serde_json::to_string_pretty(&plan)? } else { plan.to_string() });
    }
    let ranks = unif2ace_train::connect()?;
    let result = unif2ace_train::run(&recipe, Session { resume: args.resume, quiet: args.quiet, ranks: ranks.clone() });
    if let (Err(error), true) = (&result, ranks.world_size() > 1) {
        remark(&format!("error: rank {}: {error}", ranks.rank()));
        // The others would wait for this one for ever.
        ranks.abort();
    }
    match result? {
        TrainOutcome::Finished => Ok(()),
        TrainOutcome::InterruptedBeforeTraining => Err(Failure::Interrupted("interrupted before the first step")),
        TrainOutcome::Interrupted => Err(Failure::Interrupted("interrupted: the run is saved\nhint: continue it with --resume")),
    }
}
