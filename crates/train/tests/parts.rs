//! The shipped recipes, shrunk to seconds, on the face sample in the repository.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test may end by them

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use toml::{Table, Value};
use unif2ace_pipeline::{GenerateOptions, Pipeline, PipelineOptions};
use unif2ace_train::{Outcome, Recipe, Session, run};

const VOCABULARY: i64 = 300;

/// First weights come from the device's one generator, so that runs beside each other would change each other's.
static ALONE: Mutex<()> = Mutex::new(());

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// A face set with the sample as all three splits.
fn face_set(folder: &Path) -> PathBuf {
    let faces = folder.join("faces");
    for split in ["train", "val", "test"] {
        fs::create_dir_all(faces.join(split)).unwrap();
        let shard = root().join("tests/fixtures/faces/test/test-00000.tar");
        fs::copy(shard, faces.join(split).join(format!("{split}-00000.tar"))).unwrap();
    }
    faces
}

/// Sets a value by its path in the recipe, which must have it already.
fn set(recipe: &mut Table, path: &str, value: impl Into<Value>) {
    let (tables, name) = path.rsplit_once('.').unwrap();
    let table = tables.split('.').fold(recipe, |table, name| table[name].as_table_mut().unwrap());
    assert!(table.contains_key(name), "the recipe has no {path}");
    table[name] = value.into();
}

/// A recipe of the small model that takes seconds.
fn shrunk(part: &str, folder: &Path, num_steps: i64) -> Table {
    let text = fs::read_to_string(root().join(format!("recipes/mini/{part}.toml"))).unwrap();
    let mut recipe: Table = toml::from_str(&text).unwrap();
    let place = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    set(&mut recipe, "run.output", place(&format!("run-{part}")));
    set(&mut recipe, "run.export", place("model"));
    set(&mut recipe, "data.path", place("faces"));
    if part == "tokenizer" {
        set(&mut recipe, "tokenizer.vocab_size", VOCABULARY);
        return recipe;
    }
    set(&mut recipe, "run.log_every", 1);
    set(&mut recipe, "run.checkpoint_every", 2);
    set(&mut recipe, "run.evaluate_every", 2);
    set(&mut recipe, "optimizer.num_steps", num_steps);
    set(&mut recipe, "optimizer.batch_size", 2);
    set(&mut recipe, "optimizer.schedule", "constant");
    for name in ["decay_ratio", "min_lr_ratio"] {
        recipe["optimizer"].as_table_mut().unwrap().remove(name);
    }
    set(&mut recipe, "optimizer.warmup_steps", 1);
    let tower = |recipe: &mut Table, at: &str| {
        for (name, value) in [("hidden_size", 48), ("intermediate_size", 64), ("num_hidden_layers", 1)] {
            set(recipe, &format!("{at}.{name}"), value);
        }
    };
    match part {
        "vq" => {
            for (name, value) in [("ch", 32), ("enc_transformer_blocks", 1), ("dec_transformer_blocks", 1)] {
                set(&mut recipe, &format!("vq.config.{name}"), value);
            }
        }
        "face" => tower(&mut recipe, "face.vision_config"),
        "clip" => {
            tower(&mut recipe, "clip.config.vision_config");
            tower(&mut recipe, "clip.config.text_config");
            set(&mut recipe, "clip.init_vision_from", place("model/face.safetensors"));
            set(&mut recipe, "clip.tokenizer", place("model/tokenizer.json"));
            set(&mut recipe, "clip.config.text_config.vocab_size", VOCABULARY);
            set(&mut recipe, "clip.config.text_config.eos_token_id", VOCABULARY - 1);
            set(&mut recipe, "clip.config.text_config.max_position_embeddings", 320);
        }
        _ => {
            let sizes = [
                ("vocab_size", VOCABULARY + 10 + 8192 + 1),
                ("llm_vocab_size", VOCABULARY),
                ("eot_token_id", VOCABULARY - 1),
                ("hidden_size", 32),
                ("num_hidden_layers", 1),
                ("intermediate_size", 32),
                ("max_seq_length", 320),
                ("moe.routed_intermediate_size", 8),
                ("moe.clip_dim", 48),
                ("moe.feature_token_dim", 16),
            ];
            for (name, value) in sizes {
                set(&mut recipe, &format!("unified.config.{name}"), value);
            }
            set(&mut recipe, "unified.mmu_batch_size", 1);
            set(&mut recipe, "unified.questions_per_row", 2);
        }
    }
    recipe
}

/// Writes the recipe and trains it.
fn train(folder: &Path, recipe: &Table, resume: bool) {
    let path = folder.join("recipe.toml");
    fs::write(&path, toml::to_string(recipe).unwrap()).unwrap();
    let outcome = run(&Recipe::read(&path).unwrap(), Session { resume, quiet: true, ..Session::default() }).unwrap();
    assert_eq!(outcome, Outcome::Finished);
}

/// The number `name` of each line of metrics that has one.
fn metric(folder: &Path, part: &str, name: &str) -> Vec<f64> {
    let text = fs::read_to_string(folder.join(format!("run-{part}/metrics.jsonl"))).unwrap();
    text.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()[name].as_f64()).collect()
}

#[test]
fn every_shipped_recipe_reads_and_trains_the_shipped_sizes() {
    let mut unified = Vec::new();
    for entry in fs::read_dir(root().join("recipes/mini")).unwrap() {
        let recipe = Recipe::read(&entry.unwrap().path()).unwrap();
        unified.extend(recipe.unified.map(|unified| unified.config));
    }
    assert!(unified.len() > 1);
    // The stages of the transformer continue each other, so they must be of one size.
    assert!(unified.windows(2).all(|pair| pair[0] == pair[1]));
}

