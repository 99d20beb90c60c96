//! Random numbers that depend on nothing but their key: `(seed, image, step, position, stream)` and an index.
//!
//! The generator is Philox4x32 with ten rounds (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3", 2011),
//! a counter-based bijection: there is no state to carry, so a picture is the same at any batch size, in any order and on any
//! number of threads. The 128-bit counter is `[index, position, step (24 bits) | stream (8 bits), low half of the image]`; the 64-bit key
//! is the seed, into which the high half of the image number is mixed when it is not zero.

const ROUND_MULTIPLIER: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const KEY_INCREMENT: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];

/// Counters computed side by side by [`Key::fill_words`].
const WIDE: usize = 16;

/// What a random number is used for. Two uses never share numbers, whatever else their keys have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Stream {
    /// The diffusion time of a training batch.
    Time = 0,
    /// Which image tokens are masked.
    Mask = 1,
    /// Which code a masked place takes.
    Code = 2,
    /// The noise on MaskGIT's confidence.
    Confidence = 3,
    /// Whether a score-based step reveals a place.
    Reveal = 4,
    /// Text tokens.
    Text = 5,
    /// Dropping the prompt for classifier-free guidance.
    Dropout = 6,
    /// Order of the data.
    Data = 7,
    /// Augmentation of the data.
    Augment = 8,
    /// Initial weights.
    Init = 9,
    /// The masks of the likelihood bound.
    Bound = 10,
}

/// The key of a family of random numbers: everything but the stream and the position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Key {
    /// The user's seed.
    pub seed: u64,
    /// Which image (or sample) of the run.
    pub image: u64,
    /// Which denoising or training step; only the low 24 bits count.
    pub step: u32,
}

impl Key {
    /// A key of step 0.
    pub fn new(seed: u64, image: u64) -> Self {
        Self { seed, image, step: 0 }
    }

    /// The same seed and image at another step.
    pub fn at_step(self, step: u32) -> Self {
        Self { step, ..self }
    }

    /// Four words: block `block` of the numbers of this position and stream.
    pub fn words(&self, stream: Stream, position: u32, block: u32) -> [u32; 4] {
        philox4x32_10([block, position, (self.step << 8) | stream as u32, self.image as u32], self.philox_key())
    }

    /// Many words at once: `out[i]` is word `4 * block + i`. `L` must be a multiple of `4 * WIDE`.
    pub(crate) fn fill_words<const L: usize>(&self, stream: Stream, position: u32, block: u32, out: &mut [u32; L]) {
        const { assert!(L.is_multiple_of(4 * WIDE)) };
        for (group, out) in out.chunks_exact_mut(4 * WIDE).enumerate() {
            let first = block + (group * WIDE) as u32;
            let (step, low) = ((self.step << 8) | stream as u32, self.image as u32);
            let mut counter = [[0u32; WIDE], [position; WIDE], [step; WIDE], [low; WIDE]];
            for (lane, index) in counter[0].iter_mut().enumerate() {
                *index = first + lane as u32;
            }
            let mut key = self.philox_key();
            for _ in 0..10 {
                // All lanes in one vector: four arrays side by side.
                #[allow(clippy::needless_range_loop)]
                for lane in 0..WIDE {
                    let left = u64::from(ROUND_MULTIPLIER[0]) * u64::from(counter[0][lane]);
                    let right = u64::from(ROUND_MULTIPLIER[1]) * u64::from(counter[2][lane]);
                    counter[0][lane] = (right >> 32) as u32 ^ counter[1][lane] ^ key[0];
                    counter[1][lane] = right as u32;
                    counter[2][lane] = (left >> 32) as u32 ^ counter[3][lane] ^ key[1];
                    counter[3][lane] = left as u32;
                }
                key = next_key(key);
            }
            for (lane, four) in out.chunks_exact_mut(4).enumerate() {
                four.copy_from_slice(&[counter[0][lane], counter[1][lane], counter[2][lane], counter[3][lane]]);
            }
        }
    }

    fn philox_key(&self) -> [u32; 2] {
        let high = self.image >> 32;
        let seed = if high == 0 { self.seed } else { self.seed ^ splitmix64(high) };
        [seed as u32, (seed >> 32) as u32]
    }

