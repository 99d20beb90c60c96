use std::collections::BTreeMap;
use std::path::Path;

use unif2ace_io::RandomAccessFile;

use crate::dtype::decode_f32;
use crate::header::{Header, LENGTH_BYTES, MAX_HEADER_BYTES, TensorInfo, parse};
use crate::{Result, WeightsError};

/// Bytes read at once; one tensor is converted in pieces of this size.
const PIECE_BYTES: usize = 1 << 20;
const FLOATS: &str = "F32, BF16, F16 or F64";

/// One safetensors file, opened and checked; tensors are read when asked for.
#[derive(Debug)]
pub struct SafetensorsFile {
    file: RandomAccessFile,
    header: Header,
    places: BTreeMap<String, usize>,
    data_start: u64,
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
            return Err(WeightsError::Pickle {
                path: path.to_path_buf(),
            });
        }
        let file = RandomAccessFile::open(path)?;
        let damaged = |reason: String| WeightsError::Damaged {
            path: path.to_path_buf(),
            reason,
        };
        let mut start = [0u8; LENGTH_BYTES as usize];
        let available = file.size().min(LENGTH_BYTES) as usize;
        file.read_exact_at(&mut start[..available], 0)?;
        if is_pickle(&start[..available]) {
            return Err(WeightsError::Pickle {
                path: path.to_path_buf(),
            });
        }
        if file.size() < LENGTH_BYTES {
            return Err(damaged(format!(
                "expected a safetensors file, found {} bytes",
                file.size()
            )));
        }
        let table_bytes = u64::from_le_bytes(start);
        let after_length = file.size() - LENGTH_BYTES;
        if table_bytes > MAX_HEADER_BYTES {
            return Err(damaged(format!(
                "expected a safetensors header of at most {MAX_HEADER_BYTES} bytes, its length says {table_bytes}"
            )));
        }
        if table_bytes > after_length {
            return Err(damaged(format!(
                "it is truncated: its header has {table_bytes} bytes, only {after_length} follow"
            )));
        }
        let mut table = vec![0u8; table_bytes as usize];
        file.read_exact_at(&mut table, LENGTH_BYTES)?;
        let header = parse(&table, after_length - table_bytes).map_err(damaged)?;
        let places = header
            .tensors
            .iter()
            .enumerate()
            .map(|(place, (name, _))| (name.clone(), place))
            .collect();
        Ok(Self {
            file,
            header,
            places,
            data_start: LENGTH_BYTES + table_bytes,
        })
    }

    /// The file's path.
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// Tensor names in the order of their bytes.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.header.tensors.iter().map(|(name, _)| name.as_str())
    }

    /// Type and shape of a tensor.
    pub fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.places
            .get(name)
            .map(|&place| &self.header.tensors[place].1)
    }

    /// The free text entries of the header.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.header.metadata
    }

    fn require(&self, name: &str) -> Result<&TensorInfo> {
        let origin = || self.path().display().to_string();
        self.info(name).ok_or_else(|| WeightsError::NoTensor {
            name: name.to_string(),
            origin: origin(),
        })
    }

    /// A float tensor's values as float32, row by row.
    ///
    /// # Errors
    /// When there is no such tensor, it holds no floats, or reading fails.
    pub fn load_f32(&self, name: &str) -> Result<Vec<f32>> {
        let info = self.require(name)?;
        if !info.dtype.is_float() {
            return Err(self.wrong_type(name, FLOATS));
        }
        let mut values = Vec::with_capacity(info.num_values());
        self.for_each_piece(info, |piece| {
            decode_f32(info.dtype, piece, &mut values);
        })?;
        Ok(values)
    }

    /// The values of an int64 tensor.
    ///
    /// # Errors
    /// When there is no such tensor, it has another type, or reading fails.
    pub fn load_i64(&self, name: &str) -> Result<Vec<i64>> {
        let info = self.require(name)?;
        if info.dtype != crate::DType::I64 {
            return Err(self.wrong_type(name, "I64"));
        }
        let mut values = Vec::with_capacity(info.num_values());
        self.for_each_piece(info, |piece| {
            values.extend(
                piece
                    .as_chunks::<8>()
                    .0
                    .iter()
                    .map(|&chunk| i64::from_le_bytes(chunk)),
            );
        })?;
        Ok(values)
    }

    fn wrong_type(&self, name: &str, expected: &'static str) -> WeightsError {
        let found = self
            .info(name)
            .map(|info| info.dtype.to_string())
            .unwrap_or_default();
        WeightsError::WrongType {
            name: name.to_string(),
            origin: self.path().display().to_string(),
            expected,
            found,
        }
    }

    fn for_each_piece(&self, info: &TensorInfo, mut take: impl FnMut(&[u8])) -> Result<()> {
        let (mut start, end) = info.range;
        let mut buffer = vec![0u8; PIECE_BYTES.min((end - start) as usize)];
        while start < end {
            // Both ends of every piece lie between two numbers: the piece size is a multiple of the widest type.
            let size = buffer.len().min((end - start) as usize);
            self.file
                .read_exact_at(&mut buffer[..size], self.data_start + start)?;
            take(&buffer[..size]);
            start += size as u64;
        }
        Ok(())
    }
}

pub(crate) fn has_pickle_extension(path: &Path) -> bool {
    let extension = path
        .extension()
        .and_then(|extension| extension.to_str())
        .unwrap_or_default();
    ["bin", "pt", "pth", "ckpt", "pkl", "pickle"]
        .iter()
        .any(|known| extension.eq_ignore_ascii_case(known))
}

/// A pickle starts with its protocol (0x80, 2 to 5); torch's newer files are zips around one. The same two bytes may start the length of
/// a safetensors header, but then the upper half of the length is zero.
fn is_pickle(start: &[u8]) -> bool {
    let is_length =
        start.len() == LENGTH_BYTES as usize && start[4..].iter().all(|&byte| byte == 0);
    (matches!(start, [0x80, 2..=5, ..]) && !is_length) || start.starts_with(b"PK\x03\x04")
}
