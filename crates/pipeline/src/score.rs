//! How likely a picture is given a text: an upper bound of its negative log-likelihood, from the score term of D3Diff (arXiv 2503.08120).

use unif2ace_diffusion::bound::{bound_estimate, bound_points};
use unif2ace_diffusion::rng::Key;
use unif2ace_image::RgbImage;

use crate::denoise::GridRequest;
use crate::error::{PipelineError, Result};
use crate::pretrained::Pipeline;

const MAX_POINTS: usize = 1 << 16;

/// How precisely to score.
#[derive(Debug, Clone, Copy)]
pub struct ScoreOptions {
    /// Network evaluations; the standard error falls with their square root.
    pub num_points: usize,
    /// Seed of the masked places, the same for every text.
    pub seed: u64,
}

impl Default for ScoreOptions {
    fn default() -> Self {
        Self { num_points: 64, seed: 0 }
    }
}

impl ScoreOptions {
    /// Checks the settings and the text before a model is loaded.
    ///
    /// # Errors
    /// When there is no text or the number of evaluations is out of range.
    pub fn check(&self, text: &str) -> Result<()> {
        let input =
            |what, expected: &str, found: String, hint| PipelineError::Input { what, expected: expected.into(), found, hint };
        if text.trim().is_empty() {
            return Err(input(
                "text",
                "a description of a face",
                "nothing".into(),
                "for example \"a smiling old man with a grey beard\"",
            ));
        }
        if !(1..=MAX_POINTS).contains(&self.num_points) {
            let found = self.num_points.to_string();
            return Err(input("number of points", "1 to 65536", found, "64 give a standard error of about one percent"));
        }
        Ok(())
    }
}

/// The bound.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Score {
    /// Nats of the picture's codes.
    pub nats: f64,
    /// Standard error of `nats`.
    pub standard_error: f64,
    /// Bits per image token.
    pub bits_per_token: f64,
}

impl Pipeline {
    /// Upper bound of `-ln p(codes of the picture | text)`. Lower is a better match; compare texts on one picture.
    ///
    /// # Errors
    /// When the text is longer than the context.
    pub fn score(&self, image: &RgbImage, text: &str, options: &ScoreOptions) -> Result<Score> {
        options.check(text)?;
        let _awake = self.keep_awake();
        self.score_codes(&self.encode(self.pixels(image)?)?, text, options)
    }

    /// As [`Pipeline::score`], of a picture's codes.
    ///
    /// # Errors
    /// When the text is longer than the context, or the codes are not those of one picture.
    pub fn score_codes(&self, codes: &[u32], text: &str, options: &ScoreOptions) -> Result<Score> {
        options.check(text)?;
        let _awake = self.keep_awake();
        let num_codes = self.config().codebook_size;
        let points = bound_points(codes.len(), options.num_points, Key::new(options.seed, 0))?;
        let denoiser = self.denoiser(&[text], 0.0)?;
        let mut sums = Vec::with_capacity(points.len());
        for point in &points {
            let grid = point.mask(codes);
            let masked_fraction = point.masked.len() as f32 / codes.len() as f32;
            let logits = denoiser.logits(&[GridRequest { grid: &grid, wanted: &point.masked, masked_fraction }])?.swap_remove(0);
            let rows = logits.chunks_exact(num_codes).zip(&point.masked);
            sums.push(rows.map(|(row, &place)| cross_entropy(row, codes[place] as usize)).sum());
        }
        let estimate = bound_estimate(codes.len(), &points, &sums)?;
        let bits_per_token = estimate.nats / std::f64::consts::LN_2 / codes.len() as f64;
        Ok(Score { nats: estimate.nats, standard_error: estimate.standard_error, bits_per_token })
    }
}

/// `-ln softmax(row)[target]` in f64.
fn cross_entropy(row: &[f32], target: usize) -> f64 {
    let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = row.iter().map(|&x| f64::from(x - max).exp()).sum();
    sum.ln() - f64::from(row[target] - max)
}
