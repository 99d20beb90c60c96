use std::collections::BTreeMap;

use crate::{Result, WeightsError};

/// Something that float tensors can be loaded from.
pub trait TensorSource {
    /// Where it comes from, for messages.
    fn origin(&self) -> String;
    /// All names.
    fn tensor_names(&self) -> Vec<String>;
    /// Shape of a tensor; `None` when there is none of that name.
    fn tensor_shape(&self, name: &str) -> Option<Vec<usize>>;
    /// The type of a tensor that holds no floats; `None` for floats.
    fn non_float_type(&self, _name: &str) -> Option<String> {
        None
    }
    /// Values as float32, row by row.
    ///
    /// # Errors
    /// When there is no such tensor or it can't be read.
    fn values_f32(&self, name: &str) -> Result<Vec<f32>>;
}

/// Shape and values of a tensor in plain memory.
#[derive(Clone, Debug, PartialEq)]
pub struct HostTensor {
    /// Axis lengths.
    pub shape: Vec<usize>,
    /// Values, row by row.
    pub values: Vec<f32>,
}

/// Tensors in plain memory by name.
pub type HostTensors = BTreeMap<String, HostTensor>;

impl TensorSource for HostTensors {
    fn origin(&self) -> String {
        "tensors in memory".to_string()
    }

    fn tensor_names(&self) -> Vec<String> {
        self.keys().cloned().collect()
    }

    fn tensor_shape(&self, name: &str) -> Option<Vec<usize>> {
        self.get(name).map(|tensor| tensor.shape.clone())
    }

    fn values_f32(&self, name: &str) -> Result<Vec<f32>> {
        let tensor = self.get(name);
        let missing = || WeightsError::NoTensor { name: name.to_string(), origin: self.origin() };
        tensor.map(|tensor| tensor.values.clone()).ok_or_else(missing)
    }
}
