//! Fills a module with named values, for the golden tests of the picture networks.
#![allow(dead_code)]

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor, TensorData};
use unif2ace_model::named::{MapNamed, map_named};

struct Fill<'a> {
    device: &'a Device,
    value: &'a mut dyn FnMut(&str, &[usize]) -> Vec<f32>,
}

impl MapNamed for Fill<'_> {
    fn parameter<const D: usize>(&mut self, path: &str, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let shape = param.lazy_shape().to_vec();
        let values = (self.value)(path, &shape);
        let tensor = Tensor::from_data(TensorData::new(values, shape), self.device);
        Param::initialized(param.id, tensor)
    }
}

/// The module with `value(name, shape)` in every parameter.
pub fn fill<M: Module>(module: M, device: &Device, mut value: impl FnMut(&str, &[usize]) -> Vec<f32>) -> M {
    map_named(module, &mut Fill { device, value: &mut value })
}

/// Names and shapes of all parameters.
pub fn names<M: Module>(module: M, device: &Device) -> Vec<(String, Vec<usize>)> {
    let mut list = Vec::new();
    let _ = fill(module, device, |name, shape| {
        list.push((name.to_string(), shape.to_vec()));
        vec![0.0; shape.iter().product()]
    });
    list
}

/// `[B, C, H, W]` to `[B, H, W, C]`.
pub fn to_nhwc(x: Tensor<4>) -> Tensor<4> {
    x.permute([0, 2, 3, 1])
}

/// Values of `[B, H, W, C]` in the order of `[B, C, H, W]`.
pub fn nchw_values(x: Tensor<4>) -> Vec<f32> {
    values(x.permute([0, 3, 1, 2]))
}

/// Row-major values.
pub fn values<const D: usize>(x: Tensor<D>) -> Vec<f32> {
    x.try_into_vec_as::<f32>().expect("values")
}

/// Deterministic numbers in -1..1.
pub fn noise<const D: usize>(name: &str, shape: [usize; D], device: &Device) -> Tensor<D> {
    let num: usize = shape.iter().product();
    // A shape of two axes with fan-in 3 has the scale 1 in the formula.
    let mut values = unif2ace_golden::procedural(name, &[num.div_ceil(3), 3]);
    values.truncate(num);
    Tensor::from_data(TensorData::new(values, shape), device)
}
