//! Matrix products on strided f32 matrices: `C = A B` or `C += A B`, C row-major.
//!
//! Both factors are packed into panels that the micro-kernels read in order; bf16 rounds while packing and sums in f32. Work is cut
//! into blocks of C, never along the sums, and every path sums in the same order: a value depends neither on the number of threads nor
//! on the rows and columns beside it.

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod avx2;
mod int8;
mod micro;
mod pack;
mod packed;
mod rows;
mod scratch;
mod small;

use rayon::prelude::*;

use crate::activation::Activation;
use crate::cpu::{Level, level};
use crate::lines::Lines;
use micro::{NR, Onto, Target};

pub use int8::{GROUP as INT8_GROUP, Int8Matrix};
pub(crate) use pack::bf16_bits;
pub use packed::{Element, PackedMatrix, Part, WeightFormat};
pub use scratch::Scratch;

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
        Self { rows: self.cols, cols: self.rows, row_stride: self.col_stride, col_stride: self.row_stride, ..self }
    }
}

/// Depth of a block: an A panel of it stays in the first-level cache beside a strip of B.
const KC: usize = 2048;
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
    assert!(c.len() >= a.rows * b.cols, "room for the matrix product");
    // SAFETY: C has room for the product, is borrowed mutably, and holds values.
    unsafe { put_product(a, b, Output::new(c, b.cols), Finish::adding(accumulate), precision, parallel) };
}

/// `a b`, with a bias for each column added where there is one, row-major `[a.rows, b.cols]`; on this thread alone unless it is `parallel` and
/// large.
///
/// # Panics
/// If the inner sizes differ or the bias isn't one value a column: callers own the shapes.
pub fn new_product(a: Matrix<'_>, b: Matrix<'_>, bias: Option<&[f32]>, precision: Precision, parallel: bool) -> Vec<f32> {
    assert!(bias.is_none_or(|bias| bias.len() == b.cols), "one bias a column");
    let len = a.rows * b.cols;
    let mut c = Vec::with_capacity(len);
    let finish = Finish { onto: bias.map_or(Base::Nothing, Base::Row), act: Activation::None };
    let parallel = parallel && len * a.cols > SERIAL;
    // SAFETY: there is room for the product, which is added to none of the vector's values; every value of it is written.
    unsafe {
        put_product(a, b, Output { start: c.as_mut_ptr(), stride: b.cols }, finish, precision, parallel);
        c.set_len(len);
    }
    c
}

/// # Safety
/// As [`multiply`]; the output has no gaps.
///
/// # Panics
/// If the inner sizes differ.
unsafe fn put_product(a: Matrix<'_>, b: Matrix<'_>, output: Output, finish: Finish<'_>, precision: Precision, parallel: bool) {
    assert_eq!(a.cols, b.rows, "inner sizes of a matrix product");
    if a.rows == 0 || b.cols == 0 {
        return;
    }
    // SAFETY: the caller's promise.
    unsafe {
        if a.cols == 0 {
            return finish.put_without_products(output, a.rows, b.cols);
        }
        if a.rows <= rows::MAX_ROWS {
            return small::few_rows(a, b, output, finish, precision, parallel);
        }
        match (precision, level()) {
            #[cfg(target_arch = "x86_64")]
            (Precision::Bf16, Level::Amx) => blocked(a, b, output, finish, parallel, pack::Bf16Tiles),
            (Precision::Bf16, Level::Avx512) => blocked(a, b, output, finish, parallel, pack::Bf16Pairs),
            (Precision::Bf16, _) => blocked(a, b, output, finish, parallel, pack::F32 { round: true }),
            (Precision::F32, _) => blocked(a, b, output, finish, parallel, pack::F32 { round: false }),
        }
    }
}

/// C, for tasks that write tiles of it: rows `stride` values apart.
#[derive(Clone, Copy)]
struct Output {
    start: *mut f32,
    stride: usize,
}

