//! The loop that every gradient-trained part shares: loss, backward, update, metrics, evaluation, checkpoints, resume.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use serde_json::{Map, json};
use unif2ace_comm::{Communicator, Single};
use unif2ace_ops::{keep_awake, on_cpu};

use crate::checkpoint::Checkpoints;
use crate::error::{Result, TrainError};
use crate::interrupt;
use crate::metrics::{ExpertUse, LineKind, MetricLog, resident};
use crate::nonfinite;
use crate::optim::Optimizer;
use crate::parallel::Parallel;
use crate::params::{initialize, with_parameters};
use crate::passes;
use crate::recipe::Recipe;
use crate::report::{Bar, Reporter, Silent, Work};
use crate::resume::{self, Resumed};
use crate::trainable;

/// Loss of one step. On several ranks and in several passes these are shares: summed they are the loss and the parts of the global batch.
pub struct StepLoss {
    /// Scalar that is minimised.
    pub total: Tensor<1>,
    /// Named parts, as plain numbers, for the metrics.
    pub parts: Vec<(&'static str, f64)>,
    /// Tokens that the step read, pads too; 0 where there are none.
    pub num_tokens: usize,
    /// Pictures that the step read.
    pub num_images: usize,
    /// Broken samples in whose places the step read others.
    pub num_broken: usize,
    /// What the routers of each group of experts did.
    pub experts: Vec<(&'static str, ExpertUse)>,
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
    /// Follows the run in place of the progress bar.
    pub reporter: Option<Arc<dyn Reporter>>,
    /// Where this rank computes.
    pub device: Device,
}

impl Default for Session {
    fn default() -> Self {
        Self { resume: false, quiet: false, ranks: Arc::new(Single), reporter: None, device: Device::flex() }
    }
}

impl Session {
    /// Who is told what the run does.
    pub(crate) fn reporter(&self) -> Arc<dyn Reporter> {
        match &self.reporter {
            _ if !self.ranks.leads() => Arc::new(Silent),
            Some(reporter) => reporter.clone(),
            None => Arc::new(Bar::new(self.quiet)),
        }
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
    let there = !on_cpu(&session.device) && !config.on_host;
    let mut parallel = Parallel::new(session.ranks.clone()).keeping_gradients_there(there);
    if leads {
        unif2ace_io::create_dir_all(&run.output)?;
    }
    unif2ace_ops::set_precision(match run.precision {
        crate::recipe::PrecisionName::F32 => unif2ace_ops::Precision::F32,
        crate::recipe::PrecisionName::Bf16 => unif2ace_ops::Precision::Bf16,
    });
    interrupt::install();
    initialize(&model);
    let frozen = trainable::frozen(recipe, &model)?;
    let model = if frozen.is_empty() { model } else { trainable::track_all_but(model, &frozen) };

    let Resumed { mut model, mut optimizer, mut state } = resume::restore(recipe, &checkpoints, model, &session)?;
    optimizer.forget_moments(&frozen);
    if state.step == recipe.first_step {
        optimizer.restart();
        state.num_updates = 0;
    }
    let last_step = recipe.last_step();
    parallel.agree_on_state(state.step, &model, &optimizer)?;
    let mut optimizer = Optimizer::new(optimizer);
    // The rank that leads writes the metrics.
    let mut metrics = leads.then(|| MetricLog::open(run, state.step)).transpose()?;
    let reporter = session.reporter();
    reporter.begin(Work::Steps, state.step, last_step);
    let mut clock = Instant::now();

    while state.step < last_step {
        if parallel.any(interrupt::asked())? {
            if let Some(metrics) = &metrics {
                metrics.sync()?;
                checkpoints.save(&state, &model, &optimizer.state())?;
            }
            reporter.end(true);
            return Ok((averaged(model, &optimizer), Outcome::Interrupted));
        }
        let begun = Instant::now();
        let awake = on_cpu(&session.device).then(keep_awake);
        let learning_rate = config.learning_rate_at(state.step.saturating_sub(recipe.first_step));
        let (step_loss, found) = passes::gradients(&mut parallel, objective, &model, state.step, config.accumulation_steps)?;
        match found {
            Ok((loss, gradients)) => {
                state.window.add(loss, &step_loss, gradients.norm());
                model = optimizer.update(model, gradients, &config, learning_rate);
            }
            Err(found) => {
                state.num_skipped += 1;
                let names = parallel.all_names(&objective.sample_names(state.step))?;
                nonfinite::skip_or_stop(run, state.step + 1, found, &step_loss.parts, &names, state.num_skipped, leads)?;
            }
        }
        drop(awake);
        state.window.seconds += begun.elapsed().as_secs_f64();
        state.step += 1;
        let [num_updates, num_averaged] = optimizer.counts();
        (state.num_updates, state.num_averaged) = (num_updates, Some(num_averaged));
        state.measures.clear();
        state.seconds += clock.elapsed().as_secs_f64();
        clock = Instant::now();
        reporter.advance(state.step);

        let last = state.step == last_step;
        let Some(metrics) = &mut metrics else { continue };
        if state.step.is_multiple_of(run.log_every.max(1)) || last {
            let mut line = std::mem::take(&mut state.window).line(&state, learning_rate);
            line.extend(resident());
            metrics.write(state.step, &line, LineKind::Training)?;
            reporter.line(LineKind::Training, &line);
        }
        if last || (run.evaluate_every > 0 && state.step.is_multiple_of(run.evaluate_every)) {
            let evaluated = averaged(model.clone(), &optimizer);
            let measures = objective.evaluate(&evaluated.valid(), state.step, &run.output)?;
            let mut line = Map::from_iter([("step".to_owned(), json!(state.step))]);
            line.extend(measures.iter().map(|(name, value)| (name.clone(), json!(value))));
            state.measures = measures.into_iter().map(|(name, value)| (name, value.is_finite().then_some(value))).collect();
            metrics.write(state.step, &line, LineKind::Evaluation)?;
            reporter.line(LineKind::Evaluation, &line);
        }
        let to_rank = run.keep_best > 0 && !state.measures.is_empty();
        if last || to_rank || (run.checkpoint_every > 0 && state.step.is_multiple_of(run.checkpoint_every)) {
            // Lines of metrics that a resume keeps must be there as surely as the checkpoint.
            metrics.sync()?;
            checkpoints.save(&state, &model, &optimizer.state())?;
        }
    }
    reporter.end(false);
    parallel.report();
    Ok((averaged(model, &optimizer), Outcome::Finished))
}

fn averaged<M: Module>(model: M, optimizer: &Optimizer) -> M {
    let averages = optimizer.averages();
    if averages.is_empty() { model } else { with_parameters(model, &averages).0 }
}
