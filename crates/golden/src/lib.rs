//! Test support: golden numbers, tolerances and procedural weights.
//!
//! Golden files lie in `tests/fixtures/golden` of the workspace. The environment variable `UNIF2ACE_GOLDEN` names another
//! folder of the same layout, whose cases may have other names, sizes and counts; it has no tokenizers and no manifests,
//! which [`shared_file`] then takes from the workspace.
//!
//! Functions panic on missing or malformed files: a test that can't find its numbers must fail, not pass.
#![allow(clippy::panic, clippy::expect_used, clippy::unwrap_used)]

mod close;
mod procedural;
mod tensors;

use std::path::{Path, PathBuf};

pub use close::{assert_close, max_abs_diff};
pub use procedural::{fnv1a_64, procedural};
pub use tensors::Tensors;

const MAX_FIXTURE_BYTES: u64 = 256 << 20;

/// The folder of golden files: `UNIF2ACE_GOLDEN`, or the workspace's `tests/fixtures/golden`.
pub fn root() -> PathBuf {
    match std::env::var_os("UNIF2ACE_GOLDEN") {
        Some(folder) if !folder.is_empty() => {
            let folder = PathBuf::from(folder);
            assert!(folder.is_dir(), "UNIF2ACE_GOLDEN names {}, which is not a folder", folder.display());
            folder
        }
        _ => in_repository(),
    }
}

fn in_repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/golden")
}

/// The sub-folders of `root()/kind`, sorted by name; at least one.
///
/// # Panics
/// When the folder is missing or holds no case.
pub fn cases(kind: &str) -> Vec<PathBuf> {
    let folder = root().join(kind);
    let entries = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("cannot list {}: {error}", folder.display()));
    let mut cases: Vec<PathBuf> = entries.map(|entry| entry.expect("folder entry").path()).filter(|path| path.is_dir()).collect();
    cases.sort();
    assert!(!cases.is_empty(), "no case in {}", folder.display());
    cases
}

/// `root()/relative` where it exists, else the workspace's file (tokenizers and manifests exist only there).
///
/// # Panics
/// When neither exists.
pub fn shared_file(relative: &str) -> PathBuf {
    let path = root().join(relative);
    if path.is_file() {
        return path;
    }
    let path = in_repository().join(relative);
    assert!(path.is_file(), "{} is missing", path.display());
    path
}

/// A JSON file.
///
/// # Panics
/// When the file is missing or no JSON.
pub fn json(path: impl AsRef<Path>) -> serde_json::Value {
    let path = path.as_ref();
    let bytes = unif2ace_io::read_capped(path, MAX_FIXTURE_BYTES).unwrap_or_else(|error| panic!("{error}"));
    serde_json::from_slice(&bytes).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The last part of a path as text, for messages: the name of a case.
pub fn name(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}
