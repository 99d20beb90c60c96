//! `unif2ace eval`: the figures of the model card.

use std::path::PathBuf;

use clap::Args;
use unif2ace_eval::{EvalOptions, evaluate};

use crate::options::{DenoisingArgs, ModelArgs};
use crate::outcome::{Outcome, say};

/// Measure a model on a split of the face set and print the figures as JSON.
#[derive(Debug, Args)]
pub struct EvalArgs {
    /// Folder of the face set, with train/, val/ and test/.
    #[arg(long)]
    faces: PathBuf,
    /// Split to measure on.
    #[arg(long, default_value = "test")]
    split: String,
    /// Pictures for reconstruction, answers and captions; 0 for all.
    #[arg(long, default_value_t = 0)]
    num_images: usize,
    /// Captions to generate pictures from; 0 for none.
    #[arg(long, default_value_t = 500)]
    num_generated: usize,
    /// Pictures to bound the likelihood of, given their captions; 0 for none.
    #[arg(long, default_value_t = 0)]
    num_scored: usize,
    /// Labelled prompts in users' words to generate from too.
    #[arg(long, value_name = "FILE")]
    prompts: Option<PathBuf>,
    #[command(flatten)]
    denoising: DenoisingArgs,
    #[command(flatten)]
    model: ModelArgs,
}

/// Measures and prints.
pub fn run(args: EvalArgs) -> Outcome {
    let drawing = args.denoising.options("", &args.model)?;
    let pipeline = args.model.load()?;
    let options = EvalOptions {
        faces: args.faces,
        split: args.split,
        num_images: args.num_images,
        num_generated: args.num_generated,
        num_scored: args.num_scored,
        sampler: drawing.sampler_config(),
        guidance_scale: drawing.guidance_scale,
        seed: drawing.seed,
        prompts: args.prompts,
    };
    let report = evaluate(&pipeline, &options, &mut |what| tracing::info!("{what}"))?;
    say(&format!("{report:#}"))
}
