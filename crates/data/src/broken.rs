//! Broken samples: counted, logged by name, skipped, up to a limit.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use crate::error::{DataError, Result, SampleFault};
use crate::webdataset::MaxBroken;

/// The broken samples that a run has met; each counts once, however often it is met.
#[derive(Debug, Default)]
pub struct Broken {
    limit: MaxBroken,
    met: Mutex<BTreeMap<(PathBuf, usize), String>>,
}

impl Broken {
    /// None yet.
    pub fn new(limit: MaxBroken) -> Self {
        Self { limit, met: Mutex::default() }
    }

    /// Notes that sample `index` of the `num_samples` in `path` is broken.
    ///
    /// # Errors
    /// When there are now more than the limit.
    pub fn note(&self, path: &Path, num_samples: usize, index: usize, key: &str, fault: SampleFault) -> Result<()> {
        let mut met = self.met.lock().unwrap_or_else(PoisonError::into_inner);
        if met.insert((path.to_path_buf(), index), key.to_owned()).is_some() {
            return Ok(());
        }
        tracing::warn!(data = %path.display(), key, %fault, "sample skipped");
        let limit = self.limit.count(num_samples);
        if met.len() > limit {
            let count = met.len();
            return Err(DataError::TooManyBroken { path: path.to_path_buf(), count, limit, key: key.into(), fault });
        }
        Ok(())
    }

    /// Names of the samples met so far.
    pub fn keys(&self) -> Vec<String> {
        self.met.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }
}
