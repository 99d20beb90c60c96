//! A run that is killed and continued by a fresh process is the run that was left alone.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test may end by them

mod common;

use std::fs;
use std::process::{Command, Stdio};
use std::time::Duration;

use common::tiny_run::TinyRun;
use common::{names, text};
use toml::Table;

/// 100 steps with checkpoints at 50 and 100; the lines of metrics are means over 3 steps, so that one of them spans the checkpoint.
fn hundred_steps(recipe: &mut Table, precision: &str) {
    recipe["optimizer"]["num_steps"] = 100.into();
    let run = recipe["run"].as_table_mut().unwrap();
    run.insert("precision".into(), precision.into());
    for (name, value) in [("log_every", 3), ("checkpoint_every", 50), ("evaluate_every", 40)] {
        run.insert(name.into(), value.into());
    }
}

#[test]
fn a_hundred_steps_are_fifty_and_fifty_in_a_fresh_process() {
    halves_are_the_whole("f32");
}

#[test]
fn a_hundred_steps_in_bf16_are_fifty_and_fifty_too() {
    halves_are_the_whole("bf16");
}

fn halves_are_the_whole(precision: &str) {
    let [one, two] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let whole = TinyRun::new(one.path(), |recipe| hundred_steps(recipe, precision));
    whole.command(false).assert().success();

    let halves = TinyRun::new(two.path(), |recipe| hundred_steps(recipe, precision));
    let mut killed = Command::new(assert_cmd::cargo::cargo_bin("unif2ace"))
        .args(["train", "--quiet", text(&halves.folder.join("recipe.toml"))])
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let is_past_50 = || {
        let logged = halves.metrics().last().and_then(|line| line["step"].as_u64()) > Some(53);
        logged && halves.path("checkpoints/step-00000050").is_dir()
    };
    while !is_past_50() {
        assert!(killed.try_wait().unwrap().is_none(), "the run ended before it was killed");
        std::thread::sleep(Duration::from_millis(2));
    }
    killed.kill().unwrap();
    killed.wait().unwrap();
    assert_eq!(names(&halves.path("checkpoints")), ["step-00000050"]);
    halves.command(true).assert().success();
    assert_same(&whole, &halves);

    // A fault of the disk: the run says so, goes back, and comes to the same end again.
    let damaged = halves.path("checkpoints/step-00000100/ema.safetensors");
    let mut bytes = fs::read(&damaged).unwrap();
    bytes[5000] ^= 1;
    fs::write(&damaged, bytes).unwrap();
    let said = String::from_utf8(halves.command(true).output().unwrap().stderr).unwrap();
    for part in
        ["WARN", "step-00000100 is damaged", "ema.safetensors: expected SHA-256 ", "going back to the checkpoint of step 50"]
    {
        assert!(said.contains(part), "no {part:?} in {said}");
    }
    assert_same(&whole, &halves);
}

/// Asserts that metrics, checkpoint and exported model are equal.
fn assert_same(whole: &TinyRun, halves: &TinyRun) {
    assert_eq!(halves.metrics(), whole.metrics());
    assert_eq!(whole.metrics().len(), 34 + 3);
    for name in ["weights", "first_moments", "second_moments", "ema"] {
        let read = |run: &TinyRun| fs::read(run.path(&format!("checkpoints/step-00000100/{name}.safetensors"))).unwrap();
        assert!(read(whole) == read(halves), "{name} differ");
    }
    for name in ["model.safetensors", "config.json"] {
        let read = |run: &TinyRun| fs::read(run.folder.join("model").join(name)).unwrap();
        assert!(read(whole) == read(halves), "the exported {name} differs");
    }
}

#[test]
fn a_loss_that_is_not_a_number_stops_the_run_and_leaves_the_names_of_its_samples() {
    let folder = tempfile::tempdir().unwrap();
    let run = TinyRun::new(folder.path(), |recipe| recipe["optimizer"]["learning_rate"] = 1e30.into());
    let output = run.command(false).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    for part in ["error: step ", "nonfinite-step-", "hint: "] {
        assert!(said.contains(part), "no {part:?} in {said}");
    }
    let name = names(&run.path("")).into_iter().find(|name| name.starts_with("nonfinite-step-")).unwrap();
    let report: serde_json::Value = serde_json::from_slice(&fs::read(run.path(&name)).unwrap()).unwrap();
    let samples = report["samples"].as_array().unwrap();
    // Three rows of generation, two of understanding.
    assert_eq!(samples.len(), 5, "{report}");
    assert!(samples.iter().all(|sample| sample.as_str().unwrap().starts_with("test0")), "{report}");
}
