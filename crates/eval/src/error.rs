//! What can go wrong while measuring.

/// An error of an evaluation.
#[derive(Debug, thiserror::Error)]
pub enum EvalError {
    /// The model folder lacks a part or a part is damaged.
    #[error("model folder {folder}: {reason}")]
    Model {
        /// The folder.
        folder: String,
        /// What is wrong.
        reason: String,
    },
    /// Anything else, with what was done.
    #[error("{operation}: {reason}")]
    Step {
        /// What was done.
        operation: &'static str,
        /// What went wrong.
        reason: String,
    },
}

impl EvalError {
    /// Wraps an error of a step.
    pub(crate) fn step<E: std::fmt::Display>(operation: &'static str) -> impl Fn(E) -> Self {
        move |error| Self::Step { operation, reason: error.to_string() }
    }
}

/// Result of an evaluation.
pub type Result<T> = std::result::Result<T, EvalError>;
