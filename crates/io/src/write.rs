use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use crate::folder::{parent_of, sync_folder};
use crate::{IoError, Result};

const WRITE: &str = "write";

/// A file that becomes visible under its name only by [`AtomicFile::commit`]; dropped before, it leaves nothing behind.
#[derive(Debug)]
pub struct AtomicFile {
    target: PathBuf,
    writer: BufWriter<NamedTempFile>,
}

impl AtomicFile {
    /// Starts a temporary file in the folder of `path`, so that the final rename stays on one disk.
    ///
    /// # Errors
    /// When the folder is missing or not writable, or `path` is a folder.
    pub fn create(path: impl AsRef<Path>) -> Result<Self> {
        let target = path.as_ref().to_path_buf();
        if target.is_dir() || target.file_name().is_none() {
            return Err(IoError::NotAFile { operation: WRITE, path: target });
        }
        let temporary = temporary_beside(&target).map_err(|source| IoError::system(WRITE, &target, source))?;
        Ok(Self { target, writer: BufWriter::with_capacity(1 << 16, temporary) })
    }

    /// Flushes the bytes to the device, renames the file to its final name and flushes the folder.
    ///
    /// # Errors
    /// When the disk is full or the rename is refused; nothing is left behind then.
    pub fn commit(self) -> Result<()> {
        let target = self.target;
        let fail = |source| IoError::system(WRITE, &target, source);
        let temporary = self.writer.into_inner().map_err(|error| fail(error.into_error()))?;
        temporary.as_file().sync_all().map_err(fail)?;
        temporary.persist(&target).map_err(|error| fail(error.error))?;
        sync_folder(parent_of(&target)).map_err(fail)
    }
}

impl Write for AtomicFile {
    fn write(&mut self, buffer: &[u8]) -> std::io::Result<usize> {
        self.writer.write(buffer)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.writer.flush()
    }
}

/// Writes a whole file: after success all bytes are on the device under `path`, after an error `path` is as it was before.
///
/// # Errors
/// When the folder is missing or not writable, or the disk is full.
pub fn write_atomic(path: impl AsRef<Path>, bytes: &[u8]) -> Result<()> {
    write_atomic_with(path, |file| file.write_all(bytes))
}

/// As [`write_atomic`], for content that is produced piece by piece.
///
/// # Errors
/// As [`write_atomic`], and whatever error `fill` returns.
pub fn write_atomic_with(path: impl AsRef<Path>, fill: impl FnOnce(&mut AtomicFile) -> std::io::Result<()>) -> Result<()> {
    let path = path.as_ref();
    let mut file = AtomicFile::create(path)?;
    fill(&mut file).map_err(|source| IoError::system(WRITE, path, source))?;
    file.commit()
}

/// Checks that a file could be written at `path`, so that long work doesn't end in an error that could have been known before.
///
/// # Errors
/// When the folder is missing or not writable, or `path` is a folder.
pub fn ensure_writable(path: impl AsRef<Path>) -> Result<()> {
    // Only a real file tells: permissions, quotas and read-only mounts have no common query.
    AtomicFile::create(path).map(drop)
}

fn temporary_beside(target: &Path) -> std::io::Result<NamedTempFile> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(".unif2ace-").suffix(".tmp");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        // Temporary files are private by default; a result is an ordinary file, narrowed by the user's umask only.
        builder.permissions(std::fs::Permissions::from_mode(0o666));
    }
    builder.tempfile_in(parent_of(target))
}
