//! What the frozen parts say about every picture, computed once: image codes, CLIP patch features, face attributes.

use std::path::Path;

use burn::tensor::{Device, Tensor, TensorData};
use half::bf16;
use unif2ace_model::config::ModelConfig;
use unif2ace_model::encoders::clip_pixels;
use unif2ace_pipeline::Parts;

use crate::batches::{Augment, ImageStore};
use crate::error::Result;
use crate::interrupt;
use crate::tasks::data;

const BATCH: usize = 32;

/// One row of each per picture.
#[derive(Default)]
pub struct Features {
    /// N codes a picture.
    pub codes: Vec<u32>,
    /// P x C values a picture, as bfloat16.
    pub clip: Vec<bf16>,
    /// F values a picture.
    pub face: Vec<f32>,
    /// Codes of a picture.
    pub num_codes: usize,
    /// Positions and width of the CLIP features.
    pub clip_shape: [usize; 2],
    /// Width of the face feature.
    pub face_dim: usize,
}

impl Features {
    /// Computes the features of all pictures; `progress(done, of)` is called now and then. `None` when Ctrl-C was pressed.
    ///
    /// # Errors
    /// When the pictures don't fit the networks.
    pub fn compute(
        parts: &Parts,
        images: &ImageStore,
        device: &Device,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Option<Self>> {
        let mut features = Self::default();
        let count = images.len();
        for start in (0..count).step_by(BATCH) {
            if interrupt::asked() {
                return Ok(None);
            }
            let indices: Vec<usize> = (start..count.min(start + BATCH)).collect();
            let pixels_BHWC = images.batch(&indices, |_| Augment::default(), device);
            let codes = parts.vq.encode(pixels_BHWC.clone()).map_err(data)?;
            features.num_codes = codes.len() / indices.len();
            features.codes.extend(codes);
            let normalised_BHWC = clip_pixels(pixels_BHWC);
            if let Some(clip) = &parts.clip {
                let patches_BPC = clip.vision_model.forward(normalised_BHWC.clone()).map_err(data)?.features_BPD;
                let [_, positions, width] = patches_BPC.dims();
                features.clip_shape = [positions, width];
                features.clip.extend(patches_BPC.into_data().iter::<f32>().map(bf16::from_f32));
            }
            if let Some(face) = &parts.face {
                let attributes_BF = face.attributes(normalised_BHWC).map_err(data)?;
                features.face_dim = attributes_BF.dims()[1];
                features.face.extend(attributes_BF.into_data().iter::<f32>());
            }
            progress(start + indices.len(), count);
        }
        Ok(Some(features))
    }

    /// Codes of one picture.
    pub fn codes_of(&self, index: usize) -> &[u32] {
        &self.codes[index * self.num_codes..][..self.num_codes]
    }

    /// CLIP features of some pictures, `[B, P, C]`.
    pub fn clip_of(&self, indices: &[usize], device: &Device) -> Option<Tensor<3>> {
        let [positions, width] = self.clip_shape;
        let size = positions * width;
        if self.clip.is_empty() {
            return None;
        }
        let values: Vec<f32> = indices.iter().flat_map(|&index| &self.clip[index * size..][..size]).map(|v| v.to_f32()).collect();
        Some(Tensor::from_data(TensorData::new(values, [indices.len(), positions, width]), device))
    }

    /// Face features of some pictures, `[B, F]`.
    pub fn face_of(&self, indices: &[usize], device: &Device) -> Option<Tensor<2>> {
        if self.face.is_empty() {
            return None;
        }
        let values: Vec<f32> =
            indices.iter().flat_map(|&index| &self.face[index * self.face_dim..][..self.face_dim]).copied().collect();
        Some(Tensor::from_data(TensorData::new(values, [indices.len(), self.face_dim]), device))
    }
}

/// Reads the frozen parts of a model folder and checks that a transformer of `config` fits them.
///
/// # Errors
/// When a part is missing, damaged, or doesn't fit its sizes in config.json or the transformer's.
pub fn read_parts(folder: &Path, config: &ModelConfig, device: &Device) -> Result<Parts> {
    let hint = "train recipes/mini/vq.toml first, then face.toml and clip.toml; the recipe's sizes must be theirs";
    let fail = |reason: String| data(format!("model folder {}: {reason}\nhint: {hint}", folder.display()));
    let table = unif2ace_weights::read_model_config(folder).map_err(data)?;
    let parts = Parts::read(folder, &table, device).map_err(fail)?;
    parts.fit(config).map_err(fail)?;
    Ok(parts)
}
