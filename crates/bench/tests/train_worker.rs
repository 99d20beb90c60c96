//! A case is written and trained on: what the worker tells must be what a first step can be.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test may end by them

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;
use unif2ace_weights::SafetensorsFile;

const BENCH: &str = env!("CARGO_BIN_EXE_unif2ace-bench");

fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}

fn write_case(folder: &Path) {
    let sizes = ["--batch-size", "2", "--mmu-batch-size", "1", "--num-batches", "2", "--num-patches", "3"];
    let status = Command::new(BENCH)
        .current_dir(root())
        .args(["train-case", "recipes/debug/golden.toml"])
        .arg(folder)
        .args(sizes)
        .status();
    assert!(status.unwrap().success());
}

/// Replies to the lines of `requests`.
fn ask(folder: &Path, options: &[&str], requests: &str) -> Vec<Value> {
    let mut worker = Command::new(BENCH)
        .arg("train-worker")
        .arg(folder)
        .args(options)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    worker.stdin.take().unwrap().write_all(requests.as_bytes()).unwrap();
    let output = worker.wait_with_output().unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn number(reply: &Value, name: &str) -> f64 {
    reply[name].as_f64().unwrap_or_else(|| panic!("{name} in {reply}"))
}

#[test]
fn steps_of_a_case_are_steps_of_the_trainer() {
    let folder = tempfile::tempdir().unwrap();
    let case = folder.path().join("case");
    write_case(&case);
    let batch = SafetensorsFile::open(case.join("batch-1.safetensors")).unwrap();
    let masked = batch.load_i64("t2i.ids").unwrap().iter().filter(|&&id| id == 9802).count();
    assert_eq!(masked, batch.load_i64("t2i.targets").unwrap().len());

    let step = "{\"work\":\"step\"}\n";
    let requests =
        format!("{{\"work\":\"step\",\"norms\":true}}\n{{\"work\":\"parameters\"}}\n{step}{{\"work\":\"parameters\"}}\n");
    let trace = folder.path().join("trace.json");
    let first = ask(&case, &["--profile", trace.to_str().unwrap()], &requests);
    let again = ask(&case, &[], &requests);
    assert_eq!(first.len(), 5);
    let (one, two) = (&first[1], &first[3]);
    // Nothing is learnt: every code and every word is about as likely.
    assert!((number(&one["parts"], "mask") - 8192f64.ln()).abs() < 0.5, "{one}");
    assert!((number(&one["parts"], "mmu") - 1600f64.ln()).abs() < 0.5, "{one}");
    let norms = one["norms"].as_object().unwrap();
    let squares: f64 = norms.values().map(|norm| norm.as_f64().unwrap().powi(2)).sum();
    assert!((squares.sqrt() / number(one, "gradient_norm") - 1.0).abs() < 1e-6);
    assert!(norms.iter().any(|(name, norm)| name.ends_with("moe.mmu.fc1_weight") && norm.as_f64().unwrap() > 0.0));
    assert_ne!(first[2]["norm"], first[4]["norm"]);
    assert_eq!((&one["loss"], &two["loss"]), (&again[1]["loss"], &again[3]["loss"]));
    let trace = std::fs::read_to_string(trace).unwrap();
    assert!(["forward", "backward", "optimizer"].iter().all(|span| trace.contains(&format!("\"{span}\""))));
}

#[test]
fn a_wrong_recipe_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let output = Command::new(BENCH)
        .current_dir(root())
        .args(["train-case", "recipes/mini/vq.toml"])
        .arg(folder.path().join("case"))
        .output()
        .unwrap();
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("[unified]"));
    assert!(!folder.path().join("case").exists());
}
