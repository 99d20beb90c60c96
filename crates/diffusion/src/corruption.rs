//! Masking image tokens for training (as in Show-o, and as D3Diff of arXiv 2503.08120 needs it).
//!
//! Everything works on the ids of one image, whatever their offset: a mask is a `Vec<bool>` of N places, and [`apply`] makes
//! inputs and labels of it.

use crate::error::{Result, check_length, range};
use crate::rng::{Key, Stream};
use crate::schedule::MaskSchedule;

/// The label of a place that takes no part in the loss.
pub const IGNORE: i64 = -100;

/// One image after masking.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Corrupted {
    /// N ids, the mask id at masked places.
    pub inputs: Vec<i64>,
    /// N labels, [`IGNORE`] where nothing is to be predicted.
    pub labels: Vec<i64>,
    /// Where the image was masked.
    pub masked: Vec<bool>,
}

impl Corrupted {
    /// The number of masked places over N, the noise level that the network is told.
    pub fn masked_fraction(&self) -> f32 {
        self.masked.iter().filter(|&&masked| masked).count() as f32 / self.masked.len().max(1) as f32
    }
}

/// Which labels a masked image gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Labels {
    /// The original ids at masked places, [`IGNORE`] elsewhere.
    #[default]
    Masked,
    /// The original ids everywhere.
    All,
}

/// The masking probability of an image from its uniform draw `u`: the schedule, with a lower limit.
pub fn mask_probability(schedule: MaskSchedule, u: f32, min_masking_rate: f32) -> f32 {
    schedule.masked_fraction(u).max(min_masking_rate)
}

/// The number of places to mask: `N p`, halves to even, at least one.
pub fn num_to_mask(num_tokens: usize, probability: f32) -> usize {
    let rounded = (num_tokens as f32 * probability).round_ties_even().max(1.0) as usize;
    rounded.min(num_tokens)
}

/// The reference's choice of places from N uniform draws: place `i` is masked if the *index* of the `i`-th smallest draw is below
/// `num_masked`. (Not the rank of draw `i`; this inverse permutation has the same distribution and other places.)
pub fn random_mask(uniforms: &[f32], num_masked: usize) -> Vec<bool> {
    let mut order: Vec<usize> = (0..uniforms.len()).collect();
    order.sort_by(|&a, &b| uniforms[a].total_cmp(&uniforms[b]));
    order.into_iter().map(|index| index < num_masked).collect()
}

/// The absorbing process of the paper: each place is masked by itself with probability `probability`, where `uniform < probability`.
/// An image may stay whole; its loss is then zero.
pub fn independent_mask(uniforms: &[f32], probability: f64) -> Vec<bool> {
    uniforms.iter().map(|&u| f64::from(u) < probability).collect()
}

/// A rectangle of a square grid that holds at least `num_masked` places (and may hold more).
///
/// `draw(low, high)` returns a whole number of `low..=high`; it is asked for the height, the top row and the left column, in this order.
///
/// # Errors
/// If `num_tokens` is not a square, or `num_masked` is not of `1..=num_tokens`.
pub fn rectangle_mask(num_tokens: usize, num_masked: usize, mut draw: impl FnMut(usize, usize) -> usize) -> Result<Vec<bool>> {
    const OPERATION: &str = "masking a rectangle";
    let side = num_tokens.isqrt();
    if side * side != num_tokens {
        return Err(range(OPERATION, "the number of tokens", "a square", num_tokens, "only square images have a rectangle mask"));
    }
    if num_masked == 0 || num_masked > num_tokens {
        return Err(range(OPERATION, "the masked count", format!("1 to {num_tokens}"), num_masked, "take it from `num_to_mask`"));
    }
    let mut within = |low: usize, high: usize| draw(low, high).clamp(low, high);
    let height = within(num_masked.div_ceil(side), side.min(num_masked));
    let width = num_masked.div_ceil(height).min(side);
    let top = within(0, side - height);
    let left = within(0, side - width);
    Ok((0..num_tokens)
        .map(|place| (top..top + height).contains(&(place / side)) && (left..left + width).contains(&(place % side)))
        .collect())
}

