//! Runs as pictures, and views that need a terminal.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test may end by them

mod common;

use std::fs;
use std::path::Path;

use common::tiny_run::TinyRun;
use common::{error_of, names, output_of, run, text};

/// A run folder of ten lines of metrics, and an evaluation.
fn log(folder: &Path, metric: &str) {
    fs::create_dir_all(folder).unwrap();
    let line = |step: u32| format!("{{\"step\":{step},\"loss\":{},\"{metric}\":0.5,\"seconds\":1}}\n", 3.0 / f64::from(step));
    let text: String = (1..=10).map(line).collect();
    fs::write(folder.join("metrics.jsonl"), text + "{\"step\":10,\"held_out_loss\":0.4}\n").unwrap();
}

#[test]
fn runs_become_a_picture() {
    let folder = tempfile::tempdir().unwrap();
    let place = |name: &str| folder.path().join(name);
    log(&place("first"), "part");
    log(&place("second"), "psnr");
    let picture = place("curves.png");
    let arguments = ["train", "plot", text(&place("first")), text(&place("second")), "-o", text(&picture)].map(str::to_owned);
    let draw = |more: &[&str]| {
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).chain(more.iter().copied()).collect();
        output_of(&arguments);
        unif2ace_image::load_rgb(&picture, unif2ace_image::DecodeLimits::default()).unwrap()
    };
    // Panels for loss, part and psnr: held-out measures have no panel of their own.
    let (all, chosen) = (draw(&[]), draw(&["--metric", "loss", "--smooth", "0.9"]));
    assert!(all.width() * all.height() > chosen.width() * chosen.height());
    assert!(all.data() != chosen.data());
}

#[test]
fn what_cannot_be_drawn_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let place = |name: &str| folder.path().join(name);
    log(&place("run"), "part");
    fs::create_dir(place("empty")).unwrap();
    let (runs, empty, picture) = (place("run"), place("empty"), place("curves.png"));
    let [runs, empty, picture] = [&runs, &empty, &picture].map(|path| text(path));
    let error = error_of(&["train", "plot", runs, empty, "-o", picture]);
    assert!(error.contains("empty: there is no metrics.jsonl"), "{error}");
    let error = error_of(&["train", "plot", runs, "--metric", "los", "-o", picture]);
    assert!(error.contains("no run has `los`; known are loss, part, seconds, held_out_loss"), "{error}");
    assert!(error.contains("did you mean `loss`?"), "{error}");
    let error = error_of(&["train", "plot", runs, "--smooth", "1", "-o", picture]);
    assert!(error.contains("smooth: expected 0 or more and less than 1, found 1"), "{error}");
    assert!(error_of(&["train", "plot", runs, "-o", text(&place("curves.jpg"))]).contains(".png"));
    error_of(&["train", "plot", runs, "-o", text(&place("nowhere/curves.png"))]);
    assert_eq!(names(folder.path()), ["empty", "run"], "nothing is written");

    let no_recipe = run(&["train"]);
    assert_eq!(no_recipe.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&no_recipe.stderr).contains("<RECIPE>"));
}

#[test]
fn without_a_terminal_the_dashboard_is_plain_lines() {
    let folder = tempfile::tempdir().unwrap();
    let tiny = TinyRun::new(folder.path(), |recipe| recipe["optimizer"]["num_steps"] = 2.into());
    let output = common::unif2ace().args(["train", text(&tiny.folder.join("recipe.toml")), "--dashboard"]).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{said}");
    assert!(said.contains("--dashboard needs a terminal: plain lines instead"), "{said}");
    assert!(said.contains("step 2/2 eta 0:00:00  loss "), "{said}");
    assert!(!said.contains('\u{1b}'), "plain lines have no escape sequences: {said:?}");
    assert!(output.stdout.is_empty());
    let metrics = fs::read_to_string(tiny.path("metrics.jsonl")).unwrap();
    for name in ["images_per_second", "expert_use_min_t2i", "expert_use_max_mmu", "sequence_expert_use_max_mmu"] {
        assert!(metrics.contains(name), "no {name} in {metrics}");
    }
}
