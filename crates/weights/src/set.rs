use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;
use unif2ace_io::{IoError, read_capped};

use crate::file::has_pickle_extension;
use crate::{Result, SafetensorsFile, TensorInfo, TensorSource, WeightsError};

const INDEX_SUFFIX: &str = ".safetensors.index.json";
const SUFFIX: &str = ".safetensors";
const MAX_INDEX_BYTES: u64 = 64 << 20;
/// Stems in the order of preference, for folders with several files.
const STEMS: [&str; 3] = ["model", "pytorch_model", "diffusion_pytorch_model"];
const LOOKED_FOR: &str = "model.safetensors, or model.safetensors.index.json with its shards";

/// The tensors of a model folder: one safetensors file, or shards with an index.
#[derive(Debug)]
pub struct SafetensorsDir {
    origin: PathBuf,
    files: Vec<SafetensorsFile>,
    places: BTreeMap<String, usize>,
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl SafetensorsDir {
    /// Opens a folder, a single file, or an index file.
    ///
    /// # Errors
    /// When nothing is found there, a file is damaged or a pickle, or index and shards don't fit each other.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let file = if path.is_dir() { find_in(path)? } else { path.to_path_buf() };
        if file.file_name().and_then(OsStr::to_str).is_some_and(|name| name.ends_with(INDEX_SUFFIX)) {
            return Self::open_sharded(path, &file);
        }
        Self::collect(path, vec![SafetensorsFile::open(&file)?], &file)
    }

    fn open_sharded(origin: &Path, index_path: &Path) -> Result<Self> {
        let fail = |reason: String| WeightsError::Index { path: index_path.to_path_buf(), reason };
        let index: Index = serde_json::from_slice(&read_capped(index_path, MAX_INDEX_BYTES)?)
            .map_err(|error| fail(format!("it is no valid table: {error}")))?;
        let folder = index_path.parent().unwrap_or(Path::new(""));
        let shards: BTreeSet<&String> = index.weight_map.values().collect();
        if shards.is_empty() {
            return Err(fail("it names no shard".into()));
        }
        let mut files = Vec::with_capacity(shards.len());
        for shard in shards {
            let mut components = Path::new(shard).components();
            // An index comes from elsewhere: it may not lead out of its folder.
            if !matches!((components.next(), components.next()), (Some(Component::Normal(_)), None)) {
                return Err(fail(format!("expected plain file names, found {shard:?}")));
            }
            files.push(SafetensorsFile::open(folder.join(shard))?);
        }
        let set = Self::collect(origin, files, index_path)?;
        for (name, shard) in &index.weight_map {
            let place = set.places.get(name).map(|&place| set.files[place].path());
            if place.and_then(Path::file_name) != Some(OsStr::new(shard)) {
                return Err(fail(format!("it places {name} in {shard}, which does not hold it")));
            }
        }
        if let Some(name) = set.places.keys().find(|name| !index.weight_map.contains_key(*name)) {
            return Err(fail(format!("a shard holds {name}, which the index does not name")));
        }
        Ok(set)
    }

    fn collect(origin: &Path, files: Vec<SafetensorsFile>, index_path: &Path) -> Result<Self> {
        let mut places = BTreeMap::new();
        for (place, file) in files.iter().enumerate() {
            for name in file.names() {
                if places.insert(name.to_string(), place).is_some() {
                    let reason = format!("two shards hold {name}");
                    return Err(WeightsError::Index { path: index_path.to_path_buf(), reason });
                }
            }
        }
        Ok(Self { origin: origin.to_path_buf(), files, places })
    }

    /// The folder or file that was opened.
    pub fn path(&self) -> &Path {
        &self.origin
    }

    /// The files behind it.
    pub fn files(&self) -> &[SafetensorsFile] {
        &self.files
    }

    /// Tensor names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.places.keys().map(String::as_str)
    }

    /// Type and shape of a tensor.
    pub fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.file_of(name).and_then(|file| file.info(name))
    }

    /// Shape of a tensor.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.info(name).map(|info| info.shape.as_slice())
    }

    /// Free text entries; of the first file where several say something.
    pub fn metadata(&self, key: &str) -> Option<&str> {
        self.files.iter().find_map(|file| file.metadata().get(key)).map(String::as_str)
    }

    /// A float tensor's values as float32, row by row.
    ///
    /// # Errors
    /// When there is no such tensor, it holds no floats, or reading fails.
    pub fn load_f32(&self, name: &str) -> Result<Vec<f32>> {
        self.require(name)?.load_f32(name)
    }

    /// As [`SafetensorsDir::load_f32`], but what is given back reads the values when it is called.
    pub(crate) fn deferred_f32(&self, name: &str) -> Result<impl FnOnce() -> Vec<f32> + Send + Sync + use<>> {
        self.require(name)?.deferred_f32(name)
    }

    /// The values of an int64 tensor.
    ///
    /// # Errors
    /// When there is no such tensor, it has another type, or reading fails.
    pub fn load_i64(&self, name: &str) -> Result<Vec<i64>> {
        self.require(name)?.load_i64(name)
    }

    fn file_of(&self, name: &str) -> Option<&SafetensorsFile> {
        self.places.get(name).map(|&place| &self.files[place])
    }

    fn require(&self, name: &str) -> Result<&SafetensorsFile> {
        let origin = || self.origin.display().to_string();
        self.file_of(name).ok_or_else(|| WeightsError::NoTensor { name: name.to_string(), origin: origin() })
    }
}

impl TensorSource for SafetensorsDir {
    fn origin(&self) -> String {
        self.origin.display().to_string()
    }

    fn tensor_names(&self) -> Vec<String> {
        self.names().map(str::to_string).collect()
    }

    fn tensor_shape(&self, name: &str) -> Option<Vec<usize>> {
        self.shape(name).map(<[usize]>::to_vec)
    }

    fn non_float_type(&self, name: &str) -> Option<String> {
        self.info(name).filter(|info| !info.dtype.is_float()).map(|info| info.dtype.to_string())
    }

    fn values_f32(&self, name: &str) -> Result<Vec<f32>> {
        self.load_f32(name)
    }
}

/// The index or weight file of a folder.
fn find_in(folder: &Path) -> Result<PathBuf> {
    let entries = std::fs::read_dir(folder).map_err(|source| IoError::system("list", folder, source))?;
    let mut names: Vec<String> =
        entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).filter(|name| !name.starts_with('.')).collect();
    names.sort();
    for suffix in [INDEX_SUFFIX, SUFFIX] {
        for stem in STEMS {
            let name = format!("{stem}{suffix}");
            if names.contains(&name) {
                return Ok(folder.join(name));
            }
        }
        let mut others = names.iter().filter(|name| name.ends_with(suffix));
        if let (Some(only), None) = (others.next(), others.next()) {
            return Ok(folder.join(only));
        }
    }
    if let Some(pickle) = names.iter().find(|name| has_pickle_extension(Path::new(name))) {
        return Err(WeightsError::Pickle { path: folder.join(pickle) });
    }
    let found = match names.len() {
        0 => "an empty folder".to_string(),
        1..=8 => names.join(", "),
        more => format!("{} and {} more", names[..8].join(", "), more - 8),
    };
    Err(WeightsError::NoWeights { path: folder.to_path_buf(), expected: LOOKED_FOR, found })
}
