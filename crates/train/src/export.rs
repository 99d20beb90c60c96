//! The last step of a run: a part's weights as bfloat16 safetensors and its sizes in the model folder's config.json.

use std::collections::BTreeMap;
use std::path::Path;

use burn::module::Module;
use serde::Serialize;
use unif2ace_weights::{FloatType, save_module, write_config_part};

use crate::error::{Result, TrainError};

/// Writes `<folder>/<part>.safetensors` and sets `<part>` in `<folder>/config.json`; the part `model` owns the top level instead.
///
/// # Errors
/// When the folder can't be written or holds a config.json that is no JSON object.
pub fn write_part<M: Module, C: Serialize>(folder: &Path, part: &str, model: &M, config: &C) -> Result<()> {
    unif2ace_io::create_dir_all(folder)?;
    let path = folder.join(format!("{part}.safetensors"));
    save_module(model, &path, FloatType::Bf16, &BTreeMap::new())
        .and_then(|()| write_config_part(folder, part, config))
        .map_err(|error| TrainError::Data(format!("writing {}: {error}", path.display())))
}
