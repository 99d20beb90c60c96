//! Where a session of a run starts, and a log that ends there.

use std::io::{BufRead as _, BufReader, Read as _};
use std::path::Path;

use burn::module::Module;
use serde_json::Value;
use unif2ace_io::{IoError, open_capped, write_atomic_with};

use crate::checkpoint::{Checkpoints, RunState};
use crate::error::{Result, TrainError};
use crate::lora;
use crate::optim::OptimizerState;
use crate::recipe::Recipe;
use crate::trainer::Session;

const MAX_LOG_BYTES: u64 = 64 << 30;

/// A run at its newest checkpoint, or at its start.
pub(crate) struct Resumed<M> {
    pub model: M,
    pub optimizer: OptimizerState,
    pub state: RunState,
}

/// Reads the newest whole checkpoint into `model` when the session resumes; otherwise there must be none.
///
/// # Errors
/// When the checkpoint is of another run or architecture, or there is a run that the session would overwrite.
pub(crate) fn restore<M: Module>(recipe: &Recipe, checkpoints: &Checkpoints, model: M, session: &Session) -> Result<Resumed<M>> {
    let seed = recipe.run.seed;
    let lora_base = lora::base_digest(recipe)?;
    let lora_alpha = recipe.lora.as_ref().map(|lora| lora.alpha);
    let refuse = |reason, hint| TrainError::Checkpoint { path: checkpoints.folder().to_path_buf(), reason, hint };
    if !session.resume
        && let Some(step) = checkpoints.newest_step()?
    {
        let hint = "continue it with --resume, name another `output` in the recipe, or remove the folder";
        return Err(refuse(format!("there is a run of {step} steps already"), hint));
    }
    if session.ranks.leads() {
        checkpoints.remove_partial()?;
    }
    let Some(found) = checkpoints.newest_whole()? else {
        if session.resume && session.ranks.leads() {
            tracing::warn!("no checkpoint in {}: the run starts at step 0", checkpoints.folder().display());
        }
        let state = RunState { seed, lora_base, lora_alpha, ..RunState::default() };
        return Ok(Resumed { model, optimizer: OptimizerState::default(), state });
    };
    if found.state.seed != seed {
        let hint = "a run keeps its seed, which decides the order of its data: give the recipe the checkpoint's";
        return Err(refuse(format!("was made with seed {}, the recipe says {seed}", found.state.seed), hint));
    }
    if found.state.lora_base != lora_base {
        let hint = "give the recipe the `init_from` and [lora] that the run was started with, or name another `output`";
        return Err(refuse("was made with other base weights, or none, for adapters".into(), hint));
    }
    if let (Some(then), Some(now)) = (found.state.lora_alpha, lora_alpha)
        && then != now
    {
        let hint = "give [lora] the checkpoint's alpha, or name another `output`";
        return Err(refuse(format!("was made with alpha = {then} in [lora], the recipe says {now}"), hint));
    }
    let model = found.load_into(model)?;
    let mut optimizer = found.optimizer()?;
    if recipe.optimizer()?.ema_decay == 0.0 {
        optimizer.ema.clear();
        optimizer.num_averaged = 0;
    }
    if session.ranks.leads() {
        tracing::info!(step = found.state.step, "resumed");
    }
    Ok(Resumed { model, optimizer, state: RunState { lora_alpha, ..found.state } })
}

/// Cuts the lines past `step` off a file of JSON lines, and a line that a killed process left half written: the resumed run writes them
/// again. The file is replaced whole.
///
/// # Errors
/// When the disk refuses.
pub(crate) fn cut_lines_after(path: &Path, step: u64) -> Result<()> {
    let fail = |source| IoError::system("read", path, source);
    let file = match open_capped(path, MAX_LOG_BYTES) {
        Err(error) if error.is_not_found() => return Ok(()),
        file => file?,
    };
    let (mut reader, mut line, mut kept) = (BufReader::new(file), Vec::new(), 0);
    loop {
        line.clear();
        reader.read_until(b'\n', &mut line).map_err(fail)?;
        if line.is_empty() {
            return Ok(());
        }
        let whole = line.ends_with(b"\n").then(|| serde_json::from_slice::<Value>(&line).ok()).flatten();
        if whole.is_none_or(|whole| whole["step"].as_u64().is_some_and(|of_step| of_step > step)) {
            break;
        }
        kept += line.len() as u64;
    }
    tracing::info!("lines past step {step} are cut off {}", path.display());
    let mut start = open_capped(path, MAX_LOG_BYTES)?.take(kept);
    Ok(write_atomic_with(path, |file| std::io::copy(&mut start, file).map(drop))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_ends_at_the_step_that_the_run_is_resumed_from() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        cut_lines_after(&path, 0).unwrap();
        assert!(!path.exists());
        let cut = |text: &str, step| {
            std::fs::write(&path, text).unwrap();
            cut_lines_after(&path, step).unwrap();
            std::fs::read_to_string(&path).unwrap()
        };
        let all = "{\"step\":49}\n{\"step\":50}\n{\"step\":50,\"held_out\":1}\n{\"step\":57}\n";
        assert_eq!(cut(all, 57), all);
        assert_eq!(cut(all, 50), all[..all.find("{\"step\":57").unwrap()]);
        assert_eq!(cut(all, 0), "");
        assert_eq!(cut("{\"note\":1}\n{\"step\":2}\n", 1), "{\"note\":1}\n", "lines without a step stay");
        assert_eq!(cut("{\"step\":1}\n{\"step\":2", 9), "{\"step\":1}\n", "half a line");
        assert_eq!(cut("{\"step\":1}\n{\"step\":2}", 9), "{\"step\":1}\n", "a line without its end");
    }
}
