//! Products inside one task, whose packed factors live in memory that the task keeps.

use super::micro::NR;
use super::pack::{self, Number, Packing};
use super::{Finish, Matrix, Output, Precision, by_blocks};
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
                Kind::Plain => by_blocks(&a, &self.wide, output, self.cols, finish, false, pack::F32 { round: false }),
                Kind::Rounded => by_blocks(&a, &self.wide, output, self.cols, finish, false, pack::F32 { round: true }),
                #[cfg(target_arch = "x86_64")]
                Kind::Tiles => by_blocks(&a, &self.narrow, output, self.cols, finish, false, pack::Bf16Tiles),
                Kind::Pairs => by_blocks(&a, &self.narrow, output, self.cols, finish, false, pack::Bf16Pairs),
            }
        }
    }
}
