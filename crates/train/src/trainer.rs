//! The loop that every gradient-trained part shares: loss, backward, update, metrics, evaluation, checkpoints, resume.

use std::io::Write;
use std::path::Path;
use std::time::Instant;

use burn::module::Module;
use burn::tensor::Tensor;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Map, Value, json};

use crate::checkpoint::{self, RunState};
use crate::error::{Result, TrainError};
use crate::interrupt;
use crate::optim::{OptimizerState, collect_gradients};
use crate::params::{parameters, tensor_values, with_parameters};
use crate::recipe::Recipe;

/// Loss of one step.
pub struct StepLoss {
    /// Scalar that is minimised.
    pub total: Tensor<1>,
    /// Named parts, as plain numbers, for the metrics.
    pub parts: Vec<(&'static str, f64)>,
    /// Tokens (or images, where there are no tokens) that the step read.
    pub num_tokens: usize,
}

/// What is trained: a loss per step, and measures of a model.
pub trait Objective {
    /// The network.
    type Model: Module;

    /// Loss of step `step`: all randomness must be a function of the run's seed and `step`.
    ///
    /// # Errors
    /// When a batch can't be made.
    fn loss(&mut self, model: &Self::Model, step: u64) -> Result<StepLoss>;

    /// Measures of `model` (averaged weights, no gradients) on held-out data; may write a sample sheet into `folder`.
    ///
    /// # Errors
    /// When the data can't be read or the sheet not written.
    fn evaluate(&mut self, model: &Self::Model, step: u64, folder: &Path) -> Result<Vec<(String, f64)>>;
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// All steps are done.
    Finished,
    /// Stopped by Ctrl-C after saving.
    Interrupted,
    /// Stopped by Ctrl-C before the first step of this session; what was saved before is as it was.
    InterruptedBeforeTraining,
}

/// Options of one session of a run, which the recipe doesn't fix.
#[derive(Debug, Clone, Copy, Default)]
pub struct Session {
    /// Continue from the newest checkpoint.
    pub resume: bool,
    /// No progress bar.
    pub quiet: bool,
}

/// Trains `model` to the recipe's last step; returns it with the averaged weights where the recipe asks for an average.
///
/// # Errors
/// When the run folder can't be written, a checkpoint doesn't fit, or the loss is no longer finite.
pub fn train<O: Objective>(
    recipe: &Recipe,
    objective: &mut O,
    mut model: O::Model,
    session: Session,
) -> Result<(O::Model, Outcome)> {
    let config = recipe.optimizer()?.clone();
    let run = &recipe.run;
    let checkpoints = run.output.join("checkpoints");
    unif2ace_io::create_dir_all(&run.output)?;
    unif2ace_ops::set_precision(match run.precision {
        crate::recipe::PrecisionName::F32 => unif2ace_ops::Precision::F32,
        crate::recipe::PrecisionName::Bf16 => unif2ace_ops::Precision::Bf16,
    });
    interrupt::install();

    let mut state = RunState { step: 0, num_updates: 0, seed: run.seed, seconds: 0.0 };
    let mut optimizer = OptimizerState::default();
    let found = checkpoint::load_latest(&checkpoints)?;
    if let Some(found) = &found
        && !session.resume
    {
        let reason = format!("there is a run of {} steps already", found.state.step);
        let hint = "continue it with --resume, name another `output` in the recipe, or remove the folder";
        return Err(TrainError::Checkpoint { path: checkpoints, reason, hint });
    }
    if session.resume && found.is_none() {
        tracing::warn!("no checkpoint in {}: the run starts at step 0", checkpoints.display());
    }
    if let Some(found) = found {
        if found.state.seed != run.seed {
            let reason = format!("was made with seed {}, the recipe says {}", found.state.seed, run.seed);
            let hint = "a run keeps its seed, which decides the order of its data: give the recipe the checkpoint's";
            return Err(TrainError::Checkpoint { path: checkpoints, reason, hint });
        }
        let (restored, problems) = with_parameters(model, &found.weights);
        if !problems.is_empty() {
            let reason = format!("does not fit the recipe's model:\n  {}", problems.join("\n  "));
            let hint = "resume with the recipe that the run was started with, or name another `output`";
            return Err(TrainError::Checkpoint { path: checkpoints, reason, hint });
        }
        model = restored;
        optimizer = found.optimizer;
        if config.ema_decay == 0.0 {
            optimizer.ema.clear();
        }
        state = found.state;
        tracing::info!(step = state.step, "resumed");
    }
    let mut metrics = Metrics::open(&run.output.join("metrics.jsonl"))?;
    let bar = progress_bar(config.num_steps, state.step, session.quiet);
    let started = (state.step, state.seconds);
    let mut clock = Instant::now();
    let mut window = Window::default();

    while state.step < config.num_steps {
        if interrupt::asked() {
            save(&checkpoints, &state, &model, &optimizer)?;
            bar.abandon_with_message("interrupted; continue with --resume");
            return Ok((averaged(model, &optimizer), Outcome::Interrupted));
        }
        let begun = Instant::now();
        let step_loss = objective.loss(&model, state.step)?;
        let value = tensor_values(step_loss.total.clone())[0];
        if !value.is_finite() {
            return Err(TrainError::NotFinite { what: "loss", step: state.step, value });
        }
        let gradients = collect_gradients(&model, step_loss.total.backward());
        let learning_rate = config.learning_rate_at(state.step);
        window.add(f64::from(value), &step_loss.parts, gradients.norm, step_loss.num_tokens);
        model = optimizer.update(model, gradients, &config, learning_rate)?;
        window.seconds += begun.elapsed().as_secs_f64();
        state.step += 1;
        state.num_updates = optimizer.num_updates;
        state.seconds += clock.elapsed().as_secs_f64();
        clock = Instant::now();
        bar.set_position(state.step);

        let last = state.step == config.num_steps;
        if state.step.is_multiple_of(run.log_every.max(1)) || last {
            let line = window.take(&state, learning_rate);
            bar.set_message(summary(&line));
            if bar.is_hidden() {
                let rest = (config.num_steps - state.step) as f64 * (state.seconds - started.1) / (state.step - started.0) as f64;
                tracing::info!("step {}/{} eta {}  {}", state.step, config.num_steps, duration(rest), summary(&line));
            }
            metrics.write(&line)?;
        }
        if last || (run.evaluate_every > 0 && state.step.is_multiple_of(run.evaluate_every)) {
            let evaluated = averaged(model.clone(), &optimizer);
            let measures = objective.evaluate(&evaluated.valid(), state.step, &run.output)?;
            let mut line = Map::from_iter([("step".to_owned(), json!(state.step))]);
            line.extend(measures.into_iter().map(|(name, value)| (name, json!(value))));
            let text = Value::Object(line.clone()).to_string();
            bar.suspend(|| tracing::info!("evaluation {text}"));
            metrics.write(&line)?;
        }
        if last || (run.checkpoint_every > 0 && state.step.is_multiple_of(run.checkpoint_every)) {
            save(&checkpoints, &state, &model, &optimizer)?;
        }
    }
    bar.finish();
    Ok((averaged(model, &optimizer), Outcome::Finished))
}

fn save<M: Module>(folder: &Path, state: &RunState, model: &M, optimizer: &OptimizerState) -> Result<()> {
    checkpoint::save(folder, state, &parameters(model), optimizer).map(drop)
}

fn averaged<M: Module>(model: M, optimizer: &OptimizerState) -> M {
    if optimizer.ema.is_empty() { model } else { with_parameters(model, &optimizer.ema).0 }
}

/// Means between two lines of metrics.
#[derive(Default)]
struct Window {
    count: f64,
    total: f64,
    norm: f64,
    tokens: usize,
    parts: Vec<(&'static str, f64, f64)>,
    seconds: f64,
}

impl Window {
    fn add(&mut self, total: f64, parts: &[(&'static str, f64)], norm: f64, tokens: usize) {
        self.count += 1.0;
        self.total += total;
        self.norm += norm;
        self.tokens += tokens;
        for &(name, value) in parts {
            match self.parts.iter_mut().find(|part| part.0 == name) {
                Some(part) => {
                    part.1 += value;
                    part.2 += 1.0;
                }
                None => self.parts.push((name, value, 1.0)),
            }
        }
    }

    fn take(&mut self, state: &RunState, learning_rate: f64) -> Map<String, Value> {
        let window = std::mem::take(self);
        let mut line = Map::new();
        line.insert("step".into(), json!(state.step));
        line.insert("loss".into(), json!(window.total / window.count));
        for (name, sum, count) in window.parts {
            line.insert(name.into(), json!(sum / count));
        }
        line.insert("grad_norm".into(), json!(window.norm / window.count));
        line.insert("learning_rate".into(), json!(learning_rate));
        let rate = window.tokens as f64 / window.seconds.max(1e-9);
        line.insert("tokens_per_second".into(), json!(rate));
        line.insert("seconds".into(), json!(state.seconds));
        line
    }
}

fn summary(line: &Map<String, Value>) -> String {
    let skip = ["step", "learning_rate", "seconds"];
    let parts: Vec<String> = line
        .iter()
        .filter(|(name, _)| !skip.contains(&name.as_str()))
        .filter_map(|(name, value)| Some(format!("{name} {:.4}", value.as_f64()?)))
        .collect();
    parts.join("  ")
}

/// Hours, minutes and seconds of `seconds`.
fn duration(seconds: f64) -> String {
    let whole = seconds as u64;
    format!("{}:{:02}:{:02}", whole / 3600, whole / 60 % 60, whole % 60)
}

pub(crate) fn progress_bar(num_steps: u64, done: u64, quiet: bool) -> ProgressBar {
    if quiet {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(num_steps).with_position(done);
    if let Ok(style) = ProgressStyle::with_template("{bar:24} {pos}/{len} eta {eta}  {msg}") {
        bar.set_style(style);
    }
    bar.reset_eta();
    bar
}

/// Lines of JSON, appended.
struct Metrics {
    file: std::fs::File,
    path: std::path::PathBuf,
}

impl Metrics {
    fn open(path: &Path) -> Result<Self> {
        let file = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .map_err(|source| unif2ace_io::IoError::system("append to", path, source))?;
        Ok(Self { file, path: path.to_path_buf() })
    }

    fn write(&mut self, line: &Map<String, Value>) -> Result<()> {
        let text = format!("{}\n", Value::Object(line.clone()));
        self.file
            .write_all(text.as_bytes())
            .map_err(|source| unif2ace_io::IoError::system("append to", &self.path, source).into())
    }
}
