//! `unif2ace ask` and `unif2ace caption`.

use std::path::{Path, PathBuf};

use clap::Args;
use unif2ace_image::{DecodeLimits, load_rgb};
use unif2ace_pipeline::{AnswerOptions, Pipeline, PipelineError};

use crate::options::{ModelArgs, catch_interrupt, interrupted};
use crate::outcome::{Failure, Outcome, fail, ignore_broken_pipe, say, say_piece};

/// Ask a question about a face.
#[derive(Debug, Args)]
pub struct AskArgs {
    /// Picture (PNG, JPEG or WebP of any size).
    image: PathBuf,
    /// The question, for example "What colour is her hair?".
    question: String,
    #[command(flatten)]
    text: TextArgs,
    #[command(flatten)]
    model: ModelArgs,
}

/// Describe a face.
#[derive(Debug, Args)]
pub struct CaptionArgs {
    /// Picture (PNG, JPEG or WebP of any size).
    image: PathBuf,
    #[command(flatten)]
    text: TextArgs,
    #[command(flatten)]
    model: ModelArgs,
}

/// How text is chosen.
#[derive(Debug, Args)]
struct TextArgs {
    /// Longest text.
    #[arg(long, default_value_t = 128, help_heading = "Text")]
    max_new_tokens: usize,
    /// 0 takes the most probable token each time.
    #[arg(long, default_value_t = 0.0, help_heading = "Text")]
    temperature: f32,
    /// Draw from the so many most probable tokens only.
    #[arg(long, help_heading = "Text")]
    top_k: Option<usize>,
    /// Seed of the draws.
    #[arg(long, default_value_t = 0, help_heading = "Text")]
    seed: u64,
}

impl TextArgs {
    fn options(&self) -> Result<AnswerOptions, Failure> {
        if self.max_new_tokens == 0 {
            return Err(fail("max new tokens: expected at least 1, found 0\nhint: leave the option out"));
        }
        Ok(AnswerOptions {
            max_new_tokens: self.max_new_tokens,
            temperature: self.temperature,
            top_k: self.top_k,
            seed: self.seed,
        })
    }
}

/// Answers.
pub fn ask(args: &AskArgs) -> Outcome {
    if args.question.trim().is_empty() {
        return Err(PipelineError::empty_question().into());
    }
    stream(&args.image, &args.text, &args.model, |pipeline, image, options, print| {
        pipeline.ask(image, &args.question, options, print)
    })
}

/// Describes.
pub fn caption(args: &CaptionArgs) -> Outcome {
    stream(&args.image, &args.text, &args.model, |pipeline, image, options, print| pipeline.caption(image, options, print))
}

fn stream(
    image: &Path,
    text: &TextArgs,
    model: &ModelArgs,
    work: impl FnOnce(
        &Pipeline,
        &unif2ace_image::RgbImage,
        &AnswerOptions,
        &mut dyn FnMut(&str) -> bool,
    ) -> Result<String, PipelineError>,
) -> Outcome {
    let options = text.options()?;
    let image = load_rgb(image, DecodeLimits::default())?;
    let pipeline = model.load()?;
    catch_interrupt();
    let mut written = Ok(());
    let answered = work(&pipeline, &image, &options, &mut |piece| {
        written = say_piece(piece);
        written.is_ok() && !interrupted()
    });
    match answered {
        _ if written.is_err() => ignore_broken_pipe(written),
        Ok(_) => say(""),
        Err(PipelineError::Stopped) => Err(Failure::Interrupted("\ninterrupted")),
        Err(error) => Err(error.into()),
    }
}
