//! Face sets as WebDataset shards: tar archives in which `KEY.json` and `KEY.webp` lie side by side.
//!
//! Reading streams: one sample is in memory at a time. A broken sample doesn't end the run; it is counted, logged by key
//! and skipped, up to a limit. A damaged archive does end it, since nothing behind the damage can be trusted.

use std::io::Read;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use tar::Archive;
use unif2ace_image::{DecodeLimits, decode_rgb as decode_picture};
use unif2ace_io::{CappedReader, IoError, open_capped};

use crate::error::{DataError, Result, SampleFault};
use crate::sample::{FaceRecord, Sample};
use crate::schema::Schema;

/// Largest shard.
const MAX_SHARD_BYTES: u64 = 8 << 30;
/// Largest member of a shard.
pub(crate) const MAX_MEMBER_BYTES: u64 = 16 << 20;
/// Broken samples that [`load_split`] accepts, as a part of the split; at least [`MIN_BROKEN`].
const MAX_BROKEN_FRACTION: f64 = 0.01;
const MIN_BROKEN: usize = 10;
const PICTURES: [&str; 4] = ["webp", "png", "jpg", "jpeg"];

/// A sample of a shard, or the key and the fault of a broken one.
pub type Item = std::result::Result<Sample, (String, SampleFault)>;

/// A folder with `train`, `val` and `test` folders of shards.
#[derive(Debug, Clone)]
pub struct FaceSet {
    root: PathBuf,
}

/// A loaded split.
#[derive(Debug, Default)]
pub struct Split {
    /// The samples, in the order of the shards.
    pub samples: Vec<Sample>,
    /// Key and fault of each sample that was skipped.
    pub skipped: Vec<(String, SampleFault)>,
}

impl FaceSet {
    /// Opens the set; nothing is read yet.
    ///
    /// # Errors
    /// When no split with shards lies in the folder.
    pub fn open(root: impl AsRef<Path>) -> Result<Self> {
        let root = root.as_ref();
        let found =
            ["train", "val", "test"].iter().any(|split| matches!(shards_of(&root.join(split)), Ok(shards) if !shards.is_empty()));
        // A folder that can't be listed says so itself.
        std::fs::read_dir(root).map_err(|source| IoError::system("list", root, source))?;
        if !found {
            return Err(DataError::NoShards {
                path: root.to_path_buf(),
                expected: "train, val or test with *.tar shards".into(),
            });
        }
        Ok(Self { root: root.to_path_buf() })
    }

    /// Shards of a split in order of their names.
    ///
    /// # Errors
    /// When the folder is missing or holds no shard.
    pub fn shards(&self, split: &str) -> Result<Vec<PathBuf>> {
        if split.is_empty() || split.contains(['/', '\\']) || split.starts_with('.') {
            return Err(DataError::SplitName { given: split.into() });
        }
        let folder = self.root.join(split);
        let shards = shards_of(&folder)?;
        if shards.is_empty() {
            return Err(DataError::NoShards { path: folder, expected: "*.tar shards".into() });
        }
        Ok(shards)
    }

    /// Loads a split, at most `limit` samples (0: all). Broken samples are skipped, up to `max_broken`.
    ///
    /// # Errors
    /// When the split can't be read, a shard is damaged, or more than `max_broken` samples are broken.
    pub fn load(&self, split: &str, limit: usize, max_broken: MaxBroken) -> Result<Split> {
        let limit = if limit == 0 { usize::MAX } else { limit };
        let mut loaded = Split::default();
        for shard in self.shards(split)? {
            for item in ShardReader::open(&shard)?.items()? {
                match item? {
                    Ok(sample) => loaded.samples.push(sample),
                    Err((key, fault)) => {
                        tracing::warn!(shard = %shard.display(), key, %fault, "sample skipped");
                        loaded.skipped.push((key.clone(), fault.clone()));
                        let cap = max_broken.count(loaded.samples.len() + loaded.skipped.len());
                        if loaded.skipped.len() > cap {
                            return Err(DataError::TooManyBroken {
                                path: self.root.join(split),
                                count: loaded.skipped.len(),
                                limit: cap,
                                key,
                                fault,
                            });
                        }
                    }
                }
                if loaded.samples.len() >= limit {
                    return Ok(loaded);
                }
            }
        }
        Ok(loaded)
    }
}

