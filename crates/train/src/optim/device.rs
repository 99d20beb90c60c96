//! AdamW where the weights are, for one rank whose device is not the CPU: of a step's gradients nothing leaves it but their norm.

use std::collections::BTreeMap;

use burn::module::{Module, Param};
use burn::optim::GradientsParams;
use burn::tensor::{Gradients, Tensor, TensorData};
use unif2ace_model::named::{MapNamed, VisitNamed, map_named, visit_named};

use super::Update;
use crate::params::{HostTensor, HostTensors, tensor_values};

/// Flat tensors on a device by path.
pub(crate) type DeviceTensors = BTreeMap<String, Tensor<1>>;

/// Gradients of one step by path, and their norm.
pub(crate) struct DeviceGradients {
    tensors: DeviceTensors,
    /// Euclidean norm over all of them.
    pub(crate) norm: f64,
}

impl DeviceGradients {
    pub(crate) fn new(tensors: DeviceTensors) -> Self {
        let squares: Vec<Tensor<1>> = tensors.values().map(|gradient| (gradient.clone() * gradient.clone()).sum()).collect();
        // One read for all.
        let squares = if squares.is_empty() { Vec::new() } else { tensor_values(Tensor::cat(squares, 0)) };
        Self { tensors, norm: squares.into_iter().map(f64::from).sum::<f64>().sqrt() }
    }
}

/// Takes the gradients of `module`'s parameters out of `gradients`.
pub(crate) fn collect<M: Module>(module: &M, gradients: Gradients) -> DeviceTensors {
    struct Collect {
        gradients: GradientsParams,
        out: DeviceTensors,
    }
    impl VisitNamed for Collect {
        fn parameter<const D: usize>(&mut self, path: &str, param: &Param<Tensor<D>>) {
            if let Some(gradient) = self.gradients.remove::<D>(param.id) {
                self.out.insert(path.to_owned(), flat(gradient));
            }
        }
    }
    let mut collect = Collect { gradients: GradientsParams::from_grads(gradients, module), out: DeviceTensors::new() };
    visit_named(module, &mut collect);
    collect.out
}

/// Gradients with those of another pass.
pub(crate) fn added(mut carried: DeviceTensors, pass: DeviceTensors) -> DeviceTensors {
    for (path, gradient) in pass {
        let sum = match carried.remove(&path) {
            Some(carried) => carried + gradient,
            None => gradient,
        };
        carried.insert(path, sum);
    }
    carried
}

fn flat<const D: usize>(x: Tensor<D>) -> Tensor<1> {
    let count = x.shape().num_elements();
    x.without_autodiff().reshape([count])
}

/// Moments and averages on a device.
#[derive(Default)]
pub(crate) struct DeviceMoments {
    first: DeviceTensors,
    second: DeviceTensors,
    ema: DeviceTensors,
    shapes: BTreeMap<String, Vec<usize>>,
}

/// A tensor from the device's, else the host's, which it leaves; else none.
fn take(device: &mut DeviceTensors, host: &mut HostTensors, path: &str, like: &Tensor<1>) -> Option<Tensor<1>> {
    device.remove(path).or_else(|| {
        let HostTensor { values, .. } = host.remove(path)?;
        let count = values.len();
        Some(Tensor::from_data(TensorData::new(values, [count]), &like.device()))
    })
}

impl DeviceMoments {
    /// Whether nothing was updated here.
    pub(crate) fn is_empty(&self) -> bool {
        self.shapes.is_empty()
    }

    /// What the host holds of first moments, second moments and averages, with what is here.
    pub(crate) fn with(&self, host: [&HostTensors; 3]) -> [HostTensors; 3] {
        let mut all = host.map(Clone::clone);
        for (all, here) in all.iter_mut().zip([&self.first, &self.second, &self.ema]) {
            all.extend(self.on_host(here));
        }
        all
    }

    /// The averages that are here.
    pub(crate) fn averages(&self) -> impl Iterator<Item = (String, HostTensor)> {
        self.on_host(&self.ema)
    }

    fn on_host<'a>(&'a self, tensors: &'a DeviceTensors) -> impl Iterator<Item = (String, HostTensor)> + 'a {
        tensors.iter().map(|(path, tensor)| {
            let shape = self.shapes.get(path).cloned().unwrap_or_default();
            (path.clone(), HostTensor { shape, values: tensor_values(tensor.clone()) })
        })
    }

    /// One update; what the host still holds of a parameter moves here. See [`super::OptimizerState::update`].
    pub(crate) fn update<M: Module>(
        &mut self,
        module: M,
        gradients: DeviceGradients,
        host: [&mut HostTensors; 3],
        update: &Update<'_>,
    ) -> M {
        struct Change<'a> {
            moments: &'a mut DeviceMoments,
            host: [&'a mut HostTensors; 3],
            gradients: DeviceTensors,
            update: &'a Update<'a>,
        }
        impl MapNamed for Change<'_> {
            fn parameter<const D: usize>(&mut self, path: &str, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
                let Some(gradient) = self.gradients.remove(path) else { return param };
                let (id, tensor, mapper) = param.consume();
                let (shape, requires_grad) = (tensor.dims(), tensor.is_require_grad());
                let weights = self.step(path, &shape, flat(tensor), gradient);
                let mut tensor: Tensor<D> = weights.reshape(shape).autodiff();
                if requires_grad {
                    tensor = tensor.require_grad();
                }
                Param::from_mapped_value(id, tensor, mapper)
            }
        }
        impl Change<'_> {
            fn step(&mut self, path: &str, shape: &[usize], weights: Tensor<1>, gradient: Tensor<1>) -> Tensor<1> {
                let Self { moments, host: [host_first, host_second, host_ema], update, .. } = self;
                let hyper = update.hyper(path, shape);
                let gradient = if update.scale == 1.0 { gradient } else { gradient * update.scale };
                let zeros = || weights.zeros_like();
                let first = take(&mut moments.first, host_first, path, &weights).unwrap_or_else(zeros);
                let second = take(&mut moments.second, host_second, path, &weights).unwrap_or_else(zeros);
                let first = first * hyper.beta1 + gradient.clone() * (1.0 - hyper.beta1);
                let second = second * hyper.beta2 + gradient.clone() * gradient * (1.0 - hyper.beta2);
                let guarded = second.clone().sqrt() * (1.0 / hyper.bias_correction2.sqrt()) + hyper.eps;
                let moved = first.clone() * (hyper.lr / hyper.bias_correction1) / guarded;
                let weights = weights * (1.0 - hyper.lr * hyper.weight_decay) - moved;
                moments.first.insert(path.to_owned(), first);
                moments.second.insert(path.to_owned(), second);
                if let Some(rate) = update.ema_rate {
                    let ema = take(&mut moments.ema, host_ema, path, &weights).unwrap_or_else(|| weights.clone());
                    let ema = ema.clone() + (weights.clone() - ema) * rate;
                    moments.ema.insert(path.to_owned(), ema);
                }
                moments.shapes.insert(path.to_owned(), shape.to_vec());
                weights
            }
        }
        map_named(module, &mut Change { moments: self, host, gradients: gradients.tensors, update })
    }
}
