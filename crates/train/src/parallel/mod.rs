//! One step on several ranks: agreement at the start, and gradients summed while the backward pass still runs.
//!
//! Every rank computes its share of the global loss: shares, and so gradients, add up to what one rank alone computes.

mod backward;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use burn::module::Module;
use burn::tensor::Tensor;
use unif2ace_comm::Communicator;
use unif2ace_ops::listen_to_taps;

use self::backward::{Backward, added, digest, watched};
use crate::error::{Result, TrainError};
use crate::optim::{
    DeviceGradients, DeviceTensors, HostGradients, OptimizerState, StepGradients, added_on_device, collect_gradients,
    collect_on_device,
};
use crate::params::parameters;
use crate::recipe::Recipe;
use crate::tasks::share::{Pass, Share};
use crate::trainer::StepLoss;

/// The ranks of a run, and what is known about the order of their gradients.
pub struct Parallel {
    ranks: Arc<dyn Communicator>,
    state: Arc<Mutex<Backward>>,
    /// Where the time of the sums went.
    times: Times,
    /// Gradients of the passes before, where gradients stay on the device of the weights.
    on_device: Option<DeviceTensors>,
}

/// Over a session.
#[derive(Default)]
struct Times {
    /// Seconds of sums of gradients, from the first byte to the last.
    summing: f64,
    /// Seconds after the backward pass for which the training thread waited for sums: what the pass did not hide.
    waiting: f64,
    /// Values that left during backward passes.
    early: usize,
    /// All values.
    values: usize,
}

/// Checks that the ranks have one recipe and can share its work.
///
/// # Errors
/// Names the ranks that differ from rank 0, or the number of rows that can't be shared.
pub fn check(ranks: &dyn Communicator, recipe: &Recipe) -> Result<()> {
    if ranks.world_size() == 1 {
        return Ok(());
    }
    let text = serde_json::to_string(recipe).map_err(|error| TrainError::Data(error.to_string()))?;
    let digest = unif2ace_io::sha256_hex(format!("{} {text}", env!("CARGO_PKG_VERSION")).as_bytes());
    agree(ranks, "the recipe or program version", &digest, "start all ranks by one command, with one recipe file and one build")?;
    recipe.stages.iter().map(|stage| &stage.recipe).chain([recipe]).try_for_each(|recipe| shareable(ranks, recipe))
}

/// Checks that the ranks can share the rows of a step equally.
fn shareable(ranks: &dyn Communicator, recipe: &Recipe) -> Result<()> {
    let rows = match (&recipe.face, &recipe.unified) {
        (Some(_), _) => vec![recipe.optimizer()?.batch_size],
        (_, Some(unified)) => vec![recipe.optimizer()?.batch_size, unified.mmu_batch_size, unified.text_batch_size],
        _ => {
            let reason = format!("this part is trained by one rank, not by {}", ranks.world_size());
            let hint =
                "its loss compares all rows of a batch with each other, or has no gradient: start it without mpirun or srun";
            return Err(TrainError::Ranks { reason, hint });
        }
    };
    let pass = Pass { index: 0, count: recipe.optimizer()?.accumulation_steps, tally: None };
    rows.into_iter().try_for_each(|rows| Share::of(ranks, rows)?.of_pass(pass).map(drop))
}

/// Checks that all ranks hold the same `what`.
fn agree(ranks: &dyn Communicator, what: &str, digest: &str, hint: &'static str) -> Result<()> {
    let digests = ranks.gather(digest.as_bytes())?;
    let others: Vec<String> =
        (0..digests.len()).filter(|&rank| digests[rank] != digests[0]).map(|rank| rank.to_string()).collect();
    if others.is_empty() {
        return Ok(());
    }
    let reason = format!("{what} of rank {} (of {}) is not that of rank 0", others.join(", "), digests.len());
    Err(TrainError::Ranks { reason, hint })
}