/// How many broken samples are accepted.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum MaxBroken {
    /// A fixed number.
    Count(usize),
    /// A part of the samples read so far, and at least ten.
    Fraction(f64),
}

impl MaxBroken {
    pub(crate) fn count(self, read: usize) -> usize {
        match self {
            Self::Count(count) => count,
            Self::Fraction(part) => ((read as f64 * part) as usize).max(MIN_BROKEN),
        }
    }
}

impl Default for MaxBroken {
    fn default() -> Self {
        Self::Fraction(MAX_BROKEN_FRACTION)
    }
}

/// Loads a split of the set in `root`, at most `limit` samples (0: all), with the usual limit on broken samples.
///
/// # Errors
/// As [`FaceSet::open`] and [`FaceSet::load`].
pub fn load_split(root: impl AsRef<Path>, split: &str, limit: usize) -> Result<Split> {
    FaceSet::open(root)?.load(split, limit, MaxBroken::default())
}

fn shards_of(folder: &Path) -> Result<Vec<PathBuf>> {
    let list = |source| IoError::system("list", folder, source);
    let mut shards = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(list)? {
        let path = entry.map_err(list)?.path();
        if path.extension().is_some_and(|extension| extension == "tar") {
            shards.push(path);
        }
    }
    shards.sort();
    Ok(shards)
}

/// One open shard.
pub struct ShardReader {
    path: PathBuf,
    archive: Archive<std::io::BufReader<CappedReader>>,
}

impl ShardReader {
    /// Opens an archive.
    ///
    /// # Errors
    /// When it can't be read or is larger than a shard may be.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let reader = std::io::BufReader::with_capacity(1 << 18, open_capped(path, MAX_SHARD_BYTES)?);
        Ok(Self { path: path.to_path_buf(), archive: Archive::new(reader) })
    }

    /// The samples in order. The outer error is the archive's and ends the iteration; the inner one is a sample's.
    ///
    /// # Errors
    /// When the archive's first header can't be read.
    pub fn items(&mut self) -> Result<Items<'_>> {
        let entries = self.archive.entries().map_err(|error| DataError::Shard {
            path: self.path.clone(),
            samples_read: 0,
            reason: error.to_string(),
        })?;
        Ok(Items { path: &self.path, entries, pending: None, ready: None, samples_read: 0, done: false })
    }
}

/// Members of one key, gathered until the next key comes.
#[derive(Default)]
struct Pending {
    key: String,
    record: Option<Vec<u8>>,
    picture: Option<Vec<u8>>,
    fault: Option<SampleFault>,
}

/// Iterator over the samples of a shard.
pub struct Items<'a> {
    path: &'a Path,
    entries: tar::Entries<'a, std::io::BufReader<CappedReader>>,
    pending: Option<Pending>,
    ready: Option<Pending>,
    samples_read: usize,
    done: bool,
}

impl Iterator for Items<'_> {
    type Item = Result<Item>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.done && self.ready.is_none() {
            match self.entries.next() {
                None => {
                    self.done = true;
                    self.ready = self.pending.take();
                }
                Some(entry) => {
                    if let Err(reason) = entry.and_then(|entry| self.take(entry)) {
                        self.done = true;
                        return Some(Err(DataError::Shard {
                            path: self.path.to_path_buf(),
                            samples_read: self.samples_read,
                            reason: reason.to_string(),
                        }));
                    }
                }
            }
        }
        let pending = self.ready.take()?;
        let item = finish(pending);
        self.samples_read += usize::from(item.is_ok());
        Some(Ok(item))
    }
}

