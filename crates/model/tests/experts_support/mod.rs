//! A small network with every part at work, seen as named values.
#![allow(dead_code, clippy::unwrap_used, non_snake_case)]

use std::collections::BTreeMap;

use burn::module::{Module, Param};
use burn::optim::GradientsParams;
use burn::tensor::{Device, Gradients, Tensor, TensorData};
use unif2ace_golden::procedural;
use unif2ace_model::config::{ModelConfig, MoeConfig, MoeLevel};
use unif2ace_model::moe::ExpertFeatures;
use unif2ace_model::named::{MapNamed, VisitNamed, map_named, visit_named};
use unif2ace_model::transformer::Unif2ace;

/// Values by parameter path.
pub type Named = BTreeMap<String, Vec<f32>>;

/// Row-major values.
pub fn values<const D: usize>(x: Tensor<D>) -> Vec<f32> {
    x.into_data().iter::<f32>().collect()
}

struct Fill<F> {
    change: F,
}

impl<F: FnMut(&str, &[usize], Vec<f32>) -> Vec<f32>> MapNamed for Fill<F> {
    fn parameter<const D: usize>(&mut self, path: &str, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let (id, tensor, mapper) = param.consume();
        let (device, tracked, shape) = (tensor.device(), tensor.is_require_grad(), tensor.dims());
        let changed = (self.change)(path, &shape, values(tensor));
        let mut tensor = Tensor::from_data(TensorData::new(changed, shape), &device);
        if tracked {
            tensor = tensor.require_grad();
        }
        Param::from_mapped_value(id, tensor, mapper)
    }
}

/// The module with every parameter changed.
pub fn change<M: Module>(module: M, change: impl FnMut(&str, &[usize], Vec<f32>) -> Vec<f32>) -> M {
    map_named(module, &mut Fill { change })
}

/// All parameters.
pub fn parameters<M: Module>(module: &M) -> Named {
    let mut named = Named::new();
    let _ = change(module.clone(), |name, _, values| {
        named.insert(name.to_string(), values.clone());
        values
    });
    named
}

/// Every parameter pseudo-random, norms and biases too.
pub fn randomised<M: Module>(module: M, scale: f32) -> M {
    change(module, |name, shape, _| {
        let mut numbers = procedural(name, shape);
        if shape.len() > 1 {
            numbers.iter_mut().for_each(|v| *v *= scale);
        }
        numbers
    })
}

/// Gradients by path, after a backward pass.
pub fn gradients_by_path<M: Module>(module: &M, gradients: Gradients) -> Named {
    struct Collect {
        gradients: GradientsParams,
        out: Named,
    }
    impl VisitNamed for Collect {
        fn parameter<const D: usize>(&mut self, path: &str, param: &Param<Tensor<D>>) {
            if let Some(gradient) = self.gradients.remove::<D>(param.id) {
                self.out.insert(path.to_owned(), values(gradient));
            }
        }
    }
    let mut collect = Collect { gradients: GradientsParams::from_grads(gradients, module), out: Named::new() };
    visit_named(module, &mut collect);
    collect.out
}

/// Deterministic numbers in -1..1.
pub fn noise<const D: usize>(name: &str, shape: [usize; D], device: &Device) -> Tensor<D> {
    let num: usize = shape.iter().product();
    let mut numbers = procedural(name, &[num.div_ceil(3), 3]);
    numbers.truncate(num);
    Tensor::from_data(TensorData::new(numbers, shape), device)
}

/// Features for every expert.
pub fn features(config: &ModelConfig, rows: usize, device: &Device) -> ExpertFeatures {
    ExpertFeatures {
        noise_level: Some((0..rows).map(|row| (row as f32 + 0.5) / rows as f32).collect()),
        clip_BPC: Some(noise("clip", [rows, 5, config.moe.clip_dim], device)),
        face_BF: Some(noise("face", [rows, config.moe.face_dim], device)),
    }
}

/// 4 image tokens, two blocks.
pub fn tiny(level: MoeLevel) -> ModelConfig {
    let config = ModelConfig {
        vocab_size: 30 + 10 + 16 + 1,
        hidden_size: 32,
        num_hidden_layers: 2,
        num_attention_heads: 2,
        intermediate_size: 40,
        llm_vocab_size: 30,
        eot_token_id: 29,
        codebook_size: 16,
        num_vq_tokens: 4,
        max_seq_length: 6,
        moe: MoeConfig {
            level,
            routed_intermediate_size: 12,
            clip_dim: 9,
            face_dim: 7,
            num_feature_tokens: 3,
            feature_token_dim: 10,
            ..ModelConfig::base().moe
        },
        ..ModelConfig::base()
    };
    config.check().unwrap();
    config
}

/// [`tiny`] with every parameter pseudo-random, so that no part is idle.
pub fn random_tiny(level: MoeLevel, device: &Device) -> Unif2ace {
    randomised(Unif2ace::new(&tiny(level), device).unwrap(), 0.7)
}
