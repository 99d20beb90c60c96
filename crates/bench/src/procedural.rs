//! A full-size model whose weights follow from the tensors' names, so that nobody has to download one to measure.

use std::collections::BTreeMap;
use std::path::Path;

use burn::module::Module;
use burn::tensor::Device;
use unif2ace_golden::procedural;
use unif2ace_model::config::ModelConfig;
use unif2ace_model::transformer::Unif2ace;
use unif2ace_model::vq::{Vq, VqConfig};
use unif2ace_weights::{FloatType, SafetensorsWriter, TensorSpec, named_parameters, write_config_part};

use crate::Outcome;

/// Writes the folder tensor by tensor.
pub fn write(folder: &Path, tokenizer: &Path, num_hidden_layers: usize) -> Outcome {
    unif2ace_io::create_dir_all(folder)?;
    let device = Device::flex();
    let config = ModelConfig { num_hidden_layers, ..ModelConfig::base() };
    write_part(&Unif2ace::new(&config, &device)?, folder, "model")?;
    let vq = VqConfig::magvitv2();
    write_part(&Vq::new(&vq, &device)?, folder, "vq")?;
    write_config_part(folder, "vq", &vq)?;
    unif2ace_io::write_atomic(folder.join("tokenizer.json"), &unif2ace_io::read_capped(tokenizer, 64 << 20)?)?;
    Ok(write_config_part(folder, "model", &config)?)
}

fn write_part<M: Module>(module: &M, folder: &Path, part: &str) -> Outcome {
    let specs: Vec<_> = named_parameters(module).into_iter().map(|(name, shape)| TensorSpec { name, shape }).collect();
    let path = folder.join(format!("{part}.safetensors"));
    let mut writer = SafetensorsWriter::create(path, specs.clone(), FloatType::F32, &BTreeMap::new())?;
    for spec in &specs {
        writer.write(&spec.name, &procedural(&spec.name, &spec.shape))?;
    }
    Ok(writer.finish()?)
}
