//! `unif2ace edit`.

use std::path::PathBuf;

use clap::Args;
use unif2ace_image::{DecodeLimits, GrayImage, Region, RgbImage, TokenMask, inpainting_mask, load_gray, load_rgb};
use unif2ace_pipeline::EditOptions;

use super::generate::make;
use crate::options::{ModelArgs, SamplingArgs, check_outputs};
use crate::outcome::{Failure, Outcome, fail};

/// Repaint a part of a face after a text.
#[derive(Debug, Args)]
pub struct EditArgs {
    /// Picture (PNG, JPEG or WebP of any size).
    image: PathBuf,
    /// What the whole picture shows afterwards.
    prompt: String,
    /// Picture of the same size, white where to repaint.
    #[arg(long, value_name = "FILE", required_unless_present = "region", conflicts_with = "region")]
    mask: Option<PathBuf>,
    /// Parts of an aligned face to repaint, with commas: eyes, brows, nose, mouth, chin, hair, hat, ears, face, clothes, background.
    #[arg(long, value_name = "NAMES")]
    region: Option<String>,
    /// PNG to write; several pictures get numbers.
    #[arg(short, long, value_name = "FILE", default_value = "edited.png", help_heading = "Output")]
    output: PathBuf,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    model: ModelArgs,
}

/// Repaints and writes.
pub fn run(args: &EditArgs) -> Outcome {
    let generate = args.sampling.options(&args.prompt, &args.model)?;
    generate.check()?;
    check_outputs(&args.output, generate.num_images)?;
    let image = load_rgb(&args.image, DecodeLimits::default())?;
    let drawn = match &args.mask {
        Some(path) => Some(load_gray(path, DecodeLimits::default())?),
        None => None,
    };
    if let (Some(mask), Some(path)) = (&drawn, &args.mask) {
        same_size(&image, mask, path)?;
    }
    let pipeline = args.model.load()?;
    let repaint: TokenMask = match (&drawn, &args.region) {
        (Some(mask), _) => inpainting_mask(mask, pipeline.resolution(), pipeline.resolution() / pipeline.grid())?,
        (None, names) => Region::parse_mask(names.as_deref().unwrap_or_default(), pipeline.grid())?,
    };
    let options = EditOptions { generate, repaint };
    make(&pipeline, &args.sampling, &options.generate, &args.output, 1, |progress| pipeline.edit(&image, &options, progress))
}

fn same_size(image: &RgbImage, mask: &GrayImage, path: &std::path::Path) -> Result<(), Failure> {
    let (expected, found) = ((image.width(), image.height()), (mask.width(), mask.height()));
    if expected == found {
        return Ok(());
    }
    Err(fail(format!(
        "mask {}: expected the picture's size {}x{}, found {}x{}\nhint: paint the mask over a copy of the picture, white where to repaint",
        path.display(),
        expected.0,
        expected.1,
        found.0,
        found.1
    )))
}
