//! `unif2ace train plot`.

use std::path::PathBuf;

use clap::Args;
use unif2ace_train::plot::{PlotOptions, plot};

use crate::options::check_outputs;
use crate::outcome::{Outcome, remark};

/// Draw the curves of runs.
#[derive(Debug, Args)]
pub struct PlotArgs {
    /// Folders of runs, the `output` of their recipes.
    #[arg(required = true, value_name = "RUN")]
    runs: Vec<PathBuf>,
    /// The picture.
    #[arg(long, short, value_name = "FILE", default_value = "curves.png")]
    output: PathBuf,
    /// Draw this metric only; may be given several times [default: all].
    #[arg(long = "metric", value_name = "NAME")]
    metrics: Vec<String>,
    /// Draw running averages over the curves: weight of what came before, 0 to less than 1.
    #[arg(long, value_name = "WEIGHT", default_value_t = 0.0, allow_negative_numbers = true)]
    smooth: f64,
}

/// Draws.
pub fn run(args: &PlotArgs) -> Outcome {
    check_outputs(&args.output, 1)?;
    let options = PlotOptions { metrics: args.metrics.clone(), smooth: args.smooth };
    let left_out = plot(&args.runs, &options, &args.output)?;
    if !left_out.is_empty() {
        remark(&format!("not drawn for want of room: {}\nhint: choose with --metric NAME", left_out.join(", ")));
    }
    Ok(())
}
