//! Lines of text: `*.txt`, or `*.jsonl` whose objects have a `text`.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;

use unif2ace_io::{IoError, RangeReader};

use super::rows;
use super::{Source, file_name, has_extension};
use crate::error::{Result, SampleFault};
use crate::sample::{FaceRecord, Sample};
use crate::webdataset::Item;

/// Longest line.
const MAX_LINE_BYTES: u64 = 16 << 20;

pub(super) struct TextSource {
    files: Vec<PathBuf>,
    /// File, line, offset and length of each line that isn't blank.
    lines: Vec<(u32, u32, u64, u32)>,
}

impl TextSource {
    /// Reads all files once for the places of their lines.
    pub fn open(files: Vec<PathBuf>) -> Result<Self> {
        let mut lines = Vec::new();
        for (number, file) in files.iter().enumerate() {
            let reader = RangeReader::open(file)?;
            let mut buffered = BufReader::with_capacity(1 << 18, reader.cursor());
            let (mut offset, mut blank, mut length, mut line) = (0u64, true, 0u64, 1u32);
            loop {
                let bytes = buffered.fill_buf().map_err(|source| IoError::system("read", file, source))?;
                let ended = bytes.is_empty();
                let newline = bytes.iter().position(|&byte| byte == b'\n');
                let taken = newline.unwrap_or(bytes.len());
                blank &= bytes[..taken].iter().all(u8::is_ascii_whitespace);
                length += taken as u64;
                let consumed = taken + usize::from(newline.is_some());
                buffered.consume(consumed);
                if newline.is_some() || ended {
                    if !blank {
                        lines.push((number as u32, line, offset, u32::try_from(length).unwrap_or(u32::MAX)));
                    }
                    if ended {
                        break;
                    }
                    offset += length + 1;
                    (blank, length, line) = (true, 0, line + 1);
                }
            }
        }
        Ok(Self { files, lines })
    }
}

impl Source for TextSource {
    fn len(&self) -> usize {
        self.lines.len()
    }

    fn get(&self, index: usize) -> Result<Item> {
        let (file, line, offset, length) = self.lines[index];
        let path = &self.files[file as usize];
        let key = format!("{}:{line}", file_name(path));
        if u64::from(length) > MAX_LINE_BYTES {
            return Ok(Err((key.clone(), SampleFault::TooLarge { name: key, found: length.into(), cap: MAX_LINE_BYTES })));
        }
        let bytes = RangeReader::open(path)?.read_at(offset, length as usize)?;
        Ok(match text(&bytes, has_extension(path, &["jsonl"])) {
            Ok(text) => {
                let record = FaceRecord { captions: vec![text], ..FaceRecord::default() };
                Ok(Sample { key, image_bytes: Vec::new(), record })
            }
            Err(reason) => Err((key, SampleFault::Record { reason })),
        })
    }
}

fn text(bytes: &[u8], json: bool) -> Result<String, String> {
    if json {
        return match serde_json::from_slice(bytes).map_err(|error| error.to_string())? {
            serde_json::Value::String(text) => Ok(text),
            serde_json::Value::Object(row) => {
                rows::record(&row).captions.pop().ok_or_else(|| "expected a `text`, found none".into())
            }
            _ => Err("expected a text or an object with a `text`".into()),
        };
    }
    std::str::from_utf8(bytes).map(|text| text.trim().to_owned()).map_err(|error| error.to_string())
}
