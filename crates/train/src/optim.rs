//! AdamW over a module's named parameters, with clipping by the global norm and a moving average of the weights.
//!
//! State is keyed by the parameter's path, never by burn's random `ParamId`, so that a resumed run finds its moments.

mod device;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use burn::module::{Module, Param};
use burn::optim::GradientsParams;
use burn::tensor::{Gradients, Tensor};
use unif2ace_model::named::{VisitNamed, visit_named};
use unif2ace_ops::{AdamWParams, adamw_step, moving_average, sum_of_squares};

use crate::params::{HostTensor, HostTensors, map_some_parameters, tensor_values};
use crate::recipe::OptimizerConfig;

pub(crate) use device::{DeviceGradients, DeviceTensors, added as added_on_device, collect as collect_on_device};

/// First and second moments, and the averaged weights, of every parameter.
#[derive(Debug, Clone, Default)]
pub struct OptimizerState {
    /// First moments by path.
    pub first: HostTensors,
    /// Second moments by path.
    pub second: HostTensors,
    /// Exponential moving average of the weights by path; empty when off.
    pub ema: HostTensors,
    /// Updates since the moments are zero.
    pub num_updates: u64,
    /// Updates since the averages are the weights: of the whole run, over its stages.
    pub num_averaged: u64,
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
        if self.ema.is_empty() {
            self.num_averaged = 0;
        }
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
        let update = self.next(gradients.norm, config, learning_rate);
        let trained: BTreeSet<String> = gradients.tensors.keys().cloned().collect();
        map_some_parameters(
            module,
            |path| trained.contains(path),
            |path, shape, values| {
                let Some(mut gradient) = gradients.tensors.remove(path) else { return };
                if update.scale != 1.0 {
                    unif2ace_ops::scale(&mut gradient, update.scale);
                }
                let zeros = || HostTensor { shape: shape.to_vec(), values: vec![0.0; values.len()] };
                let first = self.first.entry(path.to_owned()).or_insert_with(zeros);
                let second = self.second.entry(path.to_owned()).or_insert_with(zeros);
                adamw_step(values, &gradient, &mut first.values, &mut second.values, &update.hyper(path, shape));
                if let Some(rate) = update.ema_rate {
                    let ema = self
                        .ema
                        .entry(path.to_owned())
                        .or_insert_with(|| HostTensor { shape: shape.to_vec(), values: values.to_vec() });
                    moving_average(&mut ema.values, values, rate);
                }
            },
        )
    }

    /// Counts an update, of gradients of this norm.
    fn next<'a>(&mut self, norm: f64, config: &'a OptimizerConfig, learning_rate: f64) -> Update<'a> {
        debug_assert!(norm.is_finite());
        self.num_updates += 1;
        self.num_averaged += u64::from(config.ema_decay > 0.0);
        let [updates, averaged] = [self.num_updates, self.num_averaged].map(|count| count.min(1 << 30) as i32);
        let too_large = config.max_grad_norm > 0.0 && norm > config.max_grad_norm;
        // A young average follows the weights closely; otherwise it would remember the random start.
        let ema_decay = config.ema_decay.min((1.0 + averaged as f64) / (10.0 + averaged as f64)) as f32;
        Update {
            config,
            learning_rate,
            updates,
            scale: if too_large { (config.max_grad_norm / norm) as f32 } else { 1.0 },
            ema_rate: (config.ema_decay > 0.0).then_some(1.0 - ema_decay),
        }
    }
}

/// What one update does to every parameter.
pub(crate) struct Update<'a> {
    config: &'a OptimizerConfig,
    learning_rate: f64,
    updates: i32,
    /// What gradients are multiplied by.
    scale: f32,
    /// How far averages go towards the weights; `None` without averages.
    ema_rate: Option<f32>,
}

impl Update<'_> {
    fn hyper(&self, path: &str, shape: &[usize]) -> AdamWParams {
        let (config, [beta1, beta2]) = (self.config, self.config.betas);
        AdamWParams {
            lr: self.learning_rate as f32,
            beta1: beta1 as f32,
            beta2: beta2 as f32,
            eps: config.eps as f32,
            weight_decay: if config.decay_groups.decays(path, shape) { config.weight_decay as f32 } else { 0.0 },
            bias_correction1: (1.0 - beta1.powi(self.updates)) as f32,
            bias_correction2: (1.0 - beta2.powi(self.updates)) as f32,
        }
    }
}

