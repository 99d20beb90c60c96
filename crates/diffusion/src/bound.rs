//! An upper bound of an image's negative log-likelihood, for scoring an image against a text.
//!
//! The score term's expectation `∫ m'/m E[Σ_masked -ln p] dt` does not depend on the schedule (substitute `m`), and the integral over `m` of
//! the binomial count of masked places leaves a sum over that count:
//!
//! `bound = Σ_{k=1..N} (1/k) E_{|M| = k} [ Σ_{i in M} -ln p(x_i | x outside M) ]`
//!
//! (N times the mean over a uniform `k`). This form has no truncated ends and far less variance than random times: k is taken by a
//! low-discrepancy rule, and only the choice of places stays random. It equals the any-order autoregressive bound; it is
//! exact when the network's conditionals belong to one joint distribution.

use crate::error::{Result, check_length, range};
use crate::rng::{Key, Stream};

/// One evaluation of the network for the bound.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BoundPoint {
    /// The places to mask, ascending; never empty.
    pub masked: Vec<usize>,
}

impl BoundPoint {
    /// Puts [`MASKED`](crate::MASKED) at this point's places.
    pub fn mask(&self, codes: &[u32]) -> Vec<u32> {
        let mut grid = codes.to_vec();
        for &place in &self.masked {
            if let Some(cell) = grid.get_mut(place) {
                *cell = crate::MASKED;
            }
        }
        grid
    }
}

/// The estimated bound.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BoundEstimate {
    /// Nats of the whole image: at least `-ln p(image | text)` in expectation.
    pub nats: f64,
    /// Standard error from the spread of the points. It takes them for independent, so it is too large rather than too small.
    pub standard_error: f64,
}

/// The network evaluations for an image of `num_tokens` codes: counts of masked places stratified over `1..=num_tokens`, places random
/// but the same for every text that the image is scored against (the key does not know the text).
///
/// # Errors
/// If either number is 0.
pub fn bound_points(num_tokens: usize, num_points: usize, key: Key) -> Result<Vec<BoundPoint>> {
    const OPERATION: &str = "planning a likelihood bound";
    if num_tokens == 0 || num_points == 0 {
        let (what, given) =
            if num_tokens == 0 { ("the number of tokens", num_tokens) } else { ("the number of points", num_points) };
        return Err(range(OPERATION, what, "at least 1", given, "16 points give a rough figure, 64 a good one"));
    }
    let offset = key.uniform_f64(Stream::Bound, u32::MAX, 0);
    Ok((0..num_points)
        .map(|point| {
            let t = (point as f64 + offset) / num_points as f64;
            let count = ((t * num_tokens as f64) as usize + 1).min(num_tokens);
            let mut masked = key.at_step(point as u32).permutation(Stream::Bound, num_tokens);
            masked.truncate(count);
            masked.sort_unstable();
            BoundPoint { masked }
        })
        .collect())
}

/// Puts the evaluations together: `cross_entropies[j]` is `Σ -ln p(x_i | ...)` in nats over the masked places of point `j`.
///
/// # Errors
/// If there is not one number for each point, or no point.
pub fn bound_estimate(num_tokens: usize, points: &[BoundPoint], cross_entropies: &[f64]) -> Result<BoundEstimate> {
    const OPERATION: &str = "likelihood bound";
    check_length(OPERATION, "cross-entropies", points.len(), cross_entropies.len(), "one sum for each point")?;
    if points.is_empty() {
        return Err(range(OPERATION, "the number of points", "at least 1", 0, "plan them with `bound_points`"));
    }
    let values: Vec<f64> = points
        .iter()
        .zip(cross_entropies)
        .map(|(point, sum)| num_tokens as f64 / point.masked.len().max(1) as f64 * sum)
        .collect();
    let count = values.len() as f64;
    let nats = values.iter().sum::<f64>() / count;
    let variance = values.iter().map(|value| (value - nats).powi(2)).sum::<f64>() / (count - 1.0).max(1.0);
    Ok(BoundEstimate { nats, standard_error: (variance / count).sqrt() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_cover_all_sizes_evenly() {
        let points = bound_points(16, 32, Key::new(1, 0)).unwrap();
        let mut counts = [0; 17];
        points.iter().for_each(|point| counts[point.masked.len()] += 1);
        assert_eq!((counts[0], &counts[1..]), (0, &[2; 16][..]));
        assert!(points.iter().all(|point| point.masked.is_sorted()));
        assert_eq!(points, bound_points(16, 32, Key::new(1, 0)).unwrap());
        assert_eq!(points[31].mask(&[5; 16]), [crate::MASKED; 16]);
    }

    #[test]
    fn a_constant_cost_gives_its_exact_sum() {
        // With 0.7 nats at every place whatever is masked, the bound is N * 0.7 for any points.
        let points = bound_points(9, 5, Key::new(2, 3)).unwrap();
        let sums: Vec<f64> = points.iter().map(|point| 0.7 * point.masked.len() as f64).collect();
        let estimate = bound_estimate(9, &points, &sums).unwrap();
        assert!((estimate.nats - 6.3).abs() < 1e-12 && estimate.standard_error < 1e-12);
    }

    #[test]
    fn mistakes_are_errors() {
        assert!(bound_points(0, 1, Key::new(0, 0)).unwrap_err().to_string().contains("tokens"));
        assert!(bound_points(1, 0, Key::new(0, 0)).unwrap_err().to_string().contains("points"));
        assert!(bound_estimate(4, &[], &[]).is_err());
        assert!(bound_estimate(4, &bound_points(4, 2, Key::new(0, 0)).unwrap(), &[1.0]).is_err());
    }
}
