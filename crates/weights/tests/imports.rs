//! Importing Show-o and MAGVIT-v2 checkpoints made from golden weights: equal numbers come out, and what is wrong is named.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test may end by them
#![allow(non_snake_case)]

mod support;

use std::path::Path;

use burn::tensor::Device;
use serde_json::{Value, json};
use support::*;
use unif2ace_golden::{self as golden, Tensors, assert_close};
use unif2ace_model::moe::Task;
use unif2ace_model::vq::{Vq, VqConfig};
use unif2ace_weights::import::{ImportOptions, magvitv2, show_o};
use unif2ace_weights::*;

#[test]
fn an_imported_backbone_computes_what_it_computed() {
    let device = Device::flex();
    for case in golden::cases("transformer") {
        let weights = host(&Tensors::load(case.join("weights.safetensors")));
        let (_, expected) = Tensors::load(case.join("outputs.safetensors")).f32("logits");
        let rounded = {
            let [source, target] = [(); 2].map(|()| tempfile::tempdir().unwrap());
            let mut weights = weights.clone();
            let values = weights.values_mut().flat_map(|tensor| &mut tensor.values);
            values.for_each(|value| *value = half::bf16::from_f32(*value).to_f32());
            checkpoint(source.path(), &show_o_config(&case), &weights, FloatType::F32, false);
            show_o(source.path(), target.path(), &ImportOptions::new(device.clone())).unwrap();
            logits(&load(target.path(), &device), &case, Task::T2i, &device)
        };
        for (float, sharded) in [(FloatType::F32, false), (FloatType::F32, true), (FloatType::Bf16, true)] {
            let [source, target] = [(); 2].map(|()| tempfile::tempdir().unwrap());
            checkpoint(source.path(), &show_o_config(&case), &weights, float, sharded);
            let report = show_o(source.path(), target.path(), &ImportOptions::new(device.clone())).unwrap();
            assert_eq!(report.num_imported, weights.len());
            assert!(report.num_added > 0);
            let model = load(target.path(), &device);
            let written: usize = named_parameters(&model).iter().map(|(_, shape)| shape.iter().product::<usize>()).sum();
            assert_eq!(report.num_values, written as u64);
            for task in [Task::T2i, Task::Mmu] {
                let what = format!("{} {float:?} sharded {sharded} {task:?}", golden::name(&case));
                // A bfloat16 file is the model of the rounded weights.
                let expected = if float == FloatType::F32 { &expected } else { &rounded };
                assert_close(&logits(&model, &case, task, &device), expected, 2e-5, &what);
            }
        }
    }
}

