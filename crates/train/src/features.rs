//! What the frozen parts say about every picture, computed once: image codes, CLIP patch features, face embeddings.

use std::path::Path;

use burn::tensor::{Device, Tensor, TensorData};
use half::bf16;
use unif2ace_model::encoders::{Clip, FaceNet, clip_pixels};
use unif2ace_model::vq::Vq;

use crate::batches::{Augment, ImageStore};
use crate::error::Result;
use crate::interrupt;
use crate::tasks::data;

const BATCH: usize = 32;

/// The frozen parts of a model folder.
pub struct FrozenParts {
    /// Pictures to codes.
    pub vq: Vq,
    /// Patch features; absent if the folder has none.
    pub clip: Option<Clip>,
    /// Face embeddings; absent if the folder has none.
    pub face: Option<FaceNet>,
}

/// One row of each per picture.
#[derive(Default)]
pub struct Features {
    /// N codes a picture.
    pub codes: Vec<u16>,
    /// P x C values a picture, as bfloat16.
    pub clip: Vec<bf16>,
    /// F values a picture.
    pub face: Vec<f32>,
    /// Codes of a picture.
    pub num_codes: usize,
    /// Positions and width of the CLIP features.
    pub clip_shape: [usize; 2],
    /// Width of the face embedding.
    pub face_dim: usize,
}

impl Features {
    /// Computes the features of all pictures; `progress(done, of)` is called now and then. `None` when Ctrl-C was pressed.
    ///
    /// # Errors
    /// When the pictures don't fit the networks.
    pub fn compute(
        parts: &FrozenParts,
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
            features.codes.extend(codes.into_iter().map(|code| code as u16));
            let normalised_BHWC = clip_pixels(pixels_BHWC);
            if let Some(clip) = &parts.clip {
                let patches_BPC = clip.vision_model.forward(normalised_BHWC.clone()).map_err(data)?.features_BPD;
                let [_, positions, width] = patches_BPC.dims();
                features.clip_shape = [positions, width];
                features.clip.extend(patches_BPC.into_data().iter::<f32>().map(bf16::from_f32));
            }
            if let Some(face) = &parts.face {
                let embedding_BF = face.embed(normalised_BHWC).map_err(data)?;
                features.face_dim = embedding_BF.dims()[1];
                features.face.extend(embedding_BF.into_data().iter::<f32>());
            }
            progress(start + indices.len(), count);
        }
        Ok(Some(features))
    }

    /// Codes of one picture.
    pub fn codes_of(&self, index: usize) -> &[u16] {
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

    /// Face embeddings of some pictures, `[B, F]`.
    pub fn face_of(&self, indices: &[usize], device: &Device) -> Option<Tensor<2>> {
        if self.face.is_empty() {
            return None;
        }
        let values: Vec<f32> =
            indices.iter().flat_map(|&index| &self.face[index * self.face_dim..][..self.face_dim]).copied().collect();
        Some(Tensor::from_data(TensorData::new(values, [indices.len(), self.face_dim]), device))
    }
}

/// Reads the frozen parts of a model folder.
///
/// # Errors
/// When a part is damaged or doesn't fit its sizes in config.json.
pub fn read_parts(folder: &Path, device: &Device) -> Result<FrozenParts> {
    let config = unif2ace_weights::read_model_config(folder).map_err(data)?;
    let part = |name: &str| config.get(name).filter(|_| folder.join(format!("{name}.safetensors")).is_file()).cloned();
    let source = |name: &str| unif2ace_weights::SafetensorsDir::open(folder.join(format!("{name}.safetensors"))).map_err(data);
    let names = unif2ace_weights::NameMap::identity();
    let vq_config = part("vq").ok_or_else(|| {
        data(format!(
            "model folder {}: expected a trained vq (config.json and vq.safetensors)\n  hint: train recipes/mini/vq.toml first",
            folder.display()
        ))
    })?;
    let vq = Vq::new(&serde_json::from_value(vq_config).map_err(data)?, device).map_err(data)?;
    let vq = unif2ace_weights::load_into(vq, &source("vq")?, &names).map_err(data)?;
    let clip = match part("clip") {
        None => None,
        Some(config) => {
            let clip = Clip::new(&serde_json::from_value(config).map_err(data)?, device).map_err(data)?;
            Some(unif2ace_weights::load_into(clip, &source("clip")?, &names).map_err(data)?)
        }
    };
    let face = match part("face") {
        None => None,
        Some(config) => {
            let face = FaceNet::new(&serde_json::from_value(config).map_err(data)?, device).map_err(data)?;
            Some(unif2ace_weights::load_into(face, &source("face")?, &names).map_err(data)?)
        }
    };
    Ok(FrozenParts { vq, clip, face })
}
