//! Runs that can't go on: the disk is full while a checkpoint is saved, or the recipe's model is not the checkpoint's. What was saved stays.
#![cfg(unix)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)] // a test may end by them

mod common;

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use common::tiny_run::TinyRun;
use common::{names, text};
use toml::Table;

/// Checkpoints at 2 and 4 of 4 steps.
fn four_steps(recipe: &mut Table) {
    let optimizer = recipe["optimizer"].as_table_mut().unwrap();
    optimizer["num_steps"] = 4.into();
    optimizer["warmup_steps"] = 1.into();
    recipe["run"]["checkpoint_every"] = 2.into();
}

/// A run whose checkpoint of step 4 was never saved.
fn stopped_at_two(folder: &Path) -> TinyRun {
    let run = TinyRun::new(folder, four_steps);
    run.command(false).assert().success();
    fs::remove_dir_all(run.path("checkpoints/step-00000004")).unwrap();
    run
}

/// Goes on with the run in a shell that runs `prepare` before it and `after` behind it.
fn resumed_in_a_shell(run: &TinyRun, shell: &mut Command, prepare: &str, after: &str) -> Output {
    let script = format!("{prepare}\n\"$0\" \"$@\"; code=$?\n{after}\nexit $code");
    shell.args(["sh", "-c", &script]).arg(assert_cmd::cargo::cargo_bin("unif2ace"));
    shell.args(["train", "--quiet", text(&run.folder.join("recipe.toml")), "--resume"]).output().unwrap()
}

fn assert_says(output: &Output, parts: &[&str]) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    for part in parts {
        assert!(said.contains(part), "no {part:?} in {said}");
    }
}

#[test]
fn a_disk_that_refuses_a_checkpoint_ends_the_run_and_the_one_before_goes_on() {
    let [one, two] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let whole = TinyRun::new(one.path(), four_steps);
    whole.command(false).assert().success();
    let run = stopped_at_two(two.path());
    // A limit on the size of files acts where a full disk does, in `write`, and needs no rights. Metrics and the sample sheet are smaller,
    // the weights larger.
    let output = resumed_in_a_shell(&run, &mut Command::new("env"), "trap '' XFSZ; ulimit -f 1800", "");
    assert_says(&output, &["error: ", "step-00000004", "does not allow so large a file", "hint: "]);
    assert_eq!(names(&run.path("checkpoints")), ["step-00000002"], "nothing half-written");
    run.command(true).assert().success();
    assert_eq!(run.metrics(), whole.metrics());
    let weights = |run: &TinyRun| fs::read(run.path("checkpoints/step-00000004/weights.safetensors")).unwrap();
    assert!(weights(&run) == weights(&whole));
}

#[test]
fn a_full_disk_ends_the_run_and_the_checkpoint_before_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let run = stopped_at_two(folder.path());
    let used: u64 = ["weights", "first_moments", "second_moments", "ema"]
        .iter()
        .map(|name| fs::metadata(run.path(&format!("checkpoints/step-00000002/{name}.safetensors"))).unwrap().len())
        .sum();
    // A disk with room for one checkpoint and a half, seen by this shell and its children only.
    let [here, outside, left] = ["run", "outside", "left"].map(|name| folder.path().join(name).display().to_string());
    let prepare = format!(
        "mv '{here}' '{outside}' && mkdir '{here}' && mount -t tmpfs -o size={}k tmpfs '{here}' || exit 77\ncp -r '{outside}/.' '{here}' || exit 78",
        (used * 3 / 2) >> 10
    );
    let mut shell = Command::new("unshare");
    shell.args(["--user", "--map-root-user", "--mount"]);
    let output = resumed_in_a_shell(&run, &mut shell, &prepare, &format!("cp -r '{here}' '{left}'"));
    if !Path::new(&left).is_dir() {
        println!("no disk can be mounted here ({output:?}): the limit on the size of files stands for it");
        return;
    }
    assert_says(&output, &["error: ", "step-00000004", "No space left on device", "hint: free some space"]);
    assert_eq!(names(&Path::new(&left).join("checkpoints")), ["step-00000002"], "nothing half-written");
    // With room again it goes on from there.
    fs::remove_dir_all(&here).unwrap();
    fs::rename(&left, &here).unwrap();
    run.command(true).assert().success();
    assert!(run.path("checkpoints/step-00000004").is_dir());
}

#[test]
fn a_checkpoint_of_another_architecture_is_refused_with_the_names_that_differ() {
    let folder = tempfile::tempdir().unwrap();
    let run = stopped_at_two(folder.path());
    let path = run.folder.join("recipe.toml");
    let mut recipe: Table = fs::read_to_string(&path).unwrap().parse().unwrap();
    let config = recipe["unified"]["config"].as_table_mut().unwrap();
    config["intermediate_size"] = 96.into();
    config["num_hidden_layers"] = 1.into();
    fs::write(&path, toml::to_string(&recipe).unwrap()).unwrap();
    let output = run.command(true).output().unwrap();
    let parts = [
        "weights.safetensors does not fit the recipe's model",
        "showo.model.layers.0.mlp.fc1.weight: expected shape [96, 32], found [64, 32]",
        "unexpected showo.model.layers.1.",
        "hint: ",
    ];
    assert_says(&output, &parts);
    assert_eq!(names(&run.path("checkpoints")), ["step-00000002"]);
}
