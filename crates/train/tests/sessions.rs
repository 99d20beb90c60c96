//! The loop around a toy: sessions that are interrupted, steps that are not finite, the best checkpoints.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test may end by them

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::{Net, names};
use serde_json::Value;
use unif2ace_train::checkpoint::Better;
use unif2ace_train::params::parameters;
use unif2ace_train::trainer::{Objective, StepLoss, train};
use unif2ace_train::{Outcome, Recipe, Result, Session, TrainError};

/// Pulls the weights to the number of the step; at some steps the loss or its gradient is not a number.
#[derive(Default)]
struct Toy {
    loss_breaks_at: Vec<u64>,
    gradient_breaks_at: Vec<u64>,
    /// The process ends here.
    dies_at: Option<u64>,
}

impl Objective for Toy {
    type Model = Net;

    fn loss(&mut self, model: &Net, step: u64) -> Result<StepLoss> {
        if self.dies_at == Some(step) {
            return Err(TrainError::Data("killed".into()));
        }
        let broken = self.loss_breaks_at.contains(&step);
        let off = (model.weight.val().sub_scalar(step as f32 / 10.0)).powi_scalar(2).mean();
        let mut total = off + model.bias.val().powi_scalar(2).mean();
        if broken {
            total = total.mul_scalar(f32::NAN);
        }
        if self.gradient_breaks_at.contains(&step) {
            // 0, with the slope of a root at 0.
            total = total + model.weight.val().mul_scalar(0.0).sqrt().sum();
        }
        let part = if broken { f64::NEG_INFINITY } else { 1.0 / (step + 3) as f64 };
        Ok(StepLoss { total, parts: vec![("part", part)], num_tokens: 2, num_images: 0, num_broken: 0, experts: Vec::new() })
    }

    fn sample_names(&self, step: u64) -> Vec<String> {
        vec![format!("a{step}"), format!("b{step}")]
    }

    fn evaluate(&mut self, _model: &Net, step: u64, _folder: &Path) -> Result<Vec<(String, f64)>> {
        Ok(vec![("distance".into(), (step as f64 - 4.0).abs())])
    }
}

struct Run {
    folder: tempfile::TempDir,
    recipe: Recipe,
}

impl Run {
    fn new(num_steps: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let mut recipe = Recipe::read(&root.join("recipes/mini/face.toml")).unwrap();
        recipe.run.output = folder.path().join("run");
        recipe.run.log_every = 3;
        recipe.run.evaluate_every = 0;
        recipe.run.checkpoint_every = 5;
        let optimizer = recipe.optimizer.as_mut().unwrap();
        optimizer.num_steps = num_steps;
        optimizer.ema_decay = 0.9;
        Self { folder, recipe }
    }

    fn train(&self, mut toy: Toy, resume: bool) -> Result<Net> {
        let (net, outcome) =
            train(&self.recipe, &mut toy, Net::new(2, 0.5), Session { resume, quiet: true, ..Session::default() })?;
        assert_eq!(outcome, Outcome::Finished);
        Ok(net)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join("run").join(name)
    }

    /// Lines of the metrics without what the clock says.
    fn metrics(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.path("metrics.jsonl")).unwrap();
        let mut lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        for line in &mut lines {
            let line = line.as_object_mut().unwrap();
            for timed in ["seconds", "tokens_per_second", "resident_bytes", "peak_resident_bytes"] {
                line.shift_remove(timed);
            }
        }
        lines
    }

    fn report(&self, step: u64) -> Value {
        serde_json::from_slice(&fs::read(self.path(&format!("nonfinite-step-{step}.json"))).unwrap()).unwrap()
    }
}

