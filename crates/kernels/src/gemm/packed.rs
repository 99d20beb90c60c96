//! The right factor of a product, packed once for many products: the weights of a layer at inference.

use std::ops::Range;
use std::sync::Arc;

use rayon::prelude::*;

use super::int8::{Int8Matrix, Rows};
use super::micro::NR;
use super::pack::{self, Number, Packing};
use super::small::{self, FewRows};
use super::{Base, Finish, Matrix, Output, Precision, SERIAL, by_blocks, rows};
use crate::activation::Activation;
use crate::cpu::{Level, level};
use crate::lines::Lines;
use crate::map::MappedFile;
use crate::store::Store;

/// How the values of a packed matrix are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WeightFormat {
    /// As given.
    F32,
    /// Rounded to bfloat16.
    Bf16,
    /// Rounded to 8 bits with a scale for each column and group of depths, see [`Int8Matrix`].
    Int8,
}

impl WeightFormat {
    /// The nearest precision of products of plain matrices.
    pub fn precision(self) -> Precision {
        match self {
            Self::F32 => Precision::F32,
            Self::Bf16 | Self::Int8 => Precision::Bf16,
        }
    }
}

/// Number type of a part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Element {
    F32,
    Bf16,
    I8,
    I32,
}

/// One of the arrays that a packed matrix is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// Its name among the parts.
    pub name: &'static str,
    /// Its numbers.
    pub element: Element,
    /// Its axes.
    pub shape: Vec<usize>,
}

impl Part {
    /// Bytes that it takes.
    pub fn num_bytes(&self) -> usize {
        let bytes = match self.element {
            Element::F32 | Element::I32 => 4,
            Element::Bf16 => 2,
            Element::I8 => 1,
        };
        self.shape.iter().product::<usize>() * bytes
    }
}

/// A packed matrix `[k, n]`. In f32 and bf16 products equal those of [`super::gemm`] to the last bit. It is packed the same way at every
/// instruction level, so that a file of packed matrices serves every CPU.
#[derive(Debug, Clone)]
pub struct PackedMatrix {
    rows: usize,
    cols: usize,
    panels: Panels,
}

/// Panels of full depth, one after the other.
#[derive(Debug, Clone)]
enum Panels {
    F32(Store<f32>),
    Bf16(Store<u16>),
    Int8(Int8Matrix),
}

fn pack_all<T: Number>(b: Matrix<'_>, packing: impl Packing<T>) -> Lines<T> {
    let depth = packing.padded_depth(b.rows);
    let mut panels = Lines::zeros(b.cols.div_ceil(NR) * depth * NR);
    if depth > 0 {
        panels
            .par_chunks_exact_mut(depth * NR)
            .with_min_len(16)
            .enumerate()
            .for_each(|(panel, out)| packing.columns(&b, 0, b.rows, panel * NR, out));
    }
    panels
}

impl PackedMatrix {
    /// Packs `b`; bf16 takes half the memory of f32, int8 a quarter.
    pub fn new(b: Matrix<'_>, format: WeightFormat) -> Self {
        let panels = match format {
            WeightFormat::F32 => Panels::F32(pack_all(b, pack::F32 { round: false }).into()),
            WeightFormat::Bf16 => Panels::Bf16(pack_all(b, pack::Bf16Pairs).into()),
            WeightFormat::Int8 => Panels::Int8(Int8Matrix::new(b)),
        };
        Self { rows: b.rows, cols: b.cols, panels }
    }

