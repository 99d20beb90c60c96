use std::fs::File;
use std::path::{Path, PathBuf};

use crate::{IoError, Result};

/// Creates a folder and its parents; one that already exists is fine. What is created survives a power cut.
///
/// # Errors
/// When a part of the path is a file or the system refuses.
pub fn create_dir_all(path: impl AsRef<Path>) -> Result<()> {
    let path = path.as_ref();
    let new: Vec<&Path> = path.ancestors().take_while(|folder| !folder.as_os_str().is_empty() && !folder.exists()).collect();
    let fail = |source| IoError::system("create the folder", path, source);
    std::fs::create_dir_all(path).map_err(fail)?;
    new.into_iter().try_for_each(|folder| sync_folder(parent_of(folder))).map_err(fail)
}

/// What lies in a folder, sorted; nothing when there is no such folder.
///
/// # Errors
/// When the folder can't be read.
pub fn list_dir(folder: impl AsRef<Path>) -> Result<Vec<PathBuf>> {
    let folder = folder.as_ref();
    let fail = |source| IoError::system("list", folder, source);
    let entries = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(fail)?,
    };
    let mut found = entries.map(|entry| Ok(entry?.path())).collect::<std::io::Result<Vec<_>>>().map_err(fail)?;
    found.sort();
    Ok(found)
}

/// Removes a folder and what is in it; a missing one is fine.
///
/// # Errors
/// When the system refuses.
pub fn remove_dir_all(folder: impl AsRef<Path>) -> Result<()> {
    let folder = folder.as_ref();
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(IoError::system("remove", folder, error)),
        _ => Ok(()),
    }
}

/// Renames a file or folder on the same disk and flushes the folder entry; commits a folder prepared under another name.
///
/// # Errors
/// When the system refuses the rename.
pub fn rename_durable(from: impl AsRef<Path>, to: impl AsRef<Path>) -> Result<()> {
    let (from, to) = (from.as_ref(), to.as_ref());
    std::fs::rename(from, to).and_then(|()| sync_folder(parent_of(to))).map_err(|source| IoError::system("rename to", to, source))
}

pub(crate) fn parent_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

#[cfg(unix)]
pub(crate) fn sync_folder(folder: &Path) -> std::io::Result<()> {
    File::open(folder)?.sync_all()
}

#[cfg(not(unix))]
pub(crate) fn sync_folder(_folder: &Path) -> std::io::Result<()> {
    Ok(())
}
