//! A linear layer with bias and activation over rows, forward and backward.

use rayon::prelude::*;

use crate::activation::{self, Activation};
use crate::gemm::{Matrix, Precision, gemm};

/// Values that one task of an elementwise pass handles; fewer don't go to the threads at all.
const CHUNK: usize = 1 << 14;

/// Sizes of a layer.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// Rows of x and y.
    pub rows: usize,
    /// Width of x.
    pub num_in: usize,
    /// Width of y.
    pub num_out: usize,
}

/// `x W^T + b` before the activation; `weight` is `[num_out, num_in]`.
pub fn forward(x: &[f32], weight: &[f32], bias: &[f32], shape: Shape, precision: Precision) -> Vec<f32> {
    let Shape { rows, num_in, num_out } = shape;
    let mut y = Vec::with_capacity(rows * num_out);
    for _ in 0..rows {
        y.extend_from_slice(bias);
    }
    gemm(Matrix::new(x, rows, num_in), Matrix::new(weight, num_out, num_in).t(), &mut y, true, precision);
    y
}

/// Applies an activation over all threads.
pub fn activate(y: &mut [f32], act: Activation) {
    if y.len() <= CHUNK {
        activation::forward(y, act);
    } else if act != Activation::None {
        y.par_chunks_mut(CHUNK).for_each(|y| activation::forward(y, act));
    }
}

/// Gradient before the activation, from the gradient after it and the value before it.
pub fn deactivate(gradient: &mut [f32], before: &[f32], act: Activation) {
    if gradient.len() <= CHUNK {
        activation::backward(gradient, before, act);
    } else if act != Activation::None {
        gradient
            .par_chunks_mut(CHUNK)
            .zip(before.par_chunks(CHUNK))
            .for_each(|(gradient, before)| activation::backward(gradient, before, act));
    }
}

/// `dy W`.
pub fn backward_input(dy: &[f32], weight: &[f32], shape: Shape, precision: Precision) -> Vec<f32> {
    let Shape { rows, num_in, num_out } = shape;
    let mut dx = vec![0.0; rows * num_in];
    gemm(Matrix::new(dy, rows, num_out), Matrix::new(weight, num_out, num_in), &mut dx, false, precision);
    dx
}

/// `dy^T x`.
pub fn backward_weight(dy: &[f32], x: &[f32], shape: Shape, precision: Precision) -> Vec<f32> {
    let Shape { rows, num_in, num_out } = shape;
    let mut dw = vec![0.0; num_out * num_in];
    gemm(Matrix::new(dy, rows, num_out).t(), Matrix::new(x, rows, num_in), &mut dw, false, precision);
    dw
}

/// Column sums of dy.
pub fn backward_bias(dy: &[f32], num_out: usize) -> Vec<f32> {
    let mut db = vec![0.0; num_out];
    for row in dy.chunks_exact(num_out) {
        db.iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
    }
    db
}
