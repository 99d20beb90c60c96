use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use unif2ace_io::IoError;
use unif2ace_kernels::map::MappedFile;

use crate::dtype::decode_f32;
use crate::header::{Header, LENGTH_BYTES, MAX_HEADER_BYTES, TensorInfo, parse};
use crate::{Result, WeightsError};

const FLOATS: &str = "F32, BF16, F16 or F64";

/// One safetensors file, mapped and checked; a tensor's bytes are touched when it is asked for.
#[derive(Debug)]
pub struct SafetensorsFile {
    path: PathBuf,
    bytes: Arc<MappedFile>,
    header: Header,
    places: BTreeMap<String, usize>,
    data_start: usize,
}

impl SafetensorsFile {
    /// Opens a file and checks its whole header against its size.
    ///
    /// # Errors
    /// When the file can't be read, is a pickle, or breaks a rule of the format.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        if has_pickle_extension(path) {
            // Also where the name alone says so, so that the reason is given before a missing file is.
            return Err(WeightsError::Pickle { path: path.to_path_buf() });
        }
        let bytes = MappedFile::open(path).map_err(|source| IoError::system("read", path, source))?;
        let damaged = |reason: String| WeightsError::Damaged { path: path.to_path_buf(), reason };
        if is_pickle(&bytes[..bytes.len().min(LENGTH_BYTES as usize)]) {
            return Err(WeightsError::Pickle { path: path.to_path_buf() });
        }
        let Some((length, rest)) = bytes.split_first_chunk() else {
            return Err(damaged(format!("expected a safetensors file, found {} bytes", bytes.len())));
        };
        let table_bytes = u64::from_le_bytes(*length);
        if table_bytes > MAX_HEADER_BYTES {
            return Err(damaged(format!(
                "expected a safetensors header of at most {MAX_HEADER_BYTES} bytes, its length says {table_bytes}"
            )));
        }
        let table_bytes = table_bytes as usize;
        let Some((table, data)) = rest.split_at_checked(table_bytes) else {
            return Err(damaged(format!("it is truncated: its header has {table_bytes} bytes, only {} follow", rest.len())));
        };
        let header = parse(table, data.len() as u64).map_err(damaged)?;
        let places = header.tensors.iter().enumerate().map(|(place, (name, _))| (name.clone(), place)).collect();
        Ok(Self {
            path: path.to_path_buf(),
            bytes: Arc::new(bytes),
            header,
            places,
            data_start: LENGTH_BYTES as usize + table_bytes,
        })
    }

    /// The file's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Tensor names in the order of their bytes.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.header.tensors.iter().map(|(name, _)| name.as_str())
    }

    /// Type and shape of a tensor.
    pub fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.places.get(name).map(|&place| &self.header.tensors[place].1)
    }

    /// The free text entries of the header.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.header.metadata
    }

    fn require(&self, name: &str) -> Result<&TensorInfo> {
        let origin = || self.path().display().to_string();
        self.info(name).ok_or_else(|| WeightsError::NoTensor { name: name.to_string(), origin: origin() })
    }

    /// A float tensor's values as float32, row by row.
    ///
    /// # Errors
    /// When there is no such tensor, it holds no floats, or the file was shortened since it was opened.
    pub fn load_f32(&self, name: &str) -> Result<Vec<f32>> {
        Ok(self.deferred_f32(name)?())
    }

    /// As [`SafetensorsFile::load_f32`], but what is given back reads the values when it is called.
    pub(crate) fn deferred_f32(&self, name: &str) -> Result<impl FnOnce() -> Vec<f32> + Send + Sync + use<>> {
        let info = self.require(name)?;
        if !info.dtype.is_float() {
            return Err(self.wrong_type(name, FLOATS));
        }
        let (dtype, num_values) = (info.dtype, info.num_values());
        let (bytes, place) = self.place(name)?;
        Ok(move || {
            let mut values = Vec::with_capacity(num_values);
            decode_f32(dtype, &bytes[place], &mut values);
            values
        })
    }

    /// The values of an int64 tensor.
    ///
    /// # Errors
    /// When there is no such tensor, it has another type, or the file was shortened since it was opened.
    pub fn load_i64(&self, name: &str) -> Result<Vec<i64>> {
        let info = self.require(name)?;
        if info.dtype != crate::DType::I64 {
            return Err(self.wrong_type(name, "I64"));
        }
        Ok(self.bytes_of(info)?.as_chunks::<8>().0.iter().map(|&chunk| i64::from_le_bytes(chunk)).collect())
    }

    fn wrong_type(&self, name: &str, expected: &'static str) -> WeightsError {
        let found = self.info(name).map(|info| info.dtype.to_string()).unwrap_or_default();
        WeightsError::WrongType { name: name.to_string(), origin: self.path().display().to_string(), expected, found }
    }

    /// The file and where in it a tensor's bytes lie, to be read without a copy.
    ///
    /// # Errors
    /// When there is no such tensor, or the file was shortened since it was opened.
    pub fn place(&self, name: &str) -> Result<(Arc<MappedFile>, Range<usize>)> {
        let info = self.require(name)?;
        self.bytes_of(info)?;
        let (start, end) = info.range;
        Ok((self.bytes.clone(), self.data_start + start as usize..self.data_start + end as usize))
    }

    /// Has the bytes of the tensors with these names touched in the background, in the order of the file; see [`MappedFile::touch_ahead`].
    pub(crate) fn touch_ahead(&self, wanted: impl Fn(&str) -> bool) {
        let mut ranges: Vec<Range<usize>> = Vec::new();
        for (name, info) in &self.header.tensors {
            let (start, end) = (self.data_start + info.range.0 as usize, self.data_start + info.range.1 as usize);
            match ranges.last_mut() {
                _ if !wanted(name) || start == end => {}
                Some(last) if last.end == start => last.end = end,
                _ => ranges.push(start..end),
            }
        }
        self.bytes.touch_ahead(ranges);
    }

    /// The bytes of a tensor; opening checked that its range lies within the data.
    fn bytes_of(&self, info: &TensorInfo) -> Result<&[u8]> {
        if !self.bytes.is_whole() {
            let reason = format!("it had {} bytes when it was opened and was shortened since", self.bytes.len());
            return Err(WeightsError::Damaged { path: self.path.clone(), reason });
        }
        let (start, end) = info.range;
        Ok(&self.bytes[self.data_start..][start as usize..end as usize])
    }
}

pub(crate) fn has_pickle_extension(path: &Path) -> bool {
    let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    ["bin", "pt", "pth", "ckpt", "pkl", "pickle"].iter().any(|known| extension.eq_ignore_ascii_case(known))
}

/// A pickle starts with its protocol (0x80, 2 to 5); torch's newer files are zips around one. The same two bytes may start the length of
/// a safetensors header, but then the upper half of the length is zero.
fn is_pickle(start: &[u8]) -> bool {
    let is_length = start.len() == LENGTH_BYTES as usize && start[4..].iter().all(|&byte| byte == 0);
    (matches!(start, [0x80, 2..=5, ..]) && !is_length) || start.starts_with(b"PK\x03\x04")
}
