//! Training of every part of the mini model from one TOML recipe each.
//!
//! A run is a function of its recipe: data order, augmentation and noise are drawn from keyed random numbers, so it can be
//! interrupted at any step and resumed from its last checkpoint.
#![allow(non_snake_case)] // tensor names carry their shape: B batch, L sequence, N image tokens, D width, H height, W width

pub mod batches;
pub mod checkpoint;
mod data_config;
pub mod encoder;
pub mod error;
pub mod export;
pub mod features;
pub mod feed;
pub mod interrupt;
mod nonfinite;
pub mod optim;
pub mod parallel;
pub mod params;
mod passes;
pub mod plan;
pub mod recipe;
mod resume;
mod run;
pub mod tasks;
pub mod trainer;
mod useless;
mod window;

pub use error::{Result, TrainError};
pub use plan::{Plan, plan};
pub use recipe::Recipe;
pub use run::run;
pub use trainer::{Outcome, Session};
pub use unif2ace_comm::connect;
pub use window::Window;
