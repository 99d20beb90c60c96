//! Checkpoints: folders `step-NNNNNNNN` of weights, moments and averages as safetensors, the run's state as JSON, and a manifest
//! with the SHA-256 of each file.
//!
//! A checkpoint is written under a hidden name, flushed to the device and committed by one rename, so that it is there wholly or
//! not at all. Reading verifies the manifest. One that was damaged after its commit is named in a warning, and the one before it
//! is used.

mod commit;
mod keep;
mod manifest;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn::module::Module;
use serde::{Deserialize, Serialize};
use unif2ace_weights::{NameMap, SafetensorsFile, WeightsError, adapter_specs, load_adapters, load_into};

use crate::error::{Result, TrainError};
use crate::optim::OptimizerState;
use crate::params::{HostTensor, HostTensors};
use crate::window::Window;
use commit::Partial;
pub use keep::{Better, Keep};

const WEIGHTS: &str = "weights.safetensors";
const FIRST: &str = "first_moments.safetensors";
const SECOND: &str = "second_moments.safetensors";
const EMA: &str = "ema.safetensors";
const STATE: &str = "state.json";
const MAX_STATE_BYTES: u64 = 1 << 20;

/// What a run is, besides tensors.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct RunState {
    /// Steps done; the data order and all random draws are functions of the seed and this number.
    pub step: u64,
    /// Updates of the optimiser in the stage.
    pub num_updates: u64,
    /// Updates of the averages, over all stages; `num_updates` where it is absent.
    #[serde(default)]
    pub num_averaged: Option<u64>,
    /// Seed of the run.
    pub seed: u64,
    /// Training seconds so far, over all sessions.
    pub seconds: f64,
    /// Steps whose loss or gradient was not finite and which were left out.
    #[serde(default)]
    pub num_skipped: u64,
    /// What the evaluation at this step measured, nothing for what is not finite; empty when there was none.
    #[serde(default)]
    pub measures: BTreeMap<String, Option<f64>>,
    /// SHA-256 of the weights that adapters are trained beside; none without adapters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lora_base: Option<String>,
    /// What the adapters' updates are scaled by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lora_alpha: Option<f64>,
    /// Sums since the last line of metrics.
    #[serde(default)]
    pub window: Window,
}

/// The checkpoints of one run.
#[derive(Debug)]
pub struct Checkpoints {
    folder: PathBuf,
    keep: Keep,
}

/// A checkpoint whose files are as they were committed.
#[derive(Debug)]
pub struct Checkpoint {
    /// Its folder.
    pub folder: PathBuf,
    /// Where the run stood.
    pub state: RunState,
}

impl Checkpoints {
    /// Checkpoints below `folder`, of which those stay that `keep` names.
    pub fn new(folder: impl Into<PathBuf>, keep: Keep) -> Self {
        Self { folder: folder.into(), keep }
    }

