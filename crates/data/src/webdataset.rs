//! WebDataset shards: tar files in which `KEY.json` and `KEY.webp` (or png, jpg) make a sample.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use crate::error::{DataError, Result};
use crate::record::FaceRecord;

const MAX_ENTRY_BYTES: u64 = 64 << 20;
/// Above this part of broken samples a split counts as damaged.
const MAX_BROKEN: f64 = 0.01;

/// A portrait as stored.
#[derive(Debug, Clone)]
pub struct Sample {
    /// Name within the set.
    pub key: String,
    /// Bytes of the image file.
    pub image: Vec<u8>,
    /// What is known about it.
    pub record: FaceRecord,
}

/// What a split held.
#[derive(Debug, Default)]
pub struct LoadReport {
    /// Whole samples in shard order.
    pub samples: Vec<Sample>,
    /// Broken ones: key and reason.
    pub skipped: Vec<(String, String)>,
}

/// Shards (`*.tar`) of `folder`, sorted by name.
///
/// # Errors
/// When the folder can't be listed or holds no shard.
pub fn shards(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(folder).map_err(|source| DataError::Folder { path: folder.to_path_buf(), source })?;
    let mut found: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "tar"))
        .collect();
    found.sort();
    if found.is_empty() {
        return Err(DataError::NoShards { path: folder.to_path_buf() });
    }
    Ok(found)
}

/// Reads the first `limit` samples (0: all) of `folder/split`.
///
/// # Errors
/// When there is no shard, a shard is no tar file, or more than 1% of the samples are broken.
pub fn load_split(folder: &Path, split: &str, limit: usize) -> Result<LoadReport> {
    let folder = folder.join(split);
    let mut report = LoadReport::default();
    for shard in shards(&folder)? {
        read_shard(&shard, limit, &mut report)?;
        if limit > 0 && report.samples.len() >= limit {
            break;
        }
    }
    let total = report.samples.len() + report.skipped.len();
    if report.samples.is_empty() || report.skipped.len() as f64 > MAX_BROKEN * total as f64 {
        let first = report.skipped.first().map_or("no sample".into(), |(key, reason)| format!("{key}: {reason}"));
        return Err(DataError::Broken { path: folder, broken: report.skipped.len(), total, first });
    }
    Ok(report)
}

fn read_shard(path: &Path, limit: usize, report: &mut LoadReport) -> Result<()> {
    let shard = |source| DataError::Shard { path: path.to_path_buf(), source };
    let file = File::open(path).map_err(shard)?;
    let mut archive = tar::Archive::new(BufReader::with_capacity(1 << 18, file));
    let mut pending: Option<(String, FaceRecord)> = None;
    for entry in archive.entries().map_err(shard)? {
        if limit > 0 && report.samples.len() >= limit {
            return Ok(());
        }
        let mut entry = entry.map_err(shard)?;
        let name = entry.path().map_err(shard)?.to_string_lossy().into_owned();
        let (key, extension) = name.rsplit_once('.').unwrap_or((&name, ""));
        if entry.size() > MAX_ENTRY_BYTES {
            report.skipped.push((name.clone(), format!("{} bytes, at most {MAX_ENTRY_BYTES} are read", entry.size())));
            continue;
        }
        let mut bytes = Vec::with_capacity(entry.size() as usize);
        entry.read_to_end(&mut bytes).map_err(shard)?;
        match extension {
            "json" => match serde_json::from_slice(&bytes) {
                Ok(record) => pending = Some((key.to_owned(), record)),
                Err(error) => report.skipped.push((key.to_owned(), error.to_string())),
            },
            "webp" | "png" | "jpg" | "jpeg" => match pending.take() {
                Some((known, record)) if known == key => {
                    report.samples.push(Sample { key: known, image: bytes, record });
                }
                // The record was reported already if it was broken.
                _ if report.skipped.last().is_some_and(|(broken, _)| broken == key) => {}
                _ => report.skipped.push((key.to_owned(), "no record before the picture".into())),
            },
            _ => {}
        }
    }
    Ok(())
}

/// Pictures as `[samples, side, side, 3]` bytes.
///
/// # Errors
/// Names the first sample whose picture can't be decoded or has another size.
pub fn decode_rgb(samples: &[Sample], side: usize) -> Result<Vec<u8>> {
    let mut pixels = vec![0; samples.len() * side * side * 3];
    pixels
        .par_chunks_exact_mut(side * side * 3)
        .zip(samples)
        .try_for_each(|(target, sample)| {
            let picture = |reason: String| DataError::Picture { key: sample.key.clone(), reason };
            let image = unif2ace_image::decode_rgb(&sample.image, &sample.key, Default::default())
                .map_err(|error| picture(error.to_string()))?;
            if [image.width(), image.height()] != [side, side] {
                return Err(picture(format!("expected {side}x{side} pixels, found {}x{}", image.width(), image.height())));
            }
            target.copy_from_slice(image.data());
            Ok(())
        })?;
    Ok(pixels)
}
