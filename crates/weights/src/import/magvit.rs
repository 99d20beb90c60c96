use std::path::Path;

use serde_json::Value;
use unif2ace_model::vq::VqConfig;

use super::{
    CONFIG, ImportOptions, ImportReport, check, load_finite, metadata, mismatch, own_type, prepare_target, read_model_config,
    write_config_part,
};
use crate::manifest::{ManifestEntry, magvitv2 as manifest};
use crate::{Problem, Result, SafetensorsDir, SafetensorsWriter, TensorSpec, WeightsError};

const TARGET: &str = "a MAGVIT-v2 checkpoint of these sizes";
const EMBEDDING: &str = "quantize.embedding";
const POWERS: &str = "quantize.power_vals";

/// Makes the `vq` part of a model folder from a MAGVIT-v2 checkpoint of Show-o. The released config.json holds no sizes, so those of
/// the release are taken unless it names its own or the options a resolution. The quantiser's two buffers follow from the number of bits; they are checked and left
/// out.
///
/// # Errors
/// When the checkpoint is a pickle, damaged, or doesn't fit its configuration (every difference is listed); when the folder `target`
/// can't be written.
pub fn magvitv2(source: &Path, target: &Path, options: &ImportOptions) -> Result<ImportReport> {
    let tensors = SafetensorsDir::open(source)?;
    let mut config = read_config(source)?;
    if let Some(resolution) = options.resolution {
        config.resolution = resolution;
        config.check().map_err(|error| WeightsError::Config { path: source.join(CONFIG), reason: error.to_string() })?;
    }
    let (network, buffers): (Vec<_>, Vec<_>) =
        manifest(&config).into_iter().partition(|entry| !entry.name.starts_with("quantize."));
    check(&tensors, &network, TARGET, |name| buffers.iter().any(|entry| entry.name == name))?;
    let dropped = check_buffers(&tensors, &buffers)?;
    let weights_path = target.join("vq.safetensors");
    prepare_target(target, &weights_path)?;

    let spec = |entry: &ManifestEntry| TensorSpec { name: entry.name.clone(), shape: entry.shape.clone() };
    let specs: Vec<_> = network.iter().map(spec).collect();
    let num_values = specs.iter().map(|spec| spec.shape.iter().product::<usize>() as u64).sum();
    let origin = source.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let mut writer =
        SafetensorsWriter::create(&weights_path, specs, options.float.unwrap_or_else(|| own_type(&tensors)), &metadata(&origin))?;
    for entry in &network {
        writer.write(&entry.name, &load_finite(&tensors, &entry.name, TARGET)?)?;
    }
    writer.finish()?;
    write_config_part(target, "vq", &config)?;
    Ok(ImportReport { num_imported: network.len(), num_added: 0, num_values, dropped })
}

fn read_config(folder: &Path) -> Result<VqConfig> {
    let fail = |reason: String| WeightsError::Config { path: folder.join(CONFIG), reason };
    let table = read_model_config(folder)?;
    if !table.contains_key("ch") {
        return Ok(VqConfig::magvitv2());
    }
    let config: VqConfig =
        serde_json::from_value(Value::Object(table)).map_err(|error| fail(format!("a field can't be used: {error}")))?;
    config.check().map_err(|error| fail(error.to_string()))?;
    if config.patch_size != 1 || config.enc_transformer_blocks + config.dec_transformer_blocks > 0 {
        return Err(fail("expected patch_size 1 and no transformer blocks, which MAGVIT-v2 does not have".into()));
    }
    Ok(config)
}

/// The codes must be ordered as here: channel 0 is the most significant bit, 0 is -1 and 1 is +1.
fn check_buffers(tensors: &SafetensorsDir, buffers: &[ManifestEntry]) -> Result<Vec<String>> {
    let mut problems = Vec::new();
    let mut dropped = Vec::new();
    for entry in buffers {
        let Some(info) = tensors.info(&entry.name) else {
            continue;
        };
        if info.shape != entry.shape {
            let (name, expected, found) = (entry.name.clone(), entry.shape.clone(), info.shape.clone());
            problems.push(Problem::Misshapen { name, expected, found });
            continue;
        }
        let wrong = match entry.name.as_str() {
            EMBEDDING => wrong_code(&tensors.load_f32(EMBEDDING)?, entry.shape[1]),
            POWERS => wrong_power(&tensors.load_i64(POWERS)?),
            _ => None,
        };
        match wrong {
            Some(reason) => problems.push(Problem::BadValues { name: entry.name.clone(), reason }),
            None => dropped.push(entry.name.clone()),
        }
    }
    mismatch(tensors, TARGET, problems)?;
    Ok(dropped)
}

fn wrong_code(values: &[f32], num_bits: usize) -> Option<String> {
    let expected = |place: usize| {
        let (code, bit) = (place / num_bits, place % num_bits);
        if code >> (num_bits - 1 - bit) & 1 == 1 { 1.0 } else { -1.0 }
    };
    let place = (0..values.len()).find(|&place| values[place] != expected(place))?;
    Some(format!(
        "expected {} for bit {} of code {}, found {}",
        expected(place),
        place % num_bits,
        place / num_bits,
        values[place]
    ))
}

fn wrong_power(values: &[i64]) -> Option<String> {
    let expected = |place: usize| 1i64 << (values.len() - 1 - place);
    let place = (0..values.len()).find(|&place| values[place] != expected(place))?;
    Some(format!("expected {} at {place}, found {}", expected(place), values[place]))
}
