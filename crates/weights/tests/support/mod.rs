//! Checkpoint folders made from golden weights.
#![allow(dead_code)] // each test file uses a part

use std::collections::BTreeMap;
use std::path::Path;

use burn::tensor::{Device, Int, Tensor};
use serde_json::{Value, json};
use unif2ace_golden::{self as golden, Tensors};
use unif2ace_model::config::ModelConfig;
use unif2ace_model::moe::{ExpertFeatures, Task};
use unif2ace_model::transformer::{Batch, Features, Input, Positions, Unif2ace};
use unif2ace_weights::*;

pub fn host(tensors: &Tensors) -> HostTensors {
    let tensor = |name: &String| {
        let (shape, values) = tensors.f32(name);
        (name.clone(), HostTensor { shape, values })
    };
    tensors.names().iter().map(tensor).collect()
}

pub fn write(path: &Path, tensors: &[(&String, &HostTensor)], float: FloatType) {
    let spec = |(name, tensor): &(&String, &HostTensor)| TensorSpec { name: name.to_string(), shape: tensor.shape.clone() };
    let specs = tensors.iter().map(spec).collect();
    let mut writer = SafetensorsWriter::create(path, specs, float, &BTreeMap::new()).unwrap();
    for (name, tensor) in tensors {
        writer.write(name, &tensor.values).unwrap();
    }
    writer.finish().unwrap();
}

/// Writes a checkpoint folder in the hub's layout, in one file or three shards.
pub fn checkpoint(folder: &Path, config: &Value, tensors: &HostTensors, float: FloatType, sharded: bool) {
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    let all: Vec<_> = tensors.iter().collect();
    if !sharded {
        return write(&folder.join("pytorch_model.safetensors"), &all, float);
    }
    let mut weight_map = BTreeMap::new();
    for (index, shard) in all.chunks(all.len().div_ceil(3)).enumerate() {
        let name = format!("model-{:05}-of-00003.safetensors", index + 1);
        write(&folder.join(&name), shard, float);
        weight_map.extend(shard.iter().map(|(tensor, _)| (tensor.to_string(), name.clone())));
    }
    let index = json!({ "metadata": {}, "weight_map": weight_map });
    std::fs::write(folder.join("model.safetensors.index.json"), index.to_string()).unwrap();
}

/// The golden config in the words of a published config.json.
pub fn show_o_config(case: &Path) -> Value {
    let config = golden::json(case.join("config.json"));
    let rotary = config["rotary_dim"].as_f64().unwrap() / config["head_dim"].as_f64().unwrap();
    let mut out = json!({
        "_class_name": "Showo", "_diffusers_version": "0.30.1", "llm_model_path": "microsoft/phi-1_5",
        "w_clip_vit": config.get("clip_dim").is_some(), "partial_rotary_factor": rotary, "eos_token_id": 96,
    });
    for key in [
        "vocab_size",
        "llm_vocab_size",
        "codebook_size",
        "num_vq_tokens",
        "mask_token_id",
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
        "rope_theta",
        "layer_norm_eps",
        "max_seq_length",
    ] {
        out[key] = config[key].clone();
    }
    out
}

pub fn load(folder: &Path, device: &Device) -> Unif2ace {
    let config: ModelConfig = serde_json::from_value(golden::json(folder.join("config.json"))).unwrap();
    let source = SafetensorsDir::open(folder).unwrap();
    load_into(Unif2ace::new(&config, device).unwrap(), &source, &NameMap::identity()).unwrap()
}

pub fn logits(model: &Unif2ace, case: &Path, task: Task, device: &Device) -> Vec<f32> {
    let batch = Tensors::load(case.join("batch.safetensors"));
    let ids_BL: Tensor<2, Int> = batch.int_tensor("input_ids", device);
    let [rows, length] = ids_BL.dims();
    let mask_BLS = batch.tensor::<4>("attention_mask", device).reshape([rows, length, length]);
    let max_seq_length = model.config().max_seq_length;
    let (noise_level, image_start) = match task {
        Task::T2i => (Some(vec![0.4; rows]), max_seq_length + 2),
        Task::Mmu => (None, 2),
    };
    let patches = Tensor::random([rows, 5, model.config().moe.clip_dim], burn::tensor::Distribution::Default, device);
    let hidden = model.hidden(Batch {
        input: Input::Ids(ids_BL),
        positions: Positions::From(0),
        mask_BLS,
        task,
        image_start: Some(image_start),
        features: Features::Raw(ExpertFeatures { noise_level, clip_BPC: Some(patches), face_BF: None }),
    });
    model.logits(hidden.x_BLD).into_data().iter::<f32>().collect()
}
