//! Score-based steps for the absorbing graph: Euler (τ-leaping) and Tweedie (analytic), after SEDD (arXiv 2310.16834).
//!
//! The score is RADD's exact `s = p (1 - m) / m` whatever form the loss had: both forms are minimised by the same `p`, and only the exact one is
//! the true ratio then. (With the paper's `p / m` the Euler rate `σ̄' s` near `t = 1` would reveal everything at once.) A masked
//! place leaves the absorbing state at rate `σ̄' Σ_y s_y = m'/m` and then takes code `y` with probability `p_y`: so a step first decides
//! *which* places it reveals, without the network, and only these places need logits. One place changes at most once in a
//! step, so τ-leaping and Euler are the same here.

use super::draws::{Draws, truncated_softmax};
use super::{Rows, Sampler, SamplerConfig};
use crate::MASKED;
use crate::error::Result;

/// The probability that a place which is masked before step `step` is revealed in it. 1 in the last step.
pub(super) fn reveal_probability(config: &SamplerConfig, step: usize) -> f64 {
    let num_steps = config.num_steps as f64;
    if step + 1 >= config.num_steps {
        return 1.0;
    }
    let (from, to) = (1.0 - step as f64 / num_steps, 1.0 - (step + 1) as f64 / num_steps);
    match config.sampler {
        Sampler::Euler => (config.noise_schedule.at(from).score_weight() / num_steps).min(1.0),
        _ => {
            let before = config.noise_schedule.masked_probability(from);
            1.0 - config.noise_schedule.masked_probability(to) / before
        }
    }
}

/// The places that step `step` reveals.
pub(super) fn places_to_reveal(config: &SamplerConfig, step: usize, grid: &[u32], draws: &mut dyn Draws) -> Vec<usize> {
    let probability = reveal_probability(config, step);
    let masked = (0..grid.len()).filter(|&place| grid[place] == MASKED);
    masked.filter(|&place| probability >= 1.0 || draws.reveal(step, place) < probability).collect()
}

/// Draws a code for each of `rows`' places.
pub(super) fn reveal(
    config: &SamplerConfig,
    step: usize,
    rows: &Rows<'_>,
    grid: &mut [u32],
    draws: &mut dyn Draws,
) -> Result<()> {
    let mut probabilities = Vec::new();
    for (place, logits) in rows.iter() {
        truncated_softmax("score step", place, logits, config.code_temperature, config.top_k, &mut probabilities)?;
        grid[place] = draws.code(step, place, &probabilities) as u32;
    }
    Ok(())
}
