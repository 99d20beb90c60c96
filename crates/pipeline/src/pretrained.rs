//! A model folder in memory.

use std::path::Path;
use std::str::FromStr;

use burn::tensor::{Device, Int, Tensor, TensorData};
use unif2ace_data::TextTokenizer;
use unif2ace_image::{Pixels, RgbImage, preprocess};
use unif2ace_model::config::ModelConfig;
use unif2ace_model::encoders::{Clip, FaceNet, clip_pixels};
use unif2ace_model::moe::{ExpertFeatures, Task};
use unif2ace_model::transformer::Unif2ace;
use unif2ace_model::vq::Vq;
use unif2ace_ops::{Precision, WeightFormat, set_precision};
use unif2ace_weights::{SafetensorsDir, TensorInfo};

use crate::denoise::Denoiser;
use crate::error::{PipelineError, Result};
use crate::parts::{Parts, load};

/// Where to compute.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum DeviceName {
    /// The best of this build; the CPU when it has no GPU backend.
    #[default]
    Auto,
    /// The CPU kernels.
    Cpu,
}

impl FromStr for DeviceName {
    type Err = PipelineError;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            other => Err(PipelineError::Device { found: other.to_owned() }),
        }
    }
}

/// How to load a model.
#[derive(Debug, Clone, Copy)]
pub struct PipelineOptions {
    /// Where to compute. This build computes on the CPU only, so both names mean the same.
    pub device: DeviceName,
    /// How the transformer's weights are kept, packed once. With anything but f32 the other parts and attention round the factors of
    /// their matrix products to bfloat16 (faster on CPUs with its instructions); this holds for the whole process: the model that was
    /// loaded last decides.
    pub weights: WeightFormat,
}

impl Default for PipelineOptions {
    fn default() -> Self {
        Self { device: DeviceName::default(), weights: WeightFormat::F32 }
    }
}

/// All parts of a model folder, ready to use.
pub struct Pipeline {
    /// The transformer.
    pub unified: Unif2ace,
    /// Pictures to codes and back.
    pub vq: Vq,
    /// The face expert's network. Without it that expert is a copy.
    pub face: Option<FaceNet>,
    /// The CLIP expert's encoder. Without it that expert is a copy.
    pub clip: Option<Clip>,
    /// Text.
    pub tokenizer: TextTokenizer,
    /// Where it runs.
    pub device: Device,
    /// Name of the folder, for provenance.
    pub name: String,
}

impl Pipeline {
    /// Reads a model folder: `config.json`, `model.safetensors`, `vq.safetensors`, `tokenizer.json` and, where the model has them,
    /// `face.safetensors` and `clip.safetensors`.
    ///
    /// # Errors
    /// Names the file that is missing or damaged, and every tensor that doesn't fit.
    pub fn from_pretrained(folder: impl AsRef<Path>, options: &PipelineOptions) -> Result<Self> {
        let folder = folder.as_ref();
        let fail = |reason: String| PipelineError::Model { path: folder.to_path_buf(), reason };
        if !folder.is_dir() {
            return Err(fail("there is no such folder".into()));
        }
        let device = Device::flex();
        set_precision(match options.weights {
            WeightFormat::F32 => Precision::F32,
            WeightFormat::Bf16 | WeightFormat::Int8 => Precision::Bf16,
        });
        if !folder.join("config.json").is_file() {
            return Err(fail("it has no config.json".into()));
        }
        let config = unif2ace_weights::read_model_config(folder).map_err(|error| fail(error.to_string()))?;
        let unified_config: ModelConfig =
            serde_json::from_value(config.clone().into()).map_err(|error| fail(format!("config.json: {error}")))?;
        plausible(&unified_config, folder).map_err(fail)?;
        let unified = Unif2ace::new(&unified_config, &device).map_err(|error| fail(error.to_string()))?;
        let unified = load(unified, folder, "model").map_err(fail)?.pack(options.weights);
        let parts = Parts::read(folder, &config, &device).map_err(fail)?;
        parts.fit(&unified_config).map_err(|reason| fail(format!("config.json: {reason}")))?;
        let tokenizer = TextTokenizer::from_file(folder.join("tokenizer.json")).map_err(|error| fail(error.to_string()))?;
        let name = folder.file_name().map_or_else(|| "unif2ace".to_owned(), |name| name.to_string_lossy().into_owned());
        let Parts { vq, clip, face } = parts;
        Ok(Self { unified, vq, face, clip, tokenizer, device, name })
    }

