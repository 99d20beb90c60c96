//! Layer norm over rows, forward and backward.

use rayon::prelude::*;

use crate::simd::multiversion;

/// Rows that one task handles; fewer don't go to the threads at all.
const ROWS: usize = 64;

multiversion! {
    fn forward_rows(x: &[f32], weight: &[f32], bias: &[f32], eps: f32, y: &mut [f32]) {
        let width = weight.len();
        for (x, y) in x.chunks_exact(width).zip(y.chunks_exact_mut(width)) {
            let (mean, scale) = moments(x, eps);
            for (((y, &x), &w), &b) in y.iter_mut().zip(x).zip(weight).zip(bias) {
                *y = (x - mean) * scale * w + b;
            }
        }
    }
}

#[inline(always)]
fn moments(x: &[f32], eps: f32) -> (f32, f32) {
    let mean = sum(x, |v| v) / x.len() as f32;
    let variance = sum(x, |v| (v - mean) * (v - mean)) / x.len() as f32;
    (mean, 1.0 / (variance + eps).sqrt())
}

/// Sum in sixteen lanes, which vectorises and rounds less than one running sum.
#[inline(always)]
fn sum(x: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0.0f32; 16];
    let chunks = x.chunks_exact(16);
    let rest: f32 = chunks.remainder().iter().map(|&v| f(v)).sum();
    for chunk in chunks {
        for (lane, &v) in lanes.iter_mut().zip(chunk) {
            *lane += f(v);
        }
    }
    lanes.iter().sum::<f32>() + rest
}

multiversion! {
    fn backward_rows(x: &[f32], weight: &[f32], eps: f32, dy: &[f32], dx: &mut [f32], dw: &mut [f32], db: &mut [f32]) {
        let width = weight.len();
        let inverse = 1.0 / width as f32;
        for ((x, dy), dx) in x.chunks_exact(width).zip(dy.chunks_exact(width)).zip(dx.chunks_exact_mut(width)) {
            let (mean, scale) = moments(x, eps);
            let mut lanes = [[0.0f32; 16]; 2];
            for (((((x, dy), w), dw), db), dx) in x.chunks(16).zip(dy.chunks(16)).zip(weight.chunks(16))
                .zip(dw.chunks_mut(16)).zip(db.chunks_mut(16)).zip(dx.chunks_mut(16))
            {
                for i in 0..x.len() {
                    let normal = (x[i] - mean) * scale;
                    dw[i] += dy[i] * normal;
                    db[i] += dy[i];
                    let g = dy[i] * w[i];
                    dx[i] = g;
                    lanes[0][i] += g;
                    lanes[1][i] += g * normal;
                }
            }
            let mean_g = lanes[0].iter().sum::<f32>() * inverse;
            let mean_gn = lanes[1].iter().sum::<f32>() * inverse;
            for (dx, &x) in dx.iter_mut().zip(x) {
                *dx = (*dx - mean_g - (x - mean) * scale * mean_gn) * scale;
            }
        }
    }
}

/// `y = (x - mean) / sqrt(var + eps) * weight + bias` for rows of `weight.len()`.
pub fn layer_norm(x: &[f32], weight: &[f32], bias: &[f32], eps: f32) -> Vec<f32> {
    let mut y = vec![0.0; x.len()];
    let chunk = ROWS * weight.len();
    if x.len() <= chunk {
        forward_rows(x, weight, bias, eps, &mut y);
        return y;
    }
    y.par_chunks_mut(chunk).zip(x.par_chunks(chunk)).for_each(|(y, x)| forward_rows(x, weight, bias, eps, y));
    y
}

/// Gradients of [`layer_norm`]: of x, weight and bias.
pub fn layer_norm_backward(x: &[f32], weight: &[f32], eps: f32, dy: &[f32]) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
    let width = weight.len();
    let mut dx = vec![0.0; x.len()];
    let chunk = ROWS * width;
    let parts: Vec<(Vec<f32>, Vec<f32>)> = dx
        .par_chunks_mut(chunk)
        .zip(x.par_chunks(chunk))
        .zip(dy.par_chunks(chunk))
        .map(|((dx, x), dy)| {
            let (mut dw, mut db) = (vec![0.0; width], vec![0.0; width]);
            backward_rows(x, weight, eps, dy, dx, &mut dw, &mut db);
            (dw, db)
        })
        .collect();
    // Summed in order of the rows, so that the number of threads doesn't show.
    let (mut dw, mut db) = (vec![0.0; width], vec![0.0; width]);
    for (part_w, part_b) in parts {
        dw.iter_mut().zip(part_w).for_each(|(sum, part)| *sum += part);
        db.iter_mut().zip(part_b).for_each(|(sum, part)| *sum += part);
    }
    (dx, dw, db)
}
