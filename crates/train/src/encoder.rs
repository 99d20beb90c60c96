//! Codes and features of pictures by the frozen parts, each picture encoded once and kept in a cache on disk.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use burn::tensor::Device;
use rayon::prelude::*;
use unif2ace_data::{Broken, DataSet, FaceRecord, ImageCache, ImageHash, Sample, SampleFault, load_all, square_rgb};
use unif2ace_ops::{Precision, in_precision};
use unif2ace_pipeline::Parts;

use crate::batches::ImageStore;
use crate::error::Result;
use crate::features::Features;
use crate::interrupt;
use crate::tasks::data;
use crate::tasks::unified::FeaturedRecords;

/// Pictures that go through the networks at once.
const BATCH: usize = 32;
/// Names the layout of an entry ([`Features::entry`]), so that another one is never taken for it.
const ENTRY_FORM: &str = "codes, clip, face of f32";

/// A sample on its way to the networks.
pub struct Row {
    key: String,
    record: FaceRecord,
    image: ImageHash,
    /// Its cache entry, else its pixels.
    known: std::result::Result<Vec<u8>, Vec<u8>>,
}

/// What workers need to make rows.
#[derive(Clone)]
pub struct RowMaker {
    cache: Arc<ImageCache>,
    side: usize,
}

impl RowMaker {
    /// Takes the cache's entry for the sample's picture, or decodes it.
    ///
    /// # Errors
    /// When the picture is missing or can't be decoded.
    pub fn make(&self, sample: Sample) -> std::result::Result<Row, SampleFault> {
        let image = unif2ace_io::sha256(&sample.image_bytes);
        let known = match self.cache.get(&image) {
            Some(entry) => Ok(entry),
            None => Err(square_rgb(&sample.image_bytes, &sample.key, self.side)?),
        };
        Ok(Row { key: sample.key, record: sample.record, image, known })
    }
}

/// The frozen parts with the cache of what they say.
pub struct Encoder {
    parts: Parts,
    device: Device,
    rows: RowMaker,
    num_encoded: AtomicUsize,
}

impl Encoder {
    /// Opens the cache in `cache_folder` for the parts of `model_folder`. Entries depend on the parts' weights and on the side of the
    /// pictures, so those of other weights are never taken.
    ///
    /// # Errors
    /// When the weights or the cache can't be read.
    pub fn open(parts: Parts, model_folder: &Path, cache_folder: &Path, device: Device) -> Result<Self> {
        let side = parts.vq.config().resolution;
        let mut key = format!("{ENTRY_FORM} side {side}");
        for (name, there) in [("vq", true), ("clip", parts.clip.is_some()), ("face", parts.face.is_some())] {
            if there {
                let file = model_folder.join(format!("{name}.safetensors"));
                key += &format!(" {name} {}", unif2ace_io::sha256_file(file)?);
            }
        }
        let cache = Arc::new(ImageCache::open(cache_folder, &key).map_err(data)?);
        Ok(Self { parts, device, rows: RowMaker { cache, side }, num_encoded: AtomicUsize::new(0) })
    }

    /// For workers.
    pub fn row_maker(&self) -> RowMaker {
        self.rows.clone()
    }

    /// Pictures that went through the networks since the encoder was opened.
    pub fn num_encoded(&self) -> usize {
        self.num_encoded.load(Ordering::Relaxed)
    }

    /// Records and features of some rows; what the cache doesn't have is encoded and kept.
    ///
    /// # Errors
    /// When the networks refuse a picture or the cache can't be written.
    pub fn features(&self, mut rows: Vec<Row>) -> Result<FeaturedRecords> {
        let cache = &self.rows.cache;
        if rows.iter().any(|row| row.known.is_err()) {
            // Another process may have been faster.
            cache.look_again().map_err(data)?;
            for row in rows.iter_mut().filter(|row| row.known.is_err()) {
                if let Some(entry) = cache.get(&row.image) {
                    row.known = Ok(entry);
                }
            }
        }
        let unknown: Vec<usize> = (0..rows.len()).filter(|&index| rows[index].known.is_err()).collect();
        for indices in unknown.chunks(BATCH) {
            let pixels: Vec<u8> = indices.iter().flat_map(|&index| rows[index].known.as_ref().err()).flatten().copied().collect();
            let images = ImageStore { pixels, side: self.rows.side, keys: Vec::new() };
            // In f32 whatever the run computes in: entries serve runs in both, and must not depend on when they were made.
            let encoded = in_precision(Precision::F32, || Features::of(&self.parts, &images, &self.device))?;
            self.num_encoded.fetch_add(indices.len(), Ordering::Relaxed);
            for (place, &index) in indices.iter().enumerate() {
                let entry = encoded.entry(place);
                cache.put(rows[index].image, entry.clone()).map_err(data)?;
                rows[index].known = Ok(entry);
            }
        }
        let mut features = Features::default();
        let (mut records, mut keys) = (Vec::with_capacity(rows.len()), Vec::with_capacity(rows.len()));
        for row in rows {
            if let Ok(entry) = &row.known {
                features.push(entry)?;
            }
            records.push(row.record);
            keys.push(row.key);
        }
        Ok(FeaturedRecords { keys, records, features })
    }

    /// The first `limit` good samples of a set (0: all) with their features, in memory.
    ///
    /// # Errors
    /// As [`Self::features`], and when too many samples are broken.
    pub fn load(&self, set: &DataSet, limit: usize, broken: &Broken) -> Result<FeaturedRecords> {
        let rows = load_all(set, limit, broken, |sample| self.rows.make(sample)).map_err(data)?;
        self.features(rows)
    }

    /// Encodes this rank's part of a set's pictures as far as the cache doesn't have them. `progress` is told how many samples were
    /// looked at. `false` when Ctrl-C was pressed; what was encoded is kept.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn precompute(
        &self,
        set: &DataSet,
        (rank, world_size): (usize, usize),
        broken: &Broken,
        progress: &mut dyn FnMut(usize),
    ) -> Result<bool> {
        let cache = &self.rows.cache;
        let mut waiting: Vec<Row> = Vec::new();
        let indices: Vec<usize> = (rank..set.len()).step_by(world_size.max(1)).collect();
        let last = indices.len().div_ceil(BATCH);
        for (number, indices) in indices.chunks(BATCH).enumerate() {
            if interrupt::asked() {
                cache.flush().map_err(data)?;
                return Ok(false);
            }
            let unknown = |&index: &usize| match set.get(index) {
                Ok(Ok(sample)) if cache.contains(&unif2ace_io::sha256(&sample.image_bytes)) => Ok(None),
                Ok(Ok(sample)) => {
                    let key = sample.key.clone();
                    Ok(Some((index, self.rows.make(sample).map_err(|fault| (key, fault)))))
                }
                Ok(Err(named)) => Ok(Some((index, Err(named)))),
                Err(error) => Err(error),
            };
            for item in indices.par_iter().map(unknown).collect::<Vec<_>>() {
                match item.map_err(data)? {
                    None => {}
                    Some((_, Ok(row))) => waiting.push(row),
                    Some((index, Err((key, fault)))) => {
                        broken.note(set.path(), set.len(), index, &key, fault).map_err(data)?;
                    }
                }
            }
            if waiting.len() >= BATCH || number + 1 == last {
                self.features(std::mem::take(&mut waiting))?;
            }
            progress(indices.len());
        }
        cache.flush().map_err(data)?;
        Ok(true)
    }
}