#[test]
fn the_projector_of_the_clip_variant_comes_along() {
    let device = Device::flex();
    for case in golden::cases("transformer_clip") {
        let weights = host(&Tensors::load(case.join("weights.safetensors")));
        let [source, target] = [(); 2].map(|()| tempfile::tempdir().unwrap());
        checkpoint(source.path(), &show_o_config(&case), &weights, FloatType::F32, true);
        show_o(source.path(), target.path(), &ImportOptions::new(device.clone())).unwrap();
        let tensors = Tensors::load(case.join("case.safetensors"));
        let projected = load(target.path(), &device).project(tensors.tensor("clip_features", &device)).unwrap();
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
    let result = show_o(source.path(), target.path(), &ImportOptions::new(Device::flex()));
    let text = result.unwrap_err().to_string();
    assert_eq!(std::fs::read_dir(target.path()).unwrap().count(), 0, "something was left behind: {text}");
    assert!(text.contains("hint:"), "{text}");
    text
}

#[test]
fn what_is_wrong_with_a_checkpoint_is_named() {
    let text = spoiled(|_, _, weights| {
        weights.remove("showo.lm_head.bias");
        let odd = HostTensor { shape: vec![1], values: vec![0.0] };
        weights.insert("showo.model.final_layernorm.weight".into(), odd.clone());
        weights.insert("optimizer.step".into(), odd);
    });
    assert!(text.contains("3 problems"), "{text}");
    for part in ["missing showo.lm_head.bias", "showo.model.final_layernorm.weight: expected shape", "unexpected optimizer.step"]
    {
        assert!(text.contains(part), "{text}");
    }
    let text = spoiled(|_, config, _| config["num_hidden_layers"] = json!(config["num_hidden_layers"].as_u64().unwrap() + 1));
    assert!(text.contains("missing showo.model.layers."), "{text}");
    let text = spoiled(|_, config, _| config["vocab_size"] = json!(99));
    assert!(text.contains("vocab") && text.contains("config.json"), "{text}");
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
    assert!(text.contains("showo.lm_head.bias") && text.contains("NaN at 3"), "{text}");
}

#[test]
fn pickles_and_missing_folders_are_refused() {
    let [source, target] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let options = ImportOptions::new(Device::flex());
    std::fs::write(source.path().join("config.json"), r#"{"_class_name": "Showo"}"#).unwrap();
    std::fs::write(source.path().join("pytorch_model.bin"), b"\x80\x02}q\0.").unwrap();
    for result in [show_o(source.path(), target.path(), &options), magvitv2(source.path(), target.path(), &options)] {
        assert!(matches!(result, Err(WeightsError::Pickle { .. })), "{result:?}");
    }
    let nowhere = source.path().join("nowhere");
    assert!(show_o(&nowhere, target.path(), &options).unwrap_err().to_string().contains("nowhere"));
}

fn small_vq() -> (VqConfig, HostTensors) {
    let folder = golden::shared_file("magvit/small/case.json").parent().unwrap().to_path_buf();
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
    let floats = tensors.names().into_iter().filter(|name| name != "quantize.power_vals");
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
    checkpoint(source.path(), &serde_json::to_value(&config).unwrap(), &weights, FloatType::F32, true);
    let report = magvitv2(source.path(), target.path(), &options).unwrap();
    assert!(report.num_imported > 100 && report.num_added == 0);
    let written = golden::json(target.path().join("config.json"));
    assert_eq!(serde_json::from_value::<VqConfig>(written["vq"].clone()).unwrap(), config);

    let file = SafetensorsDir::open(target.path().join("vq.safetensors")).unwrap();
    let vq = load_into(Vq::new(&config, &device).unwrap(), &file, &NameMap::identity()).unwrap();
    let case = Tensors::load(golden::shared_file("magvit/small/case.safetensors"));
    let pixels_BHWC = case.tensor::<4>("pixels", &device).permute([0, 2, 3, 1]);
    let codes = vq.encode(pixels_BHWC).unwrap();
    // Where |z| is below 1e-4 the bit is undecided.
    let (z_shape, z) = case.f32("z");
    let (bits, places) = (z_shape[1], z_shape[2] * z_shape[3]);
    for (position, (&code, &expected)) in codes.iter().zip(&case.i64("indices").1).enumerate() {
        for bit in 0..bits {
            let value = z[(position / places * bits + bit) * places + position % places];
            let differs = (i64::from(code) ^ expected) >> (bits - 1 - bit) & 1 == 1;
            assert!(!differs || value.abs() < 1e-4, "token {position} bit {bit}");
        }
    }
}

#[test]
fn codes_in_another_order_are_refused() {
    let (config, mut weights) = small_vq();
    let bits = config.z_channels;
    let code = |code: usize, bit: usize| {
        if code >> (bits - 1 - bit) & 1 == 1 { 1.0 } else { -1.0 }
    };
    let mut values: Vec<f32> = (0..1 << bits).flat_map(|index| (0..bits).map(move |bit| code(index, bit))).collect();
    let mut run = |values: &[f32]| {
        let table = HostTensor { shape: vec![1 << bits, bits], values: values.to_vec() };
        weights.insert("quantize.embedding".into(), table);
        let [source, target] = [(); 2].map(|()| tempfile::tempdir().unwrap());
        checkpoint(source.path(), &serde_json::to_value(&config).unwrap(), &weights, FloatType::F32, false);
        magvitv2(source.path(), target.path(), &ImportOptions::new(Device::flex()))
    };
    assert_eq!(run(&values).unwrap().dropped, ["quantize.embedding"]);
    values.swap(13, 25);
    let text = run(&values).unwrap_err().to_string();
    assert!(text.contains("quantize.embedding") && text.contains("code 1"), "{text}");
}

#[test]
fn a_tokenizer_of_other_sizes_is_listed() {
    let (config, weights) = small_vq();
    let [source, target] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    // The released config.json: no sizes, so those of the release are expected.
    checkpoint(source.path(), &json!({ "_class_name": "MAGVITv2" }), &weights, FloatType::F32, false);
    let text = magvitv2(source.path(), target.path(), &ImportOptions::new(Device::flex())).unwrap_err().to_string();
    let found = format!("encoder.conv_in.weight: expected shape [128, 3, 3, 3], found [{}, 3, 3, 3]", config.ch);
    assert!(text.contains(&found), "{text}");
    assert!(text.contains("more"), "{text}");
}

#[test]
fn the_resolution_is_the_user_s_and_the_number_type_the_checkpoint_s() {
    let (config, weights) = small_vq();
    for (float, expected) in [(FloatType::Bf16, DType::Bf16), (FloatType::F16, DType::F16), (FloatType::F32, DType::F32)] {
        let [source, target] = [(); 2].map(|()| tempfile::tempdir().unwrap());
        checkpoint(source.path(), &serde_json::to_value(&config).unwrap(), &weights, float, false);
        let options = ImportOptions { resolution: Some(2 * config.resolution), ..ImportOptions::new(Device::flex()) };
        magvitv2(source.path(), target.path(), &options).unwrap();
        let written = golden::json(target.path().join("config.json"));
        assert_eq!(written["vq"]["resolution"], json!(2 * config.resolution));
        let file = SafetensorsDir::open(target.path().join("vq.safetensors")).unwrap();
        assert!(file.names().all(|name| file.info(name).unwrap().dtype == expected), "{float:?}");
    }
}

#[test]
fn parts_share_one_config() {
    let folder = tempfile::tempdir().unwrap();
    let write = |part: &str, value: Value| unif2ace_weights::import::write_config_part(folder.path(), part, &value).unwrap();
    write("model", json!({ "hidden_size": 8 }));
    write("vq", json!({ "ch": 4 }));
    write("model", json!({ "hidden_size": 9 }));
    let config = golden::json(folder.path().join("config.json"));
    assert_eq!(config, json!({ "model_type": "unif2ace", "hidden_size": 9, "vq": { "ch": 4 } }));
}
