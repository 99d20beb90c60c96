//! `unif2ace train`.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use unif2ace_pipeline::{DeviceName, open_devices, open_nth_device};
use unif2ace_train::{Outcome as TrainOutcome, Recipe, Session};

use super::plot;
use crate::dashboard::{self, Dashboard};
use crate::outcome::{Failure, Outcome, fail, remark, say};

/// Train what a recipe names.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct TrainArgs {
    #[command(subcommand)]
    command: Option<TrainCommand>,
    /// The recipe.
    #[arg(required = true)]
    recipe: Option<PathBuf>,
    /// Continue from the newest checkpoint.
    #[arg(long)]
    resume: bool,
    /// Folder of the training data, in place of the recipe's.
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Where to compute: cpu, and vulkan or cuda in builds with them; auto takes a GPU where there is one and the recipe can use it.
    #[arg(long, default_value = "cpu")]
    device: DeviceName,
    /// Train on the first N of these devices, each with its share of the rows.
    #[arg(long, value_name = "N", default_value = "1")]
    num_devices: NonZeroUsize,
    /// No progress bar.
    #[arg(long, short)]
    quiet: bool,
    /// A live view of the run in place of the progress bar.
    #[arg(long, conflicts_with = "quiet")]
    dashboard: bool,
    /// Print parameters, memory, steps and data, and train nothing; nothing is written.
    #[arg(long)]
    dry_run: bool,
    /// Print the numbers of --dry-run as JSON.
    #[arg(long, requires = "dry_run")]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum TrainCommand {
    Plot(plot::PlotArgs),
}

/// Trains.
pub fn run(args: &TrainArgs) -> Outcome {
    let path = match (&args.command, &args.recipe) {
        (Some(TrainCommand::Plot(args)), _) => return plot::run(args),
        (None, Some(recipe)) => recipe,
        (None, None) => return Err(fail("train: expected a recipe\nhint: for example recipes/mini/face.toml")),
    };
    let mut recipe = Recipe::read(path)?;
    if let Some(data) = &args.data {
        recipe.set_data(data);
    }
    if args.dry_run {
        let plan = unif2ace_train::plan(&recipe)?;
        return say(&if args.json { serde_json::to_string_pretty(&plan)? } else { plan.to_string() });
    }
    let ranks = unif2ace_train::connect()?;
    let open = |device: DeviceName| match (ranks.world_size(), args.num_devices.get()) {
        (2.., 1) => open_nth_device(device, unif2ace_train::local_rank()).map(|device| vec![device]),
        (_, count) => open_devices(device, count),
    };
    let mut devices = open(args.device)?;
    if args.device == DeviceName::Auto && !devices.iter().all(|device| unif2ace_train::has_precision(&recipe, device)) {
        devices = open(DeviceName::Cpu)?;
    }
    if devices.len() == 1 {
        // With several, each has a thread that computes, and this one only waits for them.
        unif2ace_ops::join_pool();
    }
    let dashboard = match args.dashboard && ranks.leads() {
        true if dashboard::is_possible() => {
            Some(Dashboard::open(format!("{}: {}", path.display(), recipe.run.output.display()), &recipe.run.output)?)
        }
        true => {
            remark("--dashboard needs a terminal: plain lines instead");
            None
        }
        false => None,
    };
    let reporter = dashboard.as_ref().map(Dashboard::reporter);
    let session = Session { resume: args.resume, quiet: args.quiet, ranks: ranks.clone(), reporter, ..Session::default() };
    let result = unif2ace_train::run_on(&recipe, session, devices);
    // The terminal is given back before anything more is said.
    drop(dashboard);
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
