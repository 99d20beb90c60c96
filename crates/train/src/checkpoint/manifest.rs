//! `manifest.json`: size and SHA-256 of each file of a checkpoint, written last.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::Path;

use serde::{Deserialize, Serialize};
use unif2ace_io::{FileSeal, IoError};

use crate::error::Result;

/// Its name in the checkpoint's folder.
pub(super) const NAME: &str = "manifest.json";
const MAX_BYTES: u64 = 1 << 20;

#[derive(Serialize, Deserialize)]
pub(super) struct Manifest {
    files: BTreeMap<String, Entry>,
}

#[derive(Serialize, Deserialize)]
struct Entry {
    bytes: u64,
    sha256: String,
}

impl Manifest {
    pub(super) fn of(seals: BTreeMap<String, FileSeal>) -> Self {
        let entry = |seal: FileSeal| Entry { bytes: seal.num_bytes, sha256: seal.sha256 };
        Self { files: seals.into_iter().map(|(name, seal)| (name, entry(seal))).collect() }
    }
}

/// What is wrong with the files of a checkpoint, each by name; empty when all are as they were committed.
///
/// # Errors
/// When a file can't be read for want of permission, which is no damage.
pub(super) fn damage(folder: &Path) -> Result<Vec<String>> {
    let manifest = match unif2ace_io::read_capped(folder.join(NAME), MAX_BYTES) {
        Ok(bytes) => serde_json::from_slice::<Manifest>(&bytes),
        Err(error) => return Ok(vec![unreadable(NAME, error)?]),
    };
    let manifest = match manifest {
        Ok(manifest) => manifest,
        Err(error) => return Ok(vec![format!("{NAME}: {error}")]),
    };
    let mut damage = Vec::new();
    for (name, entry) in &manifest.files {
        match FileSeal::of(folder.join(name)) {
            Ok(seal) if seal.num_bytes != entry.bytes => {
                damage.push(format!("{name}: expected {} bytes, found {}", entry.bytes, seal.num_bytes));
            }
            Ok(seal) if seal.sha256 != entry.sha256 => {
                damage.push(format!("{name}: expected SHA-256 {}, found {}", entry.sha256, seal.sha256));
            }
            Ok(_) => {}
            Err(error) => damage.push(unreadable(name, error)?),
        }
    }
    Ok(damage)
}

fn unreadable(name: &str, error: IoError) -> Result<String> {
    match error {
        IoError::System { ref source, .. } if source.kind() == ErrorKind::PermissionDenied => Err(error.into()),
        IoError::System { source, .. } => Ok(format!("{name}: {source}")),
        other => Ok(format!("{name}: {other}")),
    }
}
