//! What the trainer can train: one file a part of the model.

pub mod clip;
pub mod face;
pub mod rows;
pub mod share;
mod text_rows;
pub mod texts;
pub mod tokenizer;
pub mod unified;
pub mod vq;

use std::path::Path;

use burn::tensor::Tensor;
use unif2ace_image::{Pixels, contact_sheet, encode_png, postprocess};

use crate::error::{Result, TrainError};
use crate::params::tensor_values;

/// Writes originals above their reconstructions (or any two batches `[B, H, W, 3]` in [-1, 1]) as one PNG.
///
/// # Errors
/// When the picture can't be made or written.
pub fn write_sheet(above: &Tensor<4>, below: &Tensor<4>, path: &Path) -> Result<()> {
    let mut images = Vec::new();
    let columns = above.dims()[0].min(8);
    for batch in [above, below] {
        let [count, height, width, _] = batch.dims();
        let values = tensor_values(batch.clone());
        for image in values.chunks_exact(height * width * 3).take(columns.min(count)) {
            let pixels = Pixels { height, width, data: image.to_vec() };
            images.push(postprocess(&pixels).map_err(data)?);
        }
    }
    let sheet = contact_sheet(&images, columns, 2, [255; 3]).map_err(data)?;
    Ok(unif2ace_io::write_atomic(path, &encode_png(&sheet, None).map_err(data)?)?)
}

pub(crate) fn data(error: impl std::fmt::Display) -> TrainError {
    TrainError::Data(error.to_string())
}
