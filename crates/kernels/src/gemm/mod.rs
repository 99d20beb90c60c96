//! Matrix products on strided f32 matrices: `C = A B` or `C += A B`, C row-major.
//!
//! Both factors are packed into panels that the micro-kernels read in order; bf16 rounds while packing and sums in f32. Work is cut
//! into blocks of rows of C, so results don't depend on the number of threads.

mod micro;
mod pack;
mod small;

use rayon::prelude::*;

use crate::cpu::{Level, level};
use micro::{MR, NR};

/// Precision of the factors; sums are f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    /// As given.
    F32,
    /// Rounded to bfloat16, to nearest even.
    Bf16,
}

/// A matrix somewhere in a slice: element (i, j) is at `i * row_stride + j * col_stride`.
#[derive(Debug, Clone, Copy)]
pub struct Matrix<'a> {
    /// Storage.
    pub data: &'a [f32],
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub cols: usize,
    /// From one row to the next.
    pub row_stride: usize,
    /// From one column to the next.
    pub col_stride: usize,
}

impl<'a> Matrix<'a> {
    /// A row-major matrix.
    pub fn new(data: &'a [f32], rows: usize, cols: usize) -> Self {
        debug_assert!(data.len() >= rows * cols);
        Self { data, rows, cols, row_stride: cols, col_stride: 1 }
    }

    /// The transpose, without moving data.
    pub fn t(self) -> Self {
        Self {
            rows: self.cols,
            cols: self.rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
            ..self
        }
    }
}

/// Depth of a block: an A panel of it stays in the first-level cache beside a strip of B.
const KC: usize = 512;
/// Rows of C that one task works on.
const MC: usize = 8 * MR;
/// Multiply-adds under which threads cost more than they bring.
const SERIAL: usize = 1 << 18;

/// `c = a b`, or `c += a b` if `accumulate`; `c` is row-major `[a.rows, b.cols]`.
///
/// # Panics
/// If the inner sizes differ or `c` is too small: callers own the shapes.
pub fn gemm(a: Matrix<'_>, b: Matrix<'_>, c: &mut [f32], accumulate: bool, precision: Precision) {
    let parallel = a.rows * b.cols * a.cols > SERIAL;
    product(a, b, c, accumulate, precision, parallel);
}

/// As [`gemm`], on this thread alone: for callers that have a task a thread already.
///
/// # Panics
/// As [`gemm`].
pub fn gemm_serial(a: Matrix<'_>, b: Matrix<'_>, c: &mut [f32], accumulate: bool, precision: Precision) {
    product(a, b, c, accumulate, precision, false);
}

fn product(a: Matrix<'_>, b: Matrix<'_>, c: &mut [f32], accumulate: bool, precision: Precision, parallel: bool) {
    let (m, n, k) = (a.rows, b.cols, a.cols);
    assert_eq!(k, b.rows, "inner sizes of a matrix product");
    assert!(c.len() >= m * n, "room for the matrix product");
    if m == 0 || n == 0 {
        return;
    }
    let c = &mut c[..m * n];
    if k == 0 {
        if !accumulate {
            c.fill(0.0);
        }
        return;
    }
    if m <= small::MAX_ROWS && a.col_stride == 1 && b.row_stride == 1 {
        return small::few_rows(a, b, c, accumulate, precision, parallel);
    }
    match (precision, level()) {
        (Precision::Bf16, Level::Avx512) => blocked::<u16>(a, b, c, accumulate, parallel, pack::Bf16Pairs),
        (Precision::Bf16, _) => blocked::<f32>(a, b, c, accumulate, parallel, pack::F32 { round: true }),
        (Precision::F32, _) => blocked::<f32>(a, b, c, accumulate, parallel, pack::F32 { round: false }),
    }
}

fn blocked<T: Copy + Default + Send + Sync>(
    a: Matrix<'_>,
    b: Matrix<'_>,
    c: &mut [f32],
    accumulate: bool,
    parallel: bool,
    packing: impl pack::Packing<T>,
) {
    let (n, k) = (b.cols, a.cols);
    let num_panels = n.div_ceil(NR);
    let mut b_packed: Vec<T> = Vec::new();
    for k0 in (0..k).step_by(KC) {
        let depth = KC.min(k - k0);
        let padded = packing.padded_depth(depth);
        let strip = padded * NR;
        b_packed.resize(num_panels * strip, T::default());
        let pack_panel = |(panel, out): (usize, &mut [T])| packing.columns(&b, k0, depth, panel * NR, out);
        if parallel {
            b_packed.par_chunks_exact_mut(strip).enumerate().for_each(pack_panel);
        } else {
            b_packed.chunks_exact_mut(strip).enumerate().for_each(pack_panel);
        }
        let add = accumulate || k0 > 0;
        let work = |(block, c_rows): (usize, &mut [f32])| {
            let row0 = block * MC;
            let rows = c_rows.len() / n;
            let row_panels = rows.div_ceil(MR);
            let mut a_packed = vec![T::default(); row_panels * padded * MR];
            for (panel, out) in a_packed.chunks_exact_mut(padded * MR).enumerate() {
                packing.rows(&a, k0, depth, row0 + panel * MR, out);
            }
            for (j, b_panel) in b_packed.chunks_exact(strip).enumerate() {
                let width = NR.min(n - j * NR);
                for (i, a_panel) in a_packed.chunks_exact(padded * MR).enumerate() {
                    let height = MR.min(rows - i * MR);
                    let tile = &mut c_rows[i * MR * n + j * NR..];
                    packing.tile(a_panel, b_panel, padded, tile, n, height, width, add);
                }
            }
        };
        if parallel {
            c.par_chunks_mut(MC * n).enumerate().for_each(work);
        } else {
            c.chunks_mut(MC * n).enumerate().for_each(work);
        }
    }
}

#[cfg(test)]
mod tests;
