//! A linear layer with bias and activation over rows, forward and backward.

use rayon::prelude::*;

use crate::activation::{self, Activation};
use crate::gemm::{Matrix, Precision, new_product};
use crate::parts::in_chunks;

/// Values that one task of an elementwise pass handles; fewer don't go to the threads at all.
const CHUNK: usize = 1 << 14;

/// Columns that one task sums.
const COLUMNS: usize = 128;

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
    new_product(Matrix::new(x, rows, num_in), Matrix::new(weight, num_out, num_in).t(), Some(bias), precision, true)
}

/// Applies an activation over all threads.
pub fn activate(y: &mut [f32], act: Activation) {
    if y.len() <= CHUNK {
        activation::forward(y, act);
    } else if act != Activation::None {
        y.par_chunks_mut(CHUNK).for_each(|y| activation::forward(y, act));
    }
}

/// As [`activate`], the values before it left as they are.
pub fn activated(before: &[f32], act: Activation) -> Vec<f32> {
    in_chunks(before.len(), CHUNK, |index, y| {
        y.copy_from_slice(&before[index * CHUNK..][..y.len()]);
        activation::forward(y, act);
    })
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
    new_product(Matrix::new(dy, rows, num_out), Matrix::new(weight, num_out, num_in), None, precision, true)
}

/// `dy^T x`.
pub fn backward_weight(dy: &[f32], x: &[f32], shape: Shape, precision: Precision) -> Vec<f32> {
    let Shape { rows, num_in, num_out } = shape;
    new_product(Matrix::new(dy, rows, num_out).t(), Matrix::new(x, rows, num_in), None, precision, true)
}

/// Column sums of dy.
pub fn backward_bias(dy: &[f32], num_out: usize) -> Vec<f32> {
    let mut db = vec![0.0; num_out];
    let sum = |first: usize, sums: &mut [f32]| {
        for row in dy.chunks_exact(num_out) {
            sums.iter_mut().zip(&row[first..]).for_each(|(sum, value)| *sum += value);
        }
    };
    if dy.len() <= CHUNK {
        sum(0, &mut db);
    } else {
        db.par_chunks_mut(COLUMNS).enumerate().for_each(|(chunk, sums)| sum(chunk * COLUMNS, sums));
    }
    db
}