    /// Sizes of the transformer.
    pub fn config(&self) -> &ModelConfig {
        self.unified.config()
    }

    /// Pixels a side of the model's pictures.
    pub fn resolution(&self) -> usize {
        self.vq.config().resolution
    }

    /// Image tokens a side.
    pub fn grid(&self) -> usize {
        self.resolution() / self.vq.config().downsampling()
    }

    /// A picture of any size as the networks take it, `[1, side, side, 3]` in -1..1: short side resized, centre cropped.
    ///
    /// # Errors
    /// When the picture is too long to be resized.
    pub fn pixels(&self, image: &RgbImage) -> Result<Tensor<4>> {
        let Pixels { height, width, data } = preprocess(image, self.resolution())?;
        Ok(Tensor::from_data(TensorData::new(data, [1, height, width, 3]), &self.device))
    }

    /// Codes of pictures `[B, side, side, 3]`, picture by picture.
    ///
    /// # Errors
    /// When the pictures have another size than the model's.
    pub fn encode(&self, pixels_BHWC: Tensor<4>) -> Result<Vec<u32>> {
        Ok(self.vq.encode(pixels_BHWC)?)
    }

    /// Pictures of whole grids of codes, `[B, side, side, 3]`, within -1..1.
    ///
    /// # Errors
    /// When the codes don't fill whole grids.
    pub fn decode(&self, codes: &[u32]) -> Result<Tensor<4>> {
        Ok(self.vq.decode_indices(codes, self.grid(), self.grid())?.clamp(-1.0, 1.0))
    }

    /// What the understanding group's experts see of pictures `[B, side, side, 3]`.
    ///
    /// # Errors
    /// When the pictures have another size than the encoders'.
    pub fn features(&self, pixels_BHWC: Tensor<4>) -> Result<ExpertFeatures> {
        let normalised_BHWC = clip_pixels(pixels_BHWC);
        let clip_BPC = match &self.clip {
            None => None,
            Some(clip) => Some(clip.vision_model.forward(normalised_BHWC.clone())?.features_BPD),
        };
        let face_BF = match &self.face {
            None => None,
            Some(face) => Some(face.attributes(normalised_BHWC)?),
        };
        Ok(ExpertFeatures { noise_level: None, clip_BPC, face_BF })
    }

    /// Reads prompts for generation; see [`Denoiser::new`].
    ///
    /// # Errors
    /// When a prompt is longer than the context.
    pub fn denoiser(&self, prompts: &[&str], guidance_scale: f32) -> Result<Denoiser<'_>> {
        Denoiser::new(&self.unified, &self.tokenizer, &self.device, prompts, guidance_scale)
    }

    pub(crate) fn text_ids(&self, text: &str) -> Vec<u32> {
        text_ids(&self.tokenizer, text)
    }

    pub(crate) fn id_rows(&self, ids: &[u32], rows: usize) -> Tensor<2, Int> {
        id_rows(ids, rows, &self.device)
    }
}

/// Text as ids; text that can't be encoded gives none.
pub(crate) fn text_ids(tokenizer: &TextTokenizer, text: &str) -> Vec<u32> {
    tokenizer.encode(text).unwrap_or_default()
}

pub(crate) fn id_rows(ids: &[u32], rows: usize, device: &Device) -> Tensor<2, Int> {
    let values: Vec<i64> = ids.iter().map(|&id| i64::from(id)).collect();
    Tensor::from_data(TensorData::new(values, [rows, ids.len() / rows.max(1)]), device)
}

/// Refuses a config that asks for far more memory than its weights have, before that memory is taken.
fn plausible(config: &ModelConfig, folder: &Path) -> std::result::Result<(), String> {
    config.check().map_err(|error| format!("config.json: {error}"))?;
    let source = SafetensorsDir::open(folder.join("model.safetensors")).map_err(|error| error.to_string())?;
    let stored: usize = source.names().filter_map(|name| source.info(name)).map(TensorInfo::num_values).sum();
    let described = config.num_parameters(Task::T2i).0;
    if described > 2 * stored + (1 << 20) {
        return Err(format!("config.json describes {described} parameters, model.safetensors holds {stored}"));
    }
    Ok(())
}