#[test]
fn a_run_that_died_between_checkpoints_goes_on_to_the_same_bits() {
    let whole = Run::new(20);
    let expected = whole.train(Toy::default(), false).unwrap();
    let died = Run::new(20);
    // Checkpoints at 5 and 10, lines at 3, 6, 9, 12: the line of 12 is cut off, and the one that replaces it starts before step 10.
    assert!(died.train(Toy { dies_at: Some(13), ..Toy::default() }, false).is_err());
    let found = died.train(Toy::default(), true).unwrap();
    assert_eq!(parameters(&found), parameters(&expected));
    assert_eq!(died.metrics(), whole.metrics());
    let steps: Vec<u64> = died.metrics().iter().map(|line| line["step"].as_u64().unwrap()).collect();
    assert_eq!(steps, [3, 6, 9, 12, 15, 18, 20, 20]);
    for name in ["weights", "first_moments", "second_moments", "ema"] {
        let read = |run: &Run| fs::read(run.path(&format!("checkpoints/step-00000020/{name}.safetensors"))).unwrap();
        assert!(read(&whole) == read(&died), "{name}");
    }
}

#[test]
fn a_loss_that_is_not_finite_stops_the_run_and_names_the_samples() {
    let run = Run::new(20);
    let error = run.train(Toy { loss_breaks_at: vec![6], ..Toy::default() }, false).unwrap_err().to_string();
    for part in ["step 7: the loss is NaN", "nonfinite-step-7.json", "hint: ", "skip_nonfinite"] {
        assert!(error.contains(part), "no {part:?} in {error}");
    }
    let report = run.report(7);
    assert_eq!((&report["step"], &report["loss"], &report["parts"]["part"]), (&7.into(), &"NaN".into(), &"-inf".into()));
    assert_eq!(report["samples"], serde_json::json!(["a6", "b6"]));
    assert_eq!(names(&run.path("checkpoints")), ["step-00000005"], "what was saved stays");
    run.train(Toy::default(), true).unwrap();
}

#[test]
fn a_few_steps_that_are_not_finite_can_be_left_out() {
    let mut run = Run::new(12);
    run.recipe.run.skip_nonfinite = 2;
    let broken = || Toy { loss_breaks_at: vec![3, 4, 5], ..Toy::default() };
    let error = run.train(broken(), false).unwrap_err().to_string();
    assert!(error.contains("step 6: the loss is NaN"), "the third: {error}");

    let mut run = Run::new(12);
    run.recipe.run.skip_nonfinite = 4;
    let toy = || Toy { gradient_breaks_at: vec![8], ..broken() };
    run.train(toy(), false).unwrap();
    assert_eq!(run.report(9)["gradient norm"], "NaN");
    let lines = run.metrics();
    assert_eq!(
        lines.iter().map(|line| line["skipped_nonfinite"].as_u64()).collect::<Vec<_>>(),
        [None, Some(3), Some(4), Some(4), None]
    );
    assert!(lines[1].get("loss").is_none(), "no step of 4 to 6 counts: {}", lines[1]);
    assert!(lines[2]["loss"].as_f64().unwrap().is_finite());

    // What was left out is counted over a resume, too.
    let mut again = Run::new(12);
    again.recipe.run.skip_nonfinite = 4;
    assert!(again.train(Toy { dies_at: Some(7), ..toy() }, false).is_err());
    again.train(toy(), true).unwrap();
    assert_eq!(again.metrics(), lines);
}

#[test]
fn the_best_evaluations_are_checkpoints_that_stay() {
    let mut run = Run::new(12);
    let config = &mut run.recipe.run;
    (config.evaluate_every, config.keep_last, config.keep_best) = (2, 1, 2);
    (config.best_metric, config.best_is) = (Some("distance".into()), Some(Better::Lower));
    run.train(Toy::default(), false).unwrap();
    assert_eq!(names(&run.path("checkpoints")), ["step-00000002", "step-00000004", "step-00000012"]);

    run.recipe.run.output = run.folder.path().join("other");
    run.recipe.run.best_metric = Some("distanz".into());
    let error = run.train(Toy::default(), false).unwrap_err().to_string();
    assert!(error.contains("`distanz`") && error.contains("measure: distance"), "{error}");
    assert_eq!(names(&run.folder.path().join("other/checkpoints")), ["step-00000002"]);
}

#[test]
fn what_is_there_is_not_overwritten() {
    let run = Run::new(5);
    run.train(Toy::default(), false).unwrap();
    let before = run.metrics();
    let error = run.train(Toy::default(), false).unwrap_err().to_string();
    assert!(error.contains("run of 5 steps already") && error.contains("--resume"), "{error}");
    assert_eq!(run.metrics(), before);
}
