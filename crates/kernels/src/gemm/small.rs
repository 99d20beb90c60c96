//! A few rows times a transposed matrix: each output is one dot product along memory, nothing is packed. This is decoding.

use half::bf16;
use rayon::prelude::*;

use super::{Matrix, Precision};
use crate::cpu::{Level, level};

/// Most rows for which packing the other factor doesn't pay.
pub(super) const MAX_ROWS: usize = 4;

/// `a` has unit column stride and `b` unit row stride.
pub(super) fn few_rows(a: Matrix<'_>, b: Matrix<'_>, c: &mut [f32], accumulate: bool, precision: Precision, parallel: bool) {
    let (m, n, k) = (a.rows, b.cols, a.cols);
    let round = precision == Precision::Bf16;
    let mut rows: Vec<f32> = Vec::with_capacity(m * k);
    for row in 0..m {
        rows.extend(a.data[row * a.row_stride..][..k].iter().map(|&v| if round { bf16::from_f32(v).to_f32() } else { v }));
    }
    let column = |j: usize, out: &mut [f32]| {
        let weights = &b.data[j * b.col_stride..][..k];
        for (row, out) in rows.chunks_exact(k).zip(out) {
            *out = dot(row, weights, round);
        }
    };
    // Outputs of one column are neighbours here and are spread over the rows of C below.
    let mut columns = vec![0.0; n * m];
    if parallel {
        columns.par_chunks_mut(m * 64).enumerate().for_each(|(chunk, out)| {
            for (index, out) in out.chunks_exact_mut(m).enumerate() {
                column(chunk * 64 + index, out);
            }
        });
    } else {
        columns.chunks_exact_mut(m).enumerate().for_each(|(j, out)| column(j, out));
    }
    for (j, values) in columns.chunks_exact(m).enumerate() {
        for (row, &value) in values.iter().enumerate() {
            let target = &mut c[row * n + j];
            *target = if accumulate { *target + value } else { value };
        }
    }
}

fn dot(x: &[f32], w: &[f32], round: bool) -> f32 {
    match level() {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `level` found AVX-512 on this CPU; all accesses are through slices.
        Level::Avx512 => unsafe { x86::dot_avx512(x, w, round) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `level` found AVX2 and FMA on this CPU; all accesses are through slices.
        Level::Avx2 => unsafe { x86::dot_avx2(x, w, round) },
        _ => dot_lanes::<8>(x, w, round),
    }
}

/// LANES partial sums, so that the compiler can keep them in vectors.
#[inline(always)]
fn dot_lanes<const LANES: usize>(x: &[f32], w: &[f32], round: bool) -> f32 {
    let weight = |v: f32| {
        if round {
            let bits = v.to_bits();
            f32::from_bits((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF_0000)
        } else {
            v
        }
    };
    let mut sums = [0.0f32; LANES];
    let (x_chunks, w_chunks) = (x.chunks_exact(LANES), w.chunks_exact(LANES));
    let rest: f32 = x_chunks.remainder().iter().zip(w_chunks.remainder()).map(|(&x, &w)| x * weight(w)).sum();
    for (x, w) in x_chunks.zip(w_chunks) {
        for ((sum, &x), &w) in sums.iter_mut().zip(x).zip(w) {
            *sum += x * weight(w);
        }
    }
    sums.iter().sum::<f32>() + rest
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::dot_lanes;

    #[target_feature(enable = "avx512f")]
    pub(super) fn dot_avx512(x: &[f32], w: &[f32], round: bool) -> f32 {
        dot_lanes::<64>(x, w, round)
    }

    #[target_feature(enable = "avx2,fma")]
    pub(super) fn dot_avx2(x: &[f32], w: &[f32], round: bool) -> f32 {
        dot_lanes::<32>(x, w, round)
    }
}
