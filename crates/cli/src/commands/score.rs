//! `unif2ace score`.

use std::path::PathBuf;

use clap::Args;
use unif2ace_image::{DecodeLimits, load_rgb};
use unif2ace_pipeline::ScoreOptions;

use crate::options::ModelArgs;
use crate::outcome::{Outcome, say};

/// How likely a face is given a text: an upper bound of its negative log-likelihood, lower is a better match.
#[derive(Debug, Args)]
pub struct ScoreArgs {
    /// Picture (PNG, JPEG or WebP of any size).
    image: PathBuf,
    /// The text.
    text: String,
    /// Network evaluations; the standard error falls with their square root.
    #[arg(long, default_value_t = ScoreOptions::default().num_points)]
    num_points: usize,
    /// Seed of the masked places.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Print as JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    model: ModelArgs,
}

/// Scores and prints.
pub fn run(args: &ScoreArgs) -> Outcome {
    let image = load_rgb(&args.image, DecodeLimits::default())?;
    let options = ScoreOptions { num_points: args.num_points, seed: args.seed };
    options.check(&args.text)?;
    let score = args.model.load()?.score(&image, &args.text, &options)?;
    if args.json {
        return say(&serde_json::json!({
            "nats": score.nats,
            "standard_error": score.standard_error,
            "bits_per_token": score.bits_per_token,
        })
        .to_string());
    }
    say(&format!(
        "at most {:.2} nats (standard error {:.2}), {:.3} bits per image token",
        score.nats, score.standard_error, score.bits_per_token
    ))
}
