//! Files as memory.

use std::fs::File;
use std::io;
use std::ops::Deref;
use std::path::Path;

use memmap2::Mmap;

/// A whole file as bytes, mapped read-only: pages come from the system's file cache when they are touched.
#[derive(Debug)]
pub struct MappedFile {
    map: Mmap,
    file: File,
}

impl MappedFile {
    /// Maps a regular file.
    ///
    /// # Errors
    /// When it can't be opened, is no regular file, or can't be mapped.
    pub fn open(path: impl AsRef<Path>) -> io::Result<Self> {
        let path = path.as_ref();
        // Asked by name first: opening a pipe would wait for its other end.
        if !std::fs::metadata(path)?.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file"));
        }
        let file = File::open(path)?;
        // SAFETY: the map is private to this value and only read. Whoever shortens the file during a read ends this process with a signal,
        // as with every program that maps its weights; our own files are replaced by renaming, which leaves a mapped one as it was.
        let map = unsafe { Mmap::map(&file)? };
        Ok(Self { map, file })
    }

    /// Whether the file is still as long as when it was mapped. Asked before a long read, it turns a file that was shortened since into an
    /// error of the caller's; one that is shortened during the read still ends the process.
    pub fn is_whole(&self) -> bool {
        self.file.metadata().is_ok_and(|now| now.len() >= self.map.len() as u64)
    }
}

impl Deref for MappedFile {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.map
    }
}

#[cfg(test)]
mod tests {
    use super::MappedFile;

    #[test]
    fn bytes_are_those_of_the_file_and_folders_are_refused() {
        let folder = std::env::temp_dir().join(format!("unif2ace-map-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        for bytes in [&b""[..], b"\0\x01two"] {
            std::fs::write(folder.join("file"), bytes).unwrap();
            let mapped = MappedFile::open(folder.join("file")).unwrap();
            assert_eq!(&*mapped, bytes);
            assert!(mapped.is_whole());
            std::fs::File::create(folder.join("file")).unwrap();
            assert_eq!(mapped.is_whole(), bytes.is_empty());
        }
        assert!(MappedFile::open(&folder).is_err());
        assert!(MappedFile::open(folder.join("none")).is_err());
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