impl Parallel {
    /// The ranks of a run. On several, backward passes of models with taps are listened to on this thread until it is dropped.
    pub fn new(ranks: Arc<dyn Communicator>) -> Self {
        let state = Arc::new(Mutex::new(Backward::default()));
        if ranks.world_size() > 1 {
            let (seen, ranks) = (state.clone(), ranks.clone());
            listen_to_taps(Some(Arc::new(move |gradients| lock(&seen).at_tap(gradients, &*ranks))));
        }
        Self { ranks, state, times: Times::default(), on_device: None }
    }

    /// Leaves gradients on the device of the weights if asked to, which one rank alone can.
    pub(crate) fn keeping_gradients_there(mut self, keep: bool) -> Self {
        self.on_device = (keep && self.ranks.world_size() == 1).then(DeviceTensors::new);
        self
    }

    /// Checks that all ranks start from the same step, weights and moments.
    ///
    /// # Errors
    /// Names the ranks that differ from rank 0.
    pub fn agree_on_state<M: Module>(&self, step: u64, model: &M, optimizer: &OptimizerState) -> Result<()> {
        if self.ranks.world_size() == 1 {
            return Ok(());
        }
        let hint = "`output` must be a folder that every machine sees, and all ranks must run the same build of the program";
        agree(&*self.ranks, "the newest checkpoint", &format!("step {step}"), hint)?;
        let weights = parameters(model);
        let tensors = [&weights, &optimizer.first, &optimizer.second, &optimizer.ema];
        let lines = tensors.into_iter().flatten().map(|(path, tensor)| format!("{path} {:x}\n", digest(&tensor.values)));
        agree(&*self.ranks, "the state (weights, moments, averages)", &lines.collect::<String>(), hint)
    }

    /// Whether any rank was asked to stop. All ranks give the same answer.
    ///
    /// # Errors
    /// When another rank has left.
    pub fn any(&self, here: bool) -> Result<bool> {
        if self.ranks.world_size() == 1 {
            return Ok(here);
        }
        Ok(self.ranks.sum(vec![f32::from(u8::from(here))])?[0] > 0.0)
    }

    /// The names of all ranks, rank after rank.
    ///
    /// # Errors
    /// When another rank has left.
    pub fn all_names(&self, names: &[String]) -> Result<Vec<String>> {
        if self.ranks.world_size() == 1 {
            return Ok(names.to_vec());
        }
        let text = serde_json::to_vec(names).map_err(|error| TrainError::Data(error.to_string()))?;
        let read =
            |part: Vec<u8>| serde_json::from_slice::<Vec<String>>(&part).map_err(|error| TrainError::Data(error.to_string()));
        Ok(self.ranks.gather(&text)?.into_iter().map(read).collect::<Result<Vec<_>>>()?.concat())
    }

    /// Puts the sums over all ranks in the place of this rank's shares: `loss`, the parts, and the counts, which are exact below 2^24.
    ///
    /// # Errors
    /// When another rank has left.
    pub fn sum_shares(&self, loss: f32, step: &mut StepLoss) -> Result<f32> {
        if self.ranks.world_size() == 1 {
            return Ok(loss);
        }
        let num_parts = step.parts.len();
        let mut shares = vec![loss, step.num_tokens as f32, step.num_images as f32, step.num_broken as f32];
        shares.extend(step.parts.iter().map(|part| part.1 as f32));
        shares.extend(step.experts.iter_mut().flat_map(|group| group.1.counts_mut()).map(|count| *count as f32));
        let sums = self.ranks.sum(shares)?;
        (step.num_tokens, step.num_images, step.num_broken) = (sums[1] as usize, sums[2] as usize, sums[3] as usize);
        let (parts, counts) = sums[4..].split_at(num_parts);
        step.parts.iter_mut().zip(parts).for_each(|(part, &sum)| part.1 = f64::from(sum));
        let experts = step.experts.iter_mut().flat_map(|group| group.1.counts_mut());
        experts.zip(counts).for_each(|(count, &sum)| *count = sum as u64);
        Ok(sums[0])
    }

    /// Keeps the gradients of a share until [`Parallel::backward`] adds them to its own.
    pub fn accumulate<M: Module>(&mut self, model: &M, loss: Tensor<1>) {
        if let Some(carried) = &mut self.on_device {
            *carried = added_on_device(std::mem::take(carried), gradients_there(model, loss));
            return;
        }
        lock(&self.state).idle = true;
        let gradients = local_gradients(model, loss).into_tensors();
        let mut state = lock(&self.state);
        state.idle = false;
        let carried = std::mem::take(&mut state.carried);
        state.carried = added(carried, gradients);
    }

