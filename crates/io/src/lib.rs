//! The one door to the disk.
//!
//! Everything that unif2ace reads is capped in size before memory is reserved, and everything it writes is either
//! wholly there or not there at all: a temporary file in the target's folder is filled, flushed to the device, renamed over
//! the target, and the folder entry is flushed too. Errors name the operation and the path and say what to do next.

mod error;
mod folder;
mod hash;
mod range;
mod read;
mod sealed;
mod write;

pub use error::{IoError, Result};
pub use folder::{create_dir_all, list_dir, remove_dir_all, rename_durable};
pub use hash::{Sha256Writer, sha256, sha256_file, sha256_hex};
pub use range::{RangeCursor, RangeReader};
pub use read::{CappedReader, open_capped, read_capped, read_to_string_capped};
pub use sealed::{FileSeal, SealedFile};
pub use write::{AtomicFile, ensure_writable, write_atomic, write_atomic_with};
