//! One run in several stages: each trains what it says, and the run goes on over the border to the same bits.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test may end by them

mod common;

use std::fs;
use std::path::Path;

use common::place::{ALONE, Place};
use serde_json::{Map, Value};
use toml::Table;
use unif2ace_train::Recipe;
use unif2ace_weights::SafetensorsFile;

/// Understanding alone with a frozen embedding, then both tasks.
fn stages(recipe: &mut Table, steps: &[(&str, i64)]) {
    recipe["optimizer"].as_table_mut().unwrap().remove("num_steps");
    let stage = |&(name, num_steps): &(&str, i64)| {
        let text = match name {
            "alignment" => "unified.t2i_coeff = 0.0\nunified.mmu_batch_size = 3\ntrainable.freeze = ['embed_tokens']",
            _ => "optimizer.learning_rate = 1e-3\noptimizer.warmup_steps = 2",
        };
        let mut stage: Table = toml::from_str(text).unwrap();
        stage.insert("name".into(), name.into());
        stage.insert("num_steps".into(), num_steps.into());
        toml::Value::from(stage)
    };
    recipe.insert("stage".into(), steps.iter().map(stage).collect::<Vec<_>>().into());
}

fn metrics(place: &Place, run: &str) -> Vec<Map<String, Value>> {
    let text = fs::read_to_string(place.path(&format!("{run}/metrics.jsonl"))).unwrap();
    let mut lines: Vec<Map<String, Value>> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    for line in &mut lines {
        line.retain(|name, _| name != "seconds" && !name.ends_with("_per_second") && !name.ends_with("resident_bytes"));
    }
    lines
}

#[test]
fn stages_follow_one_another_in_one_run_and_resume_over_the_border() {
    let _alone = ALONE.lock();
    let place = Place::new();
    place.train("whole", 0, false, |recipe| stages(recipe, &[("alignment", 3), ("instruction", 4)])).unwrap();
    let lines = metrics(&place, "whole");
    let trained: Vec<&Map<String, Value>> = lines.iter().filter(|line| line.contains_key("loss")).collect();
    let steps: Vec<u64> = trained.iter().map(|line| line["step"].as_u64().unwrap()).collect();
    assert_eq!(steps, [1, 2, 3, 4, 5, 6, 7]);
    let rates: Vec<f64> = trained.iter().map(|line| line["learning_rate"].as_f64().unwrap()).collect();
    // Each stage warms up by itself; its first step has the rate 0, as the reference's.
    assert_eq!(rates, [0.0, 2e-3, 2e-3, 0.0, 5e-4, 1e-3, 1e-3]);
    for (index, line) in trained.iter().enumerate() {
        assert_eq!(line.contains_key("mask"), index >= 3, "generation is trained in the second stage: {line:?}");
    }
    let embedding = |step: u64| {
        let file = place.path(&format!("whole/checkpoints/step-{step:08}/weights.safetensors"));
        SafetensorsFile::open(file).unwrap().load_f32("showo.model.embed_tokens.weight").unwrap()
    };
    assert!(embedding(6) != embedding(7), "the second stage trains the embedding");

    // A run that ends inside the first stage, one that ends at its end, and one inside the second.
    let exported = place.read("model/model.safetensors");
    for (name, first) in
        [("a", &[("alignment", 2)][..]), ("b", &[("alignment", 3)]), ("c", &[("alignment", 3), ("instruction", 2)])]
    {
        place.train(name, 0, false, |recipe| stages(recipe, first)).unwrap();
        place.train(name, 0, true, |recipe| stages(recipe, &[("alignment", 3), ("instruction", 4)])).unwrap();
        assert!(place.read("model/model.safetensors") == exported, "{name}: the exported weights differ");
        for file in ["weights", "first_moments", "second_moments", "ema"] {
            let read = |run: &str| place.read(&format!("{run}/checkpoints/step-00000007/{file}.safetensors"));
            assert!(read(name) == read("whole"), "{name}: {file}");
        }
        let lines_with_loss =
            |run: &str| -> Vec<_> { metrics(&place, run).into_iter().filter(|line| line.contains_key("loss")).collect() };
        assert_eq!(lines_with_loss(name), lines_with_loss("whole"), "{name}");
    }
}

#[test]
fn the_recipes_of_the_full_model_are_read() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../recipes/base");
    let read = |name: &str| Recipe::read(&folder.join(name)).unwrap();
    let names = |recipe: &Recipe| recipe.stages.iter().map(|stage| stage.name.clone()).collect::<Vec<_>>();
    let (show_o, unif2ace, lora) = (read("show-o.toml"), read("unif2ace.toml"), read("lora.toml"));
    assert_eq!(names(&show_o), ["class names", "captions", "quality"]);
    assert_eq!(names(&unif2ace), ["alignment", "instruction"]);
    assert_eq!(lora.lora.unwrap().rank, 16);
    for recipe in [&show_o, &unif2ace] {
        for stage in &recipe.stages {
            let config = &stage.recipe.unified.as_ref().unwrap().config;
            config.check().unwrap();
            let (total, _) = config.num_parameters(unif2ace_model::moe::Task::T2i);
            assert!((1.7e9..1.9e9).contains(&(total as f64)), "{total} parameters");
        }
    }
    assert_eq!(show_o.last_step(), 1_550_000);
}

#[test]
fn what_a_later_stage_gets_wrong_is_told_before_the_first() {
    let place = Place::new();
    let error = place.train("wrong", 0, false, |recipe| {
        stages(recipe, &[("alignment", 2), ("instruction", 2)]);
        let freeze: Table = toml::from_str("freeze = ['embed_token']").unwrap();
        recipe["stage"][1].as_table_mut().unwrap().insert("trainable".into(), freeze.into());
    });
    let error = error.unwrap_err().to_string();
    assert!(error.contains("`embed_token` in `freeze`") && error.contains("`showo.model.embed_tokens.weight`"), "{error}");
    assert!(!place.path("wrong").exists(), "nothing is trained");
    for (section, expected) in [
        ("data.path = 'no-such-set'", "no-such-set"),
        ("unified.config.hidden_size = 64", "stage `instruction`: [unified.config]"),
    ] {
        let error = place.train("wrong", 0, false, |recipe| {
            stages(recipe, &[("alignment", 2), ("instruction", 2)]);
            let changed: Table = toml::from_str(section).unwrap();
            recipe["stage"][1].as_table_mut().unwrap().extend(changed);
        });
        let error = error.unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
        assert!(!place.path("wrong").exists(), "nothing is trained");
    }
}