/// Puts the mask id at the masked places and makes the labels.
///
/// # Errors
/// If `ids` and `masked` differ in length.
pub fn apply(ids: &[i64], masked: &[bool], mask_id: i64, labels: Labels) -> Result<Corrupted> {
    check_length("masking an image", "mask entries", ids.len(), masked.len(), "one entry for each image token")?;
    Ok(Corrupted {
        inputs: ids.iter().zip(masked).map(|(&id, &masked)| if masked { mask_id } else { id }).collect(),
        labels: ids.iter().zip(masked).map(|(&id, &masked)| if masked || labels == Labels::All { id } else { IGNORE }).collect(),
        masked: masked.to_vec(),
    })
}

/// The loss weights the reference computes for [`Labels::All`]: 1 at masked places, `1 - 0.7 (1 - p)` elsewhere.
pub fn predict_all_weights(masked: &[bool], probability: f32) -> Vec<f32> {
    masked.iter().map(|&masked| if masked { 1.0 } else { 1.0 - (1.0 - probability) * 0.7 }).collect()
}

/// N uniform draws for a mask, keyed.
pub fn keyed_uniforms(num_tokens: usize, key: Key) -> Vec<f32> {
    (0..num_tokens).map(|place| key.uniform(Stream::Mask, place as u32, 0)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_round_half_to_even_and_never_to_zero() {
        let counts: Vec<usize> = [0.05, 0.15, 0.25, 0.35, 0.0, 1.0].iter().map(|&p| num_to_mask(10, p)).collect();
        assert_eq!(counts, [1, 2, 2, 4, 1, 10]);
        assert_eq!(num_to_mask(0, 0.5), 0);
    }

    #[test]
    fn masks_have_their_count_and_cover_all_places() {
        let mut seen = [0usize; 25];
        for image in 0..2000 {
            let mask = random_mask(&keyed_uniforms(25, Key::new(1, image)), 10);
            assert_eq!(mask.iter().filter(|&&m| m).count(), 10);
            mask.iter().zip(&mut seen).for_each(|(&m, count)| *count += usize::from(m));
        }
        // 800 expected each, standard deviation 22.
        assert!(seen.iter().all(|&count| (690..910).contains(&count)), "{seen:?}");
    }

    #[test]
    fn independent_masks_follow_their_probability() {
        let masked: usize =
            (0..400).map(|i| independent_mask(&keyed_uniforms(100, Key::new(2, i)), 0.3).iter().filter(|&&m| m).count()).sum();
        assert!((masked as f64 - 12_000.0).abs() < 5.0 * 92.0, "{masked}");
        assert!(independent_mask(&[0.0, 0.999_999_9], 0.0).iter().all(|&m| !m));
        assert!(independent_mask(&[0.0, 0.999_999_9], 1.0).iter().all(|&m| m));
    }

    #[test]
    fn rectangles_hold_enough_and_mistakes_are_errors() {
        for num_masked in 1..=36 {
            for image in 0..20 {
                let key = Key::new(num_masked as u64, image);
                let mut index = 0;
                let mask = rectangle_mask(36, num_masked, |low, high| {
                    index += 1;
                    low + key.below(Stream::Mask, 0, index, high - low + 1)
                })
                .unwrap();
                assert!(mask.iter().filter(|&&m| m).count() >= num_masked);
            }
        }
        assert!(rectangle_mask(35, 3, |low, _| low).is_err());
        assert!(rectangle_mask(36, 0, |low, _| low).is_err());
        assert!(rectangle_mask(36, 37, |low, _| low).is_err());
        assert!(apply(&[1, 2], &[true], 9, Labels::Masked).is_err());
    }
}
