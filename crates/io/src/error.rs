use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// Result of an operation on the disk.
pub type Result<T, E = IoError> = std::result::Result<T, E>;

/// What went wrong at the disk, with the operation, the path and a hint.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IoError {
    /// The operating system refused the operation.
    #[error("cannot {operation} {}: {source}\nhint: {}", .path.display(), hint(.source.kind()))]
    System {
        /// The operation in words ("read", "write", "create the folder").
        operation: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// A file holds more bytes than the caller is prepared to read.
    #[error("cannot read {}: it holds {found} bytes, at most {max_bytes} are accepted here\nhint: check that this is the file you meant", .path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Bytes found (at least; the file may go on).
        found: u64,
        /// The cap.
        max_bytes: u64,
    },
    /// A file was expected and something else lies there.
    #[error("cannot {operation} {}: expected a file, found a folder or a special file\nhint: name a file inside it", .path.display())]
    NotAFile {
        /// The operation in words.
        operation: &'static str,
        /// The path given.
        path: PathBuf,
    },
    /// Text was expected and the bytes aren't UTF-8.
    #[error("cannot read {}: expected UTF-8 text, found an invalid byte at {offset}\nhint: save the file as UTF-8", .path.display())]
    NotUtf8 {
        /// The file.
        path: PathBuf,
        /// Offset of the first invalid byte.
        offset: usize,
    },
}

impl IoError {
    /// An error of the system at `path`, for the few places that keep a file open.
    pub fn system(operation: &'static str, path: &Path, source: std::io::Error) -> Self {
        Self::System { operation, path: path.to_path_buf(), source }
    }

    /// The path the operation was about.
    pub fn path(&self) -> &Path {
        match self {
            Self::System { path, .. }
            | Self::TooLarge { path, .. }
            | Self::NotAFile { path, .. }
            | Self::NotUtf8 { path, .. } => path,
        }
    }

    /// Whether the file or folder does not exist.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::System { source, .. } if source.kind() == ErrorKind::NotFound)
    }
}

fn hint(kind: ErrorKind) -> &'static str {
    match kind {
        ErrorKind::NotFound => "check the spelling of the path; relative paths start at the current folder",
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => "choose another place or change the permissions",
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => "free some space on this disk or choose another one",
        ErrorKind::FileTooLarge => "this disk or a limit on the size of files (`ulimit -f`) does not allow so large a file",
        ErrorKind::NotADirectory => "a part of the path is a file, not a folder",
        ErrorKind::AlreadyExists => "remove what lies there or choose another name",
        _ => "check the path and the disk",
    }
}
