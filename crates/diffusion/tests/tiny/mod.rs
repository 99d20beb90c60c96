//! A tiny joint distribution, three places of three codes, whose conditionals are known exactly.
#![allow(dead_code)]

use unif2ace_diffusion::MASKED;

pub const PLACES: usize = 3;
pub const CODES: usize = 3;
pub const STATES: usize = 27;

/// `p(x)` for all 27 states; the first place is the most significant digit.
#[derive(Clone)]
pub struct Tiny {
    pub joint: Vec<f64>,
}

impl Tiny {
    /// Strongly dependent places, so that drawing several at once is visibly wrong.
    pub fn new() -> Self {
        let weights: Vec<f64> = (0..STATES)
            .map(|state| {
                let [a, b, c] = digits(state);
                let tie = if a == b { 6.0 } else { 0.5 } * if b == c { 4.0 } else { 0.7 };
                tie * (1.0 + a as f64) * (1.0 + 0.3 * c as f64)
            })
            .collect();
        let total: f64 = weights.iter().sum();
        Self { joint: weights.iter().map(|w| w / total).collect() }
    }

    /// `ln p(x_place = code | known codes of the grid)`, K numbers.
    pub fn log_conditional(&self, grid: &[u32], place: usize) -> Vec<f64> {
        let mut sums = [0.0; CODES];
        for (state, p) in self.joint.iter().enumerate() {
            let x = digits(state);
            if (0..PLACES).all(|i| i == place || grid[i] == MASKED || grid[i] as usize == x[i]) {
                sums[x[place]] += p;
            }
        }
        let total: f64 = sums.iter().sum();
        sums.iter().map(|s| (s / total).ln()).collect()
    }

    /// Logits of the given places, as a network would give them.
    pub fn logits(&self, grid: &[u32], places: &[usize]) -> Vec<f32> {
        places.iter().flat_map(|&place| self.log_conditional(grid, place)).map(|l| l as f32).collect()
    }
}

pub fn digits(state: usize) -> [usize; 3] {
    [state / 9, state / 3 % 3, state % 3]
}

pub fn state_of(codes: &[u32]) -> usize {
    codes.iter().fold(0, |state, &code| state * CODES + code as usize)
}

/// Half the sum of absolute differences between frequencies and probabilities.
pub fn total_variation(counts: &[usize], probabilities: &[f64]) -> f64 {
    let total: usize = counts.iter().sum();
    0.5 * counts.iter().zip(probabilities).map(|(&n, p)| (n as f64 / total as f64 - p).abs()).sum::<f64>()
}
