//! Identity embeddings of faces by a recognition network of the ArcFace family in an ONNX file (AuraFace; or AntelopeV2's
//! `glintr100`, whose weights are for non-commercial use only): the face expert's feature in the full model.
//!
//! [`align`] and [`input_values`] prepare pictures and need nothing but this crate; running a file needs the feature `onnx`.

mod align;
mod error;
#[cfg(feature = "onnx")]
mod network;

pub use align::{LANDMARKS, SIDE, align, centre, input_values};
pub use error::ArcFaceError;
#[cfg(feature = "onnx")]
pub use network::{ArcFace, EMBEDDING, Scaling};
