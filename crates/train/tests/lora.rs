//! Training of low-rank adapters: only they change, only they are saved, and a run in two sessions is the run in one.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test may end by them

mod common;

use std::fs;

use common::place::{ALONE, Place};
use toml::Table;
use unif2ace_model::lora::is_adapter;
use unif2ace_pipeline::{Pipeline, PipelineOptions};
use unif2ace_train::Result;
use unif2ace_weights::SafetensorsFile;

/// A folder with a transformer of two steps in `model`.
fn place() -> Place {
    let place = Place::new();
    place.train("base", 2, false, |_| {}).unwrap();
    place
}

/// Trains adapters beside the model.
fn adapt(place: &Place, name: &str, num_steps: i64, resume: bool, lora: &str) -> Result<()> {
    place.train(name, num_steps, resume, |recipe| {
        let folder = place.path("model").to_str().unwrap().to_owned();
        recipe["unified"].as_table_mut().unwrap().insert("init_from".into(), folder.into());
        recipe.insert("lora".into(), toml::from_str::<Table>(lora).unwrap().into());
    })
}

const LORA: &str = "rank = 2\nalpha = 8.0";

#[test]
fn adapters_alone_are_trained_and_saved_and_go_with_their_model() {
    let _alone = ALONE.lock();
    let place = place();
    let weights = fs::read(place.path("model/model.safetensors")).unwrap();
    adapt(&place, "whole", 4, false, LORA).unwrap();
    assert!(fs::read(place.path("model/model.safetensors")).unwrap() == weights, "the base stays as it is");
    let lora = place.path("model/lora.safetensors");
    let exported = fs::read(&lora).unwrap();
    let file = SafetensorsFile::open(&lora).unwrap();
    // Two blocks of six layers, of which each has two factors; B has left zero.
    assert_eq!(file.names().filter(|name| is_adapter(name)).count(), 24);
    for name in file.names().filter(|name| name.ends_with("lora_B.weight")) {
        assert!(file.load_f32(name).unwrap().iter().any(|&value| value != 0.0), "{name}");
    }
    assert_eq!((file.metadata()["rank"].as_str(), file.metadata()["base"].as_str()), ("2", "model"));
    let saved = place.path("whole/checkpoints/step-00000004");
    for name in ["weights", "first_moments", "second_moments", "ema"] {
        let file = SafetensorsFile::open(saved.join(format!("{name}.safetensors"))).unwrap();
        assert!(file.names().all(is_adapter) && file.names().count() == 24, "{name}");
    }

    // Two sessions.
    adapt(&place, "halves", 2, false, LORA).unwrap();
    adapt(&place, "halves", 4, true, LORA).unwrap();
    assert!(fs::read(&lora).unwrap() == exported, "a resumed run gives the same bytes");
    for name in ["weights", "first_moments", "second_moments", "ema"] {
        let read = |run: &str| fs::read(place.path(&format!("{run}/checkpoints/step-00000004/{name}.safetensors"))).unwrap();
        assert!(read("whole") == read("halves"), "{name}");
    }

    let error = adapt(&place, "halves", 6, true, "rank = 2\nalpha = 16.0").unwrap_err().to_string();
    assert!(error.contains("alpha = 8") && error.contains("says 16") && error.contains("hint: "), "{error}");

    let options = PipelineOptions { lora: Some(lora.clone()), ..PipelineOptions::default() };
    let pipeline = Pipeline::from_pretrained(place.path("model"), &options).unwrap();
    assert_eq!(pipeline.name, "model with lora");

    // Other base weights are another run.
    let mut other = weights;
    let last = other.len() - 1;
    other[last] ^= 1;
    fs::write(place.path("model/model.safetensors"), other).unwrap();
    let error = adapt(&place, "halves", 6, true, LORA).unwrap_err().to_string();
    assert!(error.contains("other base weights") && error.contains("hint: "), "{error}");
}

#[test]
fn sections_that_cannot_be_meant_are_refused() {
    let _alone = ALONE.lock();
    let place = place();
    let refused = |lora: &str, expected: &[&str]| {
        let error = adapt(&place, "refused", 2, false, lora).unwrap_err().to_string();
        assert!(expected.iter().all(|part| error.contains(part)), "{error}");
        assert!(!place.path("refused/checkpoints").exists());
    };
    refused(
        "rank = 2\nalpha = 8.0\ntargets = [\"q_prj\"]",
        &["`q_prj` in `targets` fits no linear layer", "did you mean `showo.model.layers.0.self_attn.q_proj`"],
    );
    refused("rank = 0\nalpha = 8.0", &["rank of at least 1", "found rank 0"]);
    refused("rank = 1\nalpha = -1.0", &["positive alpha"]);
    refused("rank = 1\nalpha = 1.0\nbeta = 1.0", &["`beta`"]);
    let error = place.train("none", 2, false, |recipe| {
        recipe.insert("lora".into(), toml::from_str::<Table>(LORA).unwrap().into());
    });
    assert!(error.unwrap_err().to_string().contains("needs `init_from`"));
    let error = place.train("sizes", 2, false, |recipe| {
        recipe["unified"]
            .as_table_mut()
            .unwrap()
            .insert("init_from".into(), place.path("model").to_str().unwrap().to_owned().into());
        recipe["unified"]["config"]["intermediate_size"] = 48.into();
    });
    let error = error.unwrap_err().to_string();
    assert!(error.contains("mlp.fc1.weight: expected shape [48, 32], found [64, 32]") && error.contains("hint: "), "{error}");
}
