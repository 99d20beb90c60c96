//! AdamW in place over slices.

use rayon::prelude::*;

use crate::simd::multiversion;

/// Values that one task updates.
const CHUNK: usize = 1 << 15;

/// Hyper-parameters of one update.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
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
    fn update(param: &mut [f32], grad: &[f32], m: &mut [f32], v: &mut [f32], settings: &Settings) {
        let root2 = settings.bias_correction2.sqrt();
        let step = settings.lr / settings.bias_correction1;
        let decay = settings.lr * settings.weight_decay;
        let (beta1, beta2, eps) = (settings.beta1, settings.beta2, settings.eps);
        for (((p, &g), m), v) in param.iter_mut().zip(grad).zip(m).zip(v) {
            *m = beta1 * *m + (1.0 - beta1) * g;
            *v = beta2 * *v + (1.0 - beta2) * g * g;
            *p -= decay * *p;
            *p -= step * *m / (v.sqrt() / root2 + eps);
        }
    }
}

/// One update (Loshchilov and Hutter 2019) over all threads; the slices have one length.
pub fn step(param: &mut [f32], grad: &[f32], m: &mut [f32], v: &mut [f32], settings: &Settings) {
    if param.len() <= CHUNK {
        return update(param, grad, m, v, settings);
    }
    param
        .par_chunks_mut(CHUNK)
        .zip(grad.par_chunks(CHUNK))
        .zip(m.par_chunks_mut(CHUNK).zip(v.par_chunks_mut(CHUNK)))
        .for_each(|((param, grad), (m, v))| update(param, grad, m, v, settings));
}
