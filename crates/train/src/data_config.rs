//! `[data]` of a recipe: the sets of a run and how they are read.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use unif2ace_data::{DataSet, Format, MaxBroken, MixtureEntry, TaskName};

use crate::error::Result;
use crate::tasks::data;

/// The data of a run: one set, or a mixture of several.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataConfig {
    /// Folder or file of the set; with a mixture, the folder that its relative paths start from.
    #[serde(default)]
    pub path: PathBuf,
    /// Use only the first so many training samples of each set (0: all).
    #[serde(default)]
    pub limit: usize,
    /// Form of the set; told by its file names where absent.
    pub format: Option<Format>,
    /// Broken samples that are skipped before the run ends; absent: 1% of the set and at least ten.
    pub max_broken: Option<usize>,
    /// Folder in which image codes and features are kept; absent: `cache` in the run's folder. Runs may share one.
    pub cache: Option<PathBuf>,
    /// Encode all pictures before the first step, not each when it is first read.
    #[serde(default = "default_precompute")]
    pub precompute: bool,
    /// Threads that read samples, for each task.
    #[serde(default = "default_num_workers")]
    pub num_workers: usize,
    /// Several sets, in place of the one in `path`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mixture: Vec<MixtureConfig>,
}

/// A set of a mixture.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MixtureConfig {
    /// Folder or file of the set.
    pub path: PathBuf,
    /// Form of the set; told by its file names where absent.
    pub format: Option<Format>,
    /// What it is used for.
    pub tasks: Vec<TaskName>,
    /// How many of a task's samples come from this set, relative to the task's other sets.
    #[serde(default = "default_weight")]
    pub weight: f64,
}

fn default_precompute() -> bool {
    true
}
fn default_num_workers() -> usize {
    2
}
fn default_weight() -> f64 {
    1.0
}

impl DataConfig {
    /// Refuses what can't be meant.
    pub(crate) fn check(&self) -> std::result::Result<(), String> {
        let one = self.mixture.is_empty();
        if one && self.path.as_os_str().is_empty() {
            return Err("section [data] names neither `path` nor `mixture`".into());
        }
        if !one && self.format.is_some() {
            return Err("`format` of [data] has no effect beside a mixture: each set has its own".into());
        }
        if self.num_workers == 0 {
            return Err("num_workers must be at least 1".into());
        }
        for set in &self.mixture {
            let path = set.path.display();
            if set.tasks.is_empty() {
                return Err(format!("the set {path} of the mixture has no `tasks`: expected some of t2i, caption, vqa, text"));
            }
            if !(set.weight.is_finite() && set.weight > 0.0) {
                return Err(format!("the set {path} of the mixture has the weight {}: expected a positive number", set.weight));
            }
        }
        Ok(())
    }

    /// The limit on broken samples.
    pub fn max_broken(&self) -> MaxBroken {
        self.max_broken.map_or_else(MaxBroken::default, MaxBroken::Count)
    }

    /// Where codes and features are kept.
    pub fn cache_folder(&self, run_folder: &Path) -> PathBuf {
        self.cache.clone().unwrap_or_else(|| run_folder.join("cache"))
    }

    /// Opens a split of all sets. A set that is only text is for training alone.
    ///
    /// # Errors
    /// When a set can't be opened.
    pub fn open(&self, split: &str) -> Result<Vec<MixtureEntry>> {
        let limit = if split == "train" { self.limit } else { 0 };
        if self.mixture.is_empty() {
            let set = Arc::new(DataSet::open(&self.path, self.format, split, limit).map_err(data)?);
            return Ok(vec![MixtureEntry { set, tasks: vec![TaskName::T2i, TaskName::Caption, TaskName::Vqa], weight: 1.0 }]);
        }
        let sets = self.mixture.iter().filter(|set| split == "train" || set.tasks != [TaskName::Text]);
        sets.map(|config| {
            let set = DataSet::open(self.path.join(&config.path), config.format, split, limit).map_err(data)?;
            Ok(MixtureEntry { set: Arc::new(set), tasks: config.tasks.clone(), weight: config.weight })
        })
        .collect()
    }
}
