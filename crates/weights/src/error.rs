use std::collections::HashMap;
use std::path::PathBuf;

use unif2ace_io::IoError;

/// Result of an operation on weights.
pub type Result<T, E = WeightsError> = std::result::Result<T, E>;

/// The error of loading weights into a module.
pub type LoadError = WeightsError;

const PICKLE_HINT: &str = "convert it to safetensors first, on a machine where you trust the file";
/// Differences printed before the rest is only counted.
const MAX_LISTED: usize = 24;
const LISTED_IN_TURN: usize = 6;

/// One difference between the tensors expected and the tensors found.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Problem {
    /// Expected and not there.
    Missing {
        /// Tensor name.
        name: String,
        /// Shape expected.
        shape: Vec<usize>,
    },
    /// There and not expected.
    Unexpected {
        /// Tensor name.
        name: String,
        /// Shape found.
        shape: Vec<usize>,
    },
    /// There with another shape.
    Misshapen {
        /// Tensor name.
        name: String,
        /// Shape expected.
        expected: Vec<usize>,
        /// Shape found.
        found: Vec<usize>,
    },
    /// There with numbers of a kind that can't be used.
    WrongType {
        /// Tensor name.
        name: String,
        /// Types that would do.
        expected: &'static str,
        /// Type found.
        found: String,
    },
    /// There with values that can't be right.
    BadValues {
        /// Tensor name.
        name: String,
        /// What is wrong with them.
        reason: String,
    },
}

impl std::fmt::Display for Problem {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Missing { name, shape } => write!(formatter, "missing {name} {shape:?}"),
            Self::Unexpected { name, shape } => write!(formatter, "unexpected {name} {shape:?}"),
            Self::Misshapen { name, expected, found } => {
                write!(formatter, "{name}: expected shape {expected:?}, found {found:?}")
            }
            Self::WrongType { name, expected, found } => write!(formatter, "{name}: expected {expected}, found {found}"),
            Self::BadValues { name, reason } => write!(formatter, "{name}: {reason}"),
        }
    }
}

/// What went wrong with weights.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WeightsError {
    /// The disk refused.
    #[error(transparent)]
    Io(#[from] IoError),
    /// A Python pickle or a zip around one.
    #[error("cannot read {}: it is a Python pickle, expected safetensors; a pickle runs code when it is opened\nhint: {PICKLE_HINT}", .path.display())]
    Pickle {
        /// The file.
        path: PathBuf,
    },
    /// A folder without a weight file.
    #[error("cannot find weights in {}: expected {expected}, found {found}\nhint: name the folder that holds config.json and the .safetensors files", .path.display())]
    NoWeights {
        /// The folder.
        path: PathBuf,
        /// The file names looked for.
        expected: &'static str,
        /// What lies there.
        found: String,
    },
    /// Not a safetensors file, or a damaged one.
    #[error("cannot read {}: {reason}\nhint: the file may not have been copied completely; fetch it again and compare its size", .path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Which rule it breaks, with expected and found.
        reason: String,
    },
    /// A table of shards that doesn't fit its files.
    #[error("cannot use the shard index {}: {reason}\nhint: fetch all shards and the index of one and the same release", .path.display())]
    Index {
        /// The index file.
        path: PathBuf,
        /// What doesn't fit.
        reason: String,
    },
    /// A config.json that isn't one of ours or of a known release.
    #[error("cannot use {}: {reason}\nhint: compare with the config.json of the release", .path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// Field, expected, found.
        reason: String,
    },
    /// A tensor that is not there.
    #[error("no tensor {name} in {origin}\nhint: `inspect` lists the names of a weight file")]
    NoTensor {
        /// Tensor name.
        name: String,
        /// File or folder.
        origin: String,
    },
    /// A tensor of a type that the operation can't use.
    #[error("tensor {name} of {origin}: expected {expected}, found {found}")]
    WrongType {
        /// Tensor name.
        name: String,
        /// File or folder.
        origin: String,
        /// Types that would do.
        expected: &'static str,
        /// Type found.
        found: String,
    },
    /// The tensors don't fit the module or the release.
    #[error("{origin} does not fit {target}: {} {}\n{}\nhint: {hint}", .problems.len(), if .problems.len() == 1 { "problem" } else { "problems" }, list(.problems))]
    Mismatch {
        /// File or folder.
        origin: String,
        /// What it should fit.
        target: String,
        /// Every difference.
        problems: Vec<Problem>,
        /// What to do.
        hint: &'static str,
    },
    /// Adapters can't be merged into a model, or taken out of it.
    #[error("{origin}: {reason}\nhint: {hint}")]
    Adapter {
        /// File or folder of the model.
        origin: String,
        /// The adapter, and why not.
        reason: String,
        /// What to do.
        hint: &'static str,
    },
    /// Tensors can't be laid out or written as asked.
    #[error("cannot write {}: tensor {name}: {reason}", .path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Tensor name.
        name: String,
        /// What doesn't fit.
        reason: String,
    },
}

fn list(problems: &[Problem]) -> String {
    // Kind by kind in turns of a few, so that a long list of one kind doesn't hide another.
    let mut seen = HashMap::new();
    let mut order: Vec<(usize, usize)> = Vec::with_capacity(problems.len());
    for (place, problem) in problems.iter().enumerate() {
        let of_kind = seen.entry(std::mem::discriminant(problem)).or_insert(0);
        order.push((*of_kind / LISTED_IN_TURN, place));
        *of_kind += 1;
    }
    order.sort_unstable();
    let mut lines: Vec<String> = order.iter().take(MAX_LISTED).map(|&(_, place)| format!("  {}", problems[place])).collect();
    if problems.len() > MAX_LISTED {
        lines.push(format!("  and {} more", problems.len() - MAX_LISTED));
    }
    lines.join("\n")
}
