//! Records in JSON files beside a folder of pictures: LLaVA's conversations, and captions and questions by picture.

use std::collections::HashMap;
use std::ffi::OsString;
use std::path::{Component, Path, PathBuf};

use serde_json::{Map, Value};
use unif2ace_io::read_capped;

use super::files::{SplitFiles, ToldFile, choose, cut, split_files, split_in};
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
/// How deep below the set's folder files of captions and questions are looked for.
const MAX_FOLDERS: usize = 3;
/// The folder of pictures within the set's.
const IMAGES: &str = "images";
const RECORDS: [&str; 2] = ["json", "jsonl"];
const PICTURES: [&str; 4] = ["webp", "png", "jpg", "jpeg"];
const NOT_THERE: &str = "no such file in the set's folder or its `images`";

/// An object of a file, or what is wrong with it.
type Row = Result<Map<String, Value>, SampleFault>;

/// A picture with what is said about it.
struct Pictured {
    key: String,
    /// Path from one of the folders.
    image: PathBuf,
    record: FaceRecord,
    /// What is wrong with the record.
    fault: Option<SampleFault>,
}

impl Pictured {
    /// The place of a record that says nothing.
    fn broken(key: String, fault: SampleFault) -> Self {
        Self { key, image: PathBuf::new(), record: FaceRecord::default(), fault: Some(fault) }
    }
}

pub(super) struct JsonSource {
    /// Folders in which a picture may lie, in this order.
    folders: [PathBuf; 2],
    items: Vec<Pictured>,
}

impl JsonSource {
    /// A list of `{id, image, conversations}`. Objects without a picture (LLaVA's mixture has some) are left out.
    pub fn llava(path: &Path, files: &[PathBuf]) -> Result<Self> {
        let folders = picture_folders(path);
        let mut items = Vec::new();
        let mut num_without = 0;
        for file in files {
            for (number, row) in read_rows(file)? {
                let place = || place_of(&folders[0], file, number);
                let row = match row {
                    Ok(row) => row,
                    Err(fault) => {
                        items.push(Pictured::broken(place(), fault));
                        continue;
                    }
                };
                let Some(image) = row.get("image").and_then(Value::as_str).filter(|name| !name.is_empty()) else {
                    num_without += 1;
                    continue;
                };
                let key = match row.get("id") {
                    Some(Value::String(id)) => id.clone(),
                    Some(Value::Number(id)) => id.to_string(),
                    _ => place(),
                };
                items.push(Pictured { key, image: image.into(), record: rows::record(&row), fault: None });
            }
        }
        if num_without > 0 {
            tracing::info!(path = %path.display(), num_without, "records without a picture are left out");
        }
        Ok(Self { folders, items })
    }

    /// Captions and questions of the split's files, gathered by picture; and whether the files hold the whole set.
    pub fn unif2aced(path: &Path, split: &str) -> Result<(Self, bool)> {
        let SplitFiles { files, whole } = match annotations(path)? {
            found if found.is_empty() || path.is_file() => split_files(path, split, &RECORDS)?,
            found => choose(path, split, found, &RECORDS)?,
        };
        let folders = picture_folders(path);
        let mut gathered = Gathered::new(Pictures::index(&folders[0])?);
        for file in &files {
            for (number, row) in read_rows(file)? {
                if let Err(fault) = row.and_then(|row| gathered.add(&row)) {
                    gathered.items.push(Pictured::broken(place_of(&folders[0], file, number), fault));
                }
            }
        }
        Ok((Self { folders, items: gathered.items }, whole))
    }

    fn picture(&self, name: &Path) -> Option<PathBuf> {
        let relative = inside(name)?;
        self.folders.iter().map(|folder| folder.join(&relative)).find(|path| path.is_file())
    }
}

impl Source for JsonSource {
    fn len(&self) -> usize {
        self.items.len()
    }

    fn get(&self, index: usize) -> Result<Item> {
        let Pictured { key, image, record, fault } = &self.items[index];
        if let Some(fault) = fault {
            return Ok(Err((key.clone(), fault.clone())));
        }
        let missing = |reason| Ok(Err((key.clone(), no_picture(image, reason))));
        let Some(path) = self.picture(image) else {
            return missing(NOT_THERE.into());
        };
        match read_capped(path, MAX_PICTURE_BYTES) {
            Ok(image_bytes) => Ok(Ok(Sample { key: key.clone(), image_bytes, record: record.clone() })),
            Err(error) => missing(error.to_string()),
        }
    }
}

/// What records say, by picture.
struct Gathered {
    pictures: Pictures,
    items: Vec<Pictured>,
    /// Place of each name that records gave.
    by_name: HashMap<String, usize>,
    /// Place of each picture.
    by_picture: HashMap<PathBuf, usize>,
}

impl Gathered {
    fn new(pictures: Pictures) -> Self {
        Self { pictures, items: Vec::new(), by_name: HashMap::new(), by_picture: HashMap::new() }
    }

