//! Training on several devices of one process. On the CPU they are the same one, which is enough to see that nothing but the speed changes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test may end by them

mod common;

use common::tiny_run::TinyRun;
use common::{error_of, text};

/// What two ranks may differ by from one, of a loss of this size.
const TOLERANCE: f64 = 1e-5;

fn losses(run: &TinyRun) -> Vec<f64> {
    run.metrics().iter().filter_map(|line| line["loss"].as_f64()).collect()
}

#[test]
fn two_devices_give_the_losses_of_one_and_a_run_goes_on_with_another_number() {
    let folders = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let one = TinyRun::shareable(folders[0].path(), 10);
    one.command(false).assert().success();
    TinyRun::shareable(folders[1].path(), 5).command(false).args(["--num-devices", "2"]).assert().success();
    let both = TinyRun::shareable(folders[1].path(), 10);
    assert_eq!(losses(&both).len(), 5);
    both.command(true).assert().success();
    let (one, both) = (losses(&one), losses(&both));
    assert_eq!((one.len(), both.len()), (10, 10));
    assert!(one.iter().all(|loss| loss.is_finite() && *loss > 0.0), "{one:?}");
    for (step, (one, both)) in one.iter().zip(&both).enumerate() {
        assert!((one - both).abs() <= TOLERANCE * one.abs().max(1.0), "step {}: {one} on one device, {both} on two", step + 1);
    }
}

#[test]
fn rows_that_devices_cannot_share_and_devices_that_are_not_there_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let run = TinyRun::shareable(folder.path(), 1);
    let recipe = run.folder.join("recipe.toml");
    let refused = |args: &[&str]| {
        let error = error_of(&[&["train", text(&recipe), "--quiet"], args].concat());
        assert!(!run.path("metrics.jsonl").exists());
        error
    };
    let error = refused(&["--num-devices", "3"]);
    assert!(error.contains("rank mismatch") && error.contains('3'), "{error}");
    if cfg!(not(feature = "cuda")) {
        let error = refused(&["--device", "cuda"]);
        assert!(error.contains("--features cuda"), "{error}");
    }
}
