//! The networks of a model folder beside the transformer.

use std::path::Path;

use burn::module::Module;
use burn::tensor::Device;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use unif2ace_model::config::ModelConfig;
use unif2ace_model::encoders::{Clip, FaceNet};
use unif2ace_model::vq::Vq;
use unif2ace_weights::{NameMap, SafetensorsDir, load_frozen};

/// The image tokenizer and the experts' encoders.
pub struct Parts {
    /// Pictures to codes and back.
    pub vq: Vq,
    /// The CLIP expert's encoder, where config.json has a `clip`.
    pub clip: Option<Clip>,
    /// The face expert's encoder, where config.json has a `face`.
    pub face: Option<FaceNet>,
}

impl Parts {
    /// Reads `vq.safetensors`, `clip.safetensors` and `face.safetensors` of a folder, with the sizes that `config` (its config.json) gives.
    ///
    /// # Errors
    /// A reason that names the key or file that is missing, damaged, or of other sizes.
    pub fn read(folder: &Path, config: &Map<String, Value>, device: &Device) -> Result<Self, String> {
        let text = |error: &dyn std::fmt::Display| error.to_string();
        let vq = required(config, "vq")?;
        let vq = load(Vq::new(&vq, device).map_err(|error| text(&error))?, folder, "vq")?;
        let clip = match sizes(config, "clip")? {
            None => None,
            Some(sizes) => Some(load(Clip::new(&sizes, device).map_err(|error| text(&error))?, folder, "clip")?),
        };
        let face = match sizes(config, "face")? {
            None => None,
            Some(sizes) => Some(load(FaceNet::new(&sizes, device).map_err(|error| text(&error))?, folder, "face")?),
        };
        Ok(Self { vq, clip, face })
    }

    /// Checks that the transformer's codes and feature widths are those of the parts.
    ///
    /// # Errors
    /// A reason that names what disagrees.
    pub fn fit(&self, config: &ModelConfig) -> Result<(), String> {
        let (tokens, codes) = (self.vq.config().num_positions(), self.vq.config().codebook_size());
        if tokens != config.num_vq_tokens || codes != config.codebook_size {
            return Err(format!(
                "the image tokenizer gives {tokens} tokens of {codes} codes, the transformer expects {} of {}",
                config.num_vq_tokens, config.codebook_size
            ));
        }
        let clip = self.clip.as_ref().map(|clip| clip.config().vision_config.hidden_size);
        let face = self.face.as_ref().map(|face| face.config().num_classes());
        let moe = &config.moe;
        for (network, found, key, expected) in
            [("CLIP", clip, "moe.clip_dim", moe.clip_dim), ("face", face, "moe.face_dim", moe.face_dim)]
        {
            if let Some(found) = found.filter(|&found| moe.level.sequence() && found != expected) {
                return Err(format!("the {network} network gives features of {found} values, {key} expects {expected}"));
            }
        }
        Ok(())
    }
}

/// The network of one part with its tensors, each of which is read when it is first used.
pub(crate) fn load<M: Module>(module: M, folder: &Path, part: &str) -> Result<M, String> {
    let source = SafetensorsDir::open(folder.join(format!("{part}.safetensors"))).map_err(|error| error.to_string())?;
    load_frozen(module, &source, &NameMap::identity()).map_err(|error| error.to_string())
}

fn sizes<T: DeserializeOwned>(config: &Map<String, Value>, part: &str) -> Result<Option<T>, String> {
    let value = config.get(part).map(|value| serde_json::from_value(value.clone())).transpose();
    value.map_err(|error| format!("config.json, {part}: {error}"))
}

fn required<T: DeserializeOwned>(config: &Map<String, Value>, part: &str) -> Result<T, String> {
    sizes(config, part)?
        .ok_or_else(|| format!("config.json: expected the sizes of the image tokenizer under {part:?}, found none"))
}
