//! A model folder in memory.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use unif2ace_data::TextTokenizer;
use unif2ace_image::{Pixels, RgbImage, preprocess};
use unif2ace_model::config::ModelConfig;
use unif2ace_model::encoders::{Clip, FaceNet, clip_pixels};
use unif2ace_model::moe::{ExpertFeatures, Task};
use unif2ace_model::transformer::Unif2ace;
use unif2ace_model::vq::Vq;
use unif2ace_ops::{Awake, Precision, WeightFormat, keep_awake, on_cpu, precision, set_precision};
use unif2ace_weights::{
    LoraFile, NameMap, PACKED_FILE, SafetensorsDir, SafetensorsFile, TensorInfo, WithLora, format_name, load_into, load_packed,
    load_packing, packed_format,
};

use crate::denoise::Denoiser;
use crate::device::{self, DeviceName};
use crate::error::{PipelineError, Result};
use crate::parts::Parts;

/// How to load a model.
#[derive(Debug, Clone, Default)]
pub struct PipelineOptions {
    /// Where to compute.
    pub device: DeviceName,
    /// How the transformer's weights are kept, packed once; `None` takes what the folder was packed for, f32 where it wasn't. With anything
    /// but f32 the other parts and attention round the factors of their matrix products to bfloat16 (faster on CPUs with its instructions);
    /// this holds for the whole process: the model that was loaded last decides. On a GPU weights stay in f32, and with bf16 products round
    /// both factors and the result, where the device can.
    pub weights: Option<WeightFormat>,
    /// A file of low-rank adapters that are merged into the transformer's weights before they are packed.
    pub lora: Option<PathBuf>,
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

/// The precision of products that are not with packed weights holds for the whole process: a second model must not change the first one's
/// numbers unsaid.
fn choose_precision(wanted: Precision) {
    static CHOSEN: AtomicBool = AtomicBool::new(false);
    if CHOSEN.swap(true, Ordering::Relaxed) && precision() != wanted {
        tracing::warn!(
            "attention and convolutions of every model of this process compute in {wanted:?} from here on; hint: load models with the same --dtype, or in processes of their own"
        );
    }
    set_precision(wanted);
}

impl Pipeline {
    /// Reads a model folder: `config.json`, `model.safetensors` (or, packed, `packed.safetensors`), `vq.safetensors`, `tokenizer.json` and, where the model has them,
    /// `face.safetensors` and `clip.safetensors`.
    ///
    /// # Errors
    /// Names the file that is missing or damaged, and every tensor that doesn't fit.
    pub fn from_pretrained(folder: impl AsRef<Path>, options: &PipelineOptions) -> Result<Self> {
        let _span = tracing::debug_span!("load").entered();
        let folder = folder.as_ref();
        let fail = |reason: String| PipelineError::Model { path: folder.to_path_buf(), reason };
        if !folder.is_dir() {
            return Err(fail("there is no such folder".into()));
        }
        let packed = folder.join(PACKED_FILE).is_file() || options.weights == Some(WeightFormat::Int8);
        let computes = |device: &Device| {
            on_cpu(device) || !packed && (options.weights != Some(WeightFormat::Bf16) || device.supports_dtype(DType::BF16))
        };
        let mut device =
            device::open(if packed && options.device == DeviceName::Auto { DeviceName::Cpu } else { options.device })?;
        if options.device == DeviceName::Auto && !computes(&device) {
            device = device::open(DeviceName::Cpu)?;
        }
        if !folder.join("config.json").is_file() {
            return Err(fail("it has no config.json".into()));
        }
        let config = unif2ace_weights::read_model_config(folder).map_err(|error| fail(error.to_string()))?;
        let unified_config: ModelConfig =
            serde_json::from_value(config.clone().into()).map_err(|error| fail(format!("config.json: {error}")))?;
        let cpu = on_cpu(&device);
        if !computes(&device) {
            return Err(PipelineError::Device {
                found: options.device.to_string(),
                reason: "expected plain weights in a --dtype that the device computes in, found packed ones, int8, or bf16 on a device without it".into(),
                hint: "packed weights and int8 are for the CPU: use --device cpu, or a model that isn't packed with --dtype f32",
            });
        }
        let lora = options.lora.as_ref().map(|path| open_lora(path, folder)).transpose()?;
        let (unified, weights) = match cpu {
            true => load_unified(&unified_config, folder, options.weights, lora.as_ref(), &device),
            false => load_plain(&unified_config, folder, lora.as_ref(), &device)
                .map(|unified| (unified, options.weights.unwrap_or(WeightFormat::F32))),
        }
        .map_err(fail)?;
        choose_precision(match weights {
            WeightFormat::F32 => Precision::F32,
            WeightFormat::Bf16 | WeightFormat::Int8 => Precision::Bf16,
        });
        let parts = Parts::read(folder, &config, &device).map_err(fail)?;
        parts.fit(&unified_config).map_err(|reason| fail(format!("config.json: {reason}")))?;
        let tokenizer = TextTokenizer::from_file(folder.join("tokenizer.json")).map_err(|error| fail(error.to_string()))?;
        let mut name = folder.file_name().map_or_else(|| "unif2ace".to_owned(), |name| name.to_string_lossy().into_owned());
        if let Some(lora) = options.lora.as_ref().and_then(|path| path.file_stem()) {
            name = format!("{name} with {}", lora.to_string_lossy());
        }
        let Parts { vq, clip, face } = parts;
        let vq = if cpu { vq.pack() } else { vq };
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
        Ok(tracing::debug_span!("encode picture").in_scope(|| self.vq.encode(pixels_BHWC))?)
    }

