//! A few rows times a matrix: panels of the matrix are packed a piece at a time into the first-level cache and used at once.

use super::micro::{self, NR, Target};
#[cfg(target_arch = "x86_64")]
use super::pack::Bf16Tiles;
use super::pack::{Bf16Pairs, F32, Number, Packing};
use super::rows::{self, MAX_ROWS, PANELS, Rows, Sums};
use super::{Finish, KC, Matrix, Output, Precision};
use crate::cpu::{Level, level};
use crate::parts::in_turn;

/// Depth of a piece; a divisor of [`KC`].
const PIECE: usize = 64;

/// Panels of a packing and the kernel for a few rows of it.
pub(super) trait FewRows<T>: Packing<T> {
    /// All of `a`, row after row of the padded length.
    fn plain(self, a: &Matrix<'_>) -> Vec<T>;
    /// Adds to `sums`, see [`rows::rows_f32`].
    fn multiply(self, x: Rows<'_, T>, start: usize, panels: &[&[T]], depth: usize, sums: &mut Sums);
}

impl FewRows<f32> for F32 {
    fn plain(self, a: &Matrix<'_>) -> Vec<f32> {
        self.plain(a)
    }

    fn multiply(self, x: Rows<'_, f32>, start: usize, panels: &[&[f32]], depth: usize, sums: &mut Sums) {
        rows::rows_f32(x, start, panels, depth, sums);
    }
}

impl FewRows<u16> for Bf16Pairs {
    fn plain(self, a: &Matrix<'_>) -> Vec<u16> {
        self.plain(a)
    }

    fn multiply(self, x: Rows<'_, u16>, start: usize, panels: &[&[u16]], depth: usize, sums: &mut Sums) {
        rows::rows_bf16(x, start, panels, depth, sums);
    }
}

#[cfg(target_arch = "x86_64")]
impl FewRows<u16> for Bf16Tiles {
    fn plain(self, a: &Matrix<'_>) -> Vec<u16> {
        self.plain(a)
    }

    fn multiply(self, x: Rows<'_, u16>, start: usize, panels: &[&[u16]], depth: usize, sums: &mut Sums) {
        // SAFETY: tiles are chosen only where `level` found AMX.
        unsafe { rows::rows_amx(x, start, panels, depth, sums) };
    }
}

/// A product with at most [`MAX_ROWS`] rows.
///
/// # Safety
/// As [`super::multiply`].
pub(super) unsafe fn few_rows(
    a: Matrix<'_>,
    b: Matrix<'_>,
    output: Output,
    finish: Finish<'_>,
    precision: Precision,
    parallel: bool,
) {
    // SAFETY: the caller's promise.
    unsafe {
        match (precision, level()) {
            #[cfg(target_arch = "x86_64")]
            (Precision::Bf16, Level::Amx) => from_matrix(a, b, output, finish, parallel, Bf16Tiles),
            (Precision::Bf16, Level::Avx512) => from_matrix(a, b, output, finish, parallel, Bf16Pairs),
            (Precision::Bf16, _) => from_matrix(a, b, output, finish, parallel, F32 { round: true }),
            (Precision::F32, _) => from_matrix(a, b, output, finish, parallel, F32 { round: false }),
        }
    }
}

/// # Safety
/// As [`super::multiply`].
unsafe fn from_matrix<T: Number>(
    a: Matrix<'_>,
    b: Matrix<'_>,
    output: Output,
    finish: Finish<'_>,
    parallel: bool,
    packing: impl FewRows<T>,
) {
    let multiply = |x: Rows<'_, T>, first: usize, count: usize, block: std::ops::Range<usize>, sums: &mut Sums| {
        let mut pieces = [[T::zeroed(); PIECE * NR]; PANELS];
        for k0 in block.clone().step_by(PIECE) {
            let depth = PIECE.min(block.end - k0);
            let padded = packing.padded_depth(depth);
            for (panel, piece) in pieces[..count].iter_mut().enumerate() {
                packing.columns(&b, k0, depth, (first + panel) * NR, &mut piece[..padded * NR]);
            }
            let pieces = [&pieces[0][..padded * NR], &pieces[1][..padded * NR]];
            packing.multiply(x, k0, &pieces[..count], padded, sums);
        }
    };
    // SAFETY: the caller's promise.
    unsafe { by_panels(&a, b.cols, output, finish, parallel, packing, multiply) };
}

/// As [`few_rows`], the panels of the right factor (`[a.cols, n]`) being packed already, each in full depth.
///
/// # Safety
/// As [`super::multiply`].
pub(super) unsafe fn from_panels<T: Number>(
    a: &Matrix<'_>,
    panels: &[T],
    n: usize,
    output: Output,
    finish: Finish<'_>,
    parallel: bool,
    packing: impl FewRows<T>,
) {
    let stride = packing.padded_depth(a.cols) * NR;
    let multiply = |x: Rows<'_, T>, first: usize, count: usize, block: std::ops::Range<usize>, sums: &mut Sums| {
        let padded = packing.padded_depth(block.len());
        let panel = |panel: usize| &panels[(first + panel.min(count - 1)) * stride + block.start * NR..][..padded * NR];
        packing.multiply(x, block.start, &[panel(0), panel(1)][..count], padded, sums);
    };
    // SAFETY: the caller's promise.
    unsafe { by_panels(a, n, output, finish, parallel, packing, multiply) };
}

/// Calls `multiply(rows, first panel, number of panels, range of depths, sums)` for every pair of panels and every block of depth, and
/// puts the sums into or onto C.
///
/// # Safety
/// As [`super::multiply`].
unsafe fn by_panels<T: Number>(
    a: &Matrix<'_>,
    n: usize,
    output: Output,
    finish: Finish<'_>,
    parallel: bool,
    packing: impl FewRows<T>,
    multiply: impl Fn(Rows<'_, T>, usize, usize, std::ops::Range<usize>, &mut Sums) + Sync,
) {
    let (m, k) = (a.rows, a.cols);
    assert!(m <= MAX_ROWS);
    let values = packing.plain(a);
    let x = Rows { values: &values, length: packing.left_depth(k) };
    let num_panels = n.div_ceil(NR);
    let work = |pair: usize| {
        let first = pair * PANELS;
        let count = PANELS.min(num_panels - first);
        for k0 in (0..k).step_by(KC) {
            let mut sums = [[[0.0; NR]; MAX_ROWS]; PANELS];
            multiply(x, first, count, k0..k.min(k0 + KC), &mut sums);
            for (panel, sums) in sums[..count].iter().enumerate() {
                let column = (first + panel) * NR;
                let onto = finish.onto(k0 == 0, column);
                let target =
                    Target { start: output.at(0, column), stride: output.stride, height: m, width: NR.min(n - column), onto };
                // SAFETY: the tile lies in C, which is ours until all tasks are done, as the caller promises, and tiles of tasks are
                // disjoint; a row that is added has a value for each column.
                unsafe {
                    micro::store(sums, target);
                    micro::activate(target, finish.act(k0 + KC >= k));
                }
            }
        }
    };
    let pairs = num_panels.div_ceil(PANELS);
    if parallel {
        in_turn(pairs, work);
    } else {
        (0..pairs).for_each(work);
    }
}
