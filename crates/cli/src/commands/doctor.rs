//! `unif2ace doctor`: what this machine offers and whether the model works on it.

use clap::Args;

use crate::options::ModelArgs;
use crate::outcome::{Outcome, say};

/// Show what this machine offers, and check that the model loads.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    #[command(flatten)]
    model: ModelArgs,
}

/// Prints the findings.
pub fn run(args: &DoctorArgs) -> Outcome {
    say(&format!("unif2ace {} on {} {}", env!("CARGO_PKG_VERSION"), std::env::consts::OS, std::env::consts::ARCH))?;
    say(&format!("threads: {}", rayon::current_num_threads()))?;
    say(&format!("CPU kernels: {:?}", unif2ace_ops::cpu_level()))?;
    let start = std::time::Instant::now();
    args.model.load()?;
    let seconds = start.elapsed().as_secs_f64();
    let sizes = unif2ace_pipeline::summary(&args.model.model)?;
    let total = sizes.parameters + sizes.vq_parameters + sizes.face_parameters + sizes.clip_parameters;
    say(&format!("model {}: {total} parameters, loaded in {:.2} s", args.model.model.display(), seconds))?;
    say("all well")
}