/// Gradients of one step, on the host or where the weights are.
pub(crate) enum StepGradients {
    Host(HostGradients),
    Device(DeviceGradients),
}

impl StepGradients {
    /// Euclidean norm over all of them.
    pub(crate) fn norm(&self) -> f64 {
        match self {
            Self::Host(gradients) => gradients.norm,
            Self::Device(gradients) => gradients.norm,
        }
    }
}

/// The optimiser of a run: its state is on the host, or parameter by parameter where the weights are once gradients there have come.
pub(crate) struct Optimizer {
    host: OptimizerState,
    device: device::DeviceMoments,
}

impl Optimizer {
    /// Goes on from a state.
    pub(crate) fn new(host: OptimizerState) -> Self {
        Self { host, device: device::DeviceMoments::default() }
    }

    /// Updates done: of the moments, and of the averages.
    pub(crate) fn counts(&self) -> [u64; 2] {
        [self.host.num_updates, self.host.num_averaged]
    }

    /// The whole state on the host, for checkpoints.
    pub(crate) fn state(&self) -> Cow<'_, OptimizerState> {
        if self.device.is_empty() {
            return Cow::Borrowed(&self.host);
        }
        let OptimizerState { first, second, ema, num_updates, num_averaged } = &self.host;
        let [first, second, ema] = self.device.with([first, second, ema]);
        Cow::Owned(OptimizerState { first, second, ema, num_updates: *num_updates, num_averaged: *num_averaged })
    }

    /// Averages, for evaluations.
    pub(crate) fn averages(&self) -> Cow<'_, HostTensors> {
        if self.device.is_empty() {
            return Cow::Borrowed(&self.host.ema);
        }
        let mut all = self.host.ema.clone();
        all.extend(self.device.averages());
        Cow::Owned(all)
    }

    /// See [`OptimizerState::update`]. All gradients of a run are in one place.
    pub(crate) fn update<M: Module>(
        &mut self,
        module: M,
        gradients: StepGradients,
        config: &OptimizerConfig,
        learning_rate: f64,
    ) -> M {
        match gradients {
            StepGradients::Host(gradients) => self.host.update(module, gradients, config, learning_rate),
            StepGradients::Device(gradients) => {
                let update = self.host.next(gradients.norm, config, learning_rate);
                let OptimizerState { first, second, ema, .. } = &mut self.host;
                self.device.update(module, gradients, [first, second, ema], &update)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;
    use crate::params::parameters;
    use crate::recipe::Recipe;

    #[derive(Module, Debug)]
    struct One {
        weight: Param<Tensor<1>>,
    }

    #[test]
    fn averages_go_on_where_moments_start_anew() -> Result<(), String> {
        let config = OptimizerConfig { ema_decay: 0.99, max_grad_norm: 0.0, ..golden()? };
        let mut model = One { weight: Param::from_tensor(Tensor::zeros([1], &Device::flex())) };
        let mut state = OptimizerState::default();
        let step = |state: &mut OptimizerState, model: One| {
            let gradients = HostGradients::new(BTreeMap::from([("weight".to_owned(), vec![-1.0])]));
            state.update(model, gradients, &config, 0.1)
        };
        for _ in 0..1000 {
            model = step(&mut state, model);
        }
        state.restart();
        let before = state.ema["weight"].values[0];
        let model = step(&mut state, model);
        let (weight, after) = (parameters(&model)["weight"].values[0], state.ema["weight"].values[0]);
        assert_eq!(state.num_updates, 1);
        let moved = (after - before) / (weight - before);
        assert!((0.009..0.011).contains(&moved), "the average went {moved} of its way");
        assert_eq!(state.num_averaged, 1001);
        state.ema.clear();
        state.restart();
        assert_eq!(state.num_averaged, 0, "new averages are young");
        Ok(())
    }

    fn golden() -> Result<OptimizerConfig, String> {
        let recipe = Recipe::parse(include_str!("../../../recipes/debug/golden.toml"))?;
        recipe.optimizer.ok_or_else(|| "no [optimizer]".into())
    }
}
