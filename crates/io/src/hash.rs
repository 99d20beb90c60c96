use std::io::Write;
use std::path::Path;

use sha2::{Digest, Sha256};

use crate::{FileSeal, Result};

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// SHA-256 of `bytes`.
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

/// SHA-256 of `bytes`, as 64 lower-case hexadecimal digits.
pub fn sha256_hex(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// SHA-256 of a whole file, read in pieces.
///
/// # Errors
/// When the file can't be read.
pub fn sha256_file(path: impl AsRef<Path>) -> Result<String> {
    Ok(FileSeal::of(path)?.sha256)
}

/// A writer that passes bytes on and keeps their SHA-256.
#[derive(Debug)]
pub struct Sha256Writer<W> {
    inner: W,
    digest: Sha256,
}

impl<W: Write> Sha256Writer<W> {
    /// Wraps `inner`.
    pub fn new(inner: W) -> Self {
        Self { inner, digest: Sha256::new() }
    }

    /// The inner writer and the hexadecimal digest of everything written.
    pub fn finish(self) -> (W, String) {
        (self.inner, hex(&self.digest.finalize()))
    }
}

impl<W: Write> Write for Sha256Writer<W> {
    fn write(&mut self, buffer: &[u8]) -> std::io::Result<usize> {
        let count = self.inner.write(buffer)?;
        self.digest.update(&buffer[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.inner.flush()
    }
}
