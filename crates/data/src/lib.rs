//! Portraits, what is said about them, and the text tokenizer.

mod error;
mod record;
mod webdataset;

pub use error::{DataError, Result};
pub use record::{FaceRecord, VqaItem};
pub use webdataset::{LoadReport, Sample, decode_rgb, load_split, shards};
