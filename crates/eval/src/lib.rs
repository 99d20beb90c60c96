//! The figures of the model card, measured on a split of the face set: reconstruction, answers, captions, generation, likelihood.
//!
//! Rules that the figures depend on are functions of `unif2ace_data::grammar`: what a caption states, what an answer says.
#![allow(non_snake_case)] // tensor names carry their shape

mod error;
mod frechet;
mod report;

pub use error::{EvalError, Result};
pub use frechet::frechet_distance;
pub use report::{EvalOptions, evaluate};
