//! What can go wrong while measuring.

/// An error of an evaluation.
#[derive(Debug, thiserror::Error)]
pub enum EvalError {
    /// A step failed.
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
