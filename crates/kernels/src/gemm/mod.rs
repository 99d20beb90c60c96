//! Matrix products on strided f32 matrices: `C = A B` or `C += A B`, C row-major.
//!
//! Both factors are packed into panels that the micro-kernels read in order; bf16 rounds while packing and sums in f32. Work is cut
//! into blocks of C, never along the sums, so results don't depend on the number of threads.

mod micro;
mod pack;
mod small;

use rayon::prelude::*;

use crate::cpu::{Level, level};
use micro::{MR, NR, Target};

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
/// Most rows of C that one task works on.
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

/// Start of C, for tasks that write tiles of it.
#[derive(Clone, Copy)]
struct Output(*mut f32);

// SAFETY: tasks write disjoint tiles of a matrix that outlives them.
unsafe impl Send for Output {}
// SAFETY: as above.
unsafe impl Sync for Output {}

impl Output {
    fn at(self, offset: usize) -> *mut f32 {
        self.0.wrapping_add(offset)
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
    let (m, n, k) = (a.rows, b.cols, a.cols);
    let num_panels = n.div_ceil(NR);
    // How C is cut follows the number of threads; each of its values is summed in the same order however it is cut.
    let tasks = if parallel { 4 * rayon::current_num_threads() } else { 1 };
    let rows_per_task = m.div_ceil(tasks).next_multiple_of(MR).clamp(2 * MR, MC);
    let row_tasks = m.div_ceil(rows_per_task);
    let panels_per_task = num_panels.div_ceil(tasks.div_ceil(row_tasks)).max(8);
    let column_tasks = num_panels.div_ceil(panels_per_task);
    let output = Output(c.as_mut_ptr());
    let mut b_packed: Vec<T> = Vec::new();
    for k0 in (0..k).step_by(KC) {
        let depth = KC.min(k - k0);
        let padded = packing.padded_depth(depth);
        let strip = padded * NR;
        b_packed.resize(num_panels * strip, T::default());
        let pack_panel = |(panel, out): (usize, &mut [T])| packing.columns(&b, k0, depth, panel * NR, out);
        if parallel {
            b_packed.par_chunks_exact_mut(strip).with_min_len(4).enumerate().for_each(pack_panel);
        } else {
            b_packed.chunks_exact_mut(strip).enumerate().for_each(pack_panel);
        }
        let add = accumulate || k0 > 0;
        let b_packed = &b_packed;
        let work = |a_packed: &mut Vec<T>, task: usize| {
            let row0 = task / column_tasks * rows_per_task;
            let rows = rows_per_task.min(m - row0);
            a_packed.resize(rows.div_ceil(MR) * padded * MR, T::default());
            for (panel, out) in a_packed.chunks_exact_mut(padded * MR).enumerate() {
                packing.rows(&a, k0, depth, row0 + panel * MR, out);
            }
            let first = task % column_tasks * panels_per_task;
            for j in first..(first + panels_per_task).min(num_panels) {
                let b_panel = &b_packed[j * strip..][..strip];
                for (i, a_panel) in a_packed.chunks_exact(padded * MR).enumerate() {
                    let (row, column) = (row0 + i * MR, j * NR);
                    let (height, width) = (MR.min(m - row), NR.min(n - column));
                    let target = Target { start: output.at(row * n + column), stride: n, height, width, add };
                    // SAFETY: the tile lies in `c`, which is borrowed mutably until all tasks are done, and tiles of tasks are disjoint.
                    unsafe { packing.tile(a_panel, b_panel, padded, target) };
                }
            }
        };
        if parallel {
            (0..row_tasks * column_tasks).into_par_iter().for_each_init(Vec::new, work);
        } else {
            let mut a_packed = Vec::new();
            (0..row_tasks * column_tasks).for_each(|task| work(&mut a_packed, task));
        }
    }
}

#[cfg(test)]
mod tests;
