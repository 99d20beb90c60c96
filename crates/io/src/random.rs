use std::fs::File;
use std::path::{Path, PathBuf};

use crate::{IoError, Result};

/// A file that is read at chosen places, from any thread.
///
/// Positioned reads take the place of memory maps: the values are copied into the program's own memory anyway, and a file that
/// is cut short meanwhile gives an error instead of a signal.
#[derive(Debug)]
pub struct RandomAccessFile {
    file: File,
    path: PathBuf,
    len: u64,
    #[cfg(not(unix))]
    cursor: std::sync::Mutex<()>,
}

impl RandomAccessFile {
    /// Opens a regular file.
    ///
    /// # Errors
    /// When the path can't be opened or is no regular file.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let fail = |source| IoError::system("read", path, source);
        if !std::fs::metadata(path).map_err(fail)?.is_file() {
            return Err(IoError::NotAFile {
                operation: "read",
                path: path.to_path_buf(),
            });
        }
        let file = File::open(path).map_err(fail)?;
        let len = file.metadata().map_err(fail)?.len();
        Ok(Self {
            file,
            path: path.to_path_buf(),
            len,
            #[cfg(not(unix))]
            cursor: std::sync::Mutex::new(()),
        })
    }

    /// The file's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Number of bytes when it was opened.
    pub fn size(&self) -> u64 {
        self.len
    }

    /// Fills `buffer` with the bytes from `offset` on.
    ///
    /// # Errors
    /// When the file ends before or the system refuses.
    pub fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        self.fill(buffer, offset)
            .map_err(|source| IoError::system("read", &self.path, source))
    }

    #[cfg(unix)]
    fn fill(&self, buffer: &mut [u8], offset: u64) -> std::io::Result<()> {
        std::os::unix::fs::FileExt::read_exact_at(&self.file, buffer, offset)
    }

    #[cfg(not(unix))]
    fn fill(&self, buffer: &mut [u8], offset: u64) -> std::io::Result<()> {
        use std::io::{Read as _, Seek as _, SeekFrom};
        let _guard = self
            .cursor
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut file = &self.file;
        file.seek(SeekFrom::Start(offset))?;
        file.read_exact(buffer)
    }
}
