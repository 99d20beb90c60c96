use std::path::{Path, PathBuf};

use burn::tensor::{Device, Int, Tensor, TensorData};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

/// The tensors of one safetensors file.
pub struct Tensors {
    path: PathBuf,
    bytes: Vec<u8>,
}

impl Tensors {
    /// Reads a file.
    ///
    /// # Panics
    /// When it is missing or damaged.
    pub fn load(path: impl AsRef<Path>) -> Self {
        let path = path.as_ref().to_path_buf();
        let bytes = unif2ace_io::read_capped(&path, crate::MAX_FIXTURE_BYTES).unwrap_or_else(|error| panic!("{error}"));
        let tensors = Self { path, bytes };
        tensors.parsed();
        tensors
    }

    fn parsed(&self) -> SafeTensors<'_> {
        SafeTensors::deserialize(&self.bytes).unwrap_or_else(|error| panic!("{}: {error}", self.path.display()))
    }

    /// The tensor names, sorted.
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.parsed().names().into_iter().map(str::to_string).collect();
        names.sort();
        names
    }

    /// Whether the file holds this tensor.
    pub fn has(&self, name: &str) -> bool {
        self.parsed().tensor(name).is_ok()
    }

    /// Shape of a tensor.
    pub fn shape(&self, name: &str) -> Vec<usize> {
        self.with(name, |view| view.shape().to_vec())
    }

    fn with<R>(&self, name: &str, read: impl FnOnce(TensorView<'_>) -> R) -> R {
        match self.parsed().tensor(name) {
            Ok(view) => read(view),
            Err(error) => panic!("{}: tensor {name}: {error}", self.path.display()),
        }
    }

    fn typed<T, const W: usize>(&self, name: &str, dtype: Dtype, read: fn([u8; W]) -> T) -> (Vec<usize>, Vec<T>) {
        self.with(name, |view| {
            assert_eq!(view.dtype(), dtype, "{}: dtype of {name}", self.path.display());
            let values = view.data().chunks_exact(W).map(|chunk| read(chunk.try_into().expect("exact chunk"))).collect();
            (view.shape().to_vec(), values)
        })
    }

    /// Shape and row-major values of a float32 tensor.
    pub fn f32(&self, name: &str) -> (Vec<usize>, Vec<f32>) {
        self.typed(name, Dtype::F32, f32::from_le_bytes)
    }

    /// Shape and row-major values of a float64 tensor.
    pub fn f64(&self, name: &str) -> (Vec<usize>, Vec<f64>) {
        self.typed(name, Dtype::F64, f64::from_le_bytes)
    }

    /// Shape and row-major values of an int64 tensor.
    pub fn i64(&self, name: &str) -> (Vec<usize>, Vec<i64>) {
        self.typed(name, Dtype::I64, i64::from_le_bytes)
    }

    /// Shape and row-major values of a uint8 tensor.
    pub fn u8(&self, name: &str) -> (Vec<usize>, Vec<u8>) {
        self.typed(name, Dtype::U8, |[byte]: [u8; 1]| byte)
    }

    /// The one value of a float32 scalar.
    pub fn scalar(&self, name: &str) -> f32 {
        let (shape, values) = self.f32(name);
        assert_eq!(values.len(), 1, "{name} has shape {shape:?}");
        values[0]
    }

    /// A float32 tensor on a device.
    pub fn tensor<const D: usize>(&self, name: &str, device: &Device) -> Tensor<D> {
        let (shape, values) = self.f32(name);
        assert_eq!(shape.len(), D, "{name} has shape {shape:?}");
        Tensor::from_data(TensorData::new(values, shape), device)
    }

    /// An int64 tensor on a device.
    pub fn int_tensor<const D: usize>(&self, name: &str, device: &Device) -> Tensor<D, Int> {
        let (shape, values) = self.i64(name);
        assert_eq!(shape.len(), D, "{name} has shape {shape:?}");
        Tensor::from_data(TensorData::new(values, shape), device)
    }
}
