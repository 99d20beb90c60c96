//! Importing Show-o and MAGVIT-v2 checkpoints made from golden weights: equal numbers come out, and what is wrong is named.
#![allow(non_snake_case)]

use std::collections::BTreeMap;
use std::path::Path;

use burn::tensor::{Device, Int, Tensor};
use serde_json::{Value, json};
use unif2ace_golden::{self as golden, Tensors, assert_close};
use unif2ace_model::config::{ModelConfig, MoeLevel};
use unif2ace_model::moe::{ExpertFeatures, Task};
use unif2ace_model::transformer::{Batch, Features, Input, Positions, Unif2ace};
use unif2ace_model::vq::{Vq, VqConfig};
use unif2ace_weights::import::{ImportOptions, magvitv2, show_o};
use unif2ace_weights::*;

fn host(tensors: &Tensors) -> HostTensors {
    let tensor = |name: &String| {
        let (shape, values) = tensors.f32(name);
        (name.clone(), HostTensor { shape, values })
    };
    tensors.names().iter().map(tensor).collect()
}

fn write(path: &Path, tensors: &[(&String, &HostTensor)], float: FloatType) {
    let spec = |(name, tensor): &(&String, &HostTensor)| TensorSpec {
        name: name.to_string(),
        shape: tensor.shape.clone(),
    };
    let specs = tensors.iter().map(spec).collect();
    let mut writer = SafetensorsWriter::create(path, specs, float, &BTreeMap::new()).unwrap();
    for (name, tensor) in tensors {
        writer.write(name, &tensor.values).unwrap();
    }
    writer.finish().unwrap();
}

/// Writes a checkpoint folder in the hub's layout, in one file or three shards.
fn checkpoint(
    folder: &Path,
    config: &Value,
    tensors: &HostTensors,
    float: FloatType,
    sharded: bool,
) {
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    let all: Vec<_> = tensors.iter().collect();
    if !sharded {
        return write(&folder.join("pytorch_model.safetensors"), &all, float);
    }
    let mut weight_map = BTreeMap::new();
    for (index, shard) in all.chunks(all.len().div_ceil(3)).enumerate() {
        let name = format!("model-{:05}-of-00003.safetensors", index + 1);
        write(&folder.join(&name), shard, float);
        weight_map.extend(
            shard
                .iter()
                .map(|(tensor, _)| (tensor.to_string(), name.clone())),
        );
    }
    let index = json!({ "metadata": {}, "weight_map": weight_map });
    std::fs::write(
        folder.join("model.safetensors.index.json"),
        index.to_string(),
    )
    .unwrap();
}

