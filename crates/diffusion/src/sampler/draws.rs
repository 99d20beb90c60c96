//! Where samplers take their random numbers from, and how a code is drawn with them.

use crate::error::{DiffusionError, Result, check_length};
use crate::rng::{Key, Stream, open_unit, unit_f32};

/// Codes that race at a time: enough for vector units, and few enough that most chunks are dismissed whole.
const RACE_CHUNK: usize = 64;

/// The random choices of a sampler for one image. Keyed numbers in use, stored ones in tests.
pub trait Draws {
    /// A code drawn from `probabilities` (K numbers that need not sum to one) for a place at a step.
    fn code(&mut self, step: usize, place: usize, probabilities: &[f32]) -> usize;
    /// A number of `[0, 1)` for the noise on a place's confidence (MaskGIT).
    fn confidence(&mut self, step: usize, place: usize) -> f32;
    /// A number of `[0, 1)` that decides whether a place is revealed (score samplers).
    fn reveal(&mut self, step: usize, place: usize) -> f64;
}

/// Numbers keyed by seed, image, step and place: the same picture at any batch size, order or number of threads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyedDraws {
    key: Key,
}

impl KeyedDraws {
    /// The draws of image number `image` of a run.
    pub fn new(seed: u64, image: u64) -> Self {
        Self { key: Key::new(seed, image) }
    }
}

impl Draws for KeyedDraws {
    fn code(&mut self, step: usize, place: usize, probabilities: &[f32]) -> usize {
        let key = self.key.at_step(step as u32);
        let mut best = (0.0f32, 0);
        let mut words = [0u32; RACE_CHUNK];
        for (number, chunk) in probabilities.chunks(RACE_CHUNK).enumerate() {
            let block = (number * RACE_CHUNK / 4) as u32;
            key.fill_words(Stream::Code, place as u32, block, &mut words);
            // A challenger wins if -ln(v) < p / best. Since -ln(v) >= 1 - v, most are out before the logarithm; the margin is
            // wider than the rounding of the quotients, so the winner is that of the plain race.
            let inverse = if best.0 > 0.0 { 1.0 / best.0 } else { f32::MAX };
            let may_win = |p: f32, word: u32| p > 0.0 && unit_f32(word) >= 1.0 - (p * inverse).min(2.0) - 2e-6;
            let challenged = chunk.iter().zip(&words).fold(false, |any, (&p, &word)| any | may_win(p, word));
            if !challenged {
                continue;
            }
            for (lane, (&p, &word)) in chunk.iter().zip(&words).enumerate() {
                if may_win(p, word) {
                    let speed = p / (-open_unit(word).ln() as f32);
                    if speed > best.0 {
                        best = (speed, number * RACE_CHUNK + lane);
                    }
                }
            }
        }
        best.1
    }

    fn confidence(&mut self, step: usize, place: usize) -> f32 {
        self.key.at_step(step as u32).uniform(Stream::Confidence, place as u32, 0)
    }

    fn reveal(&mut self, step: usize, place: usize) -> f64 {
        self.key.at_step(step as u32).uniform_f64(Stream::Reveal, place as u32, 0)
    }
}

/// A draw from K probabilities with one Exp(1) number each: `argmax p / q`, the multinomial of Show-o's sampler.
///
/// The winner barely depends on the rounding of `p`, unlike with one uniform number and a running sum.
pub fn exponential_race(probabilities: &[f32], mut exponential: impl FnMut(usize) -> f32) -> usize {
    let mut best = (0.0f32, 0);
    for (index, &p) in probabilities.iter().enumerate() {
        if p > 0.0 {
            let speed = p / exponential(index);
            if speed > best.0 {
                best = (speed, index);
            }
        }
    }
    best.1
}

/// Softmax of one row in float32 after division by `temperature` (positive), with everything below the `top_k`-th largest logit cut
/// off (ties are kept). `place` only names the row in an error.
///
/// # Errors
/// If the row is empty, holds NaN or `+inf`, or is `-inf` throughout.
pub fn truncated_softmax(
    operation: &'static str,
    place: usize,
    logits: &[f32],
    temperature: f32,
    top_k: Option<usize>,
    out: &mut Vec<f32>,
) -> Result<()> {
    let problem = |problem| DiffusionError::NotADistribution { operation, place, problem };
    if logits.iter().fold(false, |nan, logit| nan | logit.is_nan()) {
        return Err(problem("NaN"));
    }
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let largest = fold_lanes(logits, f32::NEG_INFINITY, larger) / temperature;
    if !largest.is_finite() {
        return Err(problem(if largest > 0.0 { "infinite logit" } else { "no finite logit" }));
    }
    let threshold = match top_k {
        Some(k) if k > 0 && k < logits.len() => {
            let mut scratch = logits.to_vec();
            *scratch.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a)).1
        }
        _ => f32::NEG_INFINITY,
    };
    out.clear();
    out.extend(logits.iter().map(|&l| exp_of_negative(l / temperature - largest)));
    if threshold > f32::NEG_INFINITY {
        let cut_off = out.iter_mut().zip(logits).filter(|&(_, &l)| l < threshold);
        cut_off.for_each(|(p, _)| *p = 0.0);
    }
    let total = fold_lanes(out, 0.0, |a, b| a + b);
    out.iter_mut().for_each(|p| *p /= total);
    Ok(())
}

