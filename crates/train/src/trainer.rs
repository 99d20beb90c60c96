//! The loop that every gradient-trained part shares: loss, backward, update, metrics, evaluation, checkpoints, resume.

use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use burn::module::Module;
use burn::tensor::Tensor;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Map, Value, json};
use unif2ace_comm::{Communicator, Single};

use crate::checkpoint::Checkpoints;
use crate::error::{Result, TrainError};
use crate::interrupt;
use crate::nonfinite;
use crate::optim::OptimizerState;
use crate::parallel::Parallel;
use crate::params::{initialize, with_parameters};
use crate::passes;
use crate::recipe::Recipe;
use crate::resume::{self, Resumed};

/// Loss of one step. On several ranks and in several passes these are shares: summed they are the loss and the parts of the global batch.
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

    /// Calls `take` with the loss of each of `num_passes` passes of step `step`: equal parts of its rows, whose losses are shares of the
    /// step's and add up to it.
    ///
    /// # Errors
    /// When a batch can't be made, when `take` fails, and when the part can't be computed in several passes.
    fn passes(
        &mut self,
        model: &Self::Model,
        step: u64,
        num_passes: usize,
        take: &mut dyn FnMut(StepLoss) -> Result<()>,
    ) -> Result<()> {
        if num_passes == 1 {
            return take(self.loss(model, step)?);
        }
        Err(TrainError::Data(format!(
            "this part is computed in one pass, not in {num_passes}\nhint: leave out `accumulation_steps`"
        )))
    }

    /// Names of the samples that step `step` reads, as its data set names them.
    fn sample_names(&self, step: u64) -> Vec<String>;

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
#[derive(Clone)]
pub struct Session {
    /// Continue from the newest checkpoint.
    pub resume: bool,
    /// No progress bar.
    pub quiet: bool,
    /// The ranks that train together; the first one writes and reports for all.
    pub ranks: Arc<dyn Communicator>,
}

impl Default for Session {
    fn default() -> Self {
        Self { resume: false, quiet: false, ranks: Arc::new(Single) }
    }
}

/// Trains `model` to the recipe's last step; returns it with the averaged weights where the recipe asks for an average.
///
/// # Errors
/// When the run folder can't be written, a checkpoint doesn't fit, or the loss is no longer finite.
pub fn train<O: Objective>(recipe: &Recipe, objective: &mut O, model: O::Model, session: Session) -> Result<(O::Model, Outcome)> {
    let config = recipe.optimizer()?.clone();
    let run = &recipe.run;
    let checkpoints = Checkpoints::new(run.output.join("checkpoints"), run.keep());
    let leads = session.ranks.leads();
    let mut parallel = Parallel::new(session.ranks.clone());
    if leads {
        unif2ace_io::create_dir_all(&run.output)?;
    }
    unif2ace_ops::set_precision(match run.precision {
        crate::recipe::PrecisionName::F32 => unif2ace_ops::Precision::F32,
        crate::recipe::PrecisionName::Bf16 => unif2ace_ops::Precision::Bf16,
    });
    interrupt::install();
    initialize(&model);

    let Resumed { mut model, mut optimizer, mut state } = resume::restore(recipe, &checkpoints, model, &session)?;
    parallel.agree_on_state(state.step, &model, &optimizer)?;
    // The rank that leads writes the metrics.
    let metrics_path = run.output.join("metrics.jsonl");
    let mut metrics = match leads {
        true => {
            resume::cut_lines_after(&metrics_path, state.step)?;
            Some(Metrics::open(&metrics_path)?)
        }
        false => None,
    };
    let bar = progress_bar(config.num_steps, state.step, session.quiet || !leads);
    let started = (state.step, state.seconds);
    let mut clock = Instant::now();

    while state.step < config.num_steps {
        if parallel.any(interrupt::asked())? {
            if let Some(metrics) = &metrics {
                metrics.sync()?;
                checkpoints.save(&state, &model, &optimizer)?;
            }
            bar.abandon_with_message("interrupted; continue with --resume");
            return Ok((averaged(model, &optimizer), Outcome::Interrupted));
        }
        let begun = Instant::now();
        let learning_rate = config.learning_rate_at(state.step);
        let (step_loss, found) = passes::gradients(&mut parallel, objective, &model, state.step, config.accumulation_steps)?;
        match found {
            Ok((loss, gradients)) => {
                state.window.add(loss, &step_loss.parts, gradients.norm, step_loss.num_tokens);
                model = optimizer.update(model, gradients, &config, learning_rate);
            }
            Err(found) => {
                state.num_skipped += 1;
                let names = parallel.all_names(&objective.sample_names(state.step))?;
                nonfinite::skip_or_stop(run, state.step + 1, found, &step_loss.parts, &names, state.num_skipped, leads)?;
            }
        }
        state.window.seconds += begun.elapsed().as_secs_f64();
        state.step += 1;
        state.num_updates = optimizer.num_updates;
        state.measures.clear();
        state.seconds += clock.elapsed().as_secs_f64();
        clock = Instant::now();
        bar.set_position(state.step);

        let last = state.step == config.num_steps;
        let Some(metrics) = &mut metrics else { continue };
        if state.step.is_multiple_of(run.log_every.max(1)) || last {
            let line = std::mem::take(&mut state.window).line(&state, learning_rate);
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
            line.extend(measures.iter().map(|(name, value)| (name.clone(), json!(value))));
            state.measures = measures.into_iter().map(|(name, value)| (name, value.is_finite().then_some(value))).collect();
            let text = Value::Object(line.clone()).to_string();
            bar.suspend(|| tracing::info!("evaluation {text}"));
            metrics.write(&line)?;
        }
        let to_rank = run.keep_best > 0 && !state.measures.is_empty();
        if last || to_rank || (run.checkpoint_every > 0 && state.step.is_multiple_of(run.checkpoint_every)) {
            // Lines of metrics that a resume keeps must be there as surely as the checkpoint.
            metrics.sync()?;
            checkpoints.save(&state, &model, &optimizer)?;
        }
    }
    bar.finish();
    parallel.report();
    Ok((averaged(model, &optimizer), Outcome::Finished))
}

fn averaged<M: Module>(model: M, optimizer: &OptimizerState) -> M {
    if optimizer.ema.is_empty() { model } else { with_parameters(model, &optimizer.ema).0 }
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

    /// Flushes what was written to the device.
    fn sync(&self) -> Result<()> {
        self.file.sync_data().map_err(|source| unif2ace_io::IoError::system("flush", &self.path, source).into())
    }

    fn write(&mut self, line: &Map<String, Value>) -> Result<()> {
        let text = format!("{}\n", Value::Object(line.clone()));
        self.file
            .write_all(text.as_bytes())
            .map_err(|source| unif2ace_io::IoError::system("append to", &self.path, source).into())
    }
}
