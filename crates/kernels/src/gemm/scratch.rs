//! Products inside one task, whose packed factors live in memory that the task keeps.

use super::micro::NR;
use super::pack::{self, Number, Packing};
use super::{Block, Cut, Finish, KC, Matrix, Output, Precision, Tiling, multiply};
use crate::cpu::{Level, level};
use crate::lines::Lines;

/// A right factor packed for products of this thread alone. It keeps its memory from one factor to the next.
#[derive(Debug, Default)]
pub struct Scratch {
    wide: Lines<f32>,
    narrow: Lines<u16>,
    rows: usize,
    cols: usize,
    kind: Kind,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Kind {
    #[default]
    Plain,
    Rounded,
    Pairs,
    #[cfg(target_arch = "x86_64")]
    Tiles,
}

fn pack_all<T: Number>(b: &Matrix<'_>, out: &mut Lines<T>, packing: impl Packing<T>) {
    let stride = packing.padded_depth(b.rows) * NR;
    let len = b.cols.div_ceil(NR) * stride;
    out.reserve(len);
    for (panel, out) in out[..len].chunks_exact_mut(stride.max(1)).enumerate() {
        packing.columns(b, 0, b.rows, panel * NR, out);
    }
}

impl Scratch {
    /// Packs `b` in place of what was packed before.
    pub fn pack(&mut self, b: Matrix<'_>, precision: Precision) {
        (self.rows, self.cols) = (b.rows, b.cols);
        self.kind = match (precision, level()) {
            (Precision::F32, _) => Kind::Plain,
            #[cfg(target_arch = "x86_64")]
            (Precision::Bf16, Level::Amx) => Kind::Tiles,
            (Precision::Bf16, Level::Avx512) => Kind::Pairs,
            (Precision::Bf16, _) => Kind::Rounded,
        };
        match self.kind {
            #[cfg(target_arch = "x86_64")]
            Kind::Tiles => pack_all(&b, &mut self.narrow, pack::Bf16Tiles),
            Kind::Pairs => pack_all(&b, &mut self.narrow, pack::Bf16Pairs),
            kind => pack_all(&b, &mut self.wide, pack::F32 { round: kind == Kind::Rounded }),
        }
    }

    /// `c = a b` with rows of `c` `stride` values apart.
    ///
    /// # Panics
    /// If the inner sizes differ or a row of the product doesn't fit: callers own the shapes.
    pub fn product(&self, a: Matrix<'_>, c: &mut [f32], stride: usize) {
        assert!(
            a.rows == 0 || (c.len() >= (a.rows - 1) * stride + self.cols && stride >= self.cols),
            "room for the matrix product"
        );
        // SAFETY: C has room for the product and is borrowed mutably; it holds values.
        unsafe { self.product_at(a, c.as_mut_ptr(), stride, false) };
    }

    /// As [`Scratch::product`], or `c += a b` if `accumulate`, to memory that several tasks write to.
    ///
    /// # Safety
    /// From `c`, `a.rows` rows of as many values as `b` has columns, `stride` apart, are valid for writes, and nobody else has access to
    /// them; they hold values if the product is added to them.
    ///
    /// # Panics
    /// If the inner sizes differ: callers own the shapes.
    pub unsafe fn product_at(&self, a: Matrix<'_>, c: *mut f32, stride: usize, accumulate: bool) {
        assert_eq!(a.cols, self.rows, "inner sizes of a matrix product");
        let output = Output { start: c, stride };
        let finish = Finish::adding(accumulate);
        // SAFETY: the caller's promise.
        unsafe {
            match self.kind {
                Kind::Plain => blocks(&a, &self.wide, self.cols, output, finish, pack::F32 { round: false }),
                Kind::Rounded => blocks(&a, &self.wide, self.cols, output, finish, pack::F32 { round: true }),
                #[cfg(target_arch = "x86_64")]
                Kind::Tiles => blocks(&a, &self.narrow, self.cols, output, finish, pack::Bf16Tiles),
                Kind::Pairs => blocks(&a, &self.narrow, self.cols, output, finish, pack::Bf16Pairs),
            }
        }
    }
}

/// # Safety
/// As [`multiply`].
unsafe fn blocks<T: Number, P: Packing<T>>(
    a: &Matrix<'_>,
    panels: &[T],
    n: usize,
    output: Output,
    finish: Finish<'_>,
    packing: P,
) {
    let cut = Cut::new(a.rows, Tiling::of::<T, T, P>(), n.div_ceil(NR), a.cols.min(KC) * size_of::<T>(), false);
    let stride = packing.padded_depth(a.cols) * NR;
    for k0 in (0..a.cols).step_by(KC) {
        let block = Block { panels, start: k0 * NR, stride, k0, depth: KC.min(a.cols - k0) };
        // SAFETY: the caller's promise; blocks after the first are added to what the first has written.
        unsafe { multiply(a, block, output, n, finish, cut, packing) };
    }
}
