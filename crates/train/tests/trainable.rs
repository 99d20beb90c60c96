//! What a recipe freezes stays as it is, to the bit, and leaves no trace in the optimiser.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test may end by them

mod common;

use std::fs;
use std::path::Path;

use common::Net;
use unif2ace_train::params::{HostTensors, parameters};
use unif2ace_train::trainable::TrainableConfig;
use unif2ace_train::trainer::{Objective, StepLoss, train};
use unif2ace_train::{Outcome, Recipe, Result, Session, TrainError};
use unif2ace_weights::SafetensorsFile;

/// Pulls both tensors to the number of the step; at some steps the loss knows the bias alone.
#[derive(Default)]
struct Toy {
    only_bias_at: Vec<u64>,
    dies_at: Option<u64>,
}

impl Objective for Toy {
    type Model = Net;

    fn loss(&mut self, model: &Net, step: u64) -> Result<StepLoss> {
        if self.dies_at == Some(step) {
            return Err(TrainError::Data("killed".into()));
        }
        let target = step as f32 / 10.0 + 1.0;
        let mut total = model.bias.val().sub_scalar(target).powi_scalar(2).sum();
        if !self.only_bias_at.contains(&step) {
            total = total + model.weight.val().sub_scalar(target).powi_scalar(2).sum();
        }
        Ok(StepLoss { total, parts: Vec::new(), num_tokens: 1, num_images: 0, num_broken: 0, experts: Vec::new() })
    }

    fn sample_names(&self, _step: u64) -> Vec<String> {
        Vec::new()
    }

    fn evaluate(&mut self, _model: &Net, _step: u64, _folder: &Path) -> Result<Vec<(String, f64)>> {
        Ok(Vec::new())
    }
}

struct Run {
    folder: tempfile::TempDir,
    recipe: Recipe,
}

impl Run {
    fn new(num_steps: u64, freeze: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let mut recipe = Recipe::read(&root.join("recipes/mini/face.toml")).unwrap();
        recipe.run.output = folder.path().join("run");
        (recipe.run.log_every, recipe.run.evaluate_every, recipe.run.checkpoint_every) = (1, 0, 5);
        let optimizer = recipe.optimizer.as_mut().unwrap();
        (optimizer.num_steps, optimizer.ema_decay, optimizer.warmup_steps) = (num_steps, 0.9, 0);
        let mut run = Self { folder, recipe };
        run.freeze(freeze, num_steps);
        run
    }

    fn freeze(&mut self, freeze: &[&str], num_steps: u64) {
        let patterns = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        self.recipe.trainable = (!freeze.is_empty()).then(|| TrainableConfig { freeze: patterns(freeze), unfreeze: Vec::new() });
        self.recipe.optimizer.as_mut().unwrap().num_steps = num_steps;
    }

    fn train(&self, mut toy: Toy, resume: bool) -> Result<Net> {
        let session = Session { resume, quiet: true, ..Session::default() };
        let (net, outcome) = train(&self.recipe, &mut toy, Net::new(2, 0.5), session)?;
        assert_eq!(outcome, Outcome::Finished);
        Ok(net)
    }

    /// Tensors of a checkpoint's file.
    fn saved(&self, step: u64, name: &str) -> HostTensors {
        let path = self.folder.path().join(format!("run/checkpoints/step-{step:08}/{name}.safetensors"));
        let file = SafetensorsFile::open(path).unwrap();
        let read = |name: &str| {
            let shape = file.info(name).unwrap().shape.clone();
            (name.to_owned(), unif2ace_train::params::HostTensor { shape, values: file.load_f32(name).unwrap() })
        };
        file.names().map(read).collect()
    }

    fn first_grad_norm(&self) -> f64 {
        let text = fs::read_to_string(self.folder.path().join("run/metrics.jsonl")).unwrap();
        serde_json::from_str::<serde_json::Value>(text.lines().next().unwrap()).unwrap()["grad_norm"].as_f64().unwrap()
    }
}

#[test]
fn frozen_tensors_keep_every_bit_and_the_others_learn() {
    let run = Run::new(10, &["bias"]);
    let (start, end) = (parameters(&Net::new(2, 0.5)), parameters(&run.train(Toy::default(), false).unwrap()));
    assert_eq!(end["bias"], start["bias"]);
    assert!(end["weight"].values.iter().zip(&start["weight"].values).all(|(end, start)| end != start));
    for name in ["first_moments", "second_moments", "ema"] {
        assert_eq!(run.saved(10, name).keys().collect::<Vec<_>>(), ["weight"], "{name}");
    }
    // 128 weights that are 0.5 off their first target, and nothing of the bias.
    let norm = run.first_grad_norm();
    assert!((norm - 128f64.sqrt()).abs() < 1e-2, "{norm}");
}

#[test]
fn a_step_that_only_sees_what_is_frozen_changes_nothing() {
    let run = Run::new(2, &["bias"]);
    let end = run.train(Toy { only_bias_at: vec![0, 1], ..Toy::default() }, false).unwrap();
    assert_eq!(parameters(&end), parameters(&Net::new(2, 0.5)));
}

#[test]
fn a_resumed_run_is_the_whole_run() {
    let whole = Run::new(12, &["weight"]);
    let expected = parameters(&whole.train(Toy::default(), false).unwrap());
    let halves = Run::new(12, &["weight"]);
    assert!(halves.train(Toy { dies_at: Some(8), ..Toy::default() }, false).is_err());
    assert_eq!(parameters(&halves.train(Toy::default(), true).unwrap()), expected);
    for name in ["weights", "first_moments", "second_moments", "ema"] {
        assert_eq!(whole.saved(12, name), halves.saved(12, name), "{name}");
    }
}

#[test]
fn a_resumed_run_may_freeze_what_it_has_trained() {
    let mut run = Run::new(5, &[]);
    run.train(Toy::default(), false).unwrap();
    run.freeze(&["weight"], 10);
    run.train(Toy::default(), true).unwrap();
    for name in ["weights", "ema"] {
        let (before, after) = (run.saved(5, name), run.saved(10, name));
        assert_eq!(before["weight"], after["weight"], "{name}");
        assert_ne!(before["bias"], after["bias"], "{name}");
    }
    assert_eq!(run.saved(10, "second_moments").keys().collect::<Vec<_>>(), ["bias"]);
}

#[test]
fn a_pattern_that_fits_nothing_names_the_nearest_parameter() {
    let run = Run::new(2, &["wieght"]);
    let error = run.train(Toy::default(), false).unwrap_err().to_string();
    assert!(
        error.contains("`wieght` in `freeze` fits no parameter") && error.contains("hint: did you mean `weight`?"),
        "{error}"
    );
    assert!(!run.folder.path().join("run/checkpoints").exists());
}
