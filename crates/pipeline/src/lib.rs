//! What people call: a model folder becomes a [`Pipeline`] that generates, edits, answers, captions and scores.
//!
//! ```no_run
//! use unif2ace_pipeline::{GenerateOptions, GenerationConfig, Pipeline, PipelineOptions};
//! # fn main() -> Result<(), unif2ace_pipeline::PipelineError> {
//! let pipeline = Pipeline::from_pretrained("models/mini", &PipelineOptions::default())?;
//! let recommended = GenerationConfig::read("models/mini")?.options();
//! let options = GenerateOptions { prompt: "a smiling old man with a grey beard".into(), ..recommended };
//! let images = pipeline.generate(&options, &mut |_| true)?;
//! # Ok(())
//! # }
//! ```
#![allow(non_snake_case)] // tensor names carry their shape: B batch, L new positions, S all positions, N image tokens, D width, K codes

mod answer;
mod denoise;
mod device;
mod error;
mod extend;
mod generate;
mod inspect;
mod parts;
mod pretrained;
mod recommended;
mod score;

pub use answer::{AnswerOptions, CAPTION_REQUEST, PictureContext};
pub use denoise::{Denoiser, GridRequest};
pub use device::{DeviceName, open as open_device, open_nth as open_nth_device, open_several as open_devices};
pub use error::{PipelineError, Result};
pub use extend::ExtendOptions;
pub use generate::{EditOptions, GenerateOptions, Progress};
pub use inspect::{ExpertUse, Summary, draw_expert_use, summary, tensors};
pub use parts::Parts;
pub use pretrained::{Pipeline, PipelineOptions};
pub use recommended::GenerationConfig;
pub use score::{Score, ScoreOptions};
pub use unif2ace_ops::WeightFormat;
