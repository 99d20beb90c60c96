use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use unif2ace_io::{AtomicFile, IoError};

use crate::dtype::encode_f32;
use crate::header::{Header, TensorInfo, encode};
use crate::{DType, FloatType, Result, WeightsError};

/// Values converted at once.
const PIECE_VALUES: usize = 1 << 18;

/// Name and shape of a tensor to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// Tensor name.
    pub name: String,
    /// Axis lengths.
    pub shape: Vec<usize>,
}

/// Writes a safetensors file tensor by tensor, so that only one has to be in memory. An [`AtomicFile`] appears under its name when
/// [`SafetensorsWriter::finish`] succeeds; dropped before, it leaves nothing behind.
#[derive(Debug)]
pub struct SafetensorsWriter<W = AtomicFile> {
    path: PathBuf,
    file: W,
    tensors: Vec<(String, TensorInfo)>,
    next: usize,
    buffer: Vec<u8>,
}

impl SafetensorsWriter {
    /// Starts a file with the given tensors, all of one type, in this order. Equal input gives equal bytes.
    ///
    /// # Errors
    /// When the folder isn't writable, a name is there twice, or a shape overflows.
    pub fn create(
        path: impl AsRef<Path>,
        specs: Vec<TensorSpec>,
        float: FloatType,
        metadata: &BTreeMap<String, String>,
    ) -> Result<Self> {
        Self::create_typed(path, specs.into_iter().map(|spec| (spec, float.dtype())).collect(), metadata)
    }

    /// As [`SafetensorsWriter::create`], each tensor with a type of its own.
    ///
    /// # Errors
    /// As [`SafetensorsWriter::create`].
    pub fn create_typed(
        path: impl AsRef<Path>,
        specs: Vec<(TensorSpec, DType)>,
        metadata: &BTreeMap<String, String>,
    ) -> Result<Self> {
        let path = path.as_ref();
        Self::over(AtomicFile::create(path)?, path, specs, metadata)
    }

    /// Makes the file visible.
    ///
    /// # Errors
    /// When tensors are missing or the disk refuses; nothing is left behind then.
    pub fn finish(self) -> Result<()> {
        Ok(self.into_inner()?.commit()?)
    }
}

impl<W: Write> SafetensorsWriter<W> {
    /// Writes to `file`, which is at `path` as messages tell it; otherwise as [`SafetensorsWriter::create_typed`].
    ///
    /// # Errors
    /// When a name is there twice, a shape overflows, or the disk refuses.
    pub fn over(file: W, path: &Path, specs: Vec<(TensorSpec, DType)>, metadata: &BTreeMap<String, String>) -> Result<Self> {
        let path = path.to_path_buf();
        let mut end = 0u64;
        let mut tensors = Vec::with_capacity(specs.len());
        for (spec, dtype) in specs {
            let start = end;
            let mut sides = spec.shape.iter().map(|&side| side as u64);
            let num_bytes = sides.try_fold(dtype.num_bytes() as u64, u64::checked_mul);
            end = num_bytes.and_then(|num_bytes| start.checked_add(num_bytes)).ok_or_else(|| WeightsError::Write {
                path: path.clone(),
                name: spec.name.clone(),
                reason: format!("shape {:?} overflows", spec.shape),
            })?;
            tensors.push((spec.name, TensorInfo { dtype, shape: spec.shape, range: (start, end) }));
        }
        let header = Header { tensors, metadata: metadata.clone() };
        let bytes =
            encode(&header).map_err(|reason| WeightsError::Write { path: path.clone(), name: "(header)".to_string(), reason })?;
        let mut writer = Self { path, file, tensors: header.tensors, next: 0, buffer: Vec::new() };
        writer.put(&bytes)?;
        Ok(writer)
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        let path = &self.path;
        Ok(self.file.write_all(bytes).map_err(|source| IoError::system("write", path, source))?)
    }

    fn fail(&self, name: &str, reason: String) -> WeightsError {
        WeightsError::Write { path: self.path.clone(), name: name.to_string(), reason }
    }

    /// Type of the next tensor, which must be of this name and of so many values of `value_bytes` bytes (of its own type's if `None`).
    fn expect(&self, name: &str, num_values: usize, value_bytes: Option<usize>) -> Result<DType> {
        let Some((expected, info)) = self.tensors.get(self.next) else {
            return Err(self.fail(name, "all tensors are written already".into()));
        };
        if expected != name {
            return Err(self.fail(name, format!("expected {expected} next")));
        }
        let wanted = info.num_values() * value_bytes.map_or(1, |_| info.dtype.num_bytes());
        if wanted != num_values * value_bytes.unwrap_or(1) {
            let shape = info.shape.clone();
            return Err(self.fail(name, format!("expected values for {shape:?}, found {num_values}")));
        }
        Ok(info.dtype)
    }

    /// Writes the next tensor, of a float type.
    ///
    /// # Errors
    /// When it isn't the next one of the list, the number of values is wrong, a finite value doesn't fit into float16, or the disk
    /// refuses.
    pub fn write(&mut self, name: &str, values: &[f32]) -> Result<()> {
        let float = match self.expect(name, values.len(), None)? {
            DType::F32 => FloatType::F32,
            DType::Bf16 => FloatType::Bf16,
            DType::F16 => FloatType::F16,
            other => return Err(self.fail(name, format!("expected bytes of {other}, found floats"))),
        };
        for piece in values.chunks(PIECE_VALUES) {
            if float == FloatType::F16
                && let Some(value) = piece.iter().find(|value| value.is_finite() && half::f16::from_f32(**value).is_infinite())
            {
                return Err(self.fail(name, format!("{value} does not fit into float16; save as bf16 or f32")));
            }
            let mut buffer = std::mem::take(&mut self.buffer);
            buffer.clear();
            encode_f32(float, piece, &mut buffer);
            self.put(&buffer)?;
            self.buffer = buffer;
        }
        self.next += 1;
        Ok(())
    }

    /// Writes the next tensor, of any type, from its bytes.
    ///
    /// # Errors
    /// When it isn't the next one of the list, the number of bytes is wrong, or the disk refuses.
    pub fn write_bytes(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        self.expect(name, bytes.len(), Some(1))?;
        self.put(bytes)?;
        self.next += 1;
        Ok(())
    }

    /// What was written to, once all tensors are there.
    ///
    /// # Errors
    /// When tensors are missing.
    pub fn into_inner(self) -> Result<W> {
        match self.tensors.get(self.next) {
            Some((name, _)) => Err(self.fail(name, "it was not written".into())),
            None => Ok(self.file),
        }
    }
}
