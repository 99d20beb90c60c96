//! Errors of this crate: what was asked, what was expected, what was given, and a hint.

use thiserror::Error;

/// Shorthand for results of this crate.
pub type Result<T, E = DiffusionError> = std::result::Result<T, E>;

/// Everything that a caller can get wrong here.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum DiffusionError {
    /// A slice or tensor has another length than the operation needs.
    #[error("{operation}: expected {expected} {what}, given {given}\nhint: {hint}")]
    Length {
        /// The operation that was asked for.
        operation: &'static str,
        /// What is counted.
        what: &'static str,
        /// The number that fits (several are possible: it is text).
        expected: String,
        /// The number that was given.
        given: usize,
        /// What to look at.
        hint: &'static str,
    },
    /// A number lies outside its range.
    #[error("{operation}: {what} must be {expected}, given {given}\nhint: {hint}")]
    Range {
        /// The operation that was asked for.
        operation: &'static str,
        /// The name of the number.
        what: &'static str,
        /// The permitted values.
        expected: String,
        /// The value that was given.
        given: String,
        /// What to do instead.
        hint: &'static str,
    },
    /// The name of a schedule, sampler or mode is not known.
    #[error(
        "unknown {what} {given:?}: expected {expected}\nhint: names are lower case, parameters follow the name as in \"pow2\" or \"sigmoid_start-3_end3_tau1\""
    )]
    Name {
        /// What was to be named.
        what: &'static str,
        /// The known names.
        expected: &'static str,
        /// The name that was given.
        given: String,
    },
    /// Logits or probabilities that no code can be drawn from.
    #[error(
        "{operation}: the numbers at place {place} are not a distribution ({problem})\nhint: the network produced NaN or infinite logits; check its weights and the guidance scale"
    )]
    NotADistribution {
        /// The operation that was asked for.
        operation: &'static str,
        /// Which token of the grid (or of the text) was being drawn.
        place: usize,
        /// What is wrong with the numbers.
        problem: &'static str,
    },
    /// A sampler was asked for something after its last step.
    #[error("{operation}: all {num_steps} steps are done\nhint: take the grid with `into_codes`")]
    Finished {
        /// The operation that was asked for.
        operation: &'static str,
        /// The number of steps of this sampler.
        num_steps: usize,
    },
}

pub(crate) fn range(
    operation: &'static str,
    what: &'static str,
    expected: impl Into<String>,
    given: impl ToString,
    hint: &'static str,
) -> DiffusionError {
    DiffusionError::Range { operation, what, expected: expected.into(), given: given.to_string(), hint }
}

pub(crate) fn check_length(
    operation: &'static str,
    what: &'static str,
    expected: usize,
    given: usize,
    hint: &'static str,
) -> Result<()> {
    if expected == given {
        return Ok(());
    }
    Err(DiffusionError::Length { operation, what, expected: expected.to_string(), given, hint })
}
