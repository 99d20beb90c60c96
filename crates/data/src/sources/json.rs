//! Records in JSON files beside a folder of pictures: LLaVA's conversations, and captions and questions by picture.

use std::collections::HashMap;
use std::path::{Component, Path, PathBuf};

use serde_json::{Map, Value};
use unif2ace_io::read_capped;

use super::files::{SplitFiles, split_files};
use super::{Source, file_name, has_extension, list, rows};
use crate::error::{DataError, Result, SampleFault};
use crate::sample::{FaceRecord, Sample};
use crate::webdataset::Item;

/// Largest file of records, which is held in memory.
const MAX_JSON_BYTES: u64 = 8 << 30;
/// Largest picture.
const MAX_PICTURE_BYTES: u64 = 32 << 20;
/// How deep below the set's folder pictures are looked for.
const MAX_DEPTH: usize = 4;

/// A picture with what is said about it.
struct Pictured {
    key: String,
    image: String,
    record: FaceRecord,
}

pub(super) struct JsonSource {
    /// Folders in which a picture may lie, in this order.
    folders: Vec<PathBuf>,
    /// Pictures by their name and by their name without extension, where the records don't say the folder.
    by_name: HashMap<String, PathBuf>,
    items: Vec<Pictured>,
}

/// Whether a name says that captions or questions are in there.
fn tells_annotations(path: &Path) -> bool {
    let name = file_name(path).to_ascii_lowercase();
    name.contains("caption") || name.contains("vqa")
}

impl JsonSource {
    /// A list of `{id, image, conversations}`. Objects without a picture (LLaVA's mixture has some) are left out.
    pub fn llava(path: &Path, files: &[PathBuf]) -> Result<Self> {
        let mut items = Vec::new();
        let mut num_without = 0;
        for file in files {
            for (number, row) in read_rows(file)?.into_iter().enumerate() {
                let Some(image) = row.get("image").and_then(Value::as_str).filter(|name| !name.is_empty()) else {
                    num_without += 1;
                    continue;
                };
                let key = match row.get("id") {
                    Some(Value::String(id)) => id.clone(),
                    Some(Value::Number(id)) => id.to_string(),
                    _ => format!("{}:{number}", file_name(file)),
                };
                items.push(Pictured { key, image: image.into(), record: rows::record(&row) });
            }
        }
        if num_without > 0 {
            tracing::info!(path = %path.display(), num_without, "records without a picture are left out");
        }
        Ok(Self { folders: picture_folders(path), by_name: HashMap::new(), items })
    }

    /// Captions and questions of any number of files, gathered by picture; and whether the files hold the whole set.
    pub fn unif2aced(path: &Path, split: &str) -> Result<(Self, bool)> {
        let SplitFiles { files, whole } = match annotations(path)? {
            files if files.is_empty() => split_files(path, split, &["json", "jsonl"])?,
            files => SplitFiles { files, whole: true },
        };
        let mut items: Vec<Pictured> = Vec::new();
        let mut places: HashMap<String, usize> = HashMap::new();
        for file in &files {
            for row in read_rows(file)? {
                let Some(image) = rows::image_name(&row) else {
                    return Err(fault(file, "an object has no name of its picture (`image`)"));
                };
                let key = stem(&image);
                let place = *places.entry(key.clone()).or_insert_with(|| {
                    items.push(Pictured { key, image, record: FaceRecord::default() });
                    items.len() - 1
                });
                let said = rows::record(&row);
                items[place].record.captions.extend(said.captions);
                items[place].record.vqa.extend(said.vqa);
            }
        }
        let folders = picture_folders(path);
        let mut by_name = HashMap::new();
        index_pictures(&folders[0], 0, &mut by_name)?;
        Ok((Self { folders, by_name, items }, whole))
    }

    fn picture(&self, name: &str) -> Option<PathBuf> {
        let relative = Path::new(name);
        // A record that leads out of the set's folder is no record of this set.
        if !relative.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir)) {
            return None;
        }
        let direct = self.folders.iter().map(|folder| folder.join(relative)).find(|path| path.is_file());
        direct.or_else(|| self.by_name.get(&file_name(relative)).or_else(|| self.by_name.get(&stem(name))).cloned())
    }
}

