//! Layer norm over rows, forward and backward.

use rayon::prelude::*;

use crate::parts::in_chunks;
use crate::simd::{Lanes, fold, multiversion};

/// Rows that one task handles; fewer don't go to the threads at all.
const ROWS: usize = 64;

/// Rows whose sums are taken side by side: those of one row wait for each other.
const ABREAST: usize = 4;

/// The same for narrow rows, such as those of a head, where adding up the lanes of a row takes the most time: the lanes of all are added
/// together.
const NARROW_ABREAST: usize = 16;
/// Width of the widest narrow row.
const NARROW: usize = 128;

multiversion! {
    fn forward_rows(x: &[f32], weight: &[f32], bias: &[f32], eps: f32, y: &mut [f32]) {
        let narrow = weight.len() <= NARROW;
        let mut done = if narrow { rows_abreast::<NARROW_ABREAST>(x, weight, bias, eps, y) } else { 0 };
        done += rows_abreast::<ABREAST>(&x[done..], weight, bias, eps, &mut y[done..]);
        rows_abreast::<1>(&x[done..], weight, bias, eps, &mut y[done..]);
    }
}

/// As many rows as are whole times R; how many values they are.
#[inline(always)]
fn rows_abreast<const R: usize>(x: &[f32], weight: &[f32], bias: &[f32], eps: f32, y: &mut [f32]) -> usize {
    let len = R * weight.len();
    let (x, y) = (x.chunks_exact(len), y.chunks_exact_mut(len));
    let done = x.len() * len;
    x.zip(y).for_each(|(x, y)| normalise::<R>(x, weight, bias, eps, y));
    done
}

/// R rows.
#[inline(always)]
fn normalise<const R: usize>(x: &[f32], weight: &[f32], bias: &[f32], eps: f32, y: &mut [f32]) {
    let width = weight.len();
    let rows: [&[f32]; R] = std::array::from_fn(|row| &x[row * width..][..width]);
    let mean = sums(rows, |_, v| v).map(|sum| sum / width as f32);
    let scales = sums(rows, |row, v| (v - mean[row]) * (v - mean[row])).map(|sum| 1.0 / (sum / width as f32 + eps).sqrt());
    for (row, y) in y.chunks_exact_mut(width).enumerate().take(R) {
        let (mean, scale) = (mean[row], scales[row]);
        for (((y, &x), &w), &b) in y.iter_mut().zip(rows[row]).zip(weight).zip(bias) {
            *y = (x - mean) * scale * w + b;
        }
    }
}

/// [`sum`] of several rows of one length.
#[inline(always)]
fn sums<const R: usize>(rows: [&[f32]; R], f: impl Fn(usize, f32) -> f32) -> [f32; R] {
    let chunks = rows.map(|row| row.as_chunks::<16>().0);
    let count = chunks.iter().map(|chunks| chunks.len()).min().unwrap_or(0);
    let chunks = chunks.map(|chunks| &chunks[..count]);
    let mut lanes: [Lanes; R] = [[0.0; 16]; R];
    for index in 0..count {
        for (row, (lanes, chunks)) in lanes.iter_mut().zip(chunks).enumerate() {
            for (lane, &v) in lanes.iter_mut().zip(&chunks[index]) {
                *lane += f(row, v);
            }
        }
    }
    // Lane by lane, of all rows at a time.
    let mut totals = [-0.0; R];
    for lane in 0..16 {
        for (total, lanes) in totals.iter_mut().zip(&lanes) {
            *total += lanes[lane];
        }
    }
    std::array::from_fn(|row| totals[row] + rows[row][count * 16..].iter().map(|&v| f(row, v)).sum::<f32>())
}

#[inline(always)]
fn moments(x: &[f32], eps: f32) -> (f32, f32) {
    let mean = sum(x, |v| v) / x.len() as f32;
    let variance = sum(x, |v| (v - mean) * (v - mean)) / x.len() as f32;
    (mean, 1.0 / (variance + eps).sqrt())
}

/// Sum in sixteen lanes, and the rest behind the last whole sixteen by itself.
#[inline(always)]
fn sum(x: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let (whole, rest) = x.split_at(x.len() / 16 * 16);
    fold(whole, 0.0, |sum, v| sum + f(v)).iter().sum::<f32>() + rest.iter().map(|&v| f(v)).sum::<f32>()
}

multiversion! {
    fn backward_rows(x: &[f32], weight: &[f32], eps: f32, dy: &[f32], dx: &mut [f32], dw: &mut [f32], db: &mut [f32]) {
        let width = weight.len();
        let inverse = 1.0 / width as f32;
        for ((x, dy), dx) in x.chunks_exact(width).zip(dy.chunks_exact(width)).zip(dx.chunks_exact_mut(width)) {
            let (mean, scale) = moments(x, eps);
            let step = |x: f32, dy: f32, w: f32, dw: &mut f32, db: &mut f32, dx: &mut f32, lane: &mut f32, lane_n: &mut f32| {
                let normal = (x - mean) * scale;
                *dw += dy * normal;
                *db += dy;
                let g = dy * w;
                *dx = g;
                *lane += g;
                *lane_n += g * normal;
            };
            let (mut lanes, mut lanes_n): (Lanes, Lanes) = Default::default();
            let ((x16, x_rest), (dy16, dy_rest), (w16, w_rest)) = (x.as_chunks(), dy.as_chunks(), weight.as_chunks());
            let (dw16, dw_rest) = dw.as_chunks_mut::<16>();
            let (db16, db_rest) = db.as_chunks_mut::<16>();
            let (dx16, dx_rest) = dx.as_chunks_mut::<16>();
            for (((((x, dy), w), dw), db), dx) in x16.iter().zip(dy16).zip(w16).zip(dw16).zip(db16).zip(dx16) {
                let [x, dy, w]: [&Lanes; 3] = [x, dy, w];
                for i in 0..16 {
                    step(x[i], dy[i], w[i], &mut dw[i], &mut db[i], &mut dx[i], &mut lanes[i], &mut lanes_n[i]);
                }
            }
            // Copies, as in `fold`.
            let (mut all, mut all_n) = (lanes, lanes_n);
            for i in 0..x_rest.len() {
                let (dw, db, dx) = (&mut dw_rest[i], &mut db_rest[i], &mut dx_rest[i]);
                step(x_rest[i], dy_rest[i], w_rest[i], dw, db, dx, &mut all[i], &mut all_n[i]);
            }
            let mean_g = all.iter().sum::<f32>() * inverse;
            let mean_gn = all_n.iter().sum::<f32>() * inverse;
            for (dx, &x) in dx.iter_mut().zip(x) {
                *dx = (*dx - mean_g - (x - mean) * scale * mean_gn) * scale;
            }
        }
    }
}

/// `y = (x - mean) / sqrt(var + eps) * weight + bias` for rows of `weight.len()`.
pub fn layer_norm(x: &[f32], weight: &[f32], bias: &[f32], eps: f32) -> Vec<f32> {
    let chunk = ROWS * weight.len();
    if x.len() <= chunk {
        let mut y = vec![0.0; x.len()];
        forward_rows(x, weight, bias, eps, &mut y);
        return y;
    }
    in_chunks(x.len(), chunk, |index, y| forward_rows(&x[index * chunk..][..y.len()], weight, bias, eps, y))
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