    /// A matrix `[rows, cols]` whose parts lie in a mapped file; `place(name)` is where the part of that name lies, which is as long as
    /// [`PackedMatrix::layout`] says.
    ///
    /// # Errors
    /// Those of `place`.
    ///
    /// # Panics
    /// If a part is of another length: callers have compared it.
    pub fn mapped<E>(
        format: WeightFormat,
        [rows, cols]: [usize; 2],
        mut place: impl FnMut(&'static str) -> Result<(Arc<MappedFile>, Range<usize>), E>,
    ) -> Result<Self, E> {
        let layout = Self::layout(format, [rows, cols]);
        let part = |(file, bytes): &(Arc<MappedFile>, Range<usize>), part: &Part| {
            assert_eq!(bytes.len(), part.num_bytes(), "bytes of a packed matrix' {}", part.name);
            (file.clone(), bytes.clone())
        };
        let places = layout.iter().map(|wanted| Ok(part(&place(wanted.name)?, wanted))).collect::<Result<Vec<_>, E>>()?;
        let panels = match (format, places.as_slice()) {
            (WeightFormat::F32, [(file, bytes), ..]) => Panels::F32(Store::mapped(file, bytes.clone())),
            (WeightFormat::Bf16, [(file, bytes), ..]) => Panels::Bf16(Store::mapped(file, bytes.clone())),
            (_, places) => Panels::Int8(Int8Matrix::mapped([rows, cols], places)),
        };
        Ok(Self { rows, cols, panels })
    }

    /// The parts of a matrix `[rows, cols]` as they lie in memory and in files.
    pub fn layout(format: WeightFormat, [rows, cols]: [usize; 2]) -> Vec<Part> {
        let panels = cols.div_ceil(NR);
        match format {
            WeightFormat::F32 => vec![Part { name: "panels", element: Element::F32, shape: vec![panels, rows, NR] }],
            WeightFormat::Bf16 => {
                vec![Part { name: "panels", element: Element::Bf16, shape: vec![panels, rows.div_ceil(2), NR, 2] }]
            }
            WeightFormat::Int8 => Int8Matrix::layout([rows, cols]),
        }
    }

    /// The bytes of the parts, in the order of [`PackedMatrix::layout`].
    pub fn bytes(&self) -> Vec<&[u8]> {
        match &self.panels {
            Panels::F32(values) => vec![values.bytes()],
            Panels::Bf16(values) => vec![values.bytes()],
            Panels::Int8(matrix) => matrix.bytes(),
        }
    }

    /// How the values are kept.
    pub fn format(&self) -> WeightFormat {
        match &self.panels {
            Panels::F32(_) => WeightFormat::F32,
            Panels::Bf16(_) => WeightFormat::Bf16,
            Panels::Int8(_) => WeightFormat::Int8,
        }
    }

    /// The [`super::PANEL`] columns of a panel in f32, row after row, widened into `wide` if they are bf16. Of a matrix in 8 bits, nothing.
    ///
    /// # Panics
    /// If there is no such panel.
    pub(crate) fn panel<'a>(&'a self, index: usize, wide: &'a mut Lines<f32>) -> &'a [f32] {
        match &self.panels {
            Panels::F32(values) => &values[index * self.rows * NR..][..self.rows * NR],
            Panels::Bf16(values) => {
                let len = self.rows.next_multiple_of(2) * NR;
                wide.reserve(len);
                pack::widen(&values[index * len..][..len], &mut wide[..len]);
                &wide[..self.rows * NR]
            }
            Panels::Int8(_) => &[],
        }
    }

    /// Rows: the depth of products.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The values as packed, row-major `[k, n]`: rounded unless the format is f32.
    pub fn unpack(&self) -> Vec<f32> {
        match &self.panels {
            Panels::F32(values) => self.row_major(|panel, k, lane| values[(panel * self.rows + k) * NR + lane]),
            Panels::Bf16(bits) => self.row_major(|panel, k, lane| {
                let start = panel * self.rows.next_multiple_of(2) * NR;
                f32::from_bits(u32::from(bits[start + k / 2 * 2 * NR + lane * 2 + k % 2]) << 16)
            }),
            Panels::Int8(matrix) => matrix.unpack(),
        }
    }

    /// All values, from one that gives the value at (panel, depth, lane).
    fn row_major(&self, value: impl Fn(usize, usize, usize) -> f32) -> Vec<f32> {
        let mut out = Vec::with_capacity(self.rows * self.cols);
        for k in 0..self.rows {
            out.extend((0..self.cols).map(|j| value(j / NR, k, j % NR)));
        }
        out
    }

    /// `c = a b`, or `c += a b` if `accumulate`; `c` is row-major `[a.rows, b.cols]`.
    ///
    /// # Panics
    /// If the inner sizes differ or `c` is too small: callers own the shapes.
    pub fn product(&self, a: Matrix<'_>, c: &mut [f32], accumulate: bool) {
        assert!(c.len() >= a.rows * self.cols, "room for the matrix product");
        // SAFETY: C has room for the product, is borrowed mutably, and holds values.
        unsafe {
            self.put_product(a, Output::new(c, self.cols), Finish::adding(accumulate), a.rows * self.cols * self.rows > SERIAL)
        };
    }

    /// `act(a b + bias)`, row-major `[a.rows, b.cols]`; the same values as a product that is added to rows of the bias.
    ///
    /// # Panics
    /// If the inner sizes differ or the bias isn't one value a column: callers own the shapes.
    pub fn forward(&self, a: Matrix<'_>, bias: Option<&[f32]>, act: Activation) -> Vec<f32> {
        assert!(bias.is_none_or(|bias| bias.len() == self.cols), "one bias a column");
        let len = a.rows * self.cols;
        let mut c = Vec::with_capacity(len);
        let finish = Finish { onto: bias.map_or(Base::Nothing, Base::Row), act };
        let parallel = len * self.rows > SERIAL;
        // SAFETY: there is room for the product, which is added to none of the vector's values; every value of it is written.
        unsafe {
            self.put_product(a, Output { start: c.as_mut_ptr(), stride: self.cols }, finish, parallel);
            c.set_len(len);
        }
        c
    }

    /// [`PackedMatrix::forward`] of the rows of `a` that are named, in that order; where they are rounded to 8 bits nothing else is copied.
    ///
    /// # Panics
    /// As [`PackedMatrix::forward`], and if `a` has no such row.
    pub(crate) fn forward_rows(&self, a: Matrix<'_>, rows: &[usize], bias: Option<&[f32]>, act: Activation) -> Vec<f32> {
        assert_eq!(a.cols, self.rows, "inner sizes of a matrix product");
        if let Panels::Int8(matrix) = &self.panels
            && self.rows > 0
        {
            self.forward_rounded(matrix, &Rows::chosen(&a, rows.len(), |row| rows[row]), rows.len(), bias, act)
        } else {
            let mut gathered = Vec::with_capacity(rows.len() * a.cols);
            rows.iter().for_each(|row| gathered.extend_from_slice(&a.data[row * a.row_stride..][..a.cols]));
            self.forward(Matrix::new(&gathered, rows.len(), a.cols), bias, act)
        }
    }

    /// [`PackedMatrix::forward`] of `m` rows that are rounded to 8 bits.
    fn forward_rounded(&self, matrix: &Int8Matrix, x: &Rows, m: usize, bias: Option<&[f32]>, act: Activation) -> Vec<f32> {
        assert!(bias.is_none_or(|bias| bias.len() == self.cols), "one bias a column");
        let len = m * self.cols;
        let mut c = Vec::with_capacity(len);
        let output = Output { start: c.as_mut_ptr(), stride: self.cols };
        let finish = Finish { onto: bias.map_or(Base::Nothing, Base::Row), act };
        // SAFETY: there is room for the product, which is added to none of the vector's values; every value of it is written.
        unsafe {
            matrix.put_rounded(x, m, output, finish, len * self.rows > SERIAL);
            c.set_len(len);
        }
        c
    }

    /// [`PackedMatrix::forward`] of the same rows through several layers, (matrix, bias, activation) each; rows that are to be rounded to 8
    /// bits are rounded once.
    ///
    /// # Panics
    /// As [`PackedMatrix::forward`].
    pub fn forward_all(a: Matrix<'_>, layers: &[(&Self, Option<&[f32]>, Activation)]) -> Vec<Vec<f32>> {
        let mut rounded = None;
        let forward = |&(layer, bias, act): &(&Self, Option<&[f32]>, Activation)| {
            let Panels::Int8(matrix) = &layer.panels else { return layer.forward(a, bias, act) };
            if layer.rows == 0 {
                return layer.forward(a, bias, act);
            }
            assert_eq!(a.cols, layer.rows, "inner sizes of a matrix product");
            layer.forward_rounded(matrix, rounded.get_or_insert_with(|| Rows::new(&a)), a.rows, bias, act)
        };
        layers.iter().map(forward).collect()
    }

    /// As [`PackedMatrix::forward`] without an activation, on this thread alone, to memory that several tasks write to.
    ///
    /// # Safety
    /// From `c`, `a.rows * b.cols` values are valid for writes, and nobody else has access to them.
    ///
    /// # Panics
    /// As [`PackedMatrix::forward`].
    pub(crate) unsafe fn forward_to(&self, a: Matrix<'_>, bias: &[f32], c: *mut f32) {
        assert_eq!(bias.len(), self.cols, "one bias a column");
        let finish = Finish { onto: Base::Row(bias), act: Activation::None };
        // SAFETY: the caller's promise; what is there is replaced.
        unsafe { self.put_product(a, Output { start: c, stride: self.cols }, finish, false) };
    }

    /// # Safety
    /// As [`multiply`]; the output has no gaps.
    unsafe fn put_product(&self, a: Matrix<'_>, output: Output, finish: Finish<'_>, parallel: bool) {
        let (m, n, k) = (a.rows, self.cols, self.rows);
        assert_eq!(a.cols, k, "inner sizes of a matrix product");
        if m == 0 || n == 0 {
            return;
        }
        if k == 0 {
            // SAFETY: the caller's promise.
            return unsafe { finish.put_without_products(output, m, n) };
        }
        // SAFETY: the caller's promise.
        unsafe {
            match &self.panels {
                Panels::F32(values) => by_panels(&a, values, output, n, finish, parallel, pack::F32 { round: false }),
                #[cfg(target_arch = "x86_64")]
                Panels::Bf16(values) if level() == Level::Amx => {
                    by_panels(&a, values, output, n, finish, parallel, pack::Bf16Tiles)
                }
                Panels::Bf16(values) if level() < Level::Avx512 && m > rows::MAX_ROWS => {
                    by_blocks(&a, values, output, n, finish, parallel, pack::Widened)
                }
                Panels::Bf16(values) => by_panels(&a, values, output, n, finish, parallel, pack::Bf16Pairs),
                Panels::Int8(matrix) => matrix.put_product(a, output, finish, parallel),
            }
        }
    }
}

/// # Safety
/// As [`multiply`].
unsafe fn by_panels<T: Number, P: FewRows<T>>(
    a: &Matrix<'_>,
    panels: &[T],
    output: Output,
    n: usize,
    finish: Finish<'_>,
    parallel: bool,
    packing: P,
) {
    if a.rows <= rows::MAX_ROWS {
        // SAFETY: the caller's promise.
        return unsafe { small::from_panels(a, panels, n, output, finish, parallel, packing) };
    }
    // SAFETY: the caller's promise.
    unsafe { by_blocks(a, panels, output, n, finish, parallel, packing) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::{Level, at_every_level, force_level};
    use crate::gemm::gemm;

    fn values(count: usize, seed: u32) -> Vec<f32> {
        (0..count as u32).map(|i| ((i ^ seed).wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 23) as f32 - 1.0).collect()
    }

    #[test]
    fn packed_products_equal_plain_ones_wherever_they_were_packed() {
        let sizes =
            [(1, 1, 1), (1, 70, 1025), (2, 33, 7), (3, 64, 516), (4, 5, 64), (5, 96, 31), (6, 31, 9), (7, 40, 12), (8, 65, 3)];
        at_every_level(|packed_at| {
            for (m, n, k) in sizes.into_iter().chain([(9, 70, 1030), (50, 129, 65)]) {
                let (a, w) = (values(m * k, 1), values(n * k, 2));
                let (a, b) = (Matrix::new(&a, m, k), Matrix::new(&w, n, k).t());
                for (precision, format) in [(Precision::F32, WeightFormat::F32), (Precision::Bf16, WeightFormat::Bf16)] {
                    force_level(Some(packed_at));
                    let packed = PackedMatrix::new(b, format);
                    if precision == Precision::F32 {
                        let expected: Vec<f32> = (0..k * n).map(|i| w[i % n * k + i / n]).collect();
                        assert_eq!(packed.unpack(), expected);
                    }
                    for used_at in Level::ALL {
                        force_level(Some(used_at));
                        for accumulate in [false, true] {
                            let mut expected = values(m * n, 3);
                            let mut found = expected.clone();
                            gemm(a, b, &mut expected, accumulate, precision);
                            packed.product(a, &mut found, accumulate);
                            let what = format!("{precision:?} {packed_at:?} {used_at:?} {m}x{n}x{k}");
                            if packed_at == used_at {
                                assert_eq!(found, expected, "{what}");
                            }
                            for (f, e) in found.iter().zip(&expected) {
                                assert!((f - e).abs() < 4e-6 * (k as f32).sqrt() + 2e-6, "{what}: {f} vs {e}");
                            }
                        }
                    }
                }
            }
        });
    }

    #[test]
    fn several_layers_at_once_are_one_after_the_other() {
        let (m, k) = (13, 70);
        let (a, w) = (values(m * k, 1), values(40 * k, 2));
        let (a, bias) = (Matrix::new(&a, m, k), values(40, 3));
        at_every_level(|_| {
            for format in [WeightFormat::F32, WeightFormat::Bf16, WeightFormat::Int8] {
                let [wide, narrow] = [40, 5].map(|n| PackedMatrix::new(Matrix::new(&w, n, k).t(), format));
                let layers = [(&wide, Some(&bias[..]), Activation::GeluNew), (&narrow, None, Activation::None)];
                let expected = layers.map(|(layer, bias, act)| layer.forward(a, bias, act));
                assert_eq!(PackedMatrix::forward_all(a, &layers), expected, "{format:?}");
            }
        });
    }

    #[test]
    fn bf16_panels_round_to_nearest() {
        let w = values(3 * 5, 4);
        let rounded: Vec<f32> = w.iter().map(|&w| half::bf16::from_f32(w).to_f32()).collect();
        let packed = PackedMatrix::new(Matrix::new(&w, 3, 5), WeightFormat::Bf16);
        assert_eq!(packed.unpack(), rounded);
    }
}
