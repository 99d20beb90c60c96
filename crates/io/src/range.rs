use std::fs::File;
use std::io::{Error, ErrorKind, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use crate::{IoError, Result};

/// An open file of which pieces are read by their place, from any number of threads.
#[derive(Debug)]
pub struct RangeReader {
    file: File,
    path: PathBuf,
    len: u64,
}

impl RangeReader {
    /// Opens a regular file; its length is taken now.
    ///
    /// # Errors
    /// When the path can't be opened or is no regular file.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let system = |source| IoError::system("read", path, source);
        // Opening a pipe would block until a writer comes: look at the kind first.
        if !std::fs::metadata(path).map_err(system)?.is_file() {
            return Err(IoError::NotAFile { operation: "read", path: path.to_path_buf() });
        }
        let file = File::open(path).map_err(system)?;
        let len = file.metadata().map_err(system)?.len();
        Ok(Self { file, path: path.to_path_buf(), len })
    }

    /// The file's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes of the file when it was opened.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether the file was empty when it was opened.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The `length` bytes from `offset` on. Memory is reserved only after the range was found to lie in the file.
    ///
    /// # Errors
    /// When the range isn't wholly in the file, or the file can't be read.
    pub fn read_at(&self, offset: u64, length: usize) -> Result<Vec<u8>> {
        let system = |source| IoError::system("read", &self.path, source);
        if offset.checked_add(length as u64).is_none_or(|end| end > self.len) {
            let reason = format!("bytes {offset} to {} lie behind its end at {}", offset.saturating_add(length as u64), self.len);
            return Err(system(Error::new(ErrorKind::UnexpectedEof, reason)));
        }
        let mut bytes = vec![0; length];
        read_exact_at(&self.file, &mut bytes, offset).map_err(system)?;
        Ok(bytes)
    }

    /// A cursor over the whole file for readers that want one.
    pub fn cursor(&self) -> RangeCursor<'_> {
        RangeCursor { reader: self, position: 0 }
    }
}

/// Reads a [`RangeReader`] from a position that moves.
#[derive(Debug)]
pub struct RangeCursor<'a> {
    reader: &'a RangeReader,
    position: u64,
}

impl Read for RangeCursor<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let left = self.reader.len.saturating_sub(self.position);
        let count = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        read_exact_at(&self.reader.file, &mut buffer[..count], self.position)?;
        self.position += count as u64;
        Ok(count)
    }
}

impl Seek for RangeCursor<'_> {
    fn seek(&mut self, to: SeekFrom) -> std::io::Result<u64> {
        let target = match to {
            SeekFrom::Start(offset) => Some(offset),
            SeekFrom::Current(change) => self.position.checked_add_signed(change),
            SeekFrom::End(change) => self.reader.len.checked_add_signed(change),
        };
        self.position = target.ok_or_else(|| Error::new(ErrorKind::InvalidInput, "a position before the start"))?;
        Ok(self.position)
    }
}

#[cfg(unix)]
fn read_exact_at(file: &File, buffer: &mut [u8], offset: u64) -> std::io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, buffer, offset)
}

#[cfg(windows)]
fn read_exact_at(file: &File, mut buffer: &mut [u8], mut offset: u64) -> std::io::Result<()> {
    while !buffer.is_empty() {
        match std::os::windows::fs::FileExt::seek_read(file, buffer, offset)? {
            0 => return Err(ErrorKind::UnexpectedEof.into()),
            count => {
                buffer = &mut buffer[count..];
                offset += count as u64;
            }
        }
    }
    Ok(())
}
