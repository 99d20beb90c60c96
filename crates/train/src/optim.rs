//! AdamW over a module's named parameters, with clipping by the global norm and a moving average of the weights.
//!
//! State is keyed by the parameter's path, never by burn's random `ParamId`, so that a resumed run finds its moments.

use std::collections::{BTreeMap, BTreeSet};

use burn::module::{Module, Param};
use burn::optim::GradientsParams;
use burn::tensor::{Gradients, Tensor};
use unif2ace_model::named::{VisitNamed, visit_named};
use unif2ace_ops::{AdamWParams, adamw_step, moving_average, sum_of_squares};

use crate::params::{HostTensor, HostTensors, map_some_parameters, tensor_values};
use crate::recipe::OptimizerConfig;

/// First and second moments, and the averaged weights, of every parameter.
#[derive(Debug, Default)]
pub struct OptimizerState {
    /// First moments by path.
    pub first: HostTensors,
    /// Second moments by path.
    pub second: HostTensors,
    /// Exponential moving average of the weights by path; empty when off.
    pub ema: HostTensors,
    /// Updates done.
    pub num_updates: u64,
}

/// Gradients of one step by path, and their norm.
pub struct HostGradients {
    tensors: BTreeMap<String, Vec<f32>>,
    /// Euclidean norm over all of them.
    pub norm: f64,
}

/// Takes the gradients of `module`'s parameters out of `gradients`.
pub fn collect_gradients<M: Module>(module: &M, gradients: Gradients) -> HostGradients {
    struct Collect {
        gradients: GradientsParams,
        out: BTreeMap<String, Vec<f32>>,
    }
    impl VisitNamed for Collect {
        fn parameter<const D: usize>(&mut self, path: &str, param: &Param<Tensor<D>>) {
            if let Some(gradient) = self.gradients.remove::<D>(param.id) {
                self.out.insert(path.to_owned(), tensor_values(gradient));
            }
        }
    }
    let gradients = GradientsParams::from_grads(gradients, module);
    let mut collect = Collect { gradients, out: BTreeMap::new() };
    visit_named(module, &mut collect);
    HostGradients::new(collect.out)
}

impl HostGradients {
    /// From values by path.
    pub(crate) fn new(tensors: BTreeMap<String, Vec<f32>>) -> Self {
        let norm = tensors.values().map(|values| sum_of_squares(values)).sum::<f64>().sqrt();
        Self { tensors, norm }
    }

    /// Euclidean norm of each gradient, by path.
    pub fn norms(&self) -> impl Iterator<Item = (&str, f64)> {
        self.tensors.iter().map(|(path, values)| (path.as_str(), sum_of_squares(values).sqrt()))
    }

    /// The values by path.
    pub(crate) fn into_tensors(self) -> BTreeMap<String, Vec<f32>> {
        self.tensors
    }
}

impl OptimizerState {
    /// Starts anew; averages stay as they are.
    pub(crate) fn restart(&mut self) {
        (self.first, self.second, self.num_updates) = Default::default();
    }

    /// Drops the moments of parameters that are no longer trained. Their averages stay as they are.
    pub(crate) fn forget_moments(&mut self, paths: &BTreeSet<String>) {
        for moments in [&mut self.first, &mut self.second] {
            moments.retain(|path, _| !paths.contains(path));
        }
    }

    /// One AdamW update (Loshchilov and Hutter 2019) with bias correction; parameters without a gradient stay as they are.
    /// Weight decay acts on what `config` says. The gradients must be finite.
    pub fn update<M: Module>(
        &mut self,
        module: M,
        mut gradients: HostGradients,
        config: &OptimizerConfig,
        learning_rate: f64,
    ) -> M {
        debug_assert!(gradients.norm.is_finite());
        self.num_updates += 1;
        let scale = if config.max_grad_norm > 0.0 && gradients.norm > config.max_grad_norm {
            (config.max_grad_norm / gradients.norm) as f32
        } else {
            1.0
        };
        let [beta1, beta2] = config.betas;
        let updates = self.num_updates.min(1 << 30) as i32;
        // A young average follows the weights closely; otherwise it would remember the random start.
        let ema_decay = config.ema_decay.min((1.0 + updates as f64) / (10.0 + updates as f64)) as f32;
        let trained: BTreeSet<String> = gradients.tensors.keys().cloned().collect();
        map_some_parameters(
            module,
            |path| trained.contains(path),
            |path, shape, values| {
                let Some(mut gradient) = gradients.tensors.remove(path) else { return };
                if scale != 1.0 {
                    unif2ace_ops::scale(&mut gradient, scale);
                }
                let zeros = || HostTensor { shape: shape.to_vec(), values: vec![0.0; values.len()] };
                let first = self.first.entry(path.to_owned()).or_insert_with(zeros);
                let second = self.second.entry(path.to_owned()).or_insert_with(zeros);
                let hyper = AdamWParams {
                    lr: learning_rate as f32,
                    beta1: beta1 as f32,
                    beta2: beta2 as f32,
                    eps: config.eps as f32,
                    weight_decay: if config.decay_groups.decays(path, shape) { config.weight_decay as f32 } else { 0.0 },
                    bias_correction1: (1.0 - beta1.powi(updates)) as f32,
                    bias_correction2: (1.0 - beta2.powi(updates)) as f32,
                };
                adamw_step(values, &gradient, &mut first.values, &mut second.values, &hyper);
                if config.ema_decay > 0.0 {
                    let ema = self
                        .ema
                        .entry(path.to_owned())
                        .or_insert_with(|| HostTensor { shape: shape.to_vec(), values: values.to_vec() });
                    moving_average(&mut ema.values, values, 1.0 - ema_decay);
                }
            },
        )
    }
}