    /// The folder of all checkpoints.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Removes what a killed process left of a save. Only the process that saves may do so, and not during a save.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn remove_partial(&self) -> Result<()> {
        commit::remove_partial(&self.folder)
    }

    /// Step of the newest checkpoint, whole or not.
    ///
    /// # Errors
    /// When the folder can't be listed.
    pub fn newest_step(&self) -> Result<Option<u64>> {
        Ok(commit::list(&self.folder)?.last().map(|&(step, _)| step))
    }

    /// Commits a checkpoint of `state.step`, then removes those that need not be kept. A whole checkpoint of the same step stays as it
    /// is: a step of a run has one state.
    ///
    /// # Errors
    /// When the disk refuses; earlier checkpoints are untouched then. When the evaluation doesn't measure what `keep` ranks by; the
    /// checkpoint is committed then.
    pub fn save<M: Module>(&self, state: &RunState, model: &M, optimizer: &OptimizerState) -> Result<PathBuf> {
        let target = commit::path_of(&self.folder, state.step);
        if target.exists() {
            if manifest::damage(&target)?.is_empty() {
                return Ok(target);
            }
            commit::discard(&target)?;
        }
        let mut partial = Partial::create(&self.folder, state.step)?;
        partial.write_module(WEIGHTS, model)?;
        partial.write_tensors(FIRST, &optimizer.first)?;
        partial.write_tensors(SECOND, &optimizer.second)?;
        partial.write_tensors(EMA, &optimizer.ema)?;
        partial.write_json(STATE, state)?;
        partial.commit(&target)?;
        self.prune(state)?;
        Ok(target)
    }

    fn prune(&self, saved: &RunState) -> Result<()> {
        let all = commit::list(&self.folder)?;
        let mut measured = Vec::with_capacity(all.len());
        for (step, path) in &all {
            // Without a readable state it has no measure; it is still the checkpoint of its step.
            let measures = read_state(path).map(|state| state.measures).unwrap_or_default();
            measured.push((*step, self.keep.measure(&measures)));
        }
        let superseded = self.keep.superseded(saved.step, &measured);
        for (_, path) in all.iter().filter(|(step, _)| superseded.contains(step)) {
            commit::discard(path)?;
        }
        self.keep.check(&saved.measures)
    }

    /// The newest whole checkpoint; `None` when there is none at all. Newer ones that are damaged are named in warnings.
    ///
    /// # Errors
    /// When there are checkpoints but none is whole, or one can't be read for want of permission.
    pub fn newest_whole(&self) -> Result<Option<Checkpoint>> {
        let mut newest_damage = None;
        for (step, folder) in commit::list(&self.folder)?.into_iter().rev() {
            let damage = manifest::damage(&folder)?;
            if damage.is_empty() {
                if newest_damage.is_some() {
                    tracing::warn!("going back to the checkpoint of step {step}; the steps after it are trained again");
                }
                return Ok(Some(Checkpoint { state: read_state(&folder)?, folder }));
            }
            let reason = format!("is damaged:\n  {}", damage.join("\n  "));
            tracing::warn!("checkpoint {} {reason}", folder.display());
            newest_damage.get_or_insert((folder, reason));
        }
        let Some((path, reason)) = newest_damage else { return Ok(None) };
        let hint = "no whole checkpoint is left: restore one from a copy, or start again with another `output`";
        Err(TrainError::Checkpoint { path, reason, hint })
    }
}

impl Checkpoint {
    /// `model` with the checkpoint's weights.
    ///
    /// # Errors
    /// Names the tensors that are missing, not expected, or of another shape when the model is of another architecture.
    pub fn load_into<M: Module>(&self, model: M) -> Result<M> {
        let source = SafetensorsFile::open(self.folder.join(WEIGHTS))?;
        let hint = "resume with the recipe that the run was started with, or name another `output`";
        let loaded = match adapter_specs(&model).is_empty() {
            true => load_into(model, &source, &NameMap::identity()),
            false => load_adapters(model, &source),
        };
        loaded.map_err(|error| match error {
            WeightsError::Mismatch { origin, problems, .. } => {
                WeightsError::Mismatch { origin, target: "the recipe's model".into(), problems, hint }.into()
            }
            other => other.into(),
        })
    }

    /// Moments and averages.
    ///
    /// # Errors
    /// When a file can't be read.
    pub fn optimizer(&self) -> Result<OptimizerState> {
        let ema = read_tensors(&self.folder.join(EMA))?;
        let num_averaged = self.state.num_averaged.unwrap_or(self.state.num_updates);
        Ok(OptimizerState {
            first: read_tensors(&self.folder.join(FIRST))?,
            second: read_tensors(&self.folder.join(SECOND))?,
            num_averaged: if ema.is_empty() { 0 } else { num_averaged },
            ema,
            num_updates: self.state.num_updates,
        })
    }
}

fn read_state(folder: &Path) -> Result<RunState> {
    let path = folder.join(STATE);
    let text = unif2ace_io::read_to_string_capped(&path, MAX_STATE_BYTES)?;
    let hint = "resume with the version of unif2ace that wrote it";
    serde_json::from_str(&text).map_err(|error| TrainError::Checkpoint { path, reason: error.to_string(), hint })
}

fn read_tensors(path: &Path) -> Result<HostTensors> {
    let file = SafetensorsFile::open(path)?;
    let read = |name: &str| -> Result<_> {
        let shape = file.info(name).map(|info| info.shape.clone()).unwrap_or_default();
        Ok((name.to_owned(), HostTensor { shape, values: file.load_f32(name)? }))
    };
    file.names().map(read).collect()
}
