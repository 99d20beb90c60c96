//! Published checkpoints into model folders of this program.
//!
//! A model folder holds `config.json` and one safetensors file a part (`model`, `vq`, ..). Everything is checked before the first
//! byte is written, files are written tensor by tensor, and config.json comes last, so that a folder with it is whole.

mod magvit;
mod showo;

use std::collections::BTreeMap;
use std::path::Path;

use burn::tensor::Device;
use serde::Serialize;
use serde_json::{Map, Value};
use unif2ace_io::{create_dir_all, ensure_writable, read_capped, write_atomic};
use unif2ace_model::config::MoeLevel;

pub use magvit::magvitv2;
pub use showo::show_o;

use crate::manifest::ManifestEntry;
use crate::module::compare;
use crate::{DType, FloatType, Problem, Result, SafetensorsDir, WeightsError};

const CONFIG: &str = "config.json";
const MAX_CONFIG_BYTES: u64 = 1 << 20;

/// What to make of a checkpoint.
#[derive(Clone, Debug)]
pub struct ImportOptions {
    /// Number type of the result; `None` for the checkpoint's own, which keeps every bit.
    pub float: Option<FloatType>,
    /// Levels of experts added to a Show-o backbone.
    pub level: MoeLevel,
    /// Pixels a side that a MAGVIT-v2 is to be used at; `None` for what its config.json says, 256 where it says nothing.
    pub resolution: Option<usize>,
    /// Of the random numbers that new experts start from. They come from the device's one generator: the same seed gives the same file
    /// as long as no other thread draws from it meanwhile.
    pub seed: u64,
    /// Where they are drawn.
    pub device: Device,
}

impl ImportOptions {
    /// The checkpoint's number type and resolution, both levels of experts, seed 0.
    pub fn new(device: Device) -> Self {
        Self { float: None, level: MoeLevel::Both, resolution: None, seed: 0, device }
    }
}

/// What an import did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImportReport {
    /// Tensors taken over.
    pub num_imported: usize,
    /// Tensors added (experts).
    pub num_added: usize,
    /// Values in all tensors written.
    pub num_values: u64,
    /// Tensors of the checkpoint that were checked and left out, because they follow from the configuration.
    pub dropped: Vec<String>,
}

/// The checkpoint's config.json as a table; an empty one where there is none.
pub fn read_model_config(folder: &Path) -> Result<Map<String, Value>> {
    let path = folder.join(CONFIG);
    if !folder.is_dir() || !path.exists() {
        return Ok(Map::new());
    }
    let fail = |reason: String| WeightsError::Config { path: path.clone(), reason };
    serde_json::from_slice(&read_capped(&path, MAX_CONFIG_BYTES)?).map_err(|error| fail(format!("it is no table: {error}")))
}

/// Compares a checkpoint with the list derived from its configuration.
fn check(source: &SafetensorsDir, expected: &[ManifestEntry], target: &str, optional: impl Fn(&str) -> bool) -> Result<()> {
    let expected: Vec<_> = expected.iter().map(|entry| (entry.name.clone(), entry.shape.clone())).collect();
    let problems = compare(&expected, source, optional);
    mismatch(source, target, problems)
}

fn mismatch(source: &SafetensorsDir, target: &str, problems: Vec<Problem>) -> Result<()> {
    if problems.is_empty() {
        return Ok(());
    }
    Err(WeightsError::Mismatch {
        origin: source.path().display().to_string(),
        target: target.to_string(),
        problems,
        hint: "check that the folder holds this kind of checkpoint and that its config.json belongs to it",
    })
}

/// The number type that holds every value of a checkpoint.
pub(crate) fn own_type(source: &SafetensorsDir) -> FloatType {
    let mut types = source.names().filter_map(|name| source.info(name)).map(|info| info.dtype).filter(|dtype| dtype.is_float());
    match types.next() {
        Some(DType::Bf16) if types.all(|dtype| dtype == DType::Bf16) => FloatType::Bf16,
        Some(DType::F16) if types.all(|dtype| dtype == DType::F16) => FloatType::F16,
        _ => FloatType::F32,
    }
}

/// A tensor's values, none of which may be infinite or NaN: a broken download can pass all checks of the header.
fn load_finite(source: &SafetensorsDir, name: &str, target: &str) -> Result<Vec<f32>> {
    let values = source.load_f32(name)?;
    if let Some(place) = values.iter().position(|value| !value.is_finite()) {
        let reason = format!("expected finite values, found {} at {place}", values[place]);
        mismatch(source, target, vec![Problem::BadValues { name: name.to_string(), reason }])?;
    }
    Ok(values)
}

fn prepare_target(target: &Path, weights: &Path) -> Result<()> {
    create_dir_all(target)?;
    ensure_writable(weights)?;
    Ok(ensure_writable(target.join(CONFIG))?)
}

/// Sets one part of a model folder's config.json and keeps the others; the part `model` owns the top level.
///
/// # Errors
/// When the file there is no table or can't be written.
pub fn write_config_part<C: Serialize>(folder: &Path, part: &str, config: &C) -> Result<()> {
    let path = folder.join(CONFIG);
    let fail = |reason: String| WeightsError::Config { path: path.clone(), reason };
    let mut root = read_model_config(folder)?;
    root.entry("model_type").or_insert_with(|| Value::from("unif2ace"));
    match (part, serde_json::to_value(config).map_err(|error| fail(error.to_string()))?) {
        ("model", Value::Object(fields)) => root.extend(fields),
        (_, value) => {
            root.insert(part.to_string(), value);
        }
    }
    let mut text = serde_json::to_vec_pretty(&root).map_err(|error| fail(error.to_string()))?;
    text.push(b'\n');
    Ok(write_atomic(&path, &text)?)
}

/// Header entries that say where the weights come from.
fn metadata(origin: &str) -> BTreeMap<String, String> {
    [("format", "pt"), ("imported_from", origin)].map(|(key, value)| (key.to_string(), value.to_string())).into()
}
