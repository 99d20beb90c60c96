//! The life of a checkpoint folder: prepared as `.step-NNNNNNNN.partial`, renamed to `step-NNNNNNNN`, and renamed back before it is
//! removed. So at every moment a folder under the visible name is complete.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use burn::module::Module;
use serde::Serialize;
use unif2ace_io::{FileSeal, IoError, SealedFile};
use unif2ace_model::lora::is_adapter;
use unif2ace_weights::{DType, SafetensorsWriter, TensorSpec, adapter_specs, for_each_parameter, parameter_specs};

use super::manifest::{self, Manifest};
use crate::error::{Result, TrainError};
use crate::params::HostTensors;

const PREFIX: &str = "step-";
const PARTIAL: &str = ".partial";

/// Where the checkpoint of `step` lies.
pub(super) fn path_of(folder: &Path, step: u64) -> PathBuf {
    folder.join(format!("{PREFIX}{step:08}"))
}

fn partial_of(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}{PARTIAL}"))
}

/// Steps and folders of the checkpoints, oldest first.
pub(super) fn list(folder: &Path) -> Result<Vec<(u64, PathBuf)>> {
    let step = |path: &Path| path.file_name()?.to_str()?.strip_prefix(PREFIX)?.parse().ok();
    let mut found: Vec<_> = unif2ace_io::list_dir(folder)?.into_iter().filter_map(|path| Some((step(&path)?, path))).collect();
    found.sort();
    Ok(found)
}

/// Removes a checkpoint; killed on the way, it leaves the whole checkpoint or nothing under its name.
pub(super) fn discard(path: &Path) -> Result<()> {
    let partial = partial_of(path);
    unif2ace_io::remove_dir_all(&partial)?;
    unif2ace_io::rename_durable(path, &partial)?;
    Ok(unif2ace_io::remove_dir_all(&partial)?)
}

/// Removes what was being prepared or removed when a process was killed.
pub(super) fn remove_partial(folder: &Path) -> Result<()> {
    let is_partial = |path: &&PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        name.starts_with(&format!(".{PREFIX}")) && name.ends_with(PARTIAL)
    };
    for path in unif2ace_io::list_dir(folder)?.iter().filter(is_partial) {
        tracing::info!("removing {}, left by a save that was cut short", path.display());
        unif2ace_io::remove_dir_all(path)?;
    }
    Ok(())
}

/// A checkpoint that is being written; dropped before its commit, it leaves nothing behind.
pub(super) struct Partial {
    folder: PathBuf,
    seals: BTreeMap<String, FileSeal>,
}

impl Partial {
    pub(super) fn create(parent: &Path, step: u64) -> Result<Self> {
        let folder = partial_of(&path_of(parent, step));
        unif2ace_io::remove_dir_all(&folder)?;
        unif2ace_io::create_dir_all(&folder)?;
        Ok(Self { folder, seals: BTreeMap::new() })
    }

    /// Writes the module's parameters one by one; of a module with adapters these alone, for nothing else of it changes.
    pub(super) fn write_module<M: Module>(&mut self, name: &str, module: &M) -> Result<()> {
        let adapters = adapter_specs(module);
        let all = adapters.is_empty();
        let mut writer = self.start(name, if all { parameter_specs(module) } else { adapters })?;
        for_each_parameter(module, |path, values| match all || is_adapter(path) {
            true => writer.write(path, values),
            false => Ok(()),
        })?;
        self.seal(name, writer.into_inner()?)
    }

    pub(super) fn write_tensors(&mut self, name: &str, tensors: &HostTensors) -> Result<()> {
        let specs = tensors.iter().map(|(name, tensor)| TensorSpec { name: name.clone(), shape: tensor.shape.clone() });
        let mut writer = self.start(name, specs.collect())?;
        for (path, tensor) in tensors {
            writer.write(path, &tensor.values)?;
        }
        self.seal(name, writer.into_inner()?)
    }

    pub(super) fn write_json(&mut self, name: &str, value: &impl Serialize) -> Result<()> {
        let path = self.folder.join(name);
        let mut file = SealedFile::create(&path)?;
        let text = serde_json::to_vec_pretty(value).map_err(|error| TrainError::Data(error.to_string()))?;
        file.write_all(&text).map_err(|source| IoError::system("write", &path, source))?;
        self.seal(name, file)
    }

    fn start(&self, name: &str, specs: Vec<TensorSpec>) -> Result<SafetensorsWriter<SealedFile>> {
        let path = self.folder.join(name);
        let specs = specs.into_iter().map(|spec| (spec, DType::F32)).collect();
        Ok(SafetensorsWriter::over(SealedFile::create(&path)?, &path, specs, &BTreeMap::new())?)
    }

    fn seal(&mut self, name: &str, file: SealedFile) -> Result<()> {
        self.seals.insert(name.to_owned(), file.seal()?);
        Ok(())
    }

    /// Writes the manifest, flushes it and the folder, and gives the folder its visible name, durably.
    pub(super) fn commit(mut self, target: &Path) -> Result<()> {
        let manifest = Manifest::of(std::mem::take(&mut self.seals));
        let text = serde_json::to_vec_pretty(&manifest).map_err(|error| TrainError::Data(error.to_string()))?;
        unif2ace_io::write_atomic(self.folder.join(manifest::NAME), &text)?;
        Ok(unif2ace_io::rename_durable(&self.folder, target)?)
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        // After a commit there is nothing under this name. A failure leaves what the next start removes.
        if let Err(error) = unif2ace_io::remove_dir_all(&self.folder) {
            tracing::debug!("{error}");
        }
    }
}