    /// Puts what a row says to its picture.
    fn add(&mut self, row: &Map<String, Value>) -> Result<(), SampleFault> {
        let Some(name) = rows::image_name(row) else {
            let reason = "expected the name of a picture (`image`), found none".into();
            return Err(SampleFault::Record { reason });
        };
        let place = match self.by_name.get(&name) {
            Some(&place) => place,
            None => self.place(name),
        };
        let said = rows::record(row);
        self.items[place].record.captions.extend(said.captions);
        self.items[place].record.vqa.extend(said.vqa);
        Ok(())
    }

    /// The place of the picture that a new name leads to. Where it leads to none, the name has a broken place of its own.
    fn place(&mut self, name: String) -> usize {
        let next = self.items.len();
        let place = match self.pictures.find(&name) {
            Ok(path) => *self.by_picture.entry(path).or_insert_with_key(|path| {
                let (key, image) = (self.pictures.key(path), path.clone());
                self.items.push(Pictured { key, image, record: FaceRecord::default(), fault: None });
                next
            }),
            Err(fault) => {
                self.items.push(Pictured::broken(name.clone(), fault));
                next
            }
        };
        self.by_name.insert(name, place);
        place
    }
}

/// The pictures below a folder, by their paths from there.
struct Pictures {
    root: PathBuf,
    paths: Vec<PathBuf>,
    /// By path without extension.
    by_path: HashMap<PathBuf, Vec<usize>>,
    /// By name without folder and extension.
    by_stem: HashMap<OsString, Vec<usize>>,
}

impl Pictures {
    fn index(root: &Path) -> Result<Self> {
        let mut found = Vec::new();
        list_pictures(root, 0, &mut found)?;
        let mut pictures = Self { root: root.to_path_buf(), paths: Vec::new(), by_path: HashMap::new(), by_stem: HashMap::new() };
        for path in found {
            let relative = path.strip_prefix(root).unwrap_or(&path).to_path_buf();
            let number = pictures.paths.len();
            pictures.by_stem.entry(stem(&relative)).or_default().push(number);
            pictures.by_path.entry(without_extension(&relative)).or_default().push(number);
            pictures.paths.push(relative);
        }
        Ok(pictures)
    }

    /// The picture that a record names: with its path from the set's folder or its `images`, or with the end of its path, which must
    /// then be that of no other one. The extension may be absent or another one.
    fn find(&self, name: &str) -> Result<PathBuf, SampleFault> {
        let missing = |reason: &str| no_picture(Path::new(name), reason.into());
        let relative = inside(Path::new(name)).ok_or_else(|| missing("its path leads out of the set's folder"))?;
        let bare = without_extension(&relative);
        let direct = ["", IMAGES].map(|folder| (Path::new(folder).join(&relative), self.at(&Path::new(folder).join(&bare))));
        if let Some((exact, _)) = direct.iter().find(|(exact, found)| found.contains(&exact)) {
            return Ok(exact.clone());
        }
        let [(_, at_root), (_, in_images)] = direct;
        let mut fitting = if at_root.is_empty() { in_images } else { at_root };
        if fitting.is_empty() {
            let same_stem = self.by_stem.get(&stem(&relative)).into_iter().flatten().map(|&number| &self.paths[number]);
            fitting = same_stem.filter(|path| without_extension(path).ends_with(&bare)).collect();
        }
        match fitting[..] {
            [path] => Ok(path.clone()),
            // What isn't in the index lies deeper, or has another extension.
            [] => ["", IMAGES]
                .map(|folder| Path::new(folder).join(&relative))
                .into_iter()
                .find(|path| self.root.join(path).is_file())
                .ok_or_else(|| missing(NOT_THERE)),
            _ => {
                let candidates: Vec<String> = fitting.iter().map(|path| path.display().to_string()).collect();
                Err(SampleFault::Ambiguous { name: name.into(), candidates: cut(&candidates) })
            }
        }
    }

    /// Pictures with this path but for the extension.
    fn at(&self, bare: &Path) -> Vec<&PathBuf> {
        self.by_path.get(bare).into_iter().flatten().map(|&number| &self.paths[number]).collect()
    }

    /// A picture's name without folder and extension, or its path where others are called so too.
    fn key(&self, path: &Path) -> String {
        let stem = stem(path);
        let is_alone = match self.by_stem.get(&stem).map(Vec::as_slice) {
            None => true,
            Some([number]) => self.paths[*number] == path,
            Some(_) => false,
        };
        if is_alone { stem.to_string_lossy().into_owned() } else { path.display().to_string() }
    }
}

fn list_pictures(folder: &Path, depth: usize, found: &mut Vec<PathBuf>) -> Result<()> {
    for entry in list(folder)? {
        if entry.is_dir() {
            if depth < MAX_DEPTH {
                list_pictures(&entry, depth + 1, found)?;
            }
        } else if has_extension(&entry, &PICTURES) {
            found.push(entry);
        }
    }
    Ok(())
}

