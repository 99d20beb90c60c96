//! Files as memory.

use std::fs::File;
use std::io;
use std::ops::{Deref, Range};
use std::path::Path;
use std::sync::{Arc, Weak};

use memmap2::Mmap;

/// Bytes that are asked for at a time by [`MappedFile::touch_ahead`]: few, as threads that take memory from the system wait meanwhile.
const AT_ONCE: usize = 64 << 10;

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

    /// Has a thread in the background touch the bytes of `ranges` in that order, until the file is closed: whoever reads them then waits
    /// neither for the disk nor, page by page, for the system to enter what is in its cache, and the processor can fetch them ahead. They count as
    /// this process's memory from then on, though the system may take them back. Where it can't be asked for it (other than Linux, or before
    /// 5.14) nothing happens.
    pub fn touch_ahead(self: &Arc<Self>, ranges: Vec<Range<usize>>) {
        let file = Arc::downgrade(self);
        // Without a thread they are touched when they are read.
        let _ = std::thread::Builder::new().name("touch-ahead".into()).spawn(move || touch(&file, ranges));
    }

    #[cfg(target_os = "linux")]
    fn touch(&self, bytes: Range<usize>) -> io::Result<()> {
        self.map.advise_range(memmap2::Advice::PopulateRead, bytes.start, bytes.len())
    }

    #[cfg(not(target_os = "linux"))]
    fn touch(&self, _bytes: Range<usize>) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// Touches `ranges` while somebody else has the file.
fn touch(file: &Weak<MappedFile>, ranges: Vec<Range<usize>>) {
    for range in ranges {
        for start in range.clone().step_by(AT_ONCE) {
            let Some(file) = file.upgrade() else { return };
            if file.touch(start..range.end.min(start + AT_ONCE).min(file.len())).is_err() {
                return;
            }
        }
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
    use std::sync::Arc;

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

    #[test]
    #[cfg(target_os = "linux")]
    fn bytes_that_are_touched_ahead_are_in_memory_before_they_are_read() {
        const LEN: usize = 3 << 20;
        let path = std::env::temp_dir().canonicalize().unwrap().join(format!("unif2ace-touched-{}", std::process::id()));
        std::fs::write(&path, vec![1; LEN]).unwrap();
        if MappedFile::open(&path).unwrap().touch(0..1).is_err() {
            eprintln!("left out: this system can't be asked to touch pages");
            return std::fs::remove_file(&path).unwrap();
        }
        let mapped = Arc::new(MappedFile::open(&path).unwrap());
        // Kilobytes of the map that this process has pages of.
        let resident = || -> usize {
            let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
            let mut lines = maps.lines().skip_while(|line| !line.ends_with(path.to_str().unwrap()));
            let line = lines.find_map(|line| line.strip_prefix("Rss:")).unwrap();
            line.trim().trim_end_matches(" kB").parse().unwrap()
        };
        assert_eq!(resident(), 0);
        // The system may enter what lies between by itself.
        mapped.touch_ahead(vec![0..LEN / 3, 2 * LEN / 3..LEN]);
        let start = std::time::Instant::now();
        while resident() < 2 * LEN / 3 / 1024 {
            assert!(start.elapsed().as_secs() < 20, "{} kB are in memory", resident());
            std::thread::yield_now();
        }
        std::fs::remove_file(&path).unwrap();
    }
}
