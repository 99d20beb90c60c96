//! Parquet as Hugging Face's `datasets` writes it: an `Image` column is a struct of `bytes` and `path`, texts are strings or lists of
//! strings, questions are a list of structs, a struct of lists, or columns `question` and `answer`.
//!
//! A row can only be read with its row group, which `datasets` makes of about a hundred pictures.

use std::collections::VecDeque;
use std::io::{BufReader, Read};
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use parquet::errors::ParquetError;
use parquet::file::reader::{ChunkReader, FileReader, Length, SerializedFileReader};
use parquet::record::{Field, Row};
use serde_json::{Map, Value};
use unif2ace_io::{RangeReader, read_capped};

use super::{PIECES_MIXED, Source, file_name, rows};
use crate::error::{DataError, Result, SampleFault};
use crate::sample::Sample;
use crate::webdataset::Item;

/// Columns that hold a picture's bytes where they aren't an `Image`.
const PICTURES: [&str; 6] = ["image", "img", "jpg", "jpeg", "png", "webp"];
/// Largest picture that a `path` leads to.
const MAX_PICTURE_BYTES: u64 = 32 << 20;
/// Row groups held at once: two streams, each within its mixed pieces and on its way to the next ones.
const NUM_HELD: usize = 3 * PIECES_MIXED;

/// A row group that is read by the first who wants it, while the others wait.
type Held = Arc<Mutex<Option<Arc<Vec<Item>>>>>;

pub(super) struct ParquetSource {
    files: Vec<PathBuf>,
    /// File, number within it, first row and length of each row group.
    groups: Vec<(usize, usize, usize, usize)>,
    held: Mutex<VecDeque<(usize, Held)>>,
}

impl ParquetSource {
    /// Reads the footers of all files.
    pub fn open(files: Vec<PathBuf>) -> Result<Self> {
        let (mut groups, mut start) = (Vec::new(), 0);
        for (number, path) in files.iter().enumerate() {
            let metadata = reader(path)?;
            for (group, found) in metadata.metadata().row_groups().iter().enumerate() {
                let length = usize::try_from(found.num_rows()).map_err(|_| damaged(path, "a row group of negative length"))?;
                groups.push((number, group, start, length));
                start += length;
            }
        }
        Ok(Self { files, groups, held: Mutex::default() })
    }

    fn group(&self, number: usize) -> Result<Arc<Vec<Item>>> {
        let held = {
            let mut all = self.held.lock().unwrap_or_else(PoisonError::into_inner);
            let found = all.iter().position(|(known, _)| *known == number).and_then(|place| all.remove(place));
            let held = found.map(|(_, held)| held).unwrap_or_default();
            all.push_back((number, Arc::clone(&held)));
            while all.len() > NUM_HELD {
                all.pop_front();
            }
            held
        };
        let mut slot = held.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(items) = slot.as_ref() {
            return Ok(Arc::clone(items));
        }
        let (file, group, ..) = self.groups[number];
        let items = Arc::new(read_group(&self.files[file], group)?);
        *slot = Some(Arc::clone(&items));
        Ok(items)
    }
}

impl Source for ParquetSource {
    fn len(&self) -> usize {
        self.groups.last().map_or(0, |&(_, _, start, length)| start + length)
    }

    fn pieces(&self) -> Vec<usize> {
        self.groups.iter().map(|&(.., length)| length).collect()
    }

    fn get(&self, index: usize) -> Result<Item> {
        let number = self.groups.partition_point(|&(_, _, start, length)| start + length <= index);
        let (file, _, start, _) = self.groups[number];
        let items = self.group(number)?;
        let missing = || damaged(&self.files[file], "a row group has fewer rows than the footer says");
        items.get(index - start).cloned().ok_or_else(missing)
    }
}

fn damaged(path: &Path, reason: &str) -> DataError {
    DataError::Shard { path: path.to_path_buf(), samples_read: 0, reason: reason.into() }
}

fn reader(path: &Path) -> Result<SerializedFileReader<Chunks>> {
    let chunks = Chunks(Arc::new(RangeReader::open(path)?));
    SerializedFileReader::new(chunks).map_err(|error| damaged(path, &error.to_string()))
}

fn read_group(path: &Path, group: usize) -> Result<Vec<Item>> {
    let fail = |error: ParquetError| damaged(path, &error.to_string());
    let reader = reader(path)?;
    let group_reader = reader.get_row_group(group).map_err(fail)?;
    let rows = group_reader.get_row_iter(None).map_err(fail)?;
    rows.enumerate()
        .map(|(number, row)| Ok(item(path, &format!("{}:{group}:{number}", file_name(path)), &row.map_err(fail)?)))
        .collect()
}