// SAFETY: tasks write disjoint tiles of a matrix that outlives them.
unsafe impl Send for Output {}
// SAFETY: as above.
unsafe impl Sync for Output {}

impl Output {
    /// A row-major matrix without gaps.
    fn new(c: &mut [f32], cols: usize) -> Self {
        Self { start: c.as_mut_ptr(), stride: cols }
    }

    fn at(self, row: usize, column: usize) -> *mut f32 {
        self.start.wrapping_add(row * self.stride + column)
    }
}

/// What becomes of a product.
#[derive(Clone, Copy)]
struct Finish<'a> {
    onto: Base<'a>,
    /// Applied to the finished values.
    act: Activation,
}

/// What a product is added to.
#[derive(Clone, Copy)]
enum Base<'a> {
    Nothing,
    /// The values of C.
    There,
    /// One value for each column.
    Row(&'a [f32]),
}

impl Finish<'static> {
    fn adding(accumulate: bool) -> Self {
        Self { onto: if accumulate { Base::There } else { Base::Nothing }, act: Activation::None }
    }
}

impl Finish<'_> {
    /// What the tile at `column` is added to; behind the `first` block of the sums that is C.
    fn onto(&self, first: bool, column: usize) -> Onto {
        match self.onto {
            _ if !first => Onto::Target,
            Base::Nothing => Onto::Nothing,
            Base::There => Onto::Target,
            Base::Row(values) => Onto::Row(values[column..].as_ptr()),
        }
    }

    /// The activation, if the block of the sums is the `last` one.
    fn act(&self, last: bool) -> Activation {
        if last { self.act } else { Activation::None }
    }

    /// C of `m` rows of `n` values without gaps where there is nothing to sum.
    ///
    /// # Safety
    /// As [`multiply`].
    unsafe fn put_without_products(&self, output: Output, m: usize, n: usize) {
        if !matches!(self.onto, Base::There) {
            // SAFETY: there is room for as many values; zeros are written before a slice of them is made.
            unsafe { std::ptr::write_bytes(output.start, 0, m * n) };
        }
        // SAFETY: the values are there now, and ours.
        self.without_products(unsafe { std::slice::from_raw_parts_mut(output.start, m * n) }, n);
    }

    /// C where there is nothing to sum.
    fn without_products(&self, c: &mut [f32], n: usize) {
        match self.onto {
            Base::Nothing => c.fill(0.0),
            Base::There => {}
            Base::Row(values) => c.chunks_exact_mut(n).for_each(|row| row.copy_from_slice(&values[..n])),
        }
        crate::activation::forward(c, self.act);
    }
}

/// How C is cut into tasks. It follows the number of threads; each value of C is summed in the same order however it is cut.
#[derive(Clone, Copy)]
struct Cut {
    rows: usize,
    panels: usize,
    row_tasks: usize,
    column_tasks: usize,
    parallel: bool,
}

/// What a kernel wants of its tasks.
struct Tiling {
    /// Rows of a tile.
    height: usize,
    /// Bytes of the left factor that a task holds.
    left_bytes: usize,
    /// Tasks for each thread.
    tasks: usize,
    /// Up to so many rows every task takes all of them, and tasks share out the columns.
    whole: usize,
}

impl Tiling {
    fn of<L, R, P: pack::Packing<L, R>>() -> Self {
        Self { height: P::HEIGHT, left_bytes: P::LEFT_BYTES, tasks: P::TASKS, whole: P::WHOLE }
    }
}

impl Cut {
    /// Panels that a task takes at least.
    const LEAST_PANELS: usize = 8;

