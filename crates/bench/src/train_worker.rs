//! Does training steps of a case on demand, with the functions that `unif2ace train` calls, and tells where the time went.

use std::io::BufRead;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use burn::tensor::Device;
use clap::{Args, ValueEnum};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tracing::debug_span;
use unif2ace_comm::Single;
use unif2ace_model::transformer::{Recompute, Unif2ace};
use unif2ace_ops::{Precision, keep_awake, set_precision, sum_of_squares};
use unif2ace_train::optim::OptimizerState;
use unif2ace_train::parallel::Parallel;
use unif2ace_train::params::{initialize, parameters, tensor_values};
use unif2ace_train::tasks::share::Share;
use unif2ace_train::tasks::unified::LossSum;
use unif2ace_train::trainer::StepLoss;

use crate::Outcome;
use crate::train_case::{Rows, TrainCase};
use crate::worker::{Clock, memory, reply};

/// Options of the worker.
#[derive(Debug, Args)]
pub struct TrainWorkerArgs {
    /// Folder of the case.
    case: PathBuf,
    /// Precision of matrix products.
    #[arg(long, value_enum, default_value_t = PrecisionName::F32)]
    precision: PrecisionName,
    /// Recompute each block in the backward pass.
    #[arg(long)]
    recompute: bool,
    /// Write a trace for chrome://tracing or ui.perfetto.dev.
    #[arg(long, value_name = "FILE")]
    pub profile: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum PrecisionName {
    F32,
    Bf16,
}

#[derive(Debug, Deserialize)]
#[serde(tag = "work", rename_all = "snake_case", deny_unknown_fields)]
enum Work {
    /// The next step; with `norms` also the norm of each gradient.
    Step {
        #[serde(default)]
        norms: bool,
    },
    /// Euclidean norm of all parameters.
    Parameters,
    /// What the process holds.
    Memory,
}

/// What stays from step to step beside the model.
struct Worker {
    case: TrainCase,
    batches: Vec<Rows>,
    optimizer: OptimizerState,
    parallel: Parallel,
    device: Device,
    step: u64,
}

/// Loads, says so, and works until standard input ends.
pub fn run(args: &TrainWorkerArgs) -> Outcome {
    let start = Instant::now();
    set_precision(match args.precision {
        PrecisionName::F32 => Precision::F32,
        PrecisionName::Bf16 => Precision::Bf16,
    });
    let (mut worker, mut model) = Worker::open(&args.case, args.recompute)?;
    reply(&json!({ "ready": true, "seconds": start.elapsed().as_secs_f64() }))?;
    for line in std::io::stdin().lock().lines() {
        reply(&match serde_json::from_str(&line?)? {
            Work::Step { norms } => {
                let (trained, told) = worker.step(model, norms)?;
                model = trained;
                told
            }
            Work::Parameters => {
                let squares: f64 = parameters(&model).values().map(|tensor| sum_of_squares(&tensor.values)).sum();
                json!({ "norm": squares.sqrt() })
            }
            Work::Memory => memory()?,
        })?;
    }
    Ok(())
}

impl Worker {
    fn open(folder: &Path, recompute: bool) -> Outcome<(Self, Unif2ace)> {
        let device = Device::flex().autodiff();
        let case = TrainCase::read(folder)?;
        let recompute = if recompute { Recompute::Blocks } else { Recompute::None };
        let model = case.model(folder, &device)?.with_recompute(recompute);
        initialize(&model);
        let batches = case.batches(&device)?;
        let parallel = Parallel::new(Arc::new(Single));
        Ok((Self { case, batches, optimizer: OptimizerState::default(), parallel, device, step: 0 }, model))
    }

    /// One step of the trainer's loop: losses of both tasks, gradients, clipping and AdamW.
    fn step(&mut self, model: Unif2ace, norms: bool) -> Outcome<(Unif2ace, Value)> {
        let _step = debug_span!("step", number = self.step).entered();
        let _awake = keep_awake();
        let config = self.case.optimizer()?;
        let rows = &self.batches[(self.step % self.batches.len() as u64) as usize];
        let start = Instant::now();
        let mut clock = Clock::start(start);
        let StepLoss { total, parts, num_tokens, .. } = debug_span!("forward").in_scope(|| self.loss(&model, rows))?;
        let loss = tensor_values(total.clone())[0];
        let forward_seconds = clock.lap();
        let gradients = debug_span!("backward").in_scope(|| self.parallel.backward(&model, total))?;
        let backward_seconds = clock.lap();
        let gradient_norm = gradients.norm;
        let norms: Option<Map<String, Value>> =
            norms.then(|| gradients.norms().map(|(path, norm)| (path.to_owned(), json!(norm))).collect());
        clock.lap();
        let learning_rate = config.learning_rate_at(self.step);
        let model = debug_span!("optimizer").in_scope(|| self.optimizer.update(model, gradients, config, learning_rate));
        let optimizer_seconds = clock.lap();
        self.step += 1;
        let told = json!({
            "seconds": forward_seconds + backward_seconds + optimizer_seconds, "forward_seconds": forward_seconds,
            "backward_seconds": backward_seconds, "optimizer_seconds": optimizer_seconds, "num_tokens": num_tokens, "loss": loss,
            "parts": parts.into_iter().map(|(name, value)| (name.to_owned(), json!(value))).collect::<Map<_, _>>(),
            "gradient_norm": gradient_norm, "norms": norms,
        });
        Ok((model, told))
    }

    fn loss(&self, model: &Unif2ace, rows: &Rows) -> Outcome<StepLoss> {
        let unified = self.case.unified()?;
        let mut sum = LossSum::default();
        if let Some(rows) = &rows.t2i {
            let loss = rows.loss(model, &unified.loss, &Share::whole(rows.num_rows), &self.device)?;
            let loss = loss.ok_or("a whole share has a loss")?;
            sum.add(loss, unified.t2i_coeff, unified.balance_coeffs[0], ["t2i", "balance_t2i"]);
        }
        if let Some(rows) = &rows.mmu {
            let loss = rows.loss(model, &Share::whole(rows.num_rows), &self.device)?.ok_or("a whole share has a loss")?;
            sum.add(loss, unified.mmu_coeff, unified.balance_coeffs[1], ["mmu", "balance_mmu"]);
        }
        sum.finish().ok_or_else(|| "the case has no rows".into())
    }
}