    /// Word `index` of this position and stream.
    pub fn word(&self, stream: Stream, position: u32, index: u32) -> u32 {
        self.words(stream, position, index / 4)[(index % 4) as usize]
    }

    /// A number of `[0, 1)` with the 24 bits that an `f32` holds exactly.
    pub fn uniform(&self, stream: Stream, position: u32, index: u32) -> f32 {
        unit_f32(self.word(stream, position, index))
    }

    /// A number of `[0, 1)` with 53 bits (two words: index counts pairs).
    pub fn uniform_f64(&self, stream: Stream, position: u32, index: u32) -> f64 {
        let words = self.words(stream, position, index / 2);
        let pair = (index % 2) as usize * 2;
        let bits = (u64::from(words[pair]) << 32 | u64::from(words[pair + 1])) >> 11;
        bits as f64 * (1.0 / (1u64 << 53) as f64)
    }

    /// An Exp(1) number, never 0 and never infinite.
    pub fn exponential(&self, stream: Stream, position: u32, index: u32) -> f32 {
        -open_unit(self.word(stream, position, index)).ln() as f32
    }

    /// A standard Gumbel number, always finite.
    pub fn gumbel(&self, stream: Stream, position: u32, index: u32) -> f32 {
        -(-open_unit(self.word(stream, position, index)).ln()).ln() as f32
    }

    /// A whole number of `0..bound`, or 0 if `bound` is 0. Unbiased up to `bound / 2^53`.
    pub fn below(&self, stream: Stream, position: u32, index: u32, bound: usize) -> usize {
        let drawn = (self.uniform_f64(stream, position, index) * bound as f64) as usize;
        drawn.min(bound.saturating_sub(1))
    }

    /// A uniformly random order of `0..len`. Sorting by keyed numbers keeps it independent of who computes it.
    pub fn permutation(&self, stream: Stream, len: usize) -> Vec<usize> {
        let mut keyed: Vec<(u64, usize)> = (0..len)
            .map(|place| {
                let words = self.words(stream, place as u32, u32::MAX);
                (u64::from(words[0]) << 32 | u64::from(words[1]), place)
            })
            .collect();
        keyed.sort_unstable();
        keyed.into_iter().map(|(_, place)| place).collect()
    }
}

/// The Philox4x32 bijection, ten rounds.
pub fn philox4x32_10(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let left = u64::from(ROUND_MULTIPLIER[0]) * u64::from(counter[0]);
        let right = u64::from(ROUND_MULTIPLIER[1]) * u64::from(counter[2]);
        counter =
            [(right >> 32) as u32 ^ counter[1] ^ key[0], right as u32, (left >> 32) as u32 ^ counter[3] ^ key[1], left as u32];
        key = next_key(key);
    }
    counter
}

fn next_key(key: [u32; 2]) -> [u32; 2] {
    [key[0].wrapping_add(KEY_INCREMENT[0]), key[1].wrapping_add(KEY_INCREMENT[1])]
}