    /// For `m` rows of `row_bytes` in a block of depth.
    fn new(m: usize, tiling: Tiling, num_panels: usize, row_bytes: usize, parallel: bool) -> Self {
        let Tiling { height, left_bytes, tasks, whole } = tiling;
        let (threads, tasks) =
            if parallel { (rayon::current_num_threads(), tasks * rayon::current_num_threads()) } else { (1, 1) };
        // As many tasks as threads, or a multiple of it, all as high as possible: no thread waits for another at the end.
        let tiles = m.div_ceil(height);
        let most = (left_bytes / (height * row_bytes.max(1))).clamp(2, 16);
        let by_columns = m <= whole && num_panels >= threads * Self::LEAST_PANELS;
        let row_tasks = if by_columns { 1 } else { tiles.div_ceil(most).next_multiple_of(threads) };
        let rows = tiles.div_ceil(row_tasks).max(2) * height;
        let row_tasks = m.div_ceil(rows);
        let panels = num_panels.div_ceil(tasks.div_ceil(row_tasks)).max(Self::LEAST_PANELS);
        Self { rows, panels, row_tasks, column_tasks: num_panels.div_ceil(panels), parallel }
    }
}

/// A block of B in panels: panel j starts at `start + j * stride`.
#[derive(Clone, Copy)]
struct Block<'a, T> {
    panels: &'a [T],
    start: usize,
    stride: usize,
    /// Where the block begins along the sums, and its depth without padding.
    k0: usize,
    depth: usize,
}

/// # Safety
/// As [`multiply`].
unsafe fn blocked<T: pack::Number, P: pack::Packing<T>>(
    a: Matrix<'_>,
    b: Matrix<'_>,
    output: Output,
    finish: Finish<'_>,
    parallel: bool,
    packing: P,
) {
    let (n, k) = (b.cols, a.cols);
    let num_panels = n.div_ceil(NR);
    let cut = Cut::new(a.rows, Tiling::of::<T, T, P>(), num_panels, k.min(KC) * size_of::<T>(), parallel);
    let work = |b_packed: &mut Lines<T>| {
        for k0 in (0..k).step_by(KC) {
            let depth = KC.min(k - k0);
            let stride = packing.padded_depth(depth) * NR;
            b_packed.reserve(num_panels * stride);
            let b_packed = &mut b_packed[..num_panels * stride];
            let pack_panel = |(panel, out): (usize, &mut [T])| packing.columns(&b, k0, depth, panel * NR, out);
            if parallel {
                b_packed.par_chunks_exact_mut(stride).with_min_len(4).enumerate().for_each(pack_panel);
            } else {
                b_packed.chunks_exact_mut(stride).enumerate().for_each(pack_panel);
            }
            let block = Block { panels: b_packed, start: 0, stride, k0, depth };
            // SAFETY: the caller's promise; blocks after the first are added to what the first has written.
            unsafe { multiply(&a, block, output, n, finish, cut, packing) };
        }
    };
    packing.right_memory(work);
}

/// A product whose panels of B are packed, each in full depth, one behind the other.
///
/// # Safety
/// As [`multiply`].
unsafe fn by_blocks<L: pack::Number, R: pack::Number, P: pack::Packing<L, R>>(
    a: &Matrix<'_>,
    panels: &[R],
    output: Output,
    n: usize,
    finish: Finish<'_>,
    parallel: bool,
    packing: P,
) {
    let stride = packing.padded_depth(a.cols) * NR;
    // SAFETY: the caller's promise.
    unsafe { by_blocks_apart(a, panels, stride, output, n, finish, parallel, packing) };
}

/// As [`by_blocks`], with panels of B that start `stride` elements apart.
///
/// # Safety
/// As [`multiply`].
unsafe fn by_blocks_apart<L: pack::Number, R: pack::Number, P: pack::Packing<L, R>>(
    a: &Matrix<'_>,
    panels: &[R],
    stride: usize,
    output: Output,
    n: usize,
    finish: Finish<'_>,
    parallel: bool,
    packing: P,
) {
    let cut = Cut::new(a.rows, Tiling::of::<L, R, P>(), n.div_ceil(NR), a.cols.min(KC) * size_of::<L>(), parallel);
    for k0 in (0..a.cols).step_by(KC) {
        let block = Block { panels, start: k0 * NR, stride, k0, depth: KC.min(a.cols - k0) };
        // SAFETY: the caller's promise; blocks after the first are added to what the first has written.
        unsafe { multiply(a, block, output, n, finish, cut, packing) };
    }
}