/// A record's path to its picture, without `.`; `None` where it leads out of the set's folder, since that is no record of this set.
fn inside(name: &Path) -> Option<PathBuf> {
    let parts = name.components().filter(|part| !matches!(part, Component::CurDir));
    parts.map(|part| if let Component::Normal(part) = part { Some(part) } else { None }).collect()
}

/// A path without the extension of a picture.
fn without_extension(path: &Path) -> PathBuf {
    if has_extension(path, &PICTURES) { path.with_extension("") } else { path.to_path_buf() }
}

/// A picture's name without folder and extension.
fn stem(path: &Path) -> OsString {
    let name = if has_extension(path, &PICTURES) { path.file_stem() } else { path.file_name() };
    name.unwrap_or_default().to_os_string()
}

fn no_picture(name: &Path, reason: String) -> SampleFault {
    SampleFault::NoPicture { name: name.display().to_string(), reason }
}

/// A record's file and number, which name it where nothing else does.
fn place_of(root: &Path, file: &Path, number: usize) -> String {
    format!("{}:{number}", file.strip_prefix(root).unwrap_or(file).display())
}

/// The set's folder, and its `images`.
fn picture_folders(path: &Path) -> [PathBuf; 2] {
    let root = if path.is_file() { path.parent().unwrap_or(Path::new("")) } else { path };
    let root = if root.as_os_str().is_empty() { Path::new(".") } else { root };
    [root.to_path_buf(), root.join(IMAGES)]
}

/// Whether a name says that captions or questions are in there.
fn tells_annotations(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    name.contains("caption") || name.contains("vqa")
}

/// Files of captions or questions below a folder, with the splits that their names or folders tell; a file itself, where it is one.
pub(super) fn annotations(path: &Path) -> Result<Vec<ToldFile>> {
    let mut found = Vec::new();
    if !path.is_file() {
        list_annotations(path, (false, None), 0, &mut found)?;
    } else if has_extension(path, &RECORDS) && tells_annotations(&file_name(path)) {
        found.push((path.to_path_buf(), None));
    }
    Ok(found)
}

/// Goes through a folder of which those above it tell that it holds `annotations`, or of which split.
fn list_annotations(
    folder: &Path,
    (annotations, split): (bool, Option<&'static str>),
    depth: usize,
    found: &mut Vec<ToldFile>,
) -> Result<()> {
    for entry in list(folder)? {
        let name = file_name(&entry);
        let (tells, of) = (tells_annotations(&name), split_in(&name));
        let told = (annotations || tells, split.or(of));
        if has_extension(&entry, &RECORDS) {
            if told.0 {
                found.push((entry, told.1));
            }
        } else if depth < MAX_FOLDERS && (tells || of.is_some() || depth == 0 && name == "data") && entry.is_dir() {
            list_annotations(&entry, told, depth + 1, found)?;
        }
    }
    Ok(())
}

/// The rows of a file with their numbers from 1, or lines: a JSON list, JSON lines, or one object by picture.
///
/// # Errors
/// When the file is no JSON, or nothing in it is an object.
fn read_rows(path: &Path) -> Result<Vec<(usize, Row)>> {
    let bytes = read_capped(path, MAX_JSON_BYTES)?;
    let rows: Vec<(usize, Row)> = if has_extension(path, &["jsonl"]) {
        let lines = bytes.split(|&byte| byte == b'\n').zip(1..).filter(|(line, _)| !line.trim_ascii().is_empty());
        lines.map(|(line, number)| (number, parse(line))).collect()
    } else {
        match serde_json::from_slice(&bytes).map_err(|error| unreadable(path, &error.to_string()))? {
            Value::Array(rows) => (1..).zip(rows.into_iter().map(object)).collect(),
            Value::Object(by_name) => (1..).zip(by_name.into_iter().map(|(name, value)| Ok(named(name, value)))).collect(),
            _ => return Err(unreadable(path, "expected a list of objects, or an object by picture")),
        }
    };
    match rows.first() {
        Some((number, Err(fault))) if rows.iter().all(|(_, row)| row.is_err()) => {
            let reason = format!("none of its {} rows is an object; the first one, {number}: {fault}", rows.len());
            Err(unreadable(path, &reason))
        }
        _ => Ok(rows),
    }
}

fn parse(line: &[u8]) -> Row {
    object(serde_json::from_slice(line).map_err(|error| SampleFault::Record { reason: error.to_string() })?)
}

fn object(value: Value) -> Row {
    let found = match value {
        Value::Object(row) => return Ok(row),
        Value::Array(_) => "a list",
        Value::String(_) => "a text",
        Value::Number(_) => "a number",
        Value::Bool(_) => "a flag",
        Value::Null => "null",
    };
    Err(SampleFault::Record { reason: format!("expected an object, found {found}") })
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

fn unreadable(path: &Path, reason: &str) -> DataError {
    DataError::SetFile { path: path.to_path_buf(), reason: reason.into() }
}
