//! Training and generating as a GPU does it, with the portable operations on the CPU: no GPU is needed to see that losses and logits are the CPU kernels', in f32 and
//! bf16, with and without recomputation. What a GPU's own arithmetic does is another matter.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test may end by them

mod common;

use std::path::Path;
use std::sync::{Mutex, PoisonError};

use common::root;
use common::tiny_run::TinyRun;
use serde_json::Value;
use toml::Table;
use unif2ace_diffusion::MASKED;
use unif2ace_ops::force_portable;
use unif2ace_pipeline::{DeviceName, GridRequest, Pipeline, PipelineOptions, WeightFormat, open_device};
use unif2ace_train::{Outcome, Recipe, Session, run_on};

/// Which operations are taken, and in which precision, holds for the whole process.
static ALONE: Mutex<()> = Mutex::new(());

/// Trains to step `num_steps` in a folder, with the portable operations or the kernels: losses, gradient norms and held-out losses so far.
fn train(folder: &Path, portable: bool, num_steps: i64, resume: bool, change: impl FnOnce(&mut Table)) -> Vec<f64> {
    let run = TinyRun::new(folder, |recipe| {
        recipe["optimizer"]["num_steps"] = num_steps.into();
        recipe["optimizer"]["schedule"] = "constant".into();
        recipe["run"].as_table_mut().unwrap().insert("evaluate_every".into(), 2.into());
        change(recipe);
    });
    let recipe = Recipe::read(&run.folder.join("recipe.toml")).unwrap();
    force_portable(portable);
    let session = Session { quiet: true, resume, ..Session::default() };
    let outcome = run_on(&recipe, session, vec![open_device(DeviceName::Cpu).unwrap()]);
    force_portable(false);
    assert_eq!(outcome.unwrap(), Outcome::Finished);
    let number = |line: &Value| ["loss", "grad_norm", "held_out_mask"].map(|name| line[name].as_f64());
    run.metrics().iter().flat_map(number).flatten().collect()
}

/// Four steps, in a precision and a way to recompute.
fn numbers(portable: bool, precision: &str, recompute: &str) -> Vec<f64> {
    let folder = tempfile::tempdir().unwrap();
    let found = train(folder.path(), portable, 4, false, |recipe| {
        recipe["run"].as_table_mut().unwrap().insert("precision".into(), precision.into());
        recipe["unified"].as_table_mut().unwrap().insert("recompute".into(), recompute.into());
    });
    assert_eq!(found.len(), 10, "{found:?}");
    found
}

fn close(what: &str, found: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (found, expected) in found.iter().zip(expected) {
        assert!((found - expected).abs() <= tolerance * expected.abs(), "{what}: {found} and {expected}");
    }
}

#[test]
fn portable_operations_train_as_the_kernels_do() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let [kernels, kernels_bf16] = ["f32", "bf16"].map(|precision| numbers(false, precision, "none"));
    let [portable, portable_bf16] = ["f32", "bf16"].map(|precision| numbers(true, precision, "none"));
    close("f32", &portable, &kernels, 1e-3);
    // Rounding of factors, in a gradient of many products: as far apart as the kernels' own two precisions.
    close("bf16", &portable_bf16, &kernels_bf16, 2e-2);
    assert_ne!(portable_bf16, portable, "nothing is rounded: the test is blind");
    for (precision, whole) in [("f32", portable), ("bf16", portable_bf16)] {
        close(&format!("recomputed in {precision}"), &numbers(true, precision, "blocks"), &whole, 1e-6);
    }
}

#[test]
fn moments_where_the_weights_are_are_those_of_the_host_and_go_on_there() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let folders = [(); 3].map(|()| tempfile::tempdir().unwrap());
    let accumulate = |recipe: &mut Table| {
        let optimizer = recipe["optimizer"].as_table_mut().unwrap();
        optimizer.insert("batch_size".into(), 4.into());
        optimizer.insert("accumulation_steps".into(), 2.into());
    };
    let there = train(folders[0].path(), true, 4, false, accumulate);
    let host = train(folders[1].path(), true, 4, false, |recipe| {
        accumulate(recipe);
        recipe["optimizer"].as_table_mut().unwrap().insert("on_host".into(), true.into());
    });
    close("on the host", &host, &there, 1e-5);
    // Two steps there, one with the kernels, which keep everything on the host, and one there again.
    train(folders[2].path(), true, 2, false, accumulate);
    train(folders[2].path(), false, 3, true, accumulate);
    let both = train(folders[2].path(), true, 4, true, accumulate);
    // A run evaluates at its end too, so the one in three parts has a held-out loss more; steps 3 and 4 come after the moments moved.
    let steps = |folder: &tempfile::TempDir| -> Vec<f64> {
        let lines = std::fs::read_to_string(folder.path().join("run/metrics.jsonl")).unwrap();
        let lines = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        lines.flat_map(|line| ["loss", "grad_norm"].map(|name| line[name].as_f64())).flatten().collect()
    };
    assert_eq!((steps(&folders[0]).len(), both.len()), (8, 11));
    close("a run that goes on elsewhere", &steps(&folders[2]), &steps(&folders[0]), 1e-4);
}

#[test]
fn portable_operations_in_bf16_give_nearly_the_logits_of_f32() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let logits = |portable: bool, weights: WeightFormat| -> Vec<f32> {
        force_portable(portable);
        let options = PipelineOptions { weights: Some(weights), device: DeviceName::Cpu, ..PipelineOptions::default() };
        let pipeline = Pipeline::from_pretrained(root().join("models/mini"), &options);
        let found = pipeline.and_then(|pipeline| {
            let grid = vec![MASKED; pipeline.config().num_vq_tokens];
            let request = GridRequest { grid: &grid, wanted: &[0, 7, 40], masked_fraction: 1.0 };
            pipeline.denoiser(&["an old man with a grey beard"], 2.0)?.logits(&[request])
        });
        force_portable(false);
        found.unwrap().concat()
    };
    let exact = logits(false, WeightFormat::F32);
    let scale = exact.iter().fold(0.0f32, |most, value| most.max(value.abs()));
    let off = |found: &[f32]| found.iter().zip(&exact).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max) / scale;
    let (in_f32, in_bf16) = (off(&logits(true, WeightFormat::F32)), off(&logits(true, WeightFormat::Bf16)));
    assert!(in_f32 < 1e-4, "{in_f32} of {scale}");
    assert!((1e-5..5e-2).contains(&in_bf16), "{in_bf16} of {scale}");
    // 8 bits are the kernels' alone.
    force_portable(true);
    let options = PipelineOptions { weights: Some(WeightFormat::Int8), device: DeviceName::Cpu, ..PipelineOptions::default() };
    let refused = Pipeline::from_pretrained(root().join("models/mini"), &options).map(drop);
    force_portable(false);
    assert!(refused.unwrap_err().to_string().contains("--device cpu"));
}
