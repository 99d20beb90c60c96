//! TensorBoard's event files: `Event` messages (tensorboard/compat/proto/event.proto, summary.proto) in the record framing of TFRecord
//! (tensorflow/core/lib/io/record_writer.h). Only scalars, pictures and marks of sessions are written.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use prost::Message;
use unif2ace_io::IoError;

use crate::error::Result;

const FILE_PREFIX: &str = "events.out.tfevents.";
const FILE_VERSION: &str = "brain.Event:2";
/// Added to a rotated check sum, so that the sum of data that holds sums is not trivial.
const MASK_DELTA: u32 = 0xa282_ead8;

#[derive(Clone, PartialEq, Message)]
struct Event {
    /// Seconds since 1970.
    #[prost(double, tag = "1")]
    wall_time: f64,
    #[prost(int64, tag = "2")]
    step: i64,
    #[prost(oneof = "What", tags = "3, 5, 7")]
    what: Option<What>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum What {
    #[prost(string, tag = "3")]
    FileVersion(String),
    #[prost(message, tag = "5")]
    Summary(Summary),
    #[prost(message, tag = "7")]
    SessionLog(SessionLog),
}

#[derive(Clone, PartialEq, Message)]
struct Summary {
    #[prost(message, repeated, tag = "1")]
    value: Vec<SummaryValue>,
}

/// `Summary.Value`: a tag with one of the others.
#[derive(Clone, PartialEq, Message)]
struct SummaryValue {
    #[prost(string, tag = "1")]
    tag: String,
    /// Optional, so that 0 is written.
    #[prost(float, optional, tag = "2")]
    simple_value: Option<f32>,
    #[prost(message, optional, tag = "4")]
    image: Option<SummaryImage>,
}

#[derive(Clone, PartialEq, Message)]
struct SummaryImage {
    #[prost(int32, tag = "1")]
    height: i32,
    #[prost(int32, tag = "2")]
    width: i32,
    /// Number of channels.
    #[prost(int32, tag = "3")]
    colorspace: i32,
    /// A PNG file.
    #[prost(bytes = "vec", tag = "4")]
    encoded_image_string: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct SessionLog {
    #[prost(int32, tag = "1")]
    status: i32,
}

/// `SessionLog.SessionStatus.START`.
const START: i32 = 1;

/// The event file of one session of a run. Each event is handed to the system at once, so that TensorBoard sees it.
pub(crate) struct EventFile {
    file: File,
    path: PathBuf,
}

impl EventFile {
    /// Begins a file in `folder` for a session whose first line is of `first_step`. TensorBoard leaves out what the files of earlier
    /// sessions say about this step and later ones.
    pub fn create(folder: &Path, first_step: u64) -> Result<Self> {
        unif2ace_io::create_dir_all(folder)?;
        // TensorBoard reads files in the order of their names: a later session's name comes later, even within a second.
        let number = |path: PathBuf| {
            let name = path.file_name()?.to_str()?.strip_prefix(FILE_PREFIX)?.to_owned();
            name.split('.').next()?.parse::<u64>().ok()
        };
        let newest = unif2ace_io::list_dir(folder)?.into_iter().filter_map(number).max();
        let number = (now() as u64).max(newest.map_or(0, |newest| newest + 1));
        let path = folder.join(format!("{FILE_PREFIX}{number:010}.unif2ace"));
        let file = File::create_new(&path).map_err(|source| IoError::system("create", &path, source))?;
        let mut events = Self { file, path };
        events.write(0, What::FileVersion(FILE_VERSION.into()))?;
        events.write(first_step, What::SessionLog(SessionLog { status: START }))?;
        Ok(events)
    }

    /// Writes the numbers of a step by tag.
    pub fn scalars(&mut self, step: u64, values: impl Iterator<Item = (String, f64)>) -> Result<()> {
        let value = values.map(|(tag, value)| SummaryValue { tag, simple_value: Some(value as f32), image: None }).collect();
        self.write(step, What::Summary(Summary { value }))
    }

    /// Writes an RGB picture of a step, a PNG file of the trainer's own.
    pub fn image(&mut self, step: u64, tag: &str, png: Vec<u8>) -> Result<()> {
        // The header's first chunk tells the size: width and height, big-endian, after 16 bytes.
        let size = |at: usize| png.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map_or(0, i32::from_be_bytes);
        let image = SummaryImage { height: size(20), width: size(16), colorspace: 3, encoded_image_string: png };
        let value = vec![SummaryValue { tag: tag.to_owned(), simple_value: None, image: Some(image) }];
        self.write(step, What::Summary(Summary { value }))
    }

    fn write(&mut self, step: u64, what: What) -> Result<()> {
        let event = Event { wall_time: now(), step: step as i64, what: Some(what) };
        let record = framed(&event.encode_to_vec());
        Ok(self.file.write_all(&record).map_err(|source| IoError::system("append to", &self.path, source))?)
    }
}

/// A record: its length, the length's check sum, the data, the data's check sum; little-endian.
fn framed(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    [&length[..], &masked_crc32c(&length).to_le_bytes(), data, &masked_crc32c(data).to_le_bytes()].concat()
}

fn masked_crc32c(data: &[u8]) -> u32 {
    crc32c::crc32c(data).rotate_right(15).wrapping_add(MASK_DELTA)
}

/// Seconds since 1970.
fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}
