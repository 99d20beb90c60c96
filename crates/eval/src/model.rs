//! A model folder, loaded for measuring many pictures.

use std::path::Path;

use burn::tensor::{Device, Tensor, TensorData};
use serde::de::DeserializeOwned;
use serde_json::Value;
use unif2ace_data::TextTokenizer;
use unif2ace_model::config::ModelConfig;
use unif2ace_model::encoders::{Clip, FaceNet, clip_pixels};
use unif2ace_model::moe::ExpertFeatures;
use unif2ace_model::transformer::Unif2ace;
use unif2ace_model::vq::Vq;
use unif2ace_weights::{NameMap, SafetensorsDir, load_into};

use crate::error::{EvalError, Result};

/// All parts of a model folder.
pub struct Model {
    /// The transformer.
    pub unified: Unif2ace,
    /// Pictures to codes and back.
    pub vq: Vq,
    /// Attributes and face embeddings.
    pub face: FaceNet,
    /// Patch features.
    pub clip: Option<Clip>,
    /// Text.
    pub tokenizer: TextTokenizer,
    /// Where it runs.
    pub device: Device,
}

impl Model {
    /// Reads a folder.
    ///
    /// # Errors
    /// Names the part that is missing or damaged.
    pub fn open(folder: &Path, device: &Device) -> Result<Self> {
        let fail = |reason: String| EvalError::Model { folder: folder.display().to_string(), reason };
        let text = unif2ace_io::read_to_string_capped(folder.join("config.json"), 1 << 20).map_err(|error| fail(error.to_string()))?;
        let config: Value = serde_json::from_str(&text).map_err(|error| fail(format!("config.json: {error}")))?;
        let source = |part: &str| SafetensorsDir::open(folder.join(format!("{part}.safetensors"))).map_err(|error| fail(error.to_string()));
        let names = NameMap::identity();
        let unified_config: ModelConfig = serde_json::from_value(config.clone()).map_err(|error| fail(format!("config.json: {error}")))?;
        let unified = Unif2ace::new(&unified_config, device).map_err(|error| fail(error.to_string()))?;
        let unified = load_into(unified, &source("model")?, &names).map_err(|error| fail(error.to_string()))?;
        let vq = Vq::new(&part(&config, "vq").map_err(fail)?, device).map_err(|error| fail(error.to_string()))?;
        let vq = load_into(vq, &source("vq")?, &names).map_err(|error| fail(error.to_string()))?;
        let face = FaceNet::new(&part(&config, "face").map_err(fail)?, device).map_err(|error| fail(error.to_string()))?;
        let face = load_into(face, &source("face")?, &names).map_err(|error| fail(error.to_string()))?;
        let clip = match config.get("clip") {
            None => None,
            Some(_) => {
                let clip = Clip::new(&part(&config, "clip").map_err(fail)?, device).map_err(|error| fail(error.to_string()))?;
                Some(load_into(clip, &source("clip")?, &names).map_err(|error| fail(error.to_string()))?)
            }
        };
        let tokenizer = TextTokenizer::from_file(folder.join("tokenizer.json")).map_err(|error| fail(error.to_string()))?;
        Ok(Self { unified, vq, face, clip, tokenizer, device: device.clone() })
    }

    /// Pictures as `[B, side, side, 3]` in -1..1 from bytes.
    pub(crate) fn pixels(&self, bytes: &[u8]) -> Tensor<4> {
        let side = self.vq.config().resolution;
        let values: Vec<f32> = bytes.iter().map(|&byte| f32::from(byte) / 127.5 - 1.0).collect();
        Tensor::from_data(TensorData::new(values, [bytes.len() / (side * side * 3), side, side, 3]), &self.device)
    }

    /// Features of the understanding group's experts.
    pub(crate) fn features(&self, pixels_BHWC: Tensor<4>) -> Result<ExpertFeatures> {
        let normalised = clip_pixels(pixels_BHWC);
        let clip_BPC = match &self.clip {
            None => None,
            Some(clip) => Some(clip.vision_model.forward(normalised.clone()).map_err(EvalError::step("CLIP features"))?.features_BPD),
        };
        let face_BF = Some(self.face.embed(normalised).map_err(EvalError::step("face embedding"))?);
        Ok(ExpertFeatures { noise_level: None, clip_BPC, face_BF })
    }

    pub(crate) fn encode(&self, text: &str) -> Vec<u32> {
        self.tokenizer.encode(text).unwrap_or_default()
    }
}

fn part<T: DeserializeOwned>(config: &Value, name: &str) -> std::result::Result<T, String> {
    let value = config.get(name).ok_or_else(|| format!("config.json: expected the key {name}"))?;
    serde_json::from_value(value.clone()).map_err(|error| format!("config.json, {name}: {error}"))
}
