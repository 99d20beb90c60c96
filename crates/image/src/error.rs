use std::path::PathBuf;

use unif2ace_io::IoError;

/// Result of an operation on pictures.
pub type Result<T, E = ImageError> = std::result::Result<T, E>;

/// What went wrong with a picture. `origin` is a path, or a description of where the bytes came from.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// Reading or writing failed.
    #[error(transparent)]
    Io(#[from] IoError),
    /// The bytes are empty.
    #[error("cannot decode {origin}: expected a picture, found 0 bytes\nhint: the file may not have been written completely")]
    Empty {
        /// Path or description.
        origin: String,
    },
    /// The first bytes belong to no supported format.
    #[error("cannot decode {origin}: expected PNG, JPEG, WebP or GIF, found {found}\nhint: convert the picture to PNG first")]
    UnknownFormat {
        /// Path or description.
        origin: String,
        /// The first bytes, in hexadecimal.
        found: String,
    },
    /// More pixels (or a longer side) than accepted; found in the header, before memory was reserved.
    #[error(
        "cannot decode {origin}: expected at most {max_side} pixels a side and {max_pixels} in all, found {width}x{height}\nhint: shrink the picture first"
    )]
    TooManyPixels {
        /// Path or description.
        origin: String,
        /// Width in the header.
        width: u32,
        /// Height in the header.
        height: u32,
        /// The cap on one side.
        max_side: u32,
        /// The cap on width times height.
        max_pixels: u64,
    },
    /// More bytes than accepted.
    #[error("cannot decode {origin}: expected at most {max_bytes} bytes, found {found}\nhint: shrink the picture first")]
    TooManyBytes {
        /// Path or description.
        origin: String,
        /// Number of bytes given.
        found: u64,
        /// The cap.
        max_bytes: u64,
    },
    /// Truncated or damaged data.
    #[error("cannot decode {origin}: {format} data is damaged or truncated: {reason}\nhint: fetch or save the file again")]
    Damaged {
        /// Path or description.
        origin: String,
        /// Name of the format.
        format: &'static str,
        /// The decoder's message.
        reason: String,
    },
    /// A number of bytes that doesn't fit the size.
    #[error("{operation}: expected {expected} values for {width}x{height}x{channels}, found {found}")]
    WrongLength {
        /// The operation.
        operation: &'static str,
        /// Width given.
        width: usize,
        /// Height given.
        height: usize,
        /// Channels of the picture type.
        channels: usize,
        /// Number of values these need.
        expected: usize,
        /// Number of values given.
        found: usize,
    },
    /// A size that the operation can't work with.
    #[error("{operation}: expected {expected}, found {width}x{height}\nhint: {hint}")]
    WrongSize {
        /// The operation.
        operation: &'static str,
        /// What was expected, in words.
        expected: String,
        /// Width given.
        width: usize,
        /// Height given.
        height: usize,
        /// What to do.
        hint: &'static str,
    },
    /// A name of a face region that doesn't exist.
    #[error("unknown region {found:?}: expected one of {expected}\nhint: several are joined by commas, as in eyes,mouth")]
    UnknownRegion {
        /// The word given.
        found: String,
        /// All names.
        expected: String,
    },
    /// Encoding failed.
    #[error("cannot encode {format}: {reason}")]
    Encode {
        /// Name of the format.
        format: &'static str,
        /// The encoder's message.
        reason: String,
    },
    /// A PNG was expected.
    #[error("cannot read the text of {}: {reason}\nhint: only PNG files written by this program carry it", .path.display())]
    NoPngText {
        /// The file.
        path: PathBuf,
        /// The decoder's message.
        reason: String,
    },
}