/// Columns of a panel of [`PackedMatrix::panel`] and [`panels_product`].
pub(crate) const PANEL: usize = NR;

/// The first `cols` columns of `a b` on this thread alone, with rows of `c` `c_stride` values apart; b's panels of [`PANEL`] columns, row after
/// row, start `stride` values apart.
///
/// # Panics
/// If there is nothing to sum, the panels are too short or a row of the product doesn't fit: callers own the shapes.
pub(crate) fn panels_product(a: Matrix<'_>, panels: &[f32], stride: usize, cols: usize, c: &mut [f32], c_stride: usize) {
    if a.rows == 0 || cols == 0 {
        return;
    }
    assert!(a.cols > 0 && panels.len() >= (cols.div_ceil(NR) - 1) * stride + a.cols * NR, "panels of a matrix product");
    assert!(c.len() >= (a.rows - 1) * c_stride + cols && c_stride >= cols, "room for the matrix product");
    let (output, finish) = (Output { start: c.as_mut_ptr(), stride: c_stride }, Finish::adding(false));
    // SAFETY: C has room for the product, as asserted, and is borrowed mutably.
    unsafe { by_blocks_apart(&a, panels, stride, output, cols, finish, false, pack::F32 { round: false }) };
}

/// Multiplies the columns of `a` that meet a block of B, into or onto C with `n` columns.
///
/// # Safety
/// `output` is valid for writes of `a.rows` rows of `n` values, which nobody else has access to, and holds values where the product is added to
/// them.
unsafe fn multiply<L: pack::Number, R: pack::Number, P: pack::Packing<L, R>>(
    a: &Matrix<'_>,
    block: Block<'_, R>,
    output: Output,
    n: usize,
    finish: Finish<'_>,
    cut: Cut,
    packing: P,
) {
    let m = a.rows;
    let num_panels = n.div_ceil(NR);
    let (first_block, last_block) = (block.k0 == 0, block.k0 + block.depth == a.cols);
    let padded = packing.padded_depth(block.depth);
    let a_stride = packing.left_depth(block.depth) * P::HEIGHT;
    let multiply_rows = |task: usize, a_packed: &mut Lines<L>| {
        let row0 = task / cut.column_tasks * cut.rows;
        let rows = cut.rows.min(m - row0);
        let len = rows.div_ceil(P::HEIGHT) * a_stride;
        a_packed.reserve(len);
        let a_packed = &mut a_packed[..len];
        packing.strip_rows(a, block.k0, block.depth, row0, a_packed);
        let first = task % cut.column_tasks * cut.panels;
        for j in first..(first + cut.panels).min(num_panels) {
            let start = block.start + j * block.stride;
            let b_panel = &block.panels[start..][..padded * NR];
            let next = &block.panels[(start + block.stride).min(block.panels.len())..];
            let target = |i: usize| {
                let (row, column) = (row0 + i * P::HEIGHT, j * NR);
                let (height, width) = (P::HEIGHT.min(m - row), NR.min(n - column));
                let onto = finish.onto(first_block, column);
                Target { start: output.at(row, column), stride: output.stride, height, width, onto }
            };
            // SAFETY: the tiles lie in C, which is ours until all tasks are done, as the caller promises, and tiles of tasks are
            // disjoint; a row that is added has a value for each column.
            unsafe { packing.strip(a_packed, b_panel, next, padded, target, finish.act(last_block)) };
        }
    };
    let tasks = cut.row_tasks * cut.column_tasks;
    let work = |task| packing.memory(|a_packed| multiply_rows(task, a_packed));
    if cut.parallel {
        (0..tasks).into_par_iter().for_each(work);
    } else {
        (0..tasks).for_each(work);
    }
}

#[cfg(test)]
mod tests;
