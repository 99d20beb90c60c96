//! Cross-entropy of rows of logits.

use rayon::prelude::*;

use crate::parts::in_chunks;
use crate::simd::{exp, fold, larger, multiversion};

/// Logits under which threads cost more than they bring.
const SERIAL: usize = 1 << 14;

multiversion! {
    /// `ln sum exp` of a row.
    fn log_sum_exp(row: &[f32]) -> f32 {
        let max = fold(row, f32::NEG_INFINITY, larger).into_iter().fold(f32::NEG_INFINITY, f32::max);
        let lanes = fold(row, 0.0, |sum, x| sum + exp(x - max));
        max + lanes.iter().sum::<f32>().ln()
    }
}

multiversion! {
    fn gradient_row(row: &[f32], log_sum: f32, scale: f32, out: &mut [f32]) {
        out.iter_mut().zip(row).for_each(|(out, &x)| *out = exp(x - log_sum) * scale);
    }
}

/// `ln sum exp(row) - row[target]` of each row, 0 for a negative target; and each row's `ln sum exp`.
///
/// # Panics
/// If a target is not below `vocab`.
pub fn cross_entropy(logits: &[f32], targets: &[i64], vocab: usize) -> (Vec<f32>, Vec<f32>) {
    let work = |(row, &target): (&[f32], &i64)| {
        let log_sum = log_sum_exp(row);
        let loss = if target < 0 { 0.0 } else { log_sum - row[target as usize] };
        (loss, log_sum)
    };
    if logits.len() <= SERIAL {
        logits.chunks_exact(vocab).zip(targets).map(work).unzip()
    } else {
        logits.par_chunks_exact(vocab).zip(targets).map(work).unzip()
    }
}

/// Gradient of [`cross_entropy`] with respect to the logits.
pub fn cross_entropy_backward(logits: &[f32], targets: &[i64], log_sums: &[f32], dloss: &[f32], vocab: usize) -> Vec<f32> {
    in_chunks(logits.len(), vocab, |row, out| {
        let (target, scale) = (targets[row], dloss[row]);
        if target >= 0 && scale != 0.0 {
            gradient_row(&logits[row * vocab..][..vocab], log_sums[row], scale, out);
            out[target as usize] -= scale;
        }
    })
}
