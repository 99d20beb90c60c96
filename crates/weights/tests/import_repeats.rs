//! Alone in its process: new experts are drawn from the device's one generator, which other tests would advance.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test may end by them
#![allow(non_snake_case)]

mod support;

use burn::tensor::Device;
use support::*;
use unif2ace_golden::{self as golden, Tensors, assert_close};
use unif2ace_model::config::MoeLevel;
use unif2ace_model::moe::Task;
use unif2ace_weights::FloatType;
use unif2ace_weights::import::{ImportOptions, show_o};

#[test]
fn every_level_of_experts_is_exact_and_seeds_repeat() {
    let device = Device::flex();
    let case = &golden::cases("transformer")[0];
    let weights = host(&Tensors::load(case.join("weights.safetensors")));
    let (_, expected) = Tensors::load(case.join("outputs.safetensors")).f32("logits");
    let source = tempfile::tempdir().unwrap();
    checkpoint(source.path(), &show_o_config(case), &weights, FloatType::F32, false);
    for level in [MoeLevel::None, MoeLevel::Token, MoeLevel::Sequence, MoeLevel::Both] {
        let options = ImportOptions { level, ..ImportOptions::new(device.clone()) };
        let [one, two] = [(); 2].map(|()| tempfile::tempdir().unwrap());
        let report = show_o(source.path(), one.path(), &options).unwrap();
        assert_eq!(report.num_added == 0, level == MoeLevel::None);
        assert_close(&logits(&load(one.path(), &device), case, Task::T2i, &device), &expected, 2e-5, &format!("{level:?}"));
        show_o(source.path(), two.path(), &options).unwrap();
        for file in ["model.safetensors", "config.json"] {
            let read = |folder: &tempfile::TempDir| std::fs::read(folder.path().join(file)).unwrap();
            assert!(read(&one) == read(&two), "{level:?} {file} differs for the same seed");
        }
    }
}
