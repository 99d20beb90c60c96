//! A table of vectors that are looked up: embeddings at inference.

use rayon::prelude::*;

use crate::store::Store;

/// Rows of `width` values, in f32 or bfloat16.
#[derive(Debug, Clone)]
pub struct Table {
    rows: Rows,
    width: usize,
}

#[derive(Debug, Clone)]
enum Rows {
    F32(Store<f32>),
    Bf16(Store<u16>),
}

impl Table {
    /// A table of f32 values.
    pub fn f32(values: Store<f32>, width: usize) -> Self {
        Self { rows: Rows::F32(values), width }
    }

    /// A table of bfloat16 bit patterns.
    pub fn bf16(values: Store<u16>, width: usize) -> Self {
        Self { rows: Rows::Bf16(values), width }
    }

    /// A table of values rounded to bfloat16.
    pub fn rounded(values: &[f32], width: usize) -> Self {
        let bits: Vec<u16> = values.par_iter().map(|&value| half::bf16::from_f32(value).to_bits()).collect();
        Self::bf16(bits.into(), width)
    }

    /// Values in a row.
    pub fn width(&self) -> usize {
        self.width
    }

    /// The values as they are written to a file.
    pub fn bytes(&self) -> &[u8] {
        match &self.rows {
            Rows::F32(values) => values.bytes(),
            Rows::Bf16(values) => values.bytes(),
        }
    }

    /// The rows of `indices` one after the other; an index beyond the table gives zeros.
    pub fn gather(&self, indices: &[i64]) -> Vec<f32> {
        let mut out = vec![0.0; indices.len() * self.width];
        for (&index, out) in indices.iter().zip(out.chunks_exact_mut(self.width.max(1))) {
            let Some(start) = usize::try_from(index).ok().and_then(|index| index.checked_mul(self.width)) else { continue };
            match &self.rows {
                Rows::F32(values) => {
                    if let Some(row) = values.get(start..start + self.width) {
                        out.copy_from_slice(row);
                    }
                }
                Rows::Bf16(values) => {
                    if let Some(row) = values.get(start..start + self.width) {
                        out.iter_mut().zip(row).for_each(|(out, &bits)| *out = f32::from_bits(u32::from(bits) << 16));
                    }
                }
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_found_and_what_is_beyond_is_zero() {
        let values = vec![1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0];
        for table in [Table::f32(values.clone().into(), 2), Table::rounded(&values, 2)] {
            assert_eq!(table.gather(&[2, 0, -1, 3, 1]), [5.0, 6.0, 1.0, 2.0, 0.0, 0.0, 0.0, 0.0, 3.0, 4.0]);
        }
    }
}
