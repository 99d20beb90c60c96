//! Training of every part of the mini model from one TOML recipe each.
//!
//! A run is a function of its recipe: data order, augmentation and noise are drawn from keyed random numbers, so it can be
//! interrupted at any step and resumed from its last checkpoint.
#![allow(non_snake_case)] // tensor names carry their shape: B batch, L sequence, N image tokens, D width, H height, W width

pub mod batches;
pub mod checkpoint;
mod data_config;
pub mod decay;
mod devices;
pub mod encoder;
pub mod error;
pub mod export;
pub mod features;
pub mod feed;
pub mod interrupt;
pub mod lora;
pub mod metrics;
mod nonfinite;
pub mod optim;
pub mod parallel;
pub mod params;
mod passes;
mod patterns;
pub mod plan;
pub mod plot;
pub mod recipe;
pub mod report;
mod resume;
mod run;
pub mod stages;
pub mod tasks;
pub mod trainable;
pub mod trainer;
mod useless;
mod window;

pub use devices::{has_precision, run_on};
pub use error::{Result, TrainError};
pub use plan::{Plan, plan};
pub use recipe::Recipe;
pub use run::run;
pub use trainer::{Outcome, Session};
pub use unif2ace_comm::{connect, local_rank};
pub use window::Window;
