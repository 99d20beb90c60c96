//! What can be wrong with data.

use std::path::PathBuf;

/// An error of reading or making data.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// A folder can't be listed.
    #[error("read folder {}: {source}\n  hint: give the folder that holds train/, val/ and test/", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A folder without shards.
    #[error("read folder {}: expected shards (*.tar), found none", path.display())]
    NoShards {
        /// The folder.
        path: PathBuf,
    },
    /// A shard can't be read.
    #[error("read shard {}: {source}\n  hint: the file is cut short or no tar file; fetch it again", path.display())]
    Shard {
        /// The shard.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Too many broken samples.
    #[error("read {}: {broken} of {total} samples are broken; the first is {first}", path.display())]
    Broken {
        /// The split's folder.
        path: PathBuf,
        /// Number of broken samples.
        broken: usize,
        /// Number of samples.
        total: usize,
        /// The first broken one.
        first: String,
    },
    /// A picture can't be used.
    #[error("picture of sample {key}: {reason}")]
    Picture {
        /// The sample.
        key: String,
        /// What is wrong.
        reason: String,
    },
    /// A tokenizer can't be trained, read or used.
    #[error("tokenizer {path}: {reason}")]
    Tokenizer {
        /// The file, or where the text came from.
        path: String,
        /// What is wrong.
        reason: String,
    },
}

/// Result of a data operation.
pub type Result<T> = std::result::Result<T, DataError>;
