//! Checkpoints: a folder `step-NNNNNNNN` with weights, moments and averages as safetensors and one JSON, committed by a rename.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::{Deserialize, Serialize};

use crate::error::{Result, TrainError};
use crate::optim::OptimizerState;
use crate::params::{HostTensor, HostTensors};

/// Number of checkpoints that are kept.
const KEEP_LAST: usize = 2;
const MAX_FILE_BYTES: u64 = 64 << 30;

/// What a run is, besides tensors.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunState {
    /// Steps done; the data order and all random draws are functions of the seed and this number.
    pub step: u64,
    /// Updates of the optimiser.
    pub num_updates: u64,
    /// Seed of the run.
    pub seed: u64,
    /// Training seconds so far, over all sessions.
    pub seconds: f64,
}

/// Writes a checkpoint of `state.step` below `folder` and removes those older than the last two.
///
/// # Errors
/// When the disk refuses; earlier checkpoints are untouched then.
pub fn save(folder: &Path, state: &RunState, weights: &HostTensors, optimizer: &OptimizerState) -> Result<PathBuf> {
    unif2ace_io::create_dir_all(folder)?;
    let target = folder.join(format!("step-{:08}", state.step));
    let partial = folder.join(format!(".step-{:08}.partial", state.step));
    remove(&partial)?;
    unif2ace_io::create_dir_all(&partial)?;
    let result = write_parts(&partial, state, weights, optimizer);
    if let Err(error) = result {
        let _ = remove(&partial);
        return Err(error);
    }
    remove(&target)?;
    unif2ace_io::rename_durable(&partial, &target)?;
    let all = list(folder)?;
    for old in all.iter().filter(|path| **path != target).rev().skip(KEEP_LAST - 1) {
        remove(old)?;
    }
    Ok(target)
}

fn write_parts(folder: &Path, state: &RunState, weights: &HostTensors, optimizer: &OptimizerState) -> Result<()> {
    write_tensors(&folder.join("weights.safetensors"), weights)?;
    write_tensors(&folder.join("first_moments.safetensors"), &optimizer.first)?;
    write_tensors(&folder.join("second_moments.safetensors"), &optimizer.second)?;
    write_tensors(&folder.join("ema.safetensors"), &optimizer.ema)?;
    let json = serde_json::to_vec_pretty(state).map_err(|error| bad(folder, error.to_string()))?;
    Ok(unif2ace_io::write_atomic(folder.join("state.json"), &json)?)
}

/// A checkpoint read back.
pub struct Checkpoint {
    /// Where the run stood.
    pub state: RunState,
    /// Weights by path.
    pub weights: HostTensors,
    /// Moments and averages.
    pub optimizer: OptimizerState,
}

/// Reads the newest checkpoint below `folder`; `None` when there is none.
///
/// # Errors
/// When a file of it is damaged.
pub fn load_latest(folder: &Path) -> Result<Option<Checkpoint>> {
    let Some(path) = list(folder)?.pop() else { return Ok(None) };
    let text = unif2ace_io::read_to_string_capped(path.join("state.json"), 1 << 20)?;
    let state: RunState = serde_json::from_str(&text).map_err(|error| bad(&path, error.to_string()))?;
    let optimizer = OptimizerState {
        first: read_tensors(&path.join("first_moments.safetensors"))?,
        second: read_tensors(&path.join("second_moments.safetensors"))?,
        ema: read_tensors(&path.join("ema.safetensors"))?,
        num_updates: state.num_updates,
    };
    let weights = read_tensors(&path.join("weights.safetensors"))?;
    Ok(Some(Checkpoint { state, weights, optimizer }))
}

/// Checkpoint folders, oldest first.
fn list(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(unif2ace_io::IoError::system("list", folder, error).into()),
    };
    let mut found: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            name.starts_with("step-") && path.join("state.json").is_file()
        })
        .collect();
    found.sort();
    Ok(found)
}

fn remove(folder: &Path) -> Result<()> {
    match std::fs::remove_dir_all(folder) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(bad(folder, format!("can't be removed: {error}"))),
    }
}

