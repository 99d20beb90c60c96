//! A module's parameters as named plain vectors: the form that checkpoints, moving averages and the optimiser share.

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{Tensor, TensorData};
use unif2ace_model::named::{MapNamed, VisitNamed, map_named, visit_named};

pub use unif2ace_weights::{HostTensor, HostTensors};

/// Draws the first weights of a module now, in the order of its fields. burn draws a parameter when it is first looked at, so otherwise the
/// weights that a seed gives would depend on what the first batch happens to use.
pub fn initialize<M: Module>(module: &M) {
    struct Look;
    impl ModuleVisitor for Look {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            param.val();
        }
    }
    module.visit(&mut Look);
}

/// Copies all float parameters of a module to the host.
pub fn parameters<M: Module>(module: &M) -> HostTensors {
    struct Collect {
        out: HostTensors,
    }
    impl VisitNamed for Collect {
        fn parameter<const D: usize>(&mut self, path: &str, param: &Param<Tensor<D>>) {
            let tensor = param.val();
            let shape = tensor.dims().to_vec();
            let values = tensor_values(tensor);
            self.out.insert(path.to_owned(), HostTensor { shape, values });
        }
    }
    let mut collect = Collect { out: HostTensors::new() };
    visit_named(module, &mut collect);
    collect.out
}

/// Puts host values into the parameters of the same names; names that `tensors` lacks keep their values.
/// Returns the module and the names that were not found or had another shape.
pub fn with_parameters<M: Module>(module: M, tensors: &HostTensors) -> (M, Vec<String>) {
    let mut problems = Vec::new();
    let module = map_parameters(module, |path, shape, values| match tensors.get(path) {
        Some(found) if found.shape == shape => values.copy_from_slice(&found.values),
        Some(found) => problems.push(format!("{path}: expected shape {shape:?}, found {:?}", found.shape)),
        None => problems.push(format!("{path}: missing")),
    });
    (module, problems)
}

/// Changes every float parameter in place on the host: `change(path, shape, values)`.
pub fn map_parameters<M: Module>(module: M, change: impl FnMut(&str, &[usize], &mut [f32])) -> M {
    map_some_parameters(module, |_| true, change)
}

/// Changes the float parameters whose paths are `wanted`, as [`map_parameters`] does; the others are not touched.
pub fn map_some_parameters<M: Module>(
    module: M,
    wanted: impl Fn(&str) -> bool,
    change: impl FnMut(&str, &[usize], &mut [f32]),
) -> M {
    struct Change<W, F> {
        wanted: W,
        change: F,
    }
    impl<W: Fn(&str) -> bool, F: FnMut(&str, &[usize], &mut [f32])> MapNamed for Change<W, F> {
        fn parameter<const D: usize>(&mut self, path: &str, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            if !(self.wanted)(path) {
                return param;
            }
            let (id, tensor, mapper) = param.consume();
            let device = tensor.device();
            let requires_grad = tensor.is_require_grad();
            let shape = tensor.dims();
            let mut values = tensor_values(tensor);
            (self.change)(path, &shape, &mut values);
            let mut tensor = Tensor::from_data(TensorData::new(values, shape), &device);
            if requires_grad {
                tensor = tensor.require_grad();
            }
            Param::from_mapped_value(id, tensor, mapper)
        }
    }
    map_named(module, &mut Change { wanted, change })
}

/// Values of a float tensor in row-major order, as f32; leaves any graph behind.
pub fn tensor_values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    let data = tensor.into_data();
    match data.try_into_vec::<f32>() {
        Ok(values) => values,
        // Only a tensor of another float type comes here.
        Err(error) => {
            debug_assert!(false, "parameters are f32: {error:?}");
            Vec::new()
        }
    }
}
