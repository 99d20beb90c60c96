//! Adapters beside the shipped model: loaded, merged, taken out again.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test may end by them

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use common::{PROMPT, error_of, names, output_of, root, text};
use unif2ace_image::{DecodeLimits, RgbImage, load_rgb};
use unif2ace_weights::{FloatType, SafetensorsDir, SafetensorsFile, SafetensorsWriter, TensorSpec};

const RANK: usize = 2;

fn mini() -> PathBuf {
    root().join("models/mini")
}

/// Adapters of some of the shipped model's layers, with a B of a few times `b`.
fn adapters(path: &Path, layers: &[&str], b: f32) {
    let model = SafetensorsDir::open(mini().join("model.safetensors")).unwrap();
    let mut tensors: BTreeMap<String, ([usize; 2], Vec<f32>)> = BTreeMap::new();
    for layer in layers {
        let &[num_out, num_in] = model.shape(&format!("{layer}.weight")).unwrap() else { panic!("{layer} is no matrix") };
        let a: Vec<f32> = (0..RANK * num_in).map(|place| ((place * 7 % 11) as f32 - 5.0) / 50.0).collect();
        tensors.insert(format!("{layer}.lora_A.weight"), ([RANK, num_in], a));
        tensors.insert(
            format!("{layer}.lora_B.weight"),
            ([num_out, RANK], (0..RANK * num_out).map(|place| b * ((place * 5 % 7) as f32 - 3.0)).collect()),
        );
    }
    let specs = tensors.iter().map(|(name, (shape, _))| TensorSpec { name: name.clone(), shape: shape.to_vec() }).collect();
    let metadata = [("rank", "2"), ("alpha", "4"), ("base", "mini")].map(|(k, v)| (k.to_owned(), v.to_owned())).into();
    let mut writer = SafetensorsWriter::create(path, specs, FloatType::F32, &metadata).unwrap();
    tensors.iter().for_each(|(name, (_, values))| writer.write(name, values).unwrap());
    writer.finish().unwrap();
}

const LAYERS: [&str; 3] = ["showo.model.layers.0.self_attn.q_proj", "showo.model.layers.2.mlp.fc2", "showo.lm_head"];

fn picture(folder: &Path, options: &[&str]) -> RgbImage {
    let path = folder.join("picture.png");
    output_of(&[&["generate", PROMPT, "-o", text(&path), "--num-inference-steps", "2"], options].concat());
    load_rgb(&path, DecodeLimits::default()).unwrap()
}

#[test]
fn adapters_change_pictures_and_answers_as_the_merged_model_does() {
    let folder = tempfile::tempdir().unwrap();
    let [zero, lora, merged, back] =
        ["zero.safetensors", "lora.safetensors", "merged", "back"].map(|name| folder.path().join(name));
    adapters(&zero, &LAYERS, 0.0);
    adapters(&lora, &LAYERS, 0.3);
    let plain = picture(folder.path(), &[]);
    assert!(plain == picture(folder.path(), &["--lora", text(&zero)]), "a B of zeros changes nothing");
    let adapted = picture(folder.path(), &["--lora", text(&lora)]);
    assert!(adapted != plain, "the adapters do something");

    let said = output_of(&["lora", "merge", text(&mini()), text(&lora), "-o", text(&merged), "--dtype", "f32"]);
    assert!(said.contains("rank 2 merged into"), "{said}");
    assert!(adapted == picture(folder.path(), &["--model", text(&merged)]));
    let face = root().join("docs/gallery/real-1.png");
    for command in
        [vec!["ask", text(&face), "What colour is the hair?"], vec!["score", text(&face), "a man", "--num-points", "1"]]
    {
        let with = |options: &[&str]| output_of(&[&command[..], options].concat());
        assert_eq!(with(&["--lora", text(&lora)]), with(&["--model", text(&merged)]), "{command:?}");
    }

    output_of(&["lora", "unmerge", text(&merged), text(&lora), "-o", text(&back)]);
    let weights = |folder: &Path| SafetensorsFile::open(folder.join("model.safetensors")).unwrap();
    let (before, after) = (weights(&mini()), weights(&back));
    for name in before.names() {
        let (before, after) = (before.load_f32(name).unwrap(), after.load_f32(name).unwrap());
        assert!(before.iter().zip(&after).all(|(before, after)| (before - after).abs() <= 1e-6), "{name}");
    }
    assert_eq!(names(&back), names(&merged));
}

#[test]
fn adapters_that_do_not_fit_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let [lora, out, packed] = ["lora.safetensors", "out.png", "packed"].map(|name| folder.path().join(name));
    let refused = |file: &Path, expected: &[&str]| {
        for command in [
            vec!["generate", PROMPT, "-o", text(&out), "--lora", text(file)],
            vec!["lora", "merge", "models/mini", text(file), "-o", text(&out)],
        ] {
            let error = error_of(&command);
            assert!(expected.iter().all(|part| error.contains(part)), "{error}");
            assert!(!out.exists());
        }
    };
    refused(&folder.path().join("none.safetensors"), &["none.safetensors"]);
    refused(&mini().join("vq.safetensors"), &["vq.safetensors", "a whole number as `rank`"]);
    adapters(&lora, &LAYERS[..1], 0.1);
    let bytes = std::fs::read(&lora).unwrap();
    let mut other = bytes.clone();
    for place in 0..other.len() - 8 {
        if other[place..].starts_with(b"layers.0") {
            other[place + 7] = b'9';
        }
    }
    std::fs::write(&lora, other).unwrap();
    refused(&lora, &["unexpected showo.model.layers.9.self_attn.q_proj.lora_A.weight [2, 256]"]);

    std::fs::write(&lora, bytes).unwrap();
    output_of(&["pack", "models/mini", "-o", text(&packed), "--dtype", "bf16"]);
    let error = error_of(&["generate", PROMPT, "-o", text(&out), "--model", text(&packed), "--lora", text(&lora)]);
    assert!(error.contains("lora: expected a model folder with plain weights") && error.contains("lora merge"), "{error}");
    let error = error_of(&["lora", "merge", text(&packed), text(&lora), "-o", text(&out)]);
    assert!(error.contains("found packed ones"), "{error}");
    let error = error_of(&["lora", "unmerge", "models/mini", text(&lora), "-o", text(&out)]);
    assert!(error.contains("was not merged into it"), "{error}");
    let error = error_of(&["lora", "merge", "models/mini", text(&lora), "-o", "models/mini"]);
    assert!(error.contains("another folder"), "{error}");
}