/// The finaliser of splitmix64: a bijection that spreads every input bit over the output.
pub fn splitmix64(value: u64) -> u64 {
    let z = value.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// 24 bits to `[0, 1)`.
pub(crate) fn unit_f32(word: u32) -> f32 {
    (word >> 8) as f32 * (1.0 / (1u32 << 24) as f32)
}

/// 32 bits to the open interval `(0, 1)`, so that logarithms are finite.
pub(crate) fn open_unit(word: u32) -> f64 {
    (f64::from(word) + 0.5) * (1.0 / 4_294_967_296.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn philox_known_answers() {
        // Known answers published with the generator (kat_vectors of Random123).
        assert_eq!(philox4x32_10([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(philox4x32_10([u32::MAX; 4], [u32::MAX; 2]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        assert_eq!(
            philox4x32_10([0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344], [0xa409_3822, 0x299f_31d0]),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    #[test]
    fn same_numbers_in_any_order_and_on_any_thread() {
        let value = |i: usize| {
            let key = Key::new(7, (i % 5) as u64 + (1 << 40)).at_step((i / 5 % 3) as u32);
            key.word(Stream::Code, (i / 15) as u32, i as u32)
        };
        let forward: Vec<u32> = (0..4000).map(value).collect();
        let mut backward: Vec<u32> = (0..4000).rev().map(value).collect();
        backward.reverse();
        assert_eq!(forward, backward);
        let threaded: Vec<u32> = std::thread::scope(|scope| {
            let parts: Vec<_> =
                (0..8).map(|t| scope.spawn(move || (t * 500..(t + 1) * 500).map(value).collect::<Vec<_>>())).collect();
            parts.into_iter().flat_map(|part| part.join().unwrap()).collect()
        });
        assert_eq!(forward, threaded);
    }

    #[test]
    fn every_part_of_the_key_matters() {
        let base = Key { seed: 1, image: 2, step: 3 };
        let word = |key: Key| key.word(Stream::Code, 4, 5);
        let others = [
            word(Key { seed: 2, ..base }),
            word(Key { seed: 1 | 1 << 63, ..base }),
            word(Key { image: 3, ..base }),
            word(Key { image: 2 | 1 << 32, ..base }),
            word(base.at_step(4)),
            base.word(Stream::Mask, 4, 5),
            base.word(Stream::Code, 5, 5),
            base.word(Stream::Code, 4, 6),
        ];
        let mut all = others.to_vec();
        all.push(word(base));
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), others.len() + 1);
    }

    #[test]
    fn moments_and_chi_square() {
        const COUNT: usize = 200_000;
        let key = Key::new(42, 0);
        let moments = |draw: &dyn Fn(u32) -> f64| {
            let values: Vec<f64> = (0..COUNT as u32).map(draw).collect();
            let mean = values.iter().sum::<f64>() / COUNT as f64;
            (mean, values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / COUNT as f64)
        };
        // Tolerances are about five standard errors of each estimate.
        let (mean, variance) = moments(&|i| f64::from(key.uniform(Stream::Code, 0, i)));
        assert!((mean - 0.5).abs() < 0.0033 && (variance - 1.0 / 12.0).abs() < 0.001, "{mean} {variance}");
        let (mean, variance) = moments(&|i| f64::from(key.exponential(Stream::Code, i, 0)));
        assert!((mean - 1.0).abs() < 0.012 && (variance - 1.0).abs() < 0.035, "{mean} {variance}");
        let (mean, variance) = moments(&|i| f64::from(key.at_step(i).gumbel(Stream::Code, 0, 0)));
        assert!((mean - 0.577_216).abs() < 0.015 && (variance - 1.644_934).abs() < 0.06, "{mean} {variance}");

        for draw in [
            &(|i: u32| f64::from(key.uniform(Stream::Mask, 9, i))) as &dyn Fn(u32) -> f64,
            &|i| key.uniform_f64(Stream::Mask, i, 3),
            &|i| f64::from(Key::new(42, u64::from(i)).uniform(Stream::Mask, 0, 0)),
            &|i| f64::from(Key::new(u64::from(i), 0).uniform(Stream::Mask, 0, 0)),
        ] {
            let mut bins = [0usize; 256];
            (0..COUNT as u32).for_each(|i| bins[(draw(i) * 256.0) as usize] += 1);
            let expected = COUNT as f64 / 256.0;
            let chi_square: f64 = bins.iter().map(|&n| (n as f64 - expected).powi(2) / expected).sum();
            // 255 degrees of freedom: mean 255, standard deviation 22.6.
            assert!((255.0 - 5.0 * 22.6..255.0 + 5.0 * 22.6).contains(&chi_square), "{chi_square}");
        }
    }

    #[test]
    fn permutations_are_uniform() {
        let mut counts = std::collections::BTreeMap::<Vec<usize>, usize>::new();
        for image in 0..24_000 {
            *counts.entry(Key::new(3, image).permutation(Stream::Mask, 4)).or_default() += 1;
        }
        assert_eq!(counts.len(), 24);
        let chi_square: f64 = counts.values().map(|&n| (n as f64 - 1000.0).powi(2) / 1000.0).sum();
        assert!(chi_square < 23.0 + 5.0 * 6.8, "{chi_square}");
    }

    #[test]
    fn extremes_are_finite() {
        for word in [0, 1, u32::MAX] {
            let open = open_unit(word);
            assert!(open > 0.0 && open < 1.0);
            assert!((-open.ln() as f32) > 0.0 && (-(-open.ln()).ln() as f32).is_finite());
            assert!((0.0..1.0).contains(&unit_f32(word)));
        }
        assert_eq!(Key::new(0, 0).below(Stream::Mask, 0, 0, 0), 0);
    }
}
