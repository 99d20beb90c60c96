//! WebDataset shards by their index: the headers are read once, a sample when it is wanted.

use std::path::PathBuf;

use tar::Archive;
use unif2ace_io::RangeReader;

use super::Source;
use crate::error::{DataError, Result, SampleFault};
use crate::sample::Sample;
use crate::webdataset::{Item, MAX_MEMBER_BYTES, Member, member, parts};

/// Where the members of a key lie.
#[derive(Default)]
struct Entry {
    key: String,
    shard: usize,
    record: Option<(u64, usize)>,
    picture: Option<(u64, usize)>,
    fault: Option<SampleFault>,
}

pub(super) struct TarSource {
    shards: Vec<PathBuf>,
    entries: Vec<Entry>,
}

impl TarSource {
    /// Reads the headers of all shards.
    pub fn open(shards: Vec<PathBuf>) -> Result<Self> {
        let mut entries: Vec<Entry> = Vec::new();
        for (number, shard) in shards.iter().enumerate() {
            let reader = RangeReader::open(shard)?;
            let first = entries.len();
            let damaged = |samples_read, reason| DataError::Shard { path: shard.clone(), samples_read, reason };
            let mut archive = Archive::new(reader.cursor());
            let members = archive.entries_with_seek().map_err(|error| damaged(0, error.to_string()))?;
            for found in members {
                let found = found.map_err(|error| damaged(entries.len() - first, error.to_string()))?;
                if !found.header().entry_type().is_file() {
                    continue;
                }
                let name = String::from_utf8_lossy(&found.path_bytes()).into_owned();
                let (offset, size) = (found.raw_file_position(), found.size());
                if offset.checked_add(size).is_none_or(|end| end > reader.len()) {
                    return Err(damaged(entries.len() - first, format!("the member {name} ends behind the archive")));
                }
                let Some((key, kind)) = member(&name) else { continue };
                if entries.len() == first || entries.last().is_none_or(|entry| entry.key != key) {
                    entries.push(Entry { key: key.into(), shard: number, ..Entry::default() });
                }
                let Some(entry) = entries.last_mut() else { continue };
                let slot = match kind {
                    Member::Record => &mut entry.record,
                    Member::Picture => &mut entry.picture,
                    Member::Other => continue,
                };
                if size > MAX_MEMBER_BYTES {
                    entry.fault = Some(SampleFault::TooLarge { name, found: size, cap: MAX_MEMBER_BYTES });
                } else if slot.replace((offset, size as usize)).is_some() {
                    entry.fault = Some(SampleFault::Duplicate { name });
                }
            }
            if entries.len() == first {
                return Err(damaged(0, "it holds no samples".into()));
            }
        }
        Ok(Self { shards, entries })
    }
}

impl Source for TarSource {
    fn len(&self) -> usize {
        self.entries.len()
    }

    fn get(&self, index: usize) -> Result<Item> {
        let entry = &self.entries[index];
        let reader = RangeReader::open(&self.shards[entry.shard])?;
        let read = |place: Option<(u64, usize)>| place.map(|(offset, length)| reader.read_at(offset, length)).transpose();
        let (record, picture) = (read(entry.record)?, read(entry.picture)?);
        let key = entry.key.clone();
        Ok(match parts(record, picture, entry.fault.clone()) {
            Ok((image_bytes, record)) => Ok(Sample { key, image_bytes, record }),
            Err(fault) => Err((key, fault)),
        })
    }
}
