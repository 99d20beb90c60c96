//! `unif2ace extend`.

use std::path::PathBuf;

use clap::Args;
use unif2ace_diffusion::canvas::Direction;
use unif2ace_image::{DecodeLimits, load_rgb};
use unif2ace_pipeline::ExtendOptions;

use super::generate::make;
use crate::options::{ModelArgs, SamplingArgs, check_outputs};
use crate::outcome::{Outcome, fail};

/// Grow a picture beyond its edges after a text.
#[derive(Debug, Args)]
pub struct ExtendArgs {
    /// Picture (PNG, JPEG or WebP of any size).
    image: PathBuf,
    /// What the new parts show.
    prompt: String,
    /// Where it grows, with commas, one strip after the other: left, right, up, down.
    #[arg(long, value_delimiter = ',', default_value = "left,right")]
    direction: Vec<Direction>,
    /// Tokens that a strip is wider than half the model's grid.
    #[arg(long, default_value_t = 0)]
    offset: usize,
    /// PNG to write.
    #[arg(short, long, value_name = "FILE", default_value = "extended.png", help_heading = "Output")]
    output: PathBuf,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    model: ModelArgs,
}

/// Extends and writes.
pub fn run(args: &ExtendArgs) -> Outcome {
    if args.sampling.num_images != 1 || args.sampling.save_steps.is_some() {
        return Err(fail(
            "extend makes one picture, without pictures of its steps\nhint: leave out --num-images and --save-steps",
        ));
    }
    let generate = args.sampling.options(&args.prompt, &args.model)?;
    generate.check()?;
    check_outputs(&args.output, 1)?;
    let image = load_rgb(&args.image, DecodeLimits::default())?;
    let pipeline = args.model.load()?;
    let options = ExtendOptions { generate, directions: args.direction.clone(), offset: args.offset };
    let runs = args.direction.len();
    make(&pipeline, &args.sampling, &options.generate, &args.output, runs, |progress| {
        Ok(vec![pipeline.extend(&image, &options, progress)?])
    })
}
