//! AdamW and what goes with it, over all threads.

use rayon::prelude::*;

use crate::simd::multiversion;

const CHUNK: usize = 1 << 15;

/// Hyper-parameters of one AdamW update.
#[derive(Debug, Clone, Copy)]
pub struct AdamW {
    /// Learning rate.
    pub lr: f32,
    /// Decay of the first moment.
    pub beta1: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// Guard of the denominator.
    pub eps: f32,
    /// Decoupled weight decay.
    pub weight_decay: f32,
    /// `1 - beta1^t`.
    pub bias_correction1: f32,
    /// `1 - beta2^t`.
    pub bias_correction2: f32,
}

multiversion! {
    fn update(param: &mut [f32], grad: &[f32], m: &mut [f32], v: &mut [f32], hp: &AdamW) {
        let root2 = 1.0 / hp.bias_correction2.sqrt();
        let step = hp.lr / hp.bias_correction1;
        let keep = 1.0 - hp.lr * hp.weight_decay;
        for (((p, &g), m), v) in param.iter_mut().zip(grad).zip(m).zip(v) {
            *m = hp.beta1 * *m + (1.0 - hp.beta1) * g;
            *v = hp.beta2 * *v + (1.0 - hp.beta2) * g * g;
            *p = *p * keep - step * *m / (v.sqrt() * root2 + hp.eps);
        }
    }
}

multiversion! {
    fn approach(average: &mut [f32], values: &[f32], rate: f32) {
        average.iter_mut().zip(values).for_each(|(average, &value)| *average += rate * (value - *average));
    }
}

multiversion! {
    fn squares(values: &[f32]) -> f64 {
        let mut lanes = [0.0f64; 8];
        let (chunks, rest) = values.as_chunks::<8>();
        for chunk in chunks {
            for (lane, &value) in lanes.iter_mut().zip(chunk) {
                *lane += f64::from(value) * f64::from(value);
            }
        }
        // Another array than the one above, as in `simd::fold`.
        let mut all = lanes;
        for (lane, &value) in all.iter_mut().zip(rest) {
            *lane += f64::from(value) * f64::from(value);
        }
        all.iter().sum()
    }
}

/// One AdamW update in place (Loshchilov and Hutter 2019); the four slices have one length.
pub fn adamw(param: &mut [f32], grad: &[f32], m: &mut [f32], v: &mut [f32], hp: &AdamW) {
    param
        .par_chunks_mut(CHUNK)
        .zip(grad.par_chunks(CHUNK))
        .zip(m.par_chunks_mut(CHUNK).zip(v.par_chunks_mut(CHUNK)))
        .for_each(|((param, grad), (m, v))| update(param, grad, m, v, hp));
}

/// `values *= factor`.
pub fn scale(values: &mut [f32], factor: f32) {
    values.par_chunks_mut(CHUNK).for_each(|values| values.iter_mut().for_each(|value| *value *= factor));
}

/// `average += rate * (values - average)`.
pub fn moving_average(average: &mut [f32], values: &[f32], rate: f32) {
    average.par_chunks_mut(CHUNK).zip(values.par_chunks(CHUNK)).for_each(|(average, values)| approach(average, values, rate));
}

/// Sum of squares in f64, the same for any number of threads.
pub fn sum_of_squares(values: &[f32]) -> f64 {
    let parts: Vec<f64> = values.par_chunks(CHUNK).map(squares).collect();
    parts.iter().sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_level_and_length_equals_the_plain_loop() {
        let hp = AdamW {
            lr: 0.03,
            beta1: 0.9,
            beta2: 0.98,
            eps: 1e-6,
            weight_decay: 0.1,
            bias_correction1: 0.19,
            bias_correction2: 0.0396,
        };
        let wave = |length: usize, step: f32| -> Vec<f32> { (0..length).map(|i| (i as f32 * step).sin()).collect() };
        crate::cpu::at_every_level(|level| {
            for length in [1, 7, 17, 100, CHUNK + 5] {
                let (mut p, mut m, grad) = (wave(length, 0.7), wave(length, 0.3), wave(length, 1.3));
                let mut v: Vec<f32> = wave(length, 0.9).into_iter().map(|x| x * x).collect();
                let mut average = wave(length, 0.2);
                let (mut expected_average, mut expected) = (average.clone(), (p.clone(), m.clone(), v.clone()));
                for i in 0..length {
                    let (p, m, v) = (&mut expected.0[i], &mut expected.1[i], &mut expected.2[i]);
                    *m = hp.beta1 * *m + (1.0 - hp.beta1) * grad[i];
                    *v = hp.beta2 * *v + (1.0 - hp.beta2) * grad[i] * grad[i];
                    *p -= hp.lr * hp.weight_decay * *p;
                    *p -= hp.lr * (*m / hp.bias_correction1) / ((*v / hp.bias_correction2).sqrt() + hp.eps);
                    expected_average[i] += 0.25 * (grad[i] - expected_average[i]);
                }
                adamw(&mut p, &grad, &mut m, &mut v, &hp);
                moving_average(&mut average, &grad, 0.25);
                let found = [(p, expected.0), (m, expected.1), (v, expected.2), (average, expected_average)];
                for (found, expected) in found {
                    for (f, e) in found.iter().zip(&expected) {
                        assert!((f - e).abs() <= 1e-5 * e.abs().max(1.0), "{level:?} {length}: {f} for {e}");
                    }
                }
                let squares: f64 = grad.iter().map(|&g| f64::from(g) * f64::from(g)).sum();
                assert!((sum_of_squares(&grad) - squares).abs() <= 1e-5 * squares, "{level:?} {length}");
            }
        });
    }

    #[test]
    fn one_update_by_hand() {
        let hp = AdamW {
            lr: 0.1,
            beta1: 0.9,
            beta2: 0.99,
            eps: 1e-8,
            weight_decay: 0.5,
            bias_correction1: 0.1,
            bias_correction2: 0.01,
        };
        let (mut p, mut m, mut v) = (vec![1.0; 100], vec![0.0; 100], vec![0.0; 100]);
        adamw(&mut p, &[2.0; 100], &mut m, &mut v, &hp);
        // After one step the corrected moments are g and g^2: the step is lr, after decay by lr * weight_decay.
        assert!(p.iter().all(|p| (p - (0.95 - 0.1)).abs() < 1e-5), "{p:?}");
        assert!((sum_of_squares(&[3.0, 4.0]) - 25.0).abs() < 1e-12);
        moving_average(&mut m, &[1.2; 100], 0.5);
        assert!((m[99] - 0.7).abs() < 1e-6);
    }
}
