//! A model folder in memory.

use std::path::Path;
use std::str::FromStr;

use burn::module::Module;
use burn::tensor::{Device, Int, Tensor, TensorData};
use serde::de::DeserializeOwned;
use serde_json::Value;
use unif2ace_data::TextTokenizer;
use unif2ace_image::{Pixels, RgbImage, preprocess};
use unif2ace_model::config::ModelConfig;
use unif2ace_model::encoders::{Clip, FaceNet, clip_pixels};
use unif2ace_model::moe::{ExpertFeatures, Task};
use unif2ace_model::transformer::Unif2ace;
use unif2ace_model::vq::Vq;
use unif2ace_weights::{NameMap, SafetensorsDir, TensorInfo, load_into};

use crate::denoise::Denoiser;
use crate::error::{PipelineError, Result};

const MAX_CONFIG_BYTES: u64 = 1 << 20;

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
#[derive(Debug, Clone, Copy, Default)]
pub struct PipelineOptions {
    /// Where to compute.
    pub device: DeviceName,
    /// Round the factors of matrix products to bfloat16 (faster on CPUs with its instructions).
    pub bf16: bool,
}

/// All parts of a model folder, ready to use.
pub struct Pipeline {
    /// The transformer.
    pub unified: Unif2ace,
    /// Pictures to codes and back.
    pub vq: Vq,
    /// The face expert: attributes and embedding. Without it that expert is a copy.
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
        unif2ace_ops::set_precision(if options.bf16 { unif2ace_ops::Precision::Bf16 } else { unif2ace_ops::Precision::F32 });
        let text = unif2ace_io::read_to_string_capped(folder.join("config.json"), MAX_CONFIG_BYTES)
            .map_err(|error| fail(error.to_string()))?;
        let config: Value = serde_json::from_str(&text).map_err(|error| fail(format!("config.json: {error}")))?;
        let unified_config: ModelConfig =
            serde_json::from_value(config.clone()).map_err(|error| fail(format!("config.json: {error}")))?;
        plausible(&unified_config, folder).map_err(fail)?;
        let unified = Unif2ace::new(&unified_config, &device).map_err(|error| fail(error.to_string()))?;
        let unified = load(unified, folder, "model").map_err(fail)?;
        let vq = Vq::new(&part(&config, "vq").map_err(fail)?, &device).map_err(|error| fail(error.to_string()))?;
        let vq = load(vq, folder, "vq").map_err(fail)?;
        let face = match config.get("face") {
            None => None,
            Some(_) => {
                let face =
                    FaceNet::new(&part(&config, "face").map_err(fail)?, &device).map_err(|error| fail(error.to_string()))?;
                Some(load(face, folder, "face").map_err(fail)?)
            }
        };
        let clip = match config.get("clip") {
            None => None,
            Some(_) => {
                let clip = Clip::new(&part(&config, "clip").map_err(fail)?, &device).map_err(|error| fail(error.to_string()))?;
                Some(load(clip, folder, "clip").map_err(fail)?)
            }
        };
        let tokens = vq.config().num_positions();
        if tokens != unified_config.num_vq_tokens || vq.config().codebook_size() != unified_config.codebook_size {
            return Err(fail(format!(
                "config.json: the image tokenizer gives {tokens} tokens of {} codes, the transformer expects {} of {}",
                vq.config().codebook_size(),
                unified_config.num_vq_tokens,
                unified_config.codebook_size
            )));
        }
        let moe = &unified_config.moe;
        let clip_dim = clip.as_ref().map(|clip| clip.config().vision_config.hidden_size);
        let face_dim = face.as_ref().map(|face| face.config().embedding_size);
        for (expert, found, key, expected) in
            [("CLIP", clip_dim, "moe.clip_dim", moe.clip_dim), ("face", face_dim, "moe.face_dim", moe.face_dim)]
        {
            if let Some(found) = found.filter(|&found| moe.level.sequence() && found != expected) {
                return Err(fail(format!(
                    "config.json: the {expert} network gives features of {found} values, {key} expects {expected}"
                )));
            }
        }
        let tokenizer = TextTokenizer::from_file(folder.join("tokenizer.json")).map_err(|error| fail(error.to_string()))?;
        let name = folder.file_name().map_or_else(|| "unif2ace".to_owned(), |name| name.to_string_lossy().into_owned());
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
            Some(face) => Some(face.embed(normalised_BHWC)?),
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

fn load<M: Module>(module: M, folder: &Path, part: &str) -> std::result::Result<M, String> {
    let source = SafetensorsDir::open(folder.join(format!("{part}.safetensors"))).map_err(|error| error.to_string())?;
    load_into(module, &source, &NameMap::identity()).map_err(|error| error.to_string())
}

fn part<T: DeserializeOwned>(config: &Value, name: &str) -> std::result::Result<T, String> {
    let value = config.get(name).ok_or_else(|| format!("config.json: expected the key {name}"))?;
    serde_json::from_value(value.clone()).map_err(|error| format!("config.json, {name}: {error}"))
}