impl Source for JsonSource {
    fn len(&self) -> usize {
        self.items.len()
    }

    fn get(&self, index: usize) -> Result<Item> {
        let Pictured { key, image, record } = &self.items[index];
        let missing = |reason: String| Ok(Err((key.clone(), SampleFault::NoPicture { name: image.clone(), reason })));
        let Some(path) = self.picture(image) else {
            return missing("no such file in the set's folder or its `images`".into());
        };
        match read_capped(path, MAX_PICTURE_BYTES) {
            Ok(image_bytes) => Ok(Ok(Sample { key: key.clone(), image_bytes, record: record.clone() })),
            Err(error) => missing(error.to_string()),
        }
    }
}

/// The set's folder, and its `images`.
fn picture_folders(path: &Path) -> Vec<PathBuf> {
    let root = if path.is_file() { path.parent().unwrap_or(Path::new("")) } else { path };
    let root = if root.as_os_str().is_empty() { Path::new(".") } else { root };
    vec![root.to_path_buf(), root.join("images")]
}

/// Files of captions or questions in a folder, or in a folder of them; of a file itself.
pub(super) fn annotations(path: &Path) -> Result<Vec<PathBuf>> {
    let is_json = |path: &PathBuf| has_extension(path, &["json", "jsonl"]);
    let mut files = Vec::new();
    for entry in if path.is_file() { vec![path.to_path_buf()] } else { list(path)? } {
        if entry.is_dir() && tells_annotations(&entry) {
            files.extend(list(&entry)?.into_iter().filter(is_json));
        } else if is_json(&entry) && tells_annotations(&entry) {
            files.push(entry);
        }
    }
    Ok(files)
}

fn index_pictures(folder: &Path, depth: usize, names: &mut HashMap<String, PathBuf>) -> Result<()> {
    for entry in list(folder)? {
        if entry.is_dir() {
            if depth < MAX_DEPTH {
                index_pictures(&entry, depth + 1, names)?;
            }
        } else if has_extension(&entry, &["webp", "png", "jpg", "jpeg"]) {
            let name = file_name(&entry);
            names.entry(stem(&name)).or_insert_with(|| entry.clone());
            names.entry(name).or_insert(entry);
        }
    }
    Ok(())
}

/// A picture's name without folder and extension.
fn stem(name: &str) -> String {
    let path = Path::new(name);
    match has_extension(path, &["webp", "png", "jpg", "jpeg"]) {
        true => path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default(),
        false => file_name(path),
    }
}

/// The objects of a file: a JSON list, JSON lines, or one object by picture.
fn read_rows(path: &Path) -> Result<Vec<Map<String, Value>>> {
    let bytes = read_capped(path, MAX_JSON_BYTES)?;
    if has_extension(path, &["jsonl"]) {
        let lines = bytes.split(|&byte| byte == b'\n').enumerate().filter(|(_, line)| !line.trim_ascii().is_empty());
        return lines
            .map(|(number, line)| {
                serde_json::from_slice(line).map_err(|error| fault(path, &format!("line {}: {error}", number + 1)))
            })
            .collect();
    }
    match serde_json::from_slice(&bytes).map_err(|error| fault(path, &error.to_string()))? {
        Value::Array(rows) => rows
            .into_iter()
            .map(|row| match row {
                Value::Object(row) => Ok(row),
                _ => Err(fault(path, "expected a list of objects")),
            })
            .collect(),
        Value::Object(by_name) => Ok(by_name.into_iter().map(|(name, value)| named(name, value)).collect()),
        _ => Err(fault(path, "expected a list of objects, or an object by picture")),
    }
}

/// An entry of an object by picture: an object, its captions, or its questions.
fn named(name: String, value: Value) -> Map<String, Value> {
    let asks = |value: &Value| value.as_array().is_some_and(|items| items.iter().any(|item| !item.is_string()));
    let mut row = match value {
        Value::Object(row) => row,
        value => Map::from_iter([(if asks(&value) { "vqa" } else { "captions" }.to_owned(), value)]),
    };
    row.insert("image".into(), Value::String(name));
    row
}

fn fault(path: &Path, reason: &str) -> DataError {
    DataError::SetFile { path: path.to_path_buf(), reason: reason.into() }
}
