//! What can be wrong with what the transformer is given.

use crate::config::ConfigError;

/// An input that does not fit the network.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// A number of the configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Tokens, masks, positions or features.
    #[error("{operation}: expected {expected}, found {found}\nhint: {hint}")]
    Input {
        /// What was tried.
        operation: &'static str,
        /// What it takes.
        expected: String,
        /// What it got.
        found: String,
        /// What to do.
        hint: &'static str,
    },
    /// A text that the text budget has no place for.
    #[error("prompt: expected at most {limit} tokens, found {found}\nhint: shorten the text")]
    PromptTooLong {
        /// Tokens of the text.
        found: usize,
        /// Tokens that fit.
        limit: usize,
    },
}

/// Result of this crate's transformer side.
pub type Result<T> = std::result::Result<T, ModelError>;

pub(crate) fn input<T>(
    operation: &'static str,
    expected: impl Into<String>,
    found: impl ToString,
    hint: &'static str,
) -> Result<T> {
    Err(ModelError::Input { operation, expected: expected.into(), found: found.to_string(), hint })
}
