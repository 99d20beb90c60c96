//! Softmax attention on unpermuted `[B, L, H * Dh]`, and the norm and rotation of queries and keys before it.

use rayon::prelude::*;

use crate::gemm::{Matrix, Precision, gemm_serial};
use crate::simd::{exp, multiversion};

/// Sizes of an attention.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// Rows.
    pub batch: usize,
    /// Query positions.
    pub queries: usize,
    /// Key positions.
    pub keys: usize,
    /// Heads.
    pub heads: usize,
    /// Width of a head.
    pub head_dim: usize,
}

/// Multiply-adds, or values, under which threads cost more than they bring.
const SERIAL: usize = 1 << 16;

impl Shape {
    fn width(&self) -> usize {
        self.heads * self.head_dim
    }
}

/// An additive mask `[rows, queries, keys]`, one row for all or one each.
#[derive(Debug, Clone, Copy)]
pub struct Mask<'a> {
    /// Values.
    pub values: &'a [f32],
    /// 1 or the batch size.
    pub rows: usize,
}

multiversion! {
    fn softmax_rows(scores: &mut [f32], mask: Option<&[f32]>, keys: usize, scale: f32) {
        for (index, row) in scores.chunks_exact_mut(keys).enumerate() {
            match mask {
                Some(mask) => row.iter_mut().zip(&mask[index * keys..]).for_each(|(s, m)| *s = *s * scale + m),
                None => row.iter_mut().for_each(|s| *s *= scale),
            }
            let mut lanes = [f32::NEG_INFINITY; 16];
            for chunk in row.chunks(16) {
                for (lane, &s) in lanes.iter_mut().zip(chunk) {
                    *lane = if s > *lane { s } else { *lane };
                }
            }
            let max = lanes.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let mut lanes = [0.0f32; 16];
            for chunk in row.chunks_mut(16) {
                for (lane, s) in lanes.iter_mut().zip(chunk) {
                    // The approximation of exp is clamped; what is hidden must weigh exactly 0.
                    let difference = *s - max;
                    *s = if difference < -86.0 { 0.0 } else { exp(difference) };
                    *lane += *s;
                }
            }
            let inverse = 1.0 / lanes.iter().sum::<f32>();
            row.iter_mut().for_each(|s| *s *= inverse);
        }
    }
}

multiversion! {
    /// `ds = p * (dp - sum(dp * p)) * scale` row by row, in place of dp.
    fn softmax_backward(dp: &mut [f32], p: &[f32], keys: usize, scale: f32) {
        for (dp, p) in dp.chunks_exact_mut(keys).zip(p.chunks_exact(keys)) {
            let mut lanes = [0.0f32; 16];
            for (dp, p) in dp.chunks(16).zip(p.chunks(16)) {
                for ((lane, dp), p) in lanes.iter_mut().zip(dp).zip(p) {
                    *lane += dp * p;
                }
            }
            let dot = lanes.iter().sum::<f32>();
            dp.iter_mut().zip(p).for_each(|(dp, p)| *dp = p * (*dp - dot) * scale);
        }
    }
}

/// The part of one head in one row: a strided view of `[length, head_dim]`.
fn head<'a>(x: &'a [f32], shape: Shape, length: usize, b: usize, h: usize) -> Matrix<'a> {
    Matrix {
        data: &x[b * length * shape.width() + h * shape.head_dim..],
        rows: length,
        cols: shape.head_dim,
        row_stride: shape.width(),
        col_stride: 1,
    }
}

/// Puts `[batch * heads][length, head_dim]` back to `[batch, length, heads * head_dim]`.
fn unpermute(parts: &[Vec<f32>], shape: Shape, length: usize) -> Vec<f32> {
    let width = shape.width();
    let mut out = vec![0.0; shape.batch * length * width];
    for (index, part) in parts.iter().enumerate() {
        let (b, h) = (index / shape.heads, index % shape.heads);
        for (position, values) in part.chunks_exact(shape.head_dim).enumerate() {
            let start = (b * length + position) * width + h * shape.head_dim;
            out[start..start + shape.head_dim].copy_from_slice(values);
        }
    }
    out
}

