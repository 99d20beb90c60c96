//! How a model wants to be sampled.

use std::path::Path;

use serde::Deserialize;
use unif2ace_io::read_capped;

use crate::error::{PipelineError, Result};
use crate::generate::GenerateOptions;

const FILE: &str = "generation_config.json";
const MAX_BYTES: u64 = 1 << 20;

/// Settings that a model folder recommends in its `generation_config.json`; what is absent stays at the default.
#[derive(Debug, Clone, Copy, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GenerationConfig {
    /// See [`GenerateOptions::guidance_scale`].
    pub guidance_scale: Option<f32>,
    /// See [`GenerateOptions::top_k`].
    pub top_k: Option<usize>,
}

impl GenerationConfig {
    /// What a folder recommends; nothing where it has no such file.
    ///
    /// # Errors
    /// When the file can't be read or says something else.
    pub fn read(folder: impl AsRef<Path>) -> Result<Self> {
        let path = folder.as_ref().join(FILE);
        if !path.is_file() {
            return Ok(Self::default());
        }
        let text = read_capped(&path, MAX_BYTES).map_err(|error| error.to_string());
        text.and_then(|text| serde_json::from_slice(&text).map_err(|error| format!("{FILE}: {error}")))
            .map_err(|reason| PipelineError::Model { path: folder.as_ref().to_path_buf(), reason })
    }

    /// The default options with what is recommended here.
    pub fn options(&self) -> GenerateOptions {
        let default = GenerateOptions::default();
        GenerateOptions {
            guidance_scale: self.guidance_scale.unwrap_or(default.guidance_scale),
            top_k: self.top_k.or(default.top_k),
            ..default
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn recommendations_are_read_and_errors_name_the_key() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(GenerationConfig::read(&folder).unwrap(), GenerationConfig::default());
        std::fs::write(folder.path().join(FILE), "{\"top_k\": 7}").unwrap();
        let options = GenerationConfig::read(&folder).unwrap().options();
        assert_eq!((options.top_k, options.guidance_scale), (Some(7), GenerateOptions::default().guidance_scale));
        std::fs::write(folder.path().join(FILE), "{\"guidance\": 7}").unwrap();
        let error = GenerationConfig::read(&folder).unwrap_err().to_string();
        assert!(error.contains("guidance") && error.contains(FILE), "{error}");
    }
}
