use std::fs::File;
use std::io::{BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::hash::hex;
use crate::{IoError, Result, open_capped};

/// Size and SHA-256 of a file's content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileSeal {
    /// Bytes.
    pub num_bytes: u64,
    /// 64 lower-case hexadecimal digits.
    pub sha256: String,
}

impl FileSeal {
    /// The seal of a file as it lies on the disk, read in pieces.
    ///
    /// # Errors
    /// When the file can't be read.
    pub fn of(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let mut reader = open_capped(path, u64::MAX)?;
        let (mut digest, mut num_bytes, mut buffer) = (Sha256::new(), 0, vec![0u8; 1 << 16]);
        loop {
            let count = reader.read(&mut buffer).map_err(|source| IoError::system("read", path, source))?;
            if count == 0 {
                return Ok(Self { num_bytes, sha256: hex(&digest.finalize()) });
            }
            digest.update(&buffer[..count]);
            num_bytes += count as u64;
        }
    }
}

/// A new file of a folder that is being prepared under another name (see [`crate::rename_durable`]): written in place, and
/// hashed on its way to the disk, so that a large file is never read again to be sealed.
#[derive(Debug)]
pub struct SealedFile {
    path: PathBuf,
    writer: BufWriter<File>,
    digest: Sha256,
    num_bytes: u64,
}

impl SealedFile {
    /// Creates the file, which must not exist.
    ///
    /// # Errors
    /// When it exists or the folder is missing or not writable.
    pub fn create(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref().to_path_buf();
        let file = File::create_new(&path).map_err(|source| IoError::system("write", &path, source))?;
        Ok(Self { path, writer: BufWriter::with_capacity(1 << 16, file), digest: Sha256::new(), num_bytes: 0 })
    }

    /// Flushes the bytes to the device and returns what they are.
    ///
    /// # Errors
    /// When the disk is full or fails.
    pub fn seal(self) -> Result<FileSeal> {
        let fail = |source| IoError::system("write", &self.path, source);
        let file = self.writer.into_inner().map_err(|error| fail(error.into_error()))?;
        file.sync_all().map_err(fail)?;
        Ok(FileSeal { num_bytes: self.num_bytes, sha256: hex(&self.digest.finalize()) })
    }
}

impl Write for SealedFile {
    fn write(&mut self, buffer: &[u8]) -> std::io::Result<usize> {
        let count = self.writer.write(buffer)?;
        self.digest.update(&buffer[..count]);
        self.num_bytes += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.writer.flush()
    }
}