/// `softmax(q k^T / sqrt(head_dim) + mask) v`: the result `[batch, queries, width]` and the weights `[batch * heads][queries, keys]`.
pub fn forward(
    q: &[f32],
    k: &[f32],
    v: &[f32],
    mask: Option<Mask<'_>>,
    shape: Shape,
    precision: Precision,
) -> (Vec<f32>, Vec<Vec<f32>>) {
    let Shape { batch, queries, keys, heads, head_dim } = shape;
    let scale = 1.0 / (head_dim as f32).sqrt();
    let work = |index: usize| {
        let (b, h) = (index / heads, index % heads);
        let mut p = vec![0.0; queries * keys];
        gemm_serial(head(q, shape, queries, b, h), head(k, shape, keys, b, h).t(), &mut p, false, precision);
        let mask = mask.map(|mask| &mask.values[(b % mask.rows) * queries * keys..][..queries * keys]);
        softmax_rows(&mut p, mask, keys, scale);
        let mut out = vec![0.0; queries * head_dim];
        gemm_serial(Matrix::new(&p, queries, keys), head(v, shape, keys, b, h), &mut out, false, precision);
        (out, p)
    };
    let heads_in_all = 0..batch * heads;
    let (outputs, weights): (Vec<_>, Vec<_>) = if batch * queries * keys * shape.width() <= SERIAL {
        heads_in_all.map(work).unzip()
    } else {
        heads_in_all.into_par_iter().map(work).unzip()
    };
    (unpermute(&outputs, shape, queries), weights)
}

/// Gradients of q, k and v from the output's gradient and the weights of [`forward`].
pub fn backward([q, k, v]: [&[f32]; 3], weights: &[Vec<f32>], dout: &[f32], shape: Shape, precision: Precision) -> [Vec<f32>; 3] {
    let Shape { queries, keys, heads, head_dim, .. } = shape;
    let scale = 1.0 / (head_dim as f32).sqrt();
    let mut parts: [Vec<Vec<f32>>; 3] = Default::default();
    let all: Vec<[Vec<f32>; 3]> = weights
        .par_iter()
        .enumerate()
        .map(|(index, p)| {
            let (b, h) = (index / heads, index % heads);
            let dout = head(dout, shape, queries, b, h);
            let p_matrix = Matrix::new(p, queries, keys);
            let mut dv = vec![0.0; keys * head_dim];
            gemm_serial(p_matrix.t(), dout, &mut dv, false, precision);
            let mut ds = vec![0.0; queries * keys];
            gemm_serial(dout, head(v, shape, keys, b, h).t(), &mut ds, false, precision);
            softmax_backward(&mut ds, p, keys, scale);
            let ds = Matrix::new(&ds, queries, keys);
            let mut dq = vec![0.0; queries * head_dim];
            gemm_serial(ds, head(k, shape, keys, b, h), &mut dq, false, precision);
            let mut dk = vec![0.0; keys * head_dim];
            gemm_serial(ds.t(), head(q, shape, queries, b, h), &mut dk, false, precision);
            [dq, dk, dv]
        })
        .collect();
    for triple in all {
        for (part, values) in parts.iter_mut().zip(triple) {
            part.push(values);
        }
    }
    [unpermute(&parts[0], shape, queries), unpermute(&parts[1], shape, keys), unpermute(&parts[2], shape, keys)]
}

/// Rotary tables `[rows, length, dims]`, one row for all or one each.
#[derive(Debug, Clone, Copy)]
pub struct Tables<'a> {
    /// Cosines.
    pub cos: &'a [f32],
    /// Sines.
    pub sin: &'a [f32],
    /// 1 or the batch size.
    pub rows: usize,
    /// Rotated dims of a head.
    pub dims: usize,
}

/// Rotates every head of `x` `[batch, length, heads * head_dim]` in place; `inverse` turns back, which is also the gradient.
pub fn rotate(x: &mut [f32], tables: Tables<'_>, [batch, length, heads, head_dim]: [usize; 4], inverse: bool) {
    debug_assert_eq!(x.len(), batch * length * heads * head_dim);
    let half = tables.dims / 2;
    let sign = if inverse { -1.0 } else { 1.0 };
    let work = |(row, x): (usize, &mut [f32])| {
        let (b, position) = (row / length, row % length);
        let start = ((b % tables.rows) * length + position) * tables.dims;
        let (cos, sin) = (&tables.cos[start..start + half], &tables.sin[start..start + half]);
        for head in x.chunks_exact_mut(head_dim) {
            let (first, rest) = head.split_at_mut(half);
            for (((a, b), &c), &s) in first.iter_mut().zip(&mut rest[..half]).zip(cos).zip(sin) {
                let (turned_a, turned_b) = (*a * c - *b * s * sign, *b * c + *a * s * sign);
                (*a, *b) = (turned_a, turned_b);
            }
        }
    };
    if x.len() <= SERIAL {
        x.chunks_exact_mut(heads * head_dim).enumerate().for_each(work);
    } else {
        x.par_chunks_exact_mut(heads * head_dim).with_min_len(16).enumerate().for_each(work);
    }
}