/// Sixteen running folds, then one over them: a loop that the compiler vectorises, and for sums closer to the exact one.
fn fold_lanes(values: &[f32], start: f32, fold: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [start; 16];
    let (chunks, rest) = values.as_chunks::<16>();
    for chunk in chunks {
        for (lane, &value) in lanes.iter_mut().zip(chunk) {
            *lane = fold(*lane, value);
        }
    }
    lanes.iter().chain(rest).copied().fold(start, fold)
}

/// `exp(x)` for `x <= 0` to about one unit in the last place, 0 below the smallest normal result. Free of branches and calls, so
/// that the compiler vectorises the loop around it: a row has thousands of codes.
fn exp_of_negative(x: f32) -> f32 {
    // Adding 1.5 * 2^23 rounds to a whole number and leaves it in the low bits.
    const ROUND: f32 = 12_582_912.0;
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    let inside = if x < -87.0 { -87.0 } else { x };
    let shifted = inside * std::f32::consts::LOG2_E + ROUND;
    let whole = shifted - ROUND;
    let rest = inside - whole * LN_2_HIGH - whole * LN_2_LOW;
    // Taylor's series; |rest| <= ln(2)/2, where the first term left out is below 6e-9.
    let series = [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0];
    let mantissa = series.iter().fold(1.0 / 5040.0, |sum, term| sum * rest + term);
    let scale = f32::from_bits((shifted.to_bits() << 23).wrapping_add(127 << 23));
    if x < -87.0 { 0.0 } else { mantissa * scale }
}

/// Classifier-free guidance as the reference writes it: `(1 + g) cond - g uncond` (scale `1 + g` of the other convention).
///
/// # Errors
/// If the two differ in length.
pub fn guide(conditional: &[f32], unconditional: &[f32], guidance: f32) -> Result<Vec<f32>> {
    check_length(
        "guidance",
        "unconditional logits",
        conditional.len(),
        unconditional.len(),
        "run both prompts on the same places",
    )?;
    Ok(conditional.iter().zip(unconditional).map(|(&c, &u)| (1.0 + guidance) * c - guidance * u).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn random_probabilities(len: usize, sharpness: f32, seed: u64) -> Vec<f32> {
        let logits: Vec<f32> = (0..len).map(|i| Key::new(seed, 1).gumbel(Stream::Init, 0, i as u32) * sharpness).collect();
        let mut out = Vec::new();
        truncated_softmax("test", 0, &logits, 1.0, None, &mut out).unwrap();
        out
    }

    #[test]
    fn the_shortcut_of_the_race_never_changes_its_winner() {
        for seed in 0..400 {
            let probabilities = random_probabilities(3 + (seed as usize * 37) % 900, [0.1, 1.0, 5.0][seed as usize % 3], seed);
            let key = Key::new(seed, 7).at_step(2);
            let plain = exponential_race(&probabilities, |index| key.exponential(Stream::Code, 11, index as u32));
            assert_eq!(KeyedDraws::new(seed, 7).code(2, 11, &probabilities), plain, "seed {seed}");
        }
    }

    #[test]
    fn codes_follow_their_probabilities() {
        let probabilities = [0.5, 0.25, 0.0, 0.125, 0.125];
        let mut seen = [0usize; 5];
        (0..40_000).for_each(|place| seen[KeyedDraws::new(3, 0).code(0, place, &probabilities)] += 1);
        assert_eq!(seen[2], 0);
        let chi_square: f64 = [0, 1, 3, 4]
            .map(|i| (seen[i] as f64 - 40_000.0 * f64::from(probabilities[i])).powi(2) / (40_000.0 * f64::from(probabilities[i])))
            .iter()
            .sum();
        assert!(chi_square < 3.0 + 5.0 * 2.5, "{chi_square} {seen:?}");
    }

    #[test]
    fn the_exponential_is_accurate_and_the_softmax_sums_to_one() {
        assert_eq!((exp_of_negative(0.0), exp_of_negative(f32::NEG_INFINITY)), (1.0, 0.0));
        for i in 0..870_000 {
            let x = -(i as f32) * 1e-4;
            let exact = f64::from(x).exp();
            assert!((f64::from(exp_of_negative(x)) / exact - 1.0).abs() < 2e-7, "{x}");
        }
        let total: f64 = random_probabilities(8192, 3.0, 1).iter().map(|&p| f64::from(p)).sum();
        assert!((total - 1.0).abs() < 1e-5, "{total}");
    }

    #[test]
    fn guidance_zero_is_the_conditional() {
        assert_eq!(guide(&[1.0, 2.0], &[5.0, -3.0], 0.0).unwrap(), [1.0, 2.0]);
        assert_eq!(guide(&[1.0, 2.0], &[5.0, -3.0], 2.0).unwrap(), [-7.0, 12.0]);
        assert!(guide(&[1.0], &[], 2.0).is_err());
    }
}
