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
    /// The loss or its gradient is no longer a number.
    #[error(
        "step {step}: the {what} is {value}; the last checkpoint is untouched\nhint: lower `learning_rate` or set `max_grad_norm`, then continue with --resume"
    )]
    NotFinite {
        /// The number that isn't finite.
        what: &'static str,
        /// The step that gave it.
        step: u64,
        /// NaN or an infinity.
        value: f32,
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
