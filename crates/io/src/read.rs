use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::{IoError, Result};

/// A reader over an open file that gives an error, not more bytes, once `max_bytes` have been read.
#[derive(Debug)]
pub struct CappedReader {
    file: File,
    path: PathBuf,
    left: u64,
    max_bytes: u64,
}

/// Opens a file to be read in pieces; reading past `max_bytes` is an error of kind `FileTooLarge`.
///
/// # Errors
/// When the path can't be opened, is no regular file, or already is larger than the cap.
pub fn open_capped(path: impl AsRef<Path>, max_bytes: u64) -> Result<CappedReader> {
    let path = path.as_ref();
    // Opening a pipe would block until a writer comes: look at the kind first.
    let kind = std::fs::metadata(path).map_err(|source| IoError::system("read", path, source))?;
    if !kind.is_file() {
        return Err(IoError::NotAFile { operation: "read", path: path.to_path_buf() });
    }
    let file = File::open(path).map_err(|source| IoError::system("read", path, source))?;
    let found = file.metadata().map_err(|source| IoError::system("read", path, source))?.len();
    if found > max_bytes {
        return Err(IoError::TooLarge { path: path.to_path_buf(), found, max_bytes });
    }
    Ok(CappedReader { file, path: path.to_path_buf(), left: max_bytes, max_bytes })
}

impl CappedReader {
    /// The file's path.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Read for CappedReader {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        if self.left == 0 {
            // The file may have grown after it was opened.
            return match self.file.read(&mut [0u8; 1])? {
                0 => Ok(0),
                _ => Err(std::io::Error::new(
                    std::io::ErrorKind::FileTooLarge,
                    format!("{} holds more than {} bytes", self.path.display(), self.max_bytes),
                )),
            };
        }
        let want = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let count = self.file.read(&mut buffer[..want])?;
        self.left -= count as u64;
        Ok(count)
    }
}

/// Reads a whole file of at most `max_bytes`.
///
/// # Errors
/// When the file is missing, unreadable, no regular file, or larger than the cap.
pub fn read_capped(path: impl AsRef<Path>, max_bytes: u64) -> Result<Vec<u8>> {
    let path = path.as_ref();
    let mut bytes = Vec::new();
    open_capped(path, max_bytes)?.read_to_end(&mut bytes).map_err(|source| IoError::system("read", path, source))?;
    Ok(bytes)
}

/// Reads a whole UTF-8 text of at most `max_bytes`.
///
/// # Errors
/// As [`read_capped`], and when the bytes aren't UTF-8.
pub fn read_to_string_capped(path: impl AsRef<Path>, max_bytes: u64) -> Result<String> {
    let path = path.as_ref();
    String::from_utf8(read_capped(path, max_bytes)?)
        .map_err(|error| IoError::NotUtf8 { path: path.to_path_buf(), offset: error.utf8_error().valid_up_to() })
}