    /// Drops what was kept.
    pub fn forget(&mut self) {
        self.on_device.iter_mut().for_each(DeviceTensors::clear);
        lock(&self.state).carried.clear();
    }

    /// The gradients of a step: those of [`Parallel::backward`], or where the weights are.
    ///
    /// # Errors
    /// As [`Parallel::backward`].
    pub(crate) fn gradients<M: Module>(&mut self, model: &M, loss: Tensor<1>) -> Result<StepGradients> {
        match &mut self.on_device {
            None => self.backward(model, loss).map(StepGradients::Host),
            Some(carried) => {
                let all = added_on_device(std::mem::take(carried), gradients_there(model, loss));
                Ok(StepGradients::Device(DeviceGradients::new(all)))
            }
        }
    }

    /// The gradients of the global loss, of which `loss` is this rank's share, or what is left of the share.
    ///
    /// # Errors
    /// When another rank has left.
    pub fn backward<M: Module>(&mut self, model: &M, loss: Tensor<1>) -> Result<HostGradients> {
        if self.ranks.world_size() == 1 {
            let gradients = local_gradients(model, loss);
            let carried = std::mem::take(&mut lock(&self.state).carried);
            return Ok(match carried.is_empty() {
                true => gradients,
                false => HostGradients::new(added(carried, gradients.into_tensors())),
            });
        }
        lock(&self.state).begin(watched(model));
        let last = local_gradients(model, loss).into_tensors();
        let carried = std::mem::take(&mut lock(&self.state).carried);
        Ok(HostGradients::new(self.finish(added(carried, last))?))
    }

    /// Logs where the time of the sums went.
    pub fn report(&self) {
        let Times { summing, waiting, early, values } = self.times;
        if self.ranks.world_size() > 1 && self.ranks.leads() {
            let early = 100.0 * early as f64 / values.max(1) as f64;
            tracing::info!(
                "gradients: {early:.0}% left during the backward pass; {summing:.2} s on the way, waited {waiting:.2} s for them"
            );
        }
    }

    fn finish(&mut self, local: BTreeMap<String, Vec<f32>>) -> Result<BTreeMap<String, Vec<f32>>> {
        let mut state = lock(&self.state);
        let learning = state.plan.is_none();
        if let Some(plan) = state.plan.take() {
            let (sums, num_wrong) = state.sum(&plan, &local, &*self.ranks, &mut self.times)?;
            if num_wrong == 0 {
                state.plan = Some(plan);
                // The readers share the weights, which the optimiser changes in place.
                state.parameters.clear();
                return Ok(sums);
            }
            tracing::debug!(num_wrong, "gradients came in another order than before: sent again");
        }
        // Without a plan nothing was sent early; after a wrong one everything is sent again, and the next step learns.
        let plan = state.learn(&local, &*self.ranks)?;
        state.sent.clear();
        let (sums, _) = state.sum(&plan, &local, &*self.ranks, &mut self.times)?;
        state.plan = learning.then_some(plan);
        state.parameters.clear();
        Ok(sums)
    }
}

impl Drop for Parallel {
    fn drop(&mut self) {
        if self.ranks.world_size() > 1 {
            listen_to_taps(None);
        }
    }
}

/// The gradients of this rank's share. A loss that only frozen parameters have a part in has none.
fn local_gradients<M: Module>(model: &M, loss: Tensor<1>) -> HostGradients {
    match loss.is_tracked() {
        true => collect_gradients(model, loss.backward()),
        false => HostGradients::new(BTreeMap::new()),
    }
}

/// As [`local_gradients`], on the device of the weights.
fn gradients_there<M: Module>(model: &M, loss: Tensor<1>) -> DeviceTensors {
    match loss.is_tracked() {
        true => collect_on_device(model, loss.backward()),
        false => DeviceTensors::new(),
    }
}

fn lock(state: &Mutex<Backward>) -> MutexGuard<'_, Backward> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}
