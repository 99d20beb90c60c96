//! The networks of UniF²ace: transformer with grouped mixture of experts, VQ tokenizer, expert encoders. No I/O.
#![allow(non_snake_case)] // tensor names carry their shape

pub mod config;
pub mod encoders;
pub mod error;
pub mod lora;
pub mod losses;
pub mod masks;
pub mod moe;
pub mod named;
pub mod nn;
pub mod packing;
pub mod prompts;
pub mod transformer;
pub mod vq;
