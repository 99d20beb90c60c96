//! Generated names and shapes equal those of the published checkpoints.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test may end by them

use unif2ace_golden::{json, shared_file};
use unif2ace_model::vq::VqConfig;
use unif2ace_weights::DType;
use unif2ace_weights::manifest::{ManifestEntry, ShowOShape, magvitv2, show_o};

fn equals(entries: &[ManifestEntry], file: &str, with_decay: bool) {
    let manifest = json(shared_file(file));
    let tensors = manifest["tensors"].as_array().unwrap();
    assert_eq!(entries.len() as u64, manifest["num_tensors"].as_u64().unwrap());
    assert_eq!(entries.len(), tensors.len());
    for (entry, expected) in entries.iter().zip(tensors) {
        assert_eq!(entry.name, expected["name"].as_str().unwrap());
        let shape: Vec<u64> = entry.shape.iter().map(|&side| side as u64).collect();
        let expected_shape: Vec<u64> = expected["shape"].as_array().unwrap().iter().map(|side| side.as_u64().unwrap()).collect();
        assert_eq!(shape, expected_shape, "{}", entry.name);
        let dtype = match entry.dtype {
            DType::F32 => "float32",
            DType::I64 => "int64",
            other => panic!("{}: {other}", entry.name),
        };
        assert_eq!(dtype, expected["dtype"].as_str().unwrap(), "{}", entry.name);
        if with_decay {
            assert_eq!(entry.is_decayed(), expected["weight_decay"].as_bool().unwrap(), "{}", entry.name);
        }
    }
    let is_parameter = |entry: &&ManifestEntry| !entry.name.starts_with("quantize.");
    let parameters: usize = entries.iter().filter(is_parameter).map(|entry| entry.shape.iter().product::<usize>()).sum();
    assert_eq!(parameters as u64, manifest["num_parameters"].as_u64().unwrap());
}

#[test]
fn show_o_equals_the_release() {
    equals(&show_o(&ShowOShape::released(false)), "manifests/showo.json", true);
    equals(&show_o(&ShowOShape::released(true)), "manifests/showo_w_clip_vit.json", true);
}

#[test]
fn magvitv2_equals_the_release() {
    equals(&magvitv2(&VqConfig::magvitv2()), "manifests/magvitv2.json", false);
}

#[test]
fn the_module_s_parameters_are_the_manifest_s() {
    let config = VqConfig { ch: 32, resolution: 64, ..VqConfig::magvitv2() };
    let vq = unif2ace_model::vq::Vq::new(&config, &burn::tensor::Device::flex()).unwrap();
    let mut ours: Vec<_> = unif2ace_weights::named_parameters(&vq);
    let mut expected: Vec<_> = magvitv2(&config)
        .into_iter()
        .filter(|entry| !entry.name.starts_with("quantize."))
        .map(|entry| (entry.name, entry.shape))
        .collect();
    ours.sort();
    expected.sort();
    assert_eq!(ours, expected);
}