#[test]
fn every_part_trains_and_together_they_are_a_model() {
    let _alone = ALONE.lock();
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    face_set(folder);
    for part in ["vq", "tokenizer", "face", "clip", "unified"] {
        train(folder, &shrunk(part, folder, 3), false);
        if part != "tokenizer" {
            assert_eq!(metric(folder, part, "loss").len(), 3, "{part}");
            assert!(metric(folder, part, "grad_norm").iter().all(|norm| *norm > 0.0), "{part}");
        }
    }
    for name in ["run-vq/sheet-00000003.png", "run-unified/sheet-00000003.png", "run-unified/sheet-00000003.txt"] {
        assert!(folder.join(name).is_file(), "{name}");
    }
    let pipeline = Pipeline::from_pretrained(folder.join("model"), &PipelineOptions::default()).unwrap();
    let options = GenerateOptions { prompt: "a man".into(), num_inference_steps: 1, ..GenerateOptions::default() };
    let images = pipeline.generate(&options, &mut |_| true).unwrap();
    assert_eq!((images[0].width(), images[0].height()), (128, 128));
    pipeline.caption(&images[0], &Default::default(), &mut |_| true).unwrap();
}

#[test]
fn a_run_in_two_sessions_is_the_run_in_one() {
    let _alone = ALONE.lock();
    let [whole, halves] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    for folder in [whole.path(), halves.path()] {
        face_set(folder);
        for part in ["vq", "tokenizer"] {
            train(folder, &shrunk(part, folder, 1), false);
        }
    }
    for part in ["face", "unified"] {
        train(whole.path(), &shrunk(part, whole.path(), 4), false);
        train(halves.path(), &shrunk(part, halves.path(), 2), false);
        train(halves.path(), &shrunk(part, halves.path(), 4), true);
        assert_eq!(metric(whole.path(), part, "loss"), metric(halves.path(), part, "loss"), "{part}");
        let file = if part == "face" { "face" } else { "model" };
        let exported = |folder: &Path| fs::read(folder.join(format!("model/{file}.safetensors"))).unwrap();
        assert!(exported(whole.path()) == exported(halves.path()), "the weights of {part} differ");
    }
}

#[test]
fn the_face_network_in_two_passes_is_that_in_one() {
    let _alone = ALONE.lock();
    let [one, two] = [1, 2].map(|passes| {
        let folder = tempfile::tempdir().unwrap();
        face_set(folder.path());
        let mut recipe = shrunk("face", folder.path(), 3);
        recipe["optimizer"].as_table_mut().unwrap().insert("accumulation_steps".into(), Value::Integer(passes));
        train(folder.path(), &recipe, false);
        ["loss", "cross_entropy", "grad_norm"].map(|name| metric(folder.path(), "face", name)).concat()
    });
    assert_eq!((one.len(), two.len()), (9, 9));
    for (one, two) in one.iter().zip(&two) {
        assert!((one - two).abs() <= 1e-5 * one.abs().max(1.0), "{one} in one pass, {two} in two");
    }
}

#[test]
fn the_decoder_alone_learns_and_the_codes_stay() {
    let _alone = ALONE.lock();
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    face_set(folder);
    let weights = |step: u64| -> BTreeMap<String, Vec<u8>> {
        let file = folder.join(format!("run-vq/checkpoints/step-{step:08}/weights.safetensors"));
        let bytes = fs::read(file).unwrap();
        let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        tensors.iter().map(|(name, tensor)| (name.to_owned(), tensor.data().to_vec())).collect()
    };
    train(folder, &shrunk("vq", folder, 2), false);
    let before = weights(2);
    let mut recipe = shrunk("vq", folder, 4);
    recipe["vq"].as_table_mut().unwrap().insert("decoder_only".into(), true.into());
    train(folder, &recipe, true);
    for ((name, before), (same, after)) in before.iter().zip(&weights(4)) {
        assert_eq!(name, same);
        assert_eq!(before == after, name.starts_with("encoder."), "{name}");
    }
}

#[test]
fn a_run_that_is_not_this_one_is_refused() {
    let _alone = ALONE.lock();
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    face_set(folder);
    train(folder, &shrunk("face", folder, 1), false);
    let path = folder.join("recipe.toml");
    let error = run(&Recipe::read(&path).unwrap(), Session { quiet: true, ..Session::default() }).unwrap_err().to_string();
    assert!(error.contains("run of 1 steps already") && error.contains("--resume"), "{error}");
    let mut other = shrunk("face", folder, 2);
    set(&mut other, "run.seed", 99);
    fs::write(&path, toml::to_string(&other).unwrap()).unwrap();
    let error =
        run(&Recipe::read(&path).unwrap(), Session { resume: true, quiet: true, ..Session::default() }).unwrap_err().to_string();
    assert!(error.contains("seed 2, the recipe says 99"), "{error}");
    let mut other = shrunk("face", folder, 2);
    set(&mut other, "face.vision_config.intermediate_size", 96);
    fs::write(&path, toml::to_string(&other).unwrap()).unwrap();
    let error =
        run(&Recipe::read(&path).unwrap(), Session { resume: true, quiet: true, ..Session::default() }).unwrap_err().to_string();
    assert!(error.contains("fc1") || error.contains("mlp"), "{error}");
}