    /// Pictures of whole grids of codes, `[B, side, side, 3]`, within -1..1.
    ///
    /// # Errors
    /// When the codes don't fill whole grids.
    pub fn decode(&self, codes: &[u32]) -> Result<Tensor<4>> {
        let _span = tracing::debug_span!("decode picture").entered();
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

    /// To be held during a request: between the many short products of a small model, threads on the CPU would fall asleep.
    pub(crate) fn keep_awake(&self) -> Option<Awake> {
        on_cpu(&self.device).then(keep_awake).flatten()
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

/// Adapters that fit the transformer of a model folder.
fn open_lora(path: &Path, folder: &Path) -> Result<LoraFile> {
    if folder.join(PACKED_FILE).is_file() {
        return Err(PipelineError::Input {
            what: "lora",
            expected: "a model folder with plain weights".into(),
            found: format!("{} with packed ones", folder.display()),
            hint: "`unif2ace lora merge` the adapters into the folder that was packed, then pack the result",
        });
    }
    let lora = LoraFile::open(path)?;
    // What is wrong with the weights themselves is told where they are loaded.
    if let Ok(source) = SafetensorsDir::open(folder.join("model.safetensors")) {
        WithLora::added(&source, &lora)?;
    }
    Ok(lora)
}

/// The transformer with packed weights, and their format.
fn load_unified(
    config: &ModelConfig,
    folder: &Path,
    wanted: Option<WeightFormat>,
    lora: Option<&LoraFile>,
    device: &Device,
) -> std::result::Result<(Unif2ace, WeightFormat), String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let new = || Unif2ace::new(config, device).map_err(|error| text(&error));
    config.check().map_err(|error| format!("config.json: {error}"))?;
    let packed = folder.join(PACKED_FILE);
    if packed.is_file() {
        let file = SafetensorsFile::open(&packed).map_err(|error| text(&error))?;
        plausible(config, file.names().filter_map(|name| file.info(name)), PACKED_FILE)?;
        let format = packed_format(&file).map_err(|error| text(&error))?;
        if let Some(wanted) = wanted.filter(|&wanted| wanted != format) {
            return Err(format!(
                "{PACKED_FILE}: expected weights packed as {}, found {}\nhint: leave --dtype out, or pack the model again with the wanted one",
                format_name(wanted),
                format_name(format)
            ));
        }
        return Ok((load_packed(new()?, new()?, &file).map_err(|error| text(&error))?, format));
    }
    let source = SafetensorsDir::open(folder.join("model.safetensors")).map_err(|error| text(&error))?;
    plausible(config, source.names().filter_map(|name| source.info(name)), "model.safetensors")?;
    let format = wanted.unwrap_or(WeightFormat::F32);
    let model = new()?;
    let loaded = match lora {
        Some(lora) => WithLora::added(&source, lora).and_then(|merged| load_packing(model, &merged, format)),
        None => load_packing(model, &source, format),
    };
    Ok((loaded.map_err(|error| text(&error))?, format))
}

/// The transformer with its weights as tensors of the device.
fn load_plain(
    config: &ModelConfig,
    folder: &Path,
    lora: Option<&LoraFile>,
    device: &Device,
) -> std::result::Result<Unif2ace, String> {
    config.check().map_err(|error| format!("config.json: {error}"))?;
    let source = SafetensorsDir::open(folder.join("model.safetensors")).map_err(|error| error.to_string())?;
    plausible(config, source.names().filter_map(|name| source.info(name)), "model.safetensors")?;
    let new = Unif2ace::new(config, device).map_err(|error| error.to_string())?;
    let loaded = match lora {
        Some(lora) => WithLora::added(&source, lora).and_then(|merged| load_into(new, &merged, &NameMap::identity())),
        None => load_into(new, &source, &NameMap::identity()),
    };
    loaded.map_err(|error| error.to_string())
}

/// Refuses a config that asks for far more memory than its weights have, before that memory is taken.
fn plausible<'a>(
    config: &ModelConfig,
    stored: impl Iterator<Item = &'a TensorInfo>,
    file: &str,
) -> std::result::Result<(), String> {
    let stored: usize = stored.map(TensorInfo::num_values).sum();
    let described = config.num_parameters(Task::T2i).0;
    if described > 2 * stored + (1 << 20) {
        return Err(format!("config.json describes {described} parameters, {file} holds {stored}"));
    }
    Ok(())
}
