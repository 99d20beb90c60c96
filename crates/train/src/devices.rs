//! Where a run computes: on the CPU, on a GPU, or on several devices of this process, each with a rank of its own.

use std::panic::resume_unwind;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use burn::module::Module;
use burn::tensor::{DType, Device};
use unif2ace_comm::{CommError, Threads};
use unif2ace_ops::on_cpu;

use crate::error::{Result, TrainError};
use crate::params::initialize;
use crate::recipe::{PrecisionName, Recipe};
use crate::run::run;
use crate::trainer::{Outcome, Session};

/// Stack of a rank's thread: that of a main thread.
const STACK_BYTES: usize = 8 << 20;

/// Whether a device computes in the precision that a recipe asks for.
pub fn has_precision(recipe: &Recipe, device: &Device) -> bool {
    recipe.run.precision == PrecisionName::F32 || on_cpu(device) || device.supports_dtype(DType::BF16)
}

/// Refuses a recipe that asks for what the device can't do.
pub(crate) fn check(recipe: &Recipe, device: &Device) -> Result<()> {
    if has_precision(recipe, device) {
        return Ok(());
    }
    Err(TrainError::Recipe {
        path: recipe.run.output.clone(),
        reason: format!("precision = \"bf16\" in [run], which {device:?} can't compute in"),
        hint: "set precision = \"f32\", or train with --device cpu".into(),
    })
}

/// As [`run`] on several devices, each of which computes a share of the rows on a thread of its own; the first one reports and writes.
///
/// # Errors
/// As [`run`], of the rank that failed first; the others leave the run when they notice.
pub fn run_on(recipe: &Recipe, session: Session, mut devices: Vec<Device>) -> Result<Outcome> {
    if devices.len() <= 1 {
        let device = devices.pop().unwrap_or(session.device.clone());
        return run(recipe, Session { device, ..session });
    }
    if session.ranks.world_size() > 1 {
        return Err(TrainError::Ranks {
            reason: format!("{} devices for each process of a job of {}", devices.len(), session.ranks.world_size()),
            hint: "start one process for each device, or a single one without mpirun or srun",
        });
    }
    let results: Vec<Result<Outcome>> = thread::scope(|scope| {
        let start = |(rank, device): (Threads, Device)| {
            let session = Session { ranks: Arc::new(rank), device, ..session.clone() };
            let name = format!("rank {}", session.ranks.rank());
            thread::Builder::new().name(name).stack_size(STACK_BYTES).spawn_scoped(scope, move || run(recipe, session))
        };
        // All are started before one is waited for. One that can't be started has left as far as the others know.
        let started: Vec<_> = Threads::ranks(devices.len()).into_iter().zip(devices).map(start).collect();
        let finish = |thread: std::io::Result<thread::ScopedJoinHandle<'_, _>>| match thread {
            Ok(thread) => thread.join().unwrap_or_else(|panic| resume_unwind(panic)),
            Err(error) => Err(TrainError::Ranks {
                reason: format!("no thread for a device: {error}"),
                hint: "raise the limit of threads, or use fewer devices",
            }),
        };
        started.into_iter().map(finish).collect()
    });
    let left = |result: &Result<Outcome>| matches!(result, Err(TrainError::Comm(CommError::Left { .. })));
    let cause = results.iter().position(|result| result.is_err() && !left(result));
    let shown = cause.or_else(|| results.iter().position(Result::is_err)).unwrap_or(0);
    // There is one result for each device.
    results.into_iter().nth(shown).unwrap_or(Ok(Outcome::Finished))
}

/// First weights of what `make` builds. They are drawn on the CPU, so that a seed gives the same ones on every device.
///
/// # Errors
/// Those of `make`.
pub(crate) fn first_weights<M: Module>(device: &Device, seed: u64, make: impl FnOnce(&Device) -> Result<M>) -> Result<M> {
    // burn's CPU backend has one generator for all threads.
    static GENERATOR: Mutex<()> = Mutex::new(());
    let cpu = Device::flex().autodiff();
    let _drawing = GENERATOR.lock().unwrap_or_else(PoisonError::into_inner);
    cpu.seed(seed);
    let model = make(&cpu)?;
    initialize(&model);
    Ok(if on_cpu(device) { model } else { model.fork(device) })
}