/// The golden config in the words of a published config.json.
fn show_o_config(case: &Path) -> Value {
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

fn load(folder: &Path, device: &Device) -> Unif2ace {
    let config: ModelConfig =
        serde_json::from_value(golden::json(folder.join("config.json"))).unwrap();
    let source = SafetensorsDir::open(folder).unwrap();
    load_into(
        Unif2ace::new(&config, device).unwrap(),
        &source,
        &NameMap::identity(),
    )
    .unwrap()
}

fn logits(model: &Unif2ace, case: &Path, task: Task, device: &Device) -> Vec<f32> {
    let batch = Tensors::load(case.join("batch.safetensors"));
    let ids_BL: Tensor<2, Int> = batch.int_tensor("input_ids", device);
    let [rows, length] = ids_BL.dims();
    let mask_BLS = batch
        .tensor::<4>("attention_mask", device)
        .reshape([rows, length, length]);
    let max_seq_length = model.config().max_seq_length;
    let (noise_level, image_start) = match task {
        Task::T2i => (Some(vec![0.4; rows]), max_seq_length + 2),
        Task::Mmu => (None, 2),
    };
    let patches = Tensor::random(
        [rows, 5, model.config().moe.clip_dim],
        burn::tensor::Distribution::Default,
        device,
    );
    let hidden = model.hidden(Batch {
        input: Input::Ids(ids_BL),
        positions: Positions::From(0),
        mask_BLS,
        task,
        image_start: Some(image_start),
        features: Features::Raw(ExpertFeatures {
            noise_level,
            clip_BPC: Some(patches),
            face_BF: None,
        }),
    });
    model
        .logits(hidden.x_BLD)
        .into_data()
        .iter::<f32>()
        .collect()
}

#[test]
fn an_imported_backbone_computes_what_it_computed() {
    let device = Device::flex();
    for case in golden::cases("transformer") {
        let weights = host(&Tensors::load(case.join("weights.safetensors")));
        let (_, expected) = Tensors::load(case.join("outputs.safetensors")).f32("logits");
        for (float, sharded) in [
            (FloatType::F32, false),
            (FloatType::F32, true),
            (FloatType::Bf16, true),
        ] {
            let [source, target] = [(); 2].map(|()| tempfile::tempdir().unwrap());
            checkpoint(
                source.path(),
                &show_o_config(&case),
                &weights,
                float,
                sharded,
            );
            let report = show_o(
                source.path(),
                target.path(),
                &ImportOptions::new(device.clone()),
            )
            .unwrap();
            assert_eq!(report.num_imported, weights.len());
            assert!(report.num_added > 0);
            let model = load(target.path(), &device);
            let written: usize = named_parameters(&model)
                .iter()
                .map(|(_, shape)| shape.iter().product::<usize>())
                .sum();
            assert_eq!(report.num_values, written as u64);
            for task in [Task::T2i, Task::Mmu] {
                let what = format!(
                    "{} {float:?} sharded {sharded} {task:?}",
                    golden::name(&case)
                );
                // bfloat16 keeps 8 bits of each weight.
                let tolerance = if float == FloatType::F32 { 2e-5 } else { 0.1 };
                assert_close(
                    &logits(&model, &case, task, &device),
                    &expected,
                    tolerance,
                    &what,
                );
            }
        }
    }
}

#[test]
fn every_level_of_experts_is_exact_and_seeds_repeat() {
    let device = Device::flex();
    let case = &golden::cases("transformer")[0];
    let weights = host(&Tensors::load(case.join("weights.safetensors")));
    let (_, expected) = Tensors::load(case.join("outputs.safetensors")).f32("logits");
    let source = tempfile::tempdir().unwrap();
    checkpoint(
        source.path(),
        &show_o_config(case),
        &weights,
        FloatType::F32,
        false,
    );
    for level in [
        MoeLevel::None,
        MoeLevel::Token,
        MoeLevel::Sequence,
        MoeLevel::Both,
    ] {
        let options = ImportOptions {
            level,
            ..ImportOptions::new(device.clone())
        };
        let [one, two] = [(); 2].map(|()| tempfile::tempdir().unwrap());
        let report = show_o(source.path(), one.path(), &options).unwrap();
        assert_eq!(report.num_added == 0, level == MoeLevel::None);
        assert_close(
            &logits(&load(one.path(), &device), case, Task::T2i, &device),
            &expected,
            2e-5,
            &format!("{level:?}"),
        );
        show_o(source.path(), two.path(), &options).unwrap();
        for file in ["model.safetensors", "config.json"] {
            let read =
                |folder: &tempfile::TempDir| std::fs::read(folder.path().join(file)).unwrap();
            assert!(
                read(&one) == read(&two),
                "{level:?} {file} differs for the same seed"
            );
        }
    }
}

#[test]
fn the_projector_of_the_clip_variant_comes_along() {
    let device = Device::flex();
    for case in golden::cases("transformer_clip") {
        let weights = host(&Tensors::load(case.join("weights.safetensors")));
        let [source, target] = [(); 2].map(|()| tempfile::tempdir().unwrap());
        checkpoint(
            source.path(),
            &show_o_config(&case),
            &weights,
            FloatType::F32,
            true,
        );
        show_o(
            source.path(),
            target.path(),
            &ImportOptions::new(device.clone()),
        )
        .unwrap();
        let tensors = Tensors::load(case.join("case.safetensors"));
        let projected = load(target.path(), &device)
            .project(tensors.tensor("clip_features", &device))
            .unwrap();
        let values: Vec<f32> = projected.into_data().iter::<f32>().collect();
        assert_close(&values, &tensors.f32("projected").1, 2e-5, "projected");
    }
}

/// The error of importing a checkpoint that `spoil` has changed; nothing may have been written.
fn spoiled(spoil: impl FnOnce(&Path, &mut Value, &mut HostTensors)) -> String {
    let case = &golden::cases("transformer")[0];
    let mut weights = host(&Tensors::load(case.join("weights.safetensors")));
    let mut config = show_o_config(case);
    let [source, target] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    spoil(source.path(), &mut config, &mut weights);
    checkpoint(source.path(), &config, &weights, FloatType::F32, false);
    let result = show_o(
        source.path(),
        target.path(),
        &ImportOptions::new(Device::flex()),
    );
    let text = result.unwrap_err().to_string();
    assert_eq!(
        std::fs::read_dir(target.path()).unwrap().count(),
        0,
        "something was left behind: {text}"
    );
    assert!(text.contains("hint:"), "{text}");
    text
}

#[test]
fn what_is_wrong_with_a_checkpoint_is_named() {
    let text = spoiled(|_, _, weights| {
        weights.remove("showo.lm_head.bias");
        let odd = HostTensor {
            shape: vec![1],
            values: vec![0.0],
        };
        weights.insert("showo.model.final_layernorm.weight".into(), odd.clone());
        weights.insert("optimizer.step".into(), odd);
    });
    assert!(text.contains("3 problems"), "{text}");
    for part in [
        "missing showo.lm_head.bias",
        "showo.model.final_layernorm.weight: expected shape",
        "unexpected optimizer.step",
    ] {
        assert!(text.contains(part), "{text}");
    }
    let text = spoiled(|_, config, _| config["num_hidden_layers"] = json!(3));
    assert!(
        text.contains("missing showo.model.layers.2.") || text.contains("showo.model.layers."),
        "{text}"
    );
    let text = spoiled(|_, config, _| config["vocab_size"] = json!(99));
    assert!(
        text.contains("vocab") && text.contains("config.json"),
        "{text}"
    );
    let text = spoiled(|_, config, _| config["_class_name"] = json!("Llama"));
    assert!(text.contains("expected Showo, found Llama"), "{text}");
    let text = spoiled(|_, config, _| config["hidden_size"] = json!("wide"));
    assert!(text.contains("config.json"), "{text}");
    let text = spoiled(|_, config, _| config["num_attention_heads"] = json!(0));
    assert!(text.contains("num_attention_heads"), "{text}");
    let text = spoiled(|_, config, _| *config = json!({}));
    assert!(text.contains("config.json"), "{text}");
    let text = spoiled(|_, _, weights| {
        weights.get_mut("showo.lm_head.bias").unwrap().values[3] = f32::NAN;
    });
    assert!(
        text.contains("showo.lm_head.bias") && text.contains("NaN at 3"),
        "{text}"
    );
}

#[test]
fn pickles_and_missing_folders_are_refused() {
    let [source, target] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let options = ImportOptions::new(Device::flex());
    std::fs::write(
        source.path().join("config.json"),
        r#"{"_class_name": "Showo"}"#,
    )
    .unwrap();
    std::fs::write(source.path().join("pytorch_model.bin"), b"\x80\x02}q\0.").unwrap();
    for result in [
        show_o(source.path(), target.path(), &options),
        magvitv2(source.path(), target.path(), &options),
    ] {
        assert!(
            matches!(result, Err(WeightsError::Pickle { .. })),
            "{result:?}"
        );
    }
    let nowhere = source.path().join("nowhere");
    assert!(
        show_o(&nowhere, target.path(), &options)
            .unwrap_err()
            .to_string()
            .contains("nowhere")
    );
}

fn small_vq() -> (VqConfig, HostTensors) {
    let folder = golden::shared_file("magvit/small/case.json")
        .parent()
        .unwrap()
        .to_path_buf();
    let case = golden::json(folder.join("case.json"));
    let list = |key: &str| serde_json::from_value(case["config"][key].clone()).unwrap();
    let config = VqConfig {
        ch: case["config"]["ch"].as_u64().unwrap() as usize,
        enc_mult: list("enc_mult"),
        enc_blocks: list("enc_blocks"),
        dec_mult: list("dec_mult"),
        dec_blocks: list("dec_blocks"),
        z_channels: case["config"]["z"].as_u64().unwrap() as usize,
        resolution: case["config"]["res"].as_u64().unwrap() as usize,
        ..VqConfig::magvitv2()
    };
    let tensors = Tensors::load(folder.join("weights.safetensors"));
    let floats = tensors
        .names()
        .into_iter()
        .filter(|name| name != "quantize.power_vals");
    let tensor = |name: String| {
        let (shape, values) = tensors.f32(&name);
        (name, HostTensor { shape, values })
    };
    (config, floats.map(tensor).collect())
}

#[test]
fn an_imported_tokenizer_gives_the_same_codes() {
    let device = Device::flex();
    let (config, weights) = small_vq();
    let [source, target] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let options = ImportOptions::new(device.clone());
    checkpoint(
        source.path(),
        &serde_json::to_value(&config).unwrap(),
        &weights,
        FloatType::F32,
        true,
    );
    let report = magvitv2(source.path(), target.path(), &options).unwrap();
    assert!(report.num_imported > 100 && report.num_added == 0);
    let written = golden::json(target.path().join("config.json"));
    assert_eq!(
        serde_json::from_value::<VqConfig>(written["vq"].clone()).unwrap(),
        config
    );

    let file = SafetensorsDir::open(target.path().join("vq.safetensors")).unwrap();
    let vq = load_into(
        Vq::new(&config, &device).unwrap(),
        &file,
        &NameMap::identity(),
    )
    .unwrap();
    let case = Tensors::load(golden::shared_file("magvit/small/case.safetensors"));
    let pixels_BHWC = case.tensor::<4>("pixels", &device).permute([0, 2, 3, 1]);
    let codes = vq.encode(pixels_BHWC).unwrap();
    assert_eq!(
        codes
            .iter()
            .map(|&code| i64::from(code))
            .collect::<Vec<_>>(),
        case.i64("indices").1
    );
}

#[test]
fn codes_in_another_order_are_refused() {
    let (config, mut weights) = small_vq();
    let bits = config.z_channels;
    let code = |code: usize, bit: usize| {
        if code >> (bits - 1 - bit) & 1 == 1 {
            1.0
        } else {
            -1.0
        }
    };
    let mut values: Vec<f32> = (0..1 << bits)
        .flat_map(|index| (0..bits).map(move |bit| code(index, bit)))
        .collect();
    let mut run = |values: &[f32]| {
        let table = HostTensor {
            shape: vec![1 << bits, bits],
            values: values.to_vec(),
        };
        weights.insert("quantize.embedding".into(), table);
        let [source, target] = [(); 2].map(|()| tempfile::tempdir().unwrap());
        checkpoint(
            source.path(),
            &serde_json::to_value(&config).unwrap(),
            &weights,
            FloatType::F32,
            false,
        );
        magvitv2(
            source.path(),
            target.path(),
            &ImportOptions::new(Device::flex()),
        )
    };
    assert_eq!(run(&values).unwrap().dropped, ["quantize.embedding"]);
    values.swap(13, 25);
    let text = run(&values).unwrap_err().to_string();
    assert!(
        text.contains("quantize.embedding") && text.contains("code 1"),
        "{text}"
    );
}

#[test]
fn a_tokenizer_of_other_sizes_is_listed() {
    let (_, weights) = small_vq();
    let [source, target] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    // The released config.json: no sizes, so those of the release are expected.
    checkpoint(
        source.path(),
        &json!({ "_class_name": "MAGVITv2" }),
        &weights,
        FloatType::F32,
        false,
    );
    let text = magvitv2(
        source.path(),
        target.path(),
        &ImportOptions::new(Device::flex()),
    )
    .unwrap_err()
    .to_string();
    assert!(
        text.contains("encoder.conv_in.weight: expected shape [128, 3, 3, 3], found [32, 3, 3, 3]"),
        "{text}"
    );
    assert!(text.contains("more"), "{text}");
}

#[test]
fn parts_share_one_config() {
    let folder = tempfile::tempdir().unwrap();
    let write = |part: &str, value: Value| {
        unif2ace_weights::import::write_config_part(folder.path(), part, &value).unwrap()
    };
    write("model", json!({ "hidden_size": 8 }));
    write("vq", json!({ "ch": 4 }));
    write("model", json!({ "hidden_size": 9 }));
    let config = golden::json(folder.path().join("config.json"));
    assert_eq!(
        config,
        json!({ "model_type": "unif2ace", "hidden_size": 9, "vq": { "ch": 4 } })
    );
}
