//! Diffusion times of a batch.

use crate::rng::{Key, Stream};

/// Low-discrepancy, antithetic times of a batch of `batch` images, each of `[0, 1]` and each uniform by itself.
///
/// One draw `u` places one time in each of `batch` strata, `(i + u) / batch` in the lower half and its mirror `1 - (i + u) / batch` in
/// the upper half, so a batch's mean loss varies far less than with independent draws. The strata are dealt to the
/// images in random order: an image's place in the batch says nothing about its time. A run that accumulates gradients over several
/// small batches asks once for all of them.
pub fn low_discrepancy_times(batch: usize, key: Key) -> Vec<f64> {
    let u = key.uniform_f64(Stream::Time, u32::MAX, 0);
    let half = batch / 2;
    let width = 1.0 / batch.max(1) as f64;
    let stratified: Vec<f64> = (0..batch)
        .map(|i| if i < batch - half { (i as f64 + u) * width } else { 1.0 - ((batch - 1 - i) as f64 + u) * width })
        .collect();
    key.permutation(Stream::Time, batch).into_iter().map(|i| stratified[i]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_time_in_each_stratum_with_its_mirror_image() {
        for batch in [1, 2, 5, 16] {
            for image in 0..50 {
                let mut times = low_discrepancy_times(batch, Key::new(3, image));
                times.sort_by(f64::total_cmp);
                for (i, &t) in times.iter().enumerate() {
                    let low = i as f64 / batch as f64;
                    assert!(t >= low - 1e-12 && t <= low + 1.0 / batch as f64 + 1e-12, "{batch}: {times:?}");
                    if batch % 2 == 0 {
                        assert!((t + times[batch - 1 - i] - 1.0).abs() < 1e-12);
                    }
                }
            }
        }
        assert!(low_discrepancy_times(0, Key::new(0, 0)).is_empty());
    }

    #[test]
    fn each_place_of_the_batch_is_uniform() {
        for place in 0..3 {
            let mut bins = [0usize; 20];
            for image in 0..20_000 {
                let t = low_discrepancy_times(3, Key::new(1, image))[place];
                bins[((t * 20.0) as usize).min(19)] += 1;
            }
            let chi_square: f64 = bins.iter().map(|&n| (n as f64 - 1000.0).powi(2) / 1000.0).sum();
            assert!(chi_square < 19.0 + 5.0 * 6.2, "place {place}: {chi_square}");
        }
    }

    #[test]
    fn the_mean_of_a_smooth_function_varies_less_than_with_independent_draws() {
        let variance = |draw: &dyn Fn(u64) -> Vec<f64>| {
            let means: Vec<f64> = (0..500).map(|i| draw(i).iter().map(|t| t.exp()).sum::<f64>() / 8.0).collect();
            let mean = means.iter().sum::<f64>() / 500.0;
            means.iter().map(|m| (m - mean).powi(2)).sum::<f64>() / 500.0
        };
        let stratified = variance(&|i| low_discrepancy_times(8, Key::new(5, i)));
        let independent = variance(&|i| (0..8).map(|j| Key::new(5, i).uniform_f64(Stream::Data, j, 0)).collect());
        assert!(stratified * 50.0 < independent, "{stratified} against {independent}");
    }
}