/// A row as a sample; its name is its `id`, or the picture's, or its place.
fn item(path: &Path, place: &str, row: &Row) -> Item {
    let mut columns = Map::new();
    let mut picture = None;
    for (name, field) in row.get_column_iter() {
        match picture_of(name, field) {
            Some(found) if picture.is_none() => picture = Some(found),
            Some(_) => {}
            None => drop(columns.insert(name.clone(), value(field))),
        }
    }
    let (bytes, name) = picture.unwrap_or_default();
    let id = columns.get("id").and_then(|id| id.as_str().map(str::to_owned).or_else(|| Some(id.as_number()?.to_string())));
    let key = id.or_else(|| name.clone()).unwrap_or_else(|| place.to_owned());
    let record = rows::record(&columns);
    match (bytes, name) {
        (Some(image_bytes), _) => Ok(Sample { key, image_bytes, record }),
        (None, Some(name)) => match beside(path, &name) {
            Ok(image_bytes) => Ok(Sample { key, image_bytes, record }),
            Err(reason) => Err((key, SampleFault::NoPicture { name, reason })),
        },
        // A table without pictures is text.
        (None, None) => Ok(Sample { key, image_bytes: Vec::new(), record }),
    }
}

/// The picture that a column holds: bytes, or the path of a file, or both. Of a list of pictures the first.
fn picture_of(name: &str, field: &Field) -> Option<(Option<Vec<u8>>, Option<String>)> {
    match field {
        Field::Bytes(bytes) if PICTURES.contains(&name.to_ascii_lowercase().as_str()) => {
            Some((Some(bytes.data().to_vec()), None))
        }
        Field::Group(group) if group.len() > 0 => {
            let (mut bytes, mut path) = (None, None);
            for (name, field) in group.get_column_iter() {
                match (name.as_str(), field) {
                    ("bytes", Field::Bytes(found)) => bytes = Some(found.data().to_vec()),
                    ("path", Field::Str(found)) => path = Some(found.clone()),
                    ("bytes" | "path", Field::Null) => {}
                    _ => return None,
                }
            }
            Some((bytes, path))
        }
        Field::ListInternal(list) => picture_of(name, list.elements().first()?),
        _ => None,
    }
}

/// A picture that wasn't embedded lies beside its table.
fn beside(table: &Path, name: &str) -> Result<Vec<u8>, String> {
    let relative = Path::new(name);
    if !relative.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir)) {
        return Err("its path leads out of the set's folder, and its bytes aren't in the table".into());
    }
    let folder = table.parent().unwrap_or(Path::new("."));
    read_capped(folder.join(relative), MAX_PICTURE_BYTES).map_err(|error| error.to_string())
}

fn value(field: &Field) -> Value {
    match field {
        Field::Str(text) => Value::String(text.clone()),
        Field::Bool(flag) => Value::Bool(*flag),
        Field::Int(number) => (*number).into(),
        Field::Long(number) => (*number).into(),
        Field::Group(row) => Value::Object(row.get_column_iter().map(|(name, field)| (name.clone(), value(field))).collect()),
        Field::ListInternal(list) => list.elements().iter().map(value).collect(),
        _ => Value::Null,
    }
}

/// The file as the Parquet reader wants it.
struct Chunks(Arc<RangeReader>);

impl Length for Chunks {
    fn len(&self) -> u64 {
        self.0.len()
    }
}

impl ChunkReader for Chunks {
    type T = BufReader<ChunkCursor>;

    fn get_read(&self, start: u64) -> parquet::errors::Result<Self::T> {
        // What is read this way are the headers of pages.
        Ok(BufReader::with_capacity(1 << 10, ChunkCursor { file: Arc::clone(&self.0), position: start }))
    }

    fn get_bytes(&self, start: u64, length: usize) -> parquet::errors::Result<Bytes> {
        Ok(self.0.read_at(start, length).map_err(|error| ParquetError::External(Box::new(error)))?.into())
    }
}

struct ChunkCursor {
    file: Arc<RangeReader>,
    position: u64,
}

impl Read for ChunkCursor {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let left = usize::try_from(self.file.len().saturating_sub(self.position)).unwrap_or(usize::MAX);
        let count = left.min(buffer.len());
        buffer[..count].copy_from_slice(&self.file.read_at(self.position, count).map_err(std::io::Error::other)?);
        self.position += count as u64;
        Ok(count)
    }
}
