//! Weight decay acts on the tensors that the recipe's groups say.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test may end by them

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use serde_json::Value;
use unif2ace_model::nn::{LayerNorm, Linear};
use unif2ace_train::Recipe;
use unif2ace_train::decay::DecayGroups;
use unif2ace_train::optim::{OptimizerState, collect_gradients};
use unif2ace_train::params::{map_parameters, parameters};
use unif2ace_train::recipe::OptimizerConfig;

#[test]
fn the_reference_groups_are_those_of_its_trainer() {
    let mut num_names = 0;
    for folder in std::fs::read_dir(unif2ace_golden::root().join("transformer")).unwrap() {
        let path = folder.unwrap().path().join("adamw.json");
        let file: Value = if path.is_file() { unif2ace_golden::json(path) } else { continue };
        for (key, expected) in [("decay", true), ("no_decay", false)] {
            for name in file[key].as_array().unwrap() {
                let name = name.as_str().unwrap();
                assert_eq!(DecayGroups::Reference.decays(name, &[8]), expected, "{name}");
                num_names += 1;
            }
        }
    }
    assert!(num_names > 20, "{num_names} names");
}

#[derive(Module, Debug)]
struct Net {
    norm: LayerNorm,
    dense: Linear,
}

/// Names of the tensors that an update changes whose gradients are zero.
fn decayed(groups: Option<DecayGroups>) -> Vec<String> {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut config: OptimizerConfig = Recipe::read(&root.join("recipes/mini/face.toml")).unwrap().optimizer.unwrap();
    config.weight_decay = 0.1;
    if let Some(groups) = groups {
        config.decay_groups = groups;
    }
    let device = Device::flex().autodiff();
    let net = Net { norm: LayerNorm::new(4, 1e-5, &device), dense: Linear::new(4, 4, true, &device) };
    let net = map_parameters(net, |_, _, values| values.fill(1.0));
    let x = Tensor::<2>::ones([1, 4], &device);
    let loss = net.dense.forward(net.norm.forward(x)).sum().mul_scalar(0.0);
    let gradients = collect_gradients(&net, loss.backward());
    let updated = parameters(&OptimizerState::default().update(net, gradients, &config, 0.5));
    for tensor in updated.values() {
        assert!(tensor.values.iter().all(|&value| value == 1.0 || value == 0.95), "{:?}", tensor.values);
    }
    updated.into_iter().filter(|(_, tensor)| tensor.values[0] != 1.0).map(|(name, _)| name).collect()
}

#[test]
fn norms_decay_with_the_reference_only() {
    assert_eq!(decayed(None), ["dense.weight"]);
    assert_eq!(decayed(Some(DecayGroups::Corrected)), ["dense.weight"]);
    assert_eq!(decayed(Some(DecayGroups::Reference)), ["dense.weight", "norm.weight"]);
}
