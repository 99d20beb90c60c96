//! Transformers from golden folders, and modules seen as named values.
//! B batch, L positions, V vocabulary, D width.
#![allow(dead_code, non_snake_case, clippy::unwrap_used, clippy::print_stderr)]

pub mod small;

use std::collections::BTreeMap;
use std::path::Path;

use burn::module::{Module, Param};
use burn::tensor::{Device, Gradients, Int, Tensor, TensorData};
use serde_json::Value;
use unif2ace_golden::{Tensors, assert_close, json, max_abs_diff};
use unif2ace_model::config::{ModelConfig, MoeConfig, MoeLevel};
use unif2ace_model::moe::{ExpertFeatures, Task};
use unif2ace_model::named::{MapNamed, VisitNamed, map_named, visit_named};
use unif2ace_model::transformer::{Batch, Features, Input, Positions, Unif2ace};

/// Values by parameter path.
pub type Named = BTreeMap<String, Vec<f32>>;

/// The CPU, with gradients or without.
pub fn device(gradients: bool) -> Device {
    if gradients { Device::flex().autodiff() } else { Device::flex() }
}

/// `assert_close` that tells the difference it found (`cargo test -- --nocapture`).
#[track_caller]
pub fn close(actual: &[f32], expected: &[f32], tolerance: f32, what: &str) {
    if actual.len() == expected.len() {
        eprintln!("{what}: {:.1e} of {tolerance:.0e}", max_abs_diff(actual, expected).0);
    }
    assert_close(actual, expected, tolerance, what);
}

/// Small experts.
pub fn small_experts(level: MoeLevel) -> MoeConfig {
    MoeConfig {
        level,
        num_routed_experts: 4,
        num_experts_per_tok: 2,
        routed_intermediate_size: 6,
        num_sequence_experts_per_image: 2,
        sequence_scale_init: 0.0,
        clip_dim: 5,
        face_dim: 7,
        num_feature_tokens: 3,
        ..ModelConfig::mini().moe
    }
}

/// The configuration of a golden folder's config.json with experts added.
pub fn config_of(case: &Value, level: MoeLevel) -> ModelConfig {
    let number = |key: &str| case[key].as_u64().unwrap_or_else(|| unreachable!("{key} is missing")) as usize;
    assert!(case["qk_layernorm"].as_bool().unwrap());
    let config = ModelConfig {
        vocab_size: number("vocab_size"),
        hidden_size: number("hidden_size"),
        num_hidden_layers: number("num_hidden_layers"),
        num_attention_heads: number("num_attention_heads"),
        intermediate_size: number("intermediate_size"),
        partial_rotary_factor: number("rotary_dim") as f64 / number("head_dim") as f64,
        rope_theta: case["rope_theta"].as_f64().unwrap(),
        layer_norm_eps: case["layer_norm_eps"].as_f64().unwrap(),
        llm_vocab_size: number("llm_vocab_size"),
        num_new_special_tokens: number("num_new_special_tokens"),
        // `<|endoftext|>` of the tiny tokenizer.
        eot_token_id: 96,
        codebook_size: number("codebook_size"),
        num_vq_tokens: number("num_vq_tokens"),
        max_seq_length: number("max_seq_length"),
        mm_projector_dim: case["clip_dim"].as_u64().map(|dim| dim as usize),
        moe: small_experts(level),
        ..ModelConfig::base()
    };
    assert_eq!((config.head_dim(), config.rotary_dim()), (number("head_dim"), number("rotary_dim")));
    let ids = config.special_ids();
    assert_eq!((ids.image_offset as usize, ids.mask as usize), (number("image_token_offset"), number("mask_token_id")));
    config
}

/// The network of a golden folder; experts, if any, as upcycling makes them.
pub fn network(folder: &Path, level: MoeLevel, device: &Device) -> Unif2ace {
    let config = config_of(&json(folder.join("config.json")), level);
    let weights = Tensors::load(folder.join("weights.safetensors"));
    let mut unused = weights.names();
    let model = map_values(Unif2ace::new(&config, device).unwrap(), |name, shape, values| {
        if !weights.has(name) {
            let ours = [".moe.", ".sequence.", "resamplers."].iter().any(|part| name.contains(part));
            assert!(ours, "{name} is not in the checkpoint");
            return;
        }
        unused.retain(|other| other != name);
        let (expected, stored) = weights.f32(name);
        assert_eq!(shape, expected, "{name}");
        values.copy_from_slice(&stored);
    });
    assert!(unused.is_empty(), "tensors without a place: {unused:?}");
    model
}

