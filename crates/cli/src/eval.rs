//! `unif2ace eval`: the figures of the model card.

use std::path::PathBuf;

use burn::tensor::Device;
use clap::Args;
use unif2ace_diffusion::sampler::{Sampler, SamplerConfig};
use unif2ace_eval::{EvalError, EvalOptions, Model, evaluate};

/// Measure a model on a split of the face set and print the figures as JSON.
#[derive(Debug, Args)]
pub struct EvalArgs {
    /// Folder of the face set, with train/, val/ and test/.
    #[arg(long)]
    faces: PathBuf,
    /// Model folder.
    #[arg(long, default_value = "models/mini")]
    model: PathBuf,
    /// Split to measure on.
    #[arg(long, default_value = "test")]
    split: String,
    /// Pictures for reconstruction, answers and captions; 0 for all.
    #[arg(long, default_value_t = 0)]
    num_images: usize,
    /// Captions to generate pictures from; 0 for none.
    #[arg(long, default_value_t = 500)]
    num_generated: usize,
    /// Denoising steps.
    #[arg(long, default_value_t = 12)]
    num_inference_steps: usize,
    /// Strength of the prompt.
    #[arg(long, default_value_t = 2.0)]
    guidance_scale: f32,
    /// maskgit, euler or tweedie.
    #[arg(long, default_value = "maskgit")]
    sampler: Sampler,
    /// Seed of the generated pictures.
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

/// Measures and prints.
///
/// # Errors
/// When the model or the set can't be read.
pub fn run(args: EvalArgs) -> Result<String, EvalError> {
    let model = Model::open(&args.model, &Device::flex())?;
    let options = EvalOptions {
        faces: args.faces,
        split: args.split,
        num_images: args.num_images,
        num_generated: args.num_generated,
        sampler: SamplerConfig { sampler: args.sampler, num_steps: args.num_inference_steps, ..SamplerConfig::default() },
        guidance_scale: args.guidance_scale,
        seed: args.seed,
        caption_request: unif2ace_train::tasks::unified::caption_request().to_owned(),
    };
    let report = evaluate(&model, &options, &mut |what| tracing::info!("{what}"))?;
    Ok(format!("{report:#}"))
}