impl Items<'_> {
    fn take<R: Read>(&mut self, mut entry: tar::Entry<'_, R>) -> std::io::Result<()> {
        if !entry.header().entry_type().is_file() {
            return Ok(());
        }
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let Some((key, kind)) = member(&name) else {
            return Ok(());
        };
        if self.pending.as_ref().is_none_or(|pending| pending.key != key) {
            self.ready = self.pending.replace(Pending { key: key.into(), ..Pending::default() });
        }
        let Some(pending) = self.pending.as_mut() else {
            return Ok(());
        };
        let slot = match kind {
            Member::Record => &mut pending.record,
            Member::Picture => &mut pending.picture,
            Member::Other => return Ok(()),
        };
        let found = entry.size();
        if found > MAX_MEMBER_BYTES {
            pending.fault = Some(SampleFault::TooLarge { name, found, cap: MAX_MEMBER_BYTES });
            return Ok(());
        }
        let mut bytes = Vec::with_capacity(found as usize);
        entry.read_to_end(&mut bytes)?;
        if bytes.len() as u64 != found {
            return Err(std::io::Error::new(
                std::io::ErrorKind::UnexpectedEof,
                format!("the member {name} ends after {} of {found} bytes", bytes.len()),
            ));
        }
        if slot.replace(bytes).is_some() {
            pending.fault = Some(SampleFault::Duplicate { name });
        }
        Ok(())
    }
}

/// What a member of a shard is.
#[derive(Clone, Copy)]
pub(crate) enum Member {
    Record,
    Picture,
    Other,
}

/// Key and kind of a member; as everywhere with this format the key ends at the first dot of the file's own name.
pub(crate) fn member(name: &str) -> Option<(&str, Member)> {
    let file_start = name.rfind('/').map_or(0, |slash| slash + 1);
    let dot = file_start + name[file_start..].find('.')?;
    let kind = match &name[dot + 1..] {
        "json" => Member::Record,
        other if PICTURES.contains(&other) => Member::Picture,
        _ => Member::Other,
    };
    Some((&name[..dot], kind))
}

fn finish(pending: Pending) -> Item {
    let key = pending.key;
    match parts(pending.record, pending.picture, pending.fault) {
        Ok((image_bytes, record)) => Ok(Sample { key, image_bytes, record }),
        Err(fault) => Err((key, fault)),
    }
}

pub(crate) fn parts(
    record: Option<Vec<u8>>,
    picture: Option<Vec<u8>>,
    fault: Option<SampleFault>,
) -> std::result::Result<(Vec<u8>, FaceRecord), SampleFault> {
    if let Some(fault) = fault {
        return Err(fault);
    }
    let record = record.ok_or(SampleFault::Incomplete { missing: "KEY.json" })?;
    let picture = picture.ok_or(SampleFault::Incomplete { missing: "KEY.webp" })?;
    let record: FaceRecord =
        serde_json::from_slice(&record).map_err(|error| SampleFault::Record { reason: error.to_string() })?;
    Schema::get().check(&record)?;
    Ok((picture, record))
}

/// Decodes samples in parallel to one buffer `[num_samples, side, side, 3]` of bytes.
///
/// # Errors
/// When a picture can't be decoded or isn't `side` pixels wide and high; the error names the sample.
pub fn decode_rgb(samples: &[Sample], side: usize) -> Result<Vec<u8>> {
    let size = side * side * 3;
    let mut pixels = vec![0u8; samples.len() * size];
    if size == 0 {
        return Ok(pixels);
    }
    pixels.par_chunks_mut(size).zip(samples).try_for_each(|(target, sample)| {
        let picture = decode_picture(&sample.image_bytes, &sample.key, DecodeLimits::default())?;
        if picture.width() != side || picture.height() != side {
            return Err(DataError::PictureSize {
                key: sample.key.clone(),
                side,
                width: picture.width(),
                height: picture.height(),
            });
        }
        target.copy_from_slice(picture.data());
        Ok(())
    })?;
    Ok(pixels)
}
