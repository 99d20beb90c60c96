//! The support code itself: files are found and read, procedural weights match the stored samples.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test may end by them

use std::collections::BTreeMap;

use unif2ace_golden as golden;

#[test]
fn cases_are_found_and_readable() {
    for kind in ["transformer", "transformer_clip", "sampler", "mmu_generate", "magvit"] {
        for case in golden::cases(kind) {
            let mut files = 0;
            for entry in std::fs::read_dir(&case).unwrap() {
                let path = entry.unwrap().path();
                match path.extension().and_then(|extension| extension.to_str()) {
                    Some("safetensors") => {
                        assert!(!golden::Tensors::load(&path).names().is_empty())
                    }
                    Some("json") => assert!(golden::json(&path).is_object()),
                    _ => continue,
                }
                files += 1;
            }
            assert!(files > 0, "{} is empty", case.display());
        }
    }
}

#[test]
fn tokenizers_and_manifests_are_shared() {
    for file in ["prompting/tiny_tokenizer/tokenizer.json", "prompting/phi_tokenizer/tokenizer.json", "manifests/showo.json"] {
        assert!(golden::json(golden::shared_file(file)).is_object());
    }
}

#[test]
fn procedural_weights_match_the_stored_first_values() {
    let manifest = golden::json(golden::shared_file("manifests/magvitv2.json"));
    let shapes: BTreeMap<String, Vec<usize>> = manifest["tensors"]
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| {
            let shape = entry["shape"].as_array().unwrap().iter().map(|side| side.as_u64().unwrap() as usize).collect();
            (entry["name"].as_str().unwrap().to_string(), shape)
        })
        .collect();
    let mut compared = 0;
    let case = golden::json(golden::shared_file("magvit/full_procedural_64/case.json"));
    for (name, first) in case["procedural_check_first4"].as_object().unwrap() {
        let values = golden::procedural(name, &shapes[name]);
        for (value, expected) in values.iter().zip(first.as_array().unwrap()) {
            assert_eq!(*value, expected.as_f64().unwrap() as f32, "{name}");
            compared += 1;
        }
    }
    assert!(compared >= 4);
}

#[test]
fn tensors_keep_shape_and_type() {
    for case in golden::cases("transformer") {
        let batch = golden::Tensors::load(case.join("batch.safetensors"));
        let (shape, ids) = batch.i64("input_ids");
        assert_eq!(shape.iter().product::<usize>(), ids.len());
        let (mask_shape, mask) = batch.f32("attention_mask");
        assert_eq!(mask_shape.iter().product::<usize>(), mask.len());
        assert!(mask.iter().all(|&value| value == 0.0 || value == -(2f32.powi(63))));
        assert!(std::panic::catch_unwind(|| batch.f32("input_ids")).is_err(), "a wrong type must not pass");
        assert!(!batch.has("nothing of that name"));
    }
}