fn bad(path: &Path, reason: String) -> TrainError {
    let hint = "remove the checkpoint to continue from the one before it";
    TrainError::Checkpoint { path: path.to_path_buf(), reason, hint }
}

/// Writes tensors as f32 safetensors, atomically.
///
/// # Errors
/// When the disk refuses.
pub fn write_tensors(path: &Path, tensors: &HostTensors) -> Result<()> {
    let mut views = BTreeMap::new();
    for (name, tensor) in tensors {
        let bytes: &[u8] = bytemuck::cast_slice(&tensor.values);
        let view =
            TensorView::new(Dtype::F32, tensor.shape.clone(), bytes).map_err(|error| bad(path, format!("{name}: {error}")))?;
        views.insert(name.as_str(), view);
    }
    let bytes = safetensors::serialize(&views, None).map_err(|error| bad(path, error.to_string()))?;
    Ok(unif2ace_io::write_atomic(path, &bytes)?)
}

/// Reads f32 safetensors.
///
/// # Errors
/// When the file is missing, damaged, or of another type.
pub fn read_tensors(path: &Path) -> Result<HostTensors> {
    let bytes = unif2ace_io::read_capped(path, MAX_FILE_BYTES)?;
    let file = SafeTensors::deserialize(&bytes).map_err(|error| bad(path, error.to_string()))?;
    let mut tensors = HostTensors::new();
    for (name, view) in file.tensors() {
        if view.dtype() != Dtype::F32 {
            return Err(bad(path, format!("{name}: expected F32, found {:?}", view.dtype())));
        }
        let values = view.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        tensors.insert(name, HostTensor { shape: view.shape().to_vec(), values });
    }
    Ok(tensors)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensors(value: f32) -> HostTensors {
        let tensor = HostTensor { shape: vec![2, 1], values: vec![value, -value] };
        HostTensors::from([("a.weight".to_owned(), tensor)])
    }

    #[test]
    fn the_newest_whole_checkpoint_is_found_and_old_ones_go() {
        let folder = tempfile::tempdir().unwrap();
        assert!(load_latest(folder.path()).unwrap().is_none());
        for step in [10, 20, 30] {
            let state = RunState { step, num_updates: step, seed: 1, seconds: 0.5 };
            let optimizer =
                OptimizerState { first: tensors(2.0), second: tensors(3.0), ema: HostTensors::new(), num_updates: step };
            save(folder.path(), &state, &tensors(step as f32), &optimizer).unwrap();
        }
        // A run that died while saving leaves a partial folder, which is not a checkpoint.
        std::fs::create_dir(folder.path().join(".step-00000040.partial")).unwrap();
        let found = load_latest(folder.path()).unwrap().unwrap();
        assert_eq!(found.state.step, 30);
        assert_eq!(found.weights, tensors(30.0));
        assert_eq!(found.optimizer.first, tensors(2.0));
        assert_eq!(list(folder.path()).unwrap().len(), KEEP_LAST);
        // What was just saved stays, even beside higher numbers.
        let state = RunState { step: 5, num_updates: 5, seed: 1, seconds: 0.5 };
        let saved = save(folder.path(), &state, &tensors(5.0), &OptimizerState::default()).unwrap();
        assert!(saved.join("state.json").is_file());
        assert_eq!(list(folder.path()).unwrap().len(), KEEP_LAST);
    }

    #[test]
    fn a_truncated_file_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let state = RunState { step: 1, num_updates: 1, seed: 1, seconds: 0.0 };
        let path = save(folder.path(), &state, &tensors(1.0), &OptimizerState::default()).unwrap();
        let file = path.join("weights.safetensors");
        let bytes = std::fs::read(&file).unwrap();
        std::fs::write(&file, &bytes[..bytes.len() - 3]).unwrap();
        let error = load_latest(folder.path()).err().unwrap().to_string();
        assert!(error.contains("weights.safetensors"), "{error}");
    }
}
