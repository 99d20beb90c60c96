//! What can go wrong while training.

use std::path::{Path, PathBuf};

/// An error of a training run.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// The recipe can't be used.
    #[error("recipe {}: {reason}\nhint: {hint}", path.display())]
    Recipe {
        /// The recipe.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
        /// What would be right.
        hint: String,
    },
    /// A checkpoint can't be used.
    #[error("checkpoint {}: {reason}\nhint: {hint}", path.display())]
    Checkpoint {
        /// The checkpoint folder.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
        /// What to do.
        hint: &'static str,
    },
    /// `best_metric` names nothing that is measured.
    #[error(
        "best_metric: no evaluation measures `{metric}`, they measure: {known}\nhint: set `best_metric` to one of these and continue with --resume"
    )]
    BestMetric {
        /// The name given.
        metric: String,
        /// The names there are.
        known: String,
    },
    /// The loss or its gradient is no longer a number.
    #[error(
        "step {step}: the {what} is {value}; the last checkpoint is untouched, and the names of the step's samples are in {}\nhint: look at these samples, lower `learning_rate`, set `max_grad_norm`, or let `skip_nonfinite` leave out a few such steps; then continue with --resume",
        report.display()
    )]
    NotFinite {
        /// The number that isn't finite.
        what: &'static str,
        /// The step that gave it.
        step: u64,
        /// NaN or an infinity.
        value: f64,
        /// The file with the step's samples.
        report: PathBuf,
    },
    /// Curves of runs can't be drawn.
    #[error("{reason}\nhint: {hint}")]
    Plot {
        /// What is wrong.
        reason: String,
        /// What would be right.
        hint: String,
    },
    /// A tensor operation gave data of an unexpected kind.
    #[error("{operation}: {reason}")]
    Tensor {
        /// What was done.
        operation: &'static str,
        /// What was found.
        reason: String,
    },
    /// The run's text tokenizer, image or attribute data can't be used.
    #[error("{0}")]
    Data(String),
    /// A file of weights.
    #[error(transparent)]
    Weights(#[from] unif2ace_weights::WeightsError),
    /// The ranks of a job don't fit each other or the recipe.
    #[error("rank mismatch: {reason}\nhint: {hint}")]
    Ranks {
        /// What doesn't fit.
        reason: String,
        /// What to do.
        hint: &'static str,
    },
    /// The exchange with other ranks.
    #[error(transparent)]
    Comm(#[from] unif2ace_comm::CommError),
    /// The disk.
    #[error(transparent)]
    Io(#[from] unif2ace_io::IoError),
}

impl TrainError {
    /// A recipe that can't be used, with the hint that goes with the reason.
    pub(crate) fn recipe(path: &Path, reason: impl Into<String>) -> Self {
        let reason = reason.into();
        let hint = crate::recipe::hint(&reason);
        Self::Recipe { path: path.to_path_buf(), reason, hint }
    }
}

/// Result of a training operation.
pub type Result<T> = std::result::Result<T, TrainError>;
