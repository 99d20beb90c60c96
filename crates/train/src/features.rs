//! What the frozen parts say about pictures: image codes, CLIP patch features, face attributes.

use std::path::Path;

use burn::tensor::{Device, Tensor, TensorData};
use half::bf16;
use unif2ace_model::config::ModelConfig;
use unif2ace_model::encoders::clip_pixels;
use unif2ace_pipeline::Parts;

use crate::batches::{Augment, ImageStore};
use crate::error::Result;
use crate::tasks::data;

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
    /// Runs the parts over some pictures, all at once.
    ///
    /// # Errors
    /// When the pictures don't fit the networks.
    pub fn of(parts: &Parts, images: &ImageStore, device: &Device) -> Result<Self> {
        let mut features = Self::default();
        let indices: Vec<usize> = (0..images.len()).collect();
        let pixels_BHWC = images.batch(&indices, |_| Augment::default(), device);
        features.codes = parts.vq.encode(pixels_BHWC.clone()).map_err(data)?;
        features.num_codes = features.codes.len() / indices.len().max(1);
        let normalised_BHWC = clip_pixels(pixels_BHWC);
        if let Some(clip) = &parts.clip {
            let patches_BPC = clip.vision_model.forward(normalised_BHWC.clone()).map_err(data)?.features_BPD;
            let [_, positions, width] = patches_BPC.dims();
            features.clip_shape = [positions, width];
            features.clip = patches_BPC.into_data().iter::<f32>().map(bf16::from_f32).collect();
        }
        if let Some(face) = &parts.face {
            let attributes_BF = face.attributes(normalised_BHWC).map_err(data)?;
            features.face_dim = attributes_BF.dims()[1];
            features.face = attributes_BF.into_data().iter::<f32>().collect();
        }
        Ok(features)
    }

    /// One picture's row as bytes: `N, P, C, F` as u32, codes as u32, CLIP as bfloat16, face as f32; little-endian.
    pub fn entry(&self, index: usize) -> Vec<u8> {
        let [positions, width] = self.clip_shape;
        let clip_size = positions * width;
        let sizes = [self.num_codes, positions, width, self.face_dim].map(|size| size as u32);
        let mut entry: Vec<u8> = sizes.iter().chain(self.codes_of(index)).flat_map(|word| word.to_le_bytes()).collect();
        entry.extend(self.clip[index * clip_size..][..clip_size].iter().flat_map(|value| value.to_le_bytes()));
        entry.extend(self.face[index * self.face_dim..][..self.face_dim].iter().flat_map(|value| value.to_le_bytes()));
        entry
    }

    /// Appends a row that [`Self::entry`] gave.
    ///
    /// # Errors
    /// When it isn't of the sizes of the rows before it.
    pub fn push(&mut self, entry: &[u8]) -> Result<()> {
        let words: Vec<u32> =
            entry.chunks_exact(4).map(|word| u32::from_le_bytes([word[0], word[1], word[2], word[3]])).collect();
        let size = |place: usize| words.get(place).map_or(0, |&word| word as usize);
        let (num_codes, clip_shape, face_dim) = (size(0), [size(1), size(2)], size(3));
        let clip_start = 4 * (4 + num_codes);
        let face_start = clip_start + 2 * clip_shape[0] * clip_shape[1];
        let first = self.num_codes == 0;
        let same = (self.num_codes, self.clip_shape, self.face_dim) == (num_codes, clip_shape, face_dim);
        if entry.len() != face_start + 4 * face_dim || !(first || same) {
            let hint = "remove the cache's folder, and it is made anew";
            return Err(data(format!("a cached picture has features of other sizes than the others\nhint: {hint}")));
        }
        (self.num_codes, self.clip_shape, self.face_dim) = (num_codes, clip_shape, face_dim);
        self.codes.extend(&words[4..4 + num_codes]);
        self.clip.extend(entry[clip_start..face_start].chunks_exact(2).map(|pair| bf16::from_le_bytes([pair[0], pair[1]])));
        let face = entry[face_start..].chunks_exact(4);
        self.face.extend(face.map(|word| f32::from_le_bytes([word[0], word[1], word[2], word[3]])));
        Ok(())
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
