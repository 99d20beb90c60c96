//! The large weights of a model, packed once for inference, wherever their values come from: the model itself, a checkpoint read piece by
//! piece, or a file that was packed before.

use std::convert::Infallible;
use std::ops::Range;

use unif2ace_ops::{Matrix, PackedMatrix, Store, Table, WeightFormat};

/// A matrix among the weights: some rows `[out, in]` of a parameter whose leading axes are taken together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WeightRows<'a> {
    /// The parameter's path.
    pub parameter: &'a str,
    /// Rows of it.
    pub rows: Range<usize>,
    /// Values in a row.
    pub width: usize,
}

impl WeightRows<'_> {
    /// Where they lie in the parameter's values.
    pub fn values(&self) -> Range<usize> {
        self.rows.start * self.width..self.rows.end * self.width
    }

    /// Size of the packed matrix, `[in, out]`.
    pub fn packed_dims(&self) -> [usize; 2] {
        [self.width, self.rows.len()]
    }

    /// Packs their values.
    pub fn pack(&self, values: &[f32], format: WeightFormat) -> PackedMatrix {
        PackedMatrix::new(Matrix::new(values, self.rows.len(), self.width).t(), format)
    }
}

/// Where packed weights come from. `own` gives the values of the whole parameter as the model has them, for who wants them.
pub trait PackSource {
    /// Why there are none.
    type Error;

    /// Packed rows, as a matrix `[in, out]`.
    ///
    /// # Errors
    /// When there are none.
    fn matrix(&mut self, rows: &WeightRows<'_>, own: &dyn Fn() -> Vec<f32>) -> Result<PackedMatrix, Self::Error>;

    /// A table of `[rows, width]` vectors.
    ///
    /// # Errors
    /// When there is none.
    fn table(&mut self, parameter: &str, dims: [usize; 2], own: &dyn Fn() -> Vec<f32>) -> Result<Table, Self::Error>;

    /// A bias of `len` values.
    ///
    /// # Errors
    /// When there is none.
    fn bias(&mut self, parameter: &str, len: usize, own: &dyn Fn() -> Vec<f32>) -> Result<Vec<f32>, Self::Error>;
}

/// A table in the nearest format that tables have: int8 ones are kept in bfloat16.
pub fn pack_table(values: Vec<f32>, width: usize, format: WeightFormat) -> Table {
    match format {
        WeightFormat::F32 => Table::f32(Store::from(values), width),
        WeightFormat::Bf16 | WeightFormat::Int8 => Table::rounded(&values, width),
    }
}

/// The model's own values.
pub(crate) struct Own(pub WeightFormat);

impl PackSource for Own {
    type Error = Infallible;

    fn matrix(&mut self, rows: &WeightRows<'_>, own: &dyn Fn() -> Vec<f32>) -> Result<PackedMatrix, Infallible> {
        Ok(rows.pack(&own()[rows.values()], self.0))
    }

    fn table(&mut self, _parameter: &str, [_, width]: [usize; 2], own: &dyn Fn() -> Vec<f32>) -> Result<Table, Infallible> {
        Ok(pack_table(own(), width, self.0))
    }

    fn bias(&mut self, _parameter: &str, _len: usize, own: &dyn Fn() -> Vec<f32>) -> Result<Vec<f32>, Infallible> {
        Ok(own())
    }
}
