//! The last step of a run: a part's weights as bfloat16 safetensors and its sizes in the model folder's config.json.

use std::collections::BTreeMap;
use std::path::Path;

use burn::module::Module;
use half::bf16;
use safetensors::tensor::{Dtype, TensorView};
use serde::Serialize;
use serde_json::{Map, Value};

use crate::error::{Result, TrainError};
use crate::params::parameters;

/// Writes `<folder>/<part>.safetensors` and sets `<part>` in `<folder>/config.json`; the part `model` owns the top level instead.
///
/// # Errors
/// When the folder can't be written or holds a config.json that is no JSON object.
pub fn write_part<M: Module, C: Serialize>(folder: &Path, part: &str, model: &M, config: &C) -> Result<()> {
    unif2ace_io::create_dir_all(folder)?;
    let path = folder.join(format!("{part}.safetensors"));
    let fail = |reason: String| TrainError::Checkpoint { path: path.clone(), reason };
    let tensors: BTreeMap<String, (Vec<usize>, Vec<u8>)> = parameters(model)
        .into_iter()
        .map(|(name, tensor)| {
            let bytes = tensor.values.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()).collect();
            (name, (tensor.shape, bytes))
        })
        .collect();
    let mut views = BTreeMap::new();
    for (name, (shape, bytes)) in &tensors {
        let view = TensorView::new(Dtype::BF16, shape.clone(), bytes).map_err(|error| fail(error.to_string()))?;
        views.insert(name.as_str(), view);
    }
    let bytes = safetensors::serialize(&views, None).map_err(|error| fail(error.to_string()))?;
    unif2ace_io::write_atomic(&path, &bytes)?;
    write_config(folder, part, config)
}

fn write_config<C: Serialize>(folder: &Path, part: &str, config: &C) -> Result<()> {
    let path = folder.join("config.json");
    let fail = |reason: String| TrainError::Checkpoint { path: path.clone(), reason };
    let mut root = read_config(folder)?;
    let value = serde_json::to_value(config).map_err(|error| fail(error.to_string()))?;
    match (part, value) {
        ("model", Value::Object(fields)) => root.extend(fields),
        (_, value) => {
            root.insert(part.to_owned(), value);
        }
    }
    let text = serde_json::to_vec_pretty(&root).map_err(|error| fail(error.to_string()))?;
    Ok(unif2ace_io::write_atomic(&path, &text)?)
}

/// The config.json of a model folder; a new one when there is none.
///
/// # Errors
/// When it is no JSON object.
pub fn read_config(folder: &Path) -> Result<Map<String, Value>> {
    let path = folder.join("config.json");
    if !path.is_file() {
        return Ok(Map::from_iter([("model_type".to_owned(), Value::from("unif2ace"))]));
    }
    let text = unif2ace_io::read_to_string_capped(&path, 1 << 20)?;
    serde_json::from_str(&text).map_err(|error| TrainError::Checkpoint { path, reason: format!("is no JSON object: {error}") })
}
