//! A network of two tensors and its checkpoints.
#![allow(dead_code)] // each test file uses its part

pub mod place;

use std::path::Path;

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor, TensorData};
use unif2ace_train::checkpoint::{Better, Checkpoints, Keep, RunState};
use unif2ace_train::optim::OptimizerState;
use unif2ace_train::params::{HostTensors, parameters};

/// The network.
#[derive(Module, Debug)]
pub struct Net {
    pub weight: Param<Tensor<2>>,
    pub bias: Param<Tensor<1>>,
}

impl Net {
    /// A network of `rows` x 64 weights and `rows` biases, all `value` and a little more from place to place.
    pub fn new(rows: usize, value: f32) -> Self {
        let device = Device::flex().autodiff();
        let values = |count: usize| (0..count).map(|place| value + place as f32 * 1e-6).collect::<Vec<f32>>();
        Self {
            weight: Param::from_tensor(Tensor::from_data(TensorData::new(values(rows * 64), [rows, 64]), &device)),
            bias: Param::from_tensor(Tensor::from_data(TensorData::new(values(rows), [rows]), &device)),
        }
    }
}

/// All that a checkpoint of `step` holds, as functions of the step.
pub fn content(rows: usize, step: u64) -> (RunState, Net, OptimizerState) {
    let state =
        RunState { step, num_updates: step, num_averaged: Some(step + 3), seed: 1, seconds: step as f64, ..RunState::default() };
    let tensors = |value: f32| -> HostTensors { parameters(&Net::new(rows, value)) };
    let value = step as f32;
    let optimizer = OptimizerState {
        first: tensors(value + 0.25),
        second: tensors(value + 0.5),
        ema: tensors(value + 0.75),
        num_updates: step,
        num_averaged: step + 3,
    };
    (state, Net::new(rows, value), optimizer)
}

/// Saves the checkpoint of `step`.
pub fn save(checkpoints: &Checkpoints, rows: usize, step: u64) -> unif2ace_train::Result<std::path::PathBuf> {
    let (state, net, optimizer) = content(rows, step);
    checkpoints.save(&state, &net, &optimizer)
}

/// Loads the newest whole checkpoint, asserts that every number of it is that of its step, and returns the step.
pub fn load(checkpoints: &Checkpoints, rows: usize) -> Option<u64> {
    let found = checkpoints.newest_whole().unwrap()?;
    let (state, net, optimizer) = content(rows, found.state.step);
    assert_eq!(found.state, state);
    assert_eq!(parameters(&found.load_into(Net::new(rows, 0.0)).unwrap()), parameters(&net));
    let loaded = found.optimizer().unwrap();
    assert!(loaded.first == optimizer.first && loaded.second == optimizer.second && loaded.ema == optimizer.ema);
    assert_eq!((loaded.num_updates, loaded.num_averaged), (optimizer.num_updates, optimizer.num_averaged));
    Some(state.step)
}

/// Checkpoints of which the last two stay.
pub fn keep_two(folder: &Path) -> Checkpoints {
    Checkpoints::new(folder, Keep { last: 2, best: 0, metric: None, better: Better::Lower })
}

/// Names in a folder, sorted.
pub fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}
