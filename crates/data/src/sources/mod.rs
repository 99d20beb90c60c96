//! Data of several forms, each as a list of samples that can be read in any order.
//!
//! | format | files | a sample |
//! |---|---|---|
//! | `webdataset` | `*.tar` | `KEY.json` beside `KEY.webp` (or png, jpg, jpeg) |
//! | `parquet` | `*.parquet` as Hugging Face's `datasets` writes them | a row: an `Image` column, captions, questions |
//! | `llava` | a JSON list beside an image folder | an object with `image` and `conversations` |
//! | `unif2aced` | JSON files of captions and of questions beside an image folder | a picture with what all files say of it |
//! | `text` | `*.txt`, `*.jsonl` | a line |
//!
//! `docs/data.md` shows each of them.

mod files;
mod json;
mod parquet;
mod rows;
mod tar;
mod text;

use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{DataError, Result};
use crate::webdataset::Item;
use files::{file_name, has_extension, list, split_files};

/// Every how many samples of a set without splits one is held out, and how many at most.
const HELD_OUT: (usize, usize) = (50, 256);
/// Pieces whose samples are mixed with each other, where pieces are read as a whole.
pub(crate) const PIECES_MIXED: usize = 4;

/// The form of a set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// Tar archives.
    Webdataset,
    /// Tables of Hugging Face's `datasets`.
    Parquet,
    /// A JSON list of conversations.
    Llava,
    /// Captions and questions by picture.
    Unif2aced,
    /// Lines of text.
    Text,
}

impl Format {
    /// The form of what lies in `path`, told by names alone.
    ///
    /// # Errors
    /// When nothing of a known form lies there.
    pub fn detect(path: &Path) -> Result<Self> {
        let mut names = Vec::new();
        if path.is_file() {
            names.push(path.to_path_buf());
        } else {
            for entry in list(path)? {
                // Splits, `data`, `captions`: what counts lies at most one folder deeper.
                names.extend(if entry.is_dir() { list(&entry)? } else { vec![entry] });
            }
            for deeper in ["train", "val", "test"].map(|split| path.join("data").join(split)) {
                names.extend(if deeper.is_dir() { list(&deeper)? } else { Vec::new() });
            }
        }
        let any = |extensions: &[&str]| names.iter().any(|name| has_extension(name, extensions));
        let found = if any(&["tar"]) {
            Self::Webdataset
        } else if any(&["parquet"]) {
            Self::Parquet
        } else if !json::annotations(path)?.is_empty() {
            Self::Unif2aced
        } else if path.is_file() && any(&["json"])
            || !path.is_file() && list(path)?.iter().any(|file| has_extension(file, &["json"]))
        {
            Self::Llava
        } else if any(&["txt", "jsonl"]) {
            Self::Text
        } else {
            let expected = "*.tar, *.parquet, *.json, *.jsonl or *.txt".into();
            return Err(DataError::NoData { path: path.to_path_buf(), expected });
        };
        Ok(found)
    }
}

/// A list of samples in files. Reading one is as cheap in any order, unless `pieces` says otherwise.
pub(crate) trait Source: Send + Sync {
    /// Number of samples, broken ones included.
    fn len(&self) -> usize;

    /// Lengths of the pieces that can only be read as a whole; empty where there are none.
    fn pieces(&self) -> Vec<usize> {
        Vec::new()
    }

    /// Reads a sample. The outer error is the file's, the inner one the sample's.
    fn get(&self, index: usize) -> Result<Item>;
}

/// A split of a set, of which any sample can be read.
pub struct DataSet {
    path: PathBuf,
    source: Box<dyn Source>,
    range: Range<usize>,
}

impl DataSet {
    /// Opens the first `limit` samples (0: all) of a split. Only headers, footers and records are read here, no pictures.
    ///
    /// A set whose names tell no splits is cut: its last 2% (at least 1, at most 256 samples) are `val`, the others `train`.
    ///
    /// # Errors
    /// When nothing of the format lies in `path`, shards are missing, a file is damaged, or the split is empty.
    pub fn open(path: impl AsRef<Path>, format: Option<Format>, split: &str, limit: usize) -> Result<Self> {
        let path = path.as_ref();
        let format = format.map_or_else(|| Format::detect(path), Ok)?;
        let (source, whole): (Box<dyn Source>, bool) = match format {
            Format::Webdataset => {
                let found = split_files(path, split, &["tar"])?;
                (Box::new(tar::TarSource::open(found.files)?), found.whole)
            }
            Format::Parquet => {
                let found = split_files(path, split, &["parquet"])?;
                (Box::new(parquet::ParquetSource::open(found.files)?), found.whole)
            }
            Format::Llava => {
                let found = split_files(path, split, &["json", "jsonl"])?;
                (Box::new(json::JsonSource::llava(path, &found.files)?), found.whole)
            }
            Format::Unif2aced => {
                let (source, whole) = json::JsonSource::unif2aced(path, split)?;
                (Box::new(source), whole)
            }
            Format::Text => {
                let found = split_files(path, split, &["txt", "jsonl"])?;
                (Box::new(text::TextSource::open(found.files)?), found.whole)
            }
        };
        let mut range = 0..source.len();
        if whole {
            let held_out = (range.len() / HELD_OUT.0).clamp(1, HELD_OUT.1);
            let start = range.len().saturating_sub(held_out);
            range = match split {
                "train" => 0..start,
                "val" => start..range.len(),
                _ => 0..0,
            };
        }
        if limit > 0 {
            range.end = range.end.min(range.start + limit);
        }
        if range.is_empty() {
            return Err(DataError::NoData { path: path.to_path_buf(), expected: format!("samples of the split {split}") });
        }
        Ok(Self { path: path.to_path_buf(), source, range })
    }

    /// The folder or file that it was opened from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Number of samples, broken ones included.
    pub fn len(&self) -> usize {
        self.range.len()
    }

    /// Whether there are none; a set that was opened has some.
    pub fn is_empty(&self) -> bool {
        self.range.is_empty()
    }

    /// Reads sample `index`. The outer error is a file's and ends the run; the inner one is the sample's.
    ///
    /// # Errors
    /// When a file can't be read any more.
    pub fn get(&self, index: usize) -> Result<Item> {
        self.source.get(self.range.start + index)
    }

    /// Lengths of the pieces of this part; one piece where any order is as cheap.
    pub(crate) fn pieces(&self) -> Vec<usize> {
        let mut start = 0;
        let mut pieces: Vec<usize> = self
            .source
            .pieces()
            .into_iter()
            .map(|length| {
                let piece = start..start + length;
                start = piece.end;
                piece.end.min(self.range.end).saturating_sub(piece.start.max(self.range.start))
            })
            .filter(|&length| length > 0)
            .collect();
        if pieces.is_empty() {
            pieces.push(self.range.len());
        }
        pieces
    }
}
