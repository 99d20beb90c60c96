//! The mathematics of UniF²ace's discrete diffusion: schedules, corruption, the D3Diff loss, samplers and keyed random numbers.
//!
//! Nothing here reads a file or knows a network: a test can call every function alone. Codes are plain `u32` slices in which
//! [`MASKED`] stands for the absorbing state; tensors appear only in [`d3diff`], where a gradient has to flow.
//!
//! Letters of shapes, here and in all modules: B images in a batch, N image tokens of one image, K codes of the codebook,
//! R rows (masked places of a batch, one after the other), T denoising steps.

pub mod bound;
pub mod canvas;
pub mod corruption;
pub mod d3diff;
pub mod error;
pub mod rng;
pub mod sampler;
pub mod schedule;
pub mod text;

pub use error::{DiffusionError, Result};

/// The absorbing state in a grid of codes. Never a code: a codebook is far smaller than `u32::MAX`.
pub const MASKED: u32 = u32::MAX;
