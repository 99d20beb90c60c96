//! Choosing the next text token (as in Show-o).

use serde::{Deserialize, Serialize};

use crate::error::{Result, range};
use crate::rng::{Key, Stream};
use crate::sampler::{exponential_race, truncated_softmax};

/// How a text token is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct TextSampling {
    /// Divides the logits; 0 takes the most probable token.
    pub temperature: f32,
    /// Keeps the `top_k` largest logits, and all that equal the last of them. `None` keeps all; 1 is greedy but for ties.
    pub top_k: Option<usize>,
}

impl TextSampling {
    /// The most probable token, the first of equals.
    pub const GREEDY: Self = Self { temperature: 0.0, top_k: None };
}

impl Default for TextSampling {
    /// The reference's default: `top_k = 1`.
    fn default() -> Self {
        Self { temperature: 1.0, top_k: Some(1) }
    }
}

/// The next token from one row of logits; `draw` takes the final probabilities (0 for tokens that were cut off) and returns an index.
///
/// # Errors
/// If the temperature is negative or not finite, `top_k` is 0, or the logits hold no distribution; `place` is named in that error.
pub fn next_token(logits: &[f32], sampling: &TextSampling, place: usize, draw: impl FnOnce(&[f32]) -> usize) -> Result<usize> {
    const OPERATION: &str = "drawing a text token";
    if !(sampling.temperature.is_finite() && sampling.temperature >= 0.0) {
        return Err(range(
            OPERATION,
            "the temperature",
            "finite and not negative",
            sampling.temperature,
            "0 is greedy, 1 is as trained",
        ));
    }
    if sampling.top_k == Some(0) {
        return Err(range(OPERATION, "top_k", "at least 1", 0, "leave it out to keep all tokens"));
    }
    let mut probabilities = Vec::new();
    if sampling.temperature == 0.0 {
        // The check for NaN and infinity is the same; the values are not needed.
        truncated_softmax(OPERATION, place, logits, 1.0, Some(1), &mut probabilities)?;
        return Ok(argmax(logits));
    }
    truncated_softmax(OPERATION, place, logits, sampling.temperature, sampling.top_k, &mut probabilities)?;
    Ok(draw(&probabilities))
}

/// [`next_token`] with keyed random numbers: `place` counts the drawn tokens of one answer.
///
/// # Errors
/// As [`next_token`].
pub fn next_token_keyed(logits: &[f32], sampling: &TextSampling, place: usize, key: Key) -> Result<usize> {
    next_token(logits, sampling, place, |probabilities| {
        exponential_race(probabilities, |index| key.exponential(Stream::Text, place as u32, index as u32))
    })
}

fn argmax(values: &[f32]) -> usize {
    let mut best = 0;
    for (index, value) in values.iter().enumerate() {
        if *value > values[best] {
            best = index;
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn greedy_takes_the_first_of_equals_and_top_1_any_of_them() {
        let logits = [0.0, 3.0, 3.0, -1.0];
        let mut seen = [0; 4];
        for seed in 0..200 {
            assert_eq!(next_token_keyed(&logits, &TextSampling::GREEDY, 0, Key::new(seed, 0)).unwrap(), 1);
            seen[next_token_keyed(&logits, &TextSampling::default(), 0, Key::new(seed, 0)).unwrap()] += 1;
        }
        assert_eq!((seen[0], seen[3]), (0, 0));
        assert!(seen[1] > 60 && seen[2] > 60, "{seen:?}");
    }

    #[test]
    fn draws_follow_the_cut_and_tempered_distribution() {
        let logits = [0.0f32, 1.0, 2.0, -5.0];
        let sampling = TextSampling { temperature: 2.0, top_k: Some(3) };
        let weights: Vec<f64> = logits[..3].iter().map(|&l| (f64::from(l) / 2.0).exp()).collect();
        let total: f64 = weights.iter().sum();
        let mut seen = [0usize; 4];
        for place in 0..30_000 {
            seen[next_token_keyed(&logits, &sampling, place, Key::new(5, 0)).unwrap()] += 1;
        }
        assert_eq!(seen[3], 0);
        for (index, weight) in weights.iter().enumerate() {
            assert!((seen[index] as f64 / 30_000.0 - weight / total).abs() < 0.015, "{seen:?}");
        }
    }

    #[test]
    fn mistakes_are_errors() {
        let draw = |logits: &[f32], temperature, top_k| {
            next_token_keyed(logits, &TextSampling { temperature, top_k }, 3, Key::new(0, 0))
        };
        assert!(draw(&[1.0], -1.0, None).is_err());
        assert!(draw(&[1.0], f32::NAN, None).is_err());
        assert!(draw(&[1.0], 1.0, Some(0)).is_err());
        assert!(draw(&[], 1.0, None).is_err());
        for temperature in [0.0, 1.0] {
            assert!(draw(&[1.0, f32::NAN], temperature, None).unwrap_err().to_string().contains("place 3"));
            assert!(draw(&[1.0, f32::INFINITY], temperature, None).is_err());
            assert!(draw(&[f32::NEG_INFINITY; 2], temperature, None).is_err());
        }
        assert_eq!(draw(&[1.0, f32::NEG_INFINITY], 1.0, Some(9)), Ok(0));
    }
}
