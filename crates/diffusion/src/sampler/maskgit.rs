//! Confidence-based parallel decoding: one step of Show-o's `t2i_generate` for one image.

use super::draws::{Draws, truncated_softmax};
use super::{Cooling, Rows, SamplerConfig};
use crate::MASKED;
use crate::error::Result;

const SMALLEST: f32 = 1e-20;

/// What one MaskGIT step computed; all slices have N entries.
#[derive(Debug, Clone, PartialEq)]
pub struct MaskGitStep {
    /// A complete grid: drawn codes where something was unknown. After the last step, the result.
    pub codes: Vec<u32>,
    /// The probability of each drawn code; `f32::MAX` at known places.
    pub probabilities: Vec<f32>,
    /// Which places go back to masked.
    pub masked: Vec<bool>,
    /// How many places were to be masked (fewer are, when confidences tie).
    pub num_masked: usize,
    /// The temperature of the confidence noise in this step.
    pub temperature: f64,
}

/// The state that MaskGIT carries from step to step: its temperature.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MaskGit {
    temperature: f64,
}

impl MaskGit {
    /// At the start temperature.
    pub fn new(config: &SamplerConfig) -> Self {
        Self { temperature: config.confidence_temperature }
    }

    pub(super) fn step(
        &mut self,
        config: &SamplerConfig,
        step: usize,
        rows: &Rows<'_>,
        grid: &[u32],
        draws: &mut dyn Draws,
    ) -> Result<MaskGitStep> {
        let mut codes = grid.to_vec();
        let mut probabilities = vec![f32::MAX; grid.len()];
        let mut scratch = Vec::new();
        for (place, logits) in rows.iter() {
            truncated_softmax("MaskGIT step", place, logits, config.code_temperature, config.top_k, &mut scratch)?;
            let code = draws.code(step, place, &scratch);
            codes[place] = code as u32;
            probabilities[place] = scratch[code];
        }

        let ratio = (step + 1) as f64 / config.num_steps as f64;
        self.temperature = match config.cooling {
            // The reference multiplies the factors up: much colder than its paper from the second step on.
            Cooling::Cumulative => self.temperature * (1.0 - ratio),
            Cooling::Linear => config.confidence_temperature * (1.0 - ratio),
        };
        let confidences: Vec<f32> = (0..grid.len())
            .map(|place| {
                if grid[place] != MASKED {
                    // The reference uses ln(f32::MAX), which a high temperature can overtake: known tokens would change.
                    return f32::INFINITY;
                }
                let u = draws.confidence(step, place);
                let gumbel = -((-u.max(SMALLEST).ln()).max(SMALLEST).ln());
                probabilities[place].max(SMALLEST).ln() + self.temperature as f32 * gumbel
            })
            .collect();

        let num_unknown = grid.iter().filter(|&&code| code == MASKED).count();
        // At least one place stays masked even at the last step, whose complete codes are the result all the same. With a
        // single token in the image there is nothing to compare it with, and it is done.
        let num_masked = config
            .mask_schedule
            .num_masked(grid.len(), ratio)
            .min(num_unknown.saturating_sub(1))
            .max(1)
            .min(grid.len().saturating_sub(1));
        let mut sorted = confidences.clone();
        sorted.sort_unstable_by(f32::total_cmp);
        let cut = sorted.get(num_masked).copied().unwrap_or(f32::NEG_INFINITY);
        let masked = confidences.iter().map(|&confidence| confidence < cut).collect();
        Ok(MaskGitStep { codes, probabilities, masked, num_masked, temperature: self.temperature })
    }
}