/// Changes parameters on the host: `change(path, shape, values)`.
pub fn map_values<M: Module>(module: M, change: impl FnMut(&str, &[usize], &mut [f32])) -> M {
    struct Change<F> {
        change: F,
    }
    impl<F: FnMut(&str, &[usize], &mut [f32])> MapNamed for Change<F> {
        fn parameter<const D: usize>(&mut self, path: &str, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            let (id, tensor, mapper) = param.consume();
            let (device, tracked, shape) = (tensor.device(), tensor.is_require_grad(), tensor.dims());
            let mut numbers = values(tensor);
            (self.change)(path, &shape, &mut numbers);
            let tensor = Tensor::from_data(TensorData::new(numbers, shape), &device);
            Param::from_mapped_value(id, if tracked { tensor.require_grad() } else { tensor }, mapper)
        }
    }
    map_named(module, &mut Change { change })
}

/// All parameters of a module.
pub fn parameters<M: Module>(module: &M) -> Named {
    let mut out = Named::new();
    map_values(module.clone(), |name, _, values| {
        out.insert(name.to_owned(), values.to_vec());
    });
    out
}

/// The gradients of a module's parameters; those without one are absent.
pub fn gradients_of<M: Module>(module: &M, gradients: &Gradients) -> Named {
    struct Collect<'a> {
        gradients: &'a Gradients,
        out: Named,
    }
    impl VisitNamed for Collect<'_> {
        fn parameter<const D: usize>(&mut self, path: &str, param: &Param<Tensor<D>>) {
            if let Some(gradient) = param.val().grad(self.gradients) {
                self.out.insert(path.to_owned(), values(gradient));
            }
        }
    }
    let mut collect = Collect { gradients, out: Named::new() };
    visit_named(module, &mut collect);
    collect.out
}

/// Every parameter of the experts away from its start, so that they matter: reproducible noise by name.
pub fn stir_experts(model: Unif2ace) -> Unif2ace {
    map_values(model, |name, shape, values| {
        if name.ends_with(".scale") {
            values.fill(0.7);
        } else if [".moe.", ".sequence.", "resamplers."].iter().any(|part| name.contains(part)) {
            // A one-axis shape would mean a norm's weight in the procedural formula.
            let norm = shape.len() == 1;
            let noise = unif2ace_golden::procedural(name, if norm { shape } else { &shape[shape.len() - 2..] });
            let noise = noise.into_iter().cycle();
            values.iter_mut().zip(noise).enumerate().for_each(|(index, (value, noise))| {
                // Experts of one stack differ.
                *value = noise * (1.0 + 0.1 * (index % 7) as f32);
            });
        }
    })
}

/// Row-major values.
pub fn values<const D: usize>(x: Tensor<D>) -> Vec<f32> {
    x.into_data().iter::<f32>().collect()
}

/// Ids of rows of one length on a device.
pub fn ids_tensor(rows: &[Vec<u32>], device: &Device) -> Tensor<2, Int> {
    let flat: Vec<i64> = rows.iter().flatten().map(|&id| i64::from(id)).collect();
    Tensor::from_data(TensorData::new(flat, [rows.len(), rows[0].len()]), &device.clone().without_autodiff())
}

/// Deterministic numbers of order 1.
pub fn noise<const D: usize>(name: &str, shape: [usize; D], device: &Device) -> Tensor<D> {
    let num: usize = shape.iter().product();
    let mut numbers = unif2ace_golden::procedural(name, &[num.div_ceil(3), 3]);
    numbers.truncate(num);
    Tensor::from_data(TensorData::new(numbers, shape), &device.clone().without_autodiff())
}

/// Features of every kind that `task` has, for `rows` images.
pub fn features(config: &ModelConfig, task: Task, rows: usize, device: &Device) -> ExpertFeatures {
    match task {
        Task::T2i => ExpertFeatures {
            noise_level: Some((0..rows).map(|row| (row as f32 + 0.5) / rows as f32).collect()),
            ..ExpertFeatures::default()
        },
        Task::Mmu => ExpertFeatures {
            noise_level: None,
            clip_BPC: Some(noise("clip", [rows, 4, config.moe.clip_dim], device)),
            face_BF: Some(noise("face", [rows, config.moe.face_dim], device)),
        },
    }
}

/// A pass over whole rows from their start.
pub fn whole(input: Input, mask_BLS: Tensor<3>, task: Task, image_start: Option<usize>, features: ExpertFeatures) -> Batch {
    Batch { input, positions: Positions::From(0), mask_BLS, task, image_start, features: Features::Raw(features) }
}
