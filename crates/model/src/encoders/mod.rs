//! Encoders whose features the experts mix in, and whose scores the evaluation reads: CLIP (picture and text towers of one
//! architecture, with the hub's tensor names) and the face attribute network (the same picture tower with one classifier per
//! attribute). The small model trains both on its own captions and attributes; the full model loads CLIP ViT-L/14-336.

mod block;
mod clip;
mod config;
mod face;
mod stem;
mod text;
mod vision;

pub use block::{Encoder, EncoderLayer, Mlp, SelfAttention};
pub use clip::{Clip, clip_pixels, contrastive_loss, l2_normalise};
pub use config::{ClipConfig, ClipTextConfig, ClipVisionConfig, FaceConfig, FaceHead, HiddenAct, Pooling, Stem};
pub use face::{FaceLoss, FaceNet, FaceOutput};
pub use stem::{ConvStem, PatchEmbedding, StemStage};
pub use text::{TextEmbeddings, TextOutput, TextTransformer};
pub use vision::{VisionEmbeddings, VisionOutput, VisionTransformer};

/// What can be wrong with an encoder's configuration or input.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EncoderError {
    /// A number of the configuration does not fit.
    #[error(
        "encoder config: {field}: expected {expected}, found {found}\nhint: compare with the config.json of a released model"
    )]
    Config {
        /// The field.
        field: &'static str,
        /// What it must be.
        expected: String,
        /// What it is.
        found: String,
    },
    /// A tensor of another shape than the network takes.
    #[error("{operation}: expected {expected}, found {found:?}\nhint: {hint}")]
    Shape {
        /// What was tried.
        operation: &'static str,
        /// The shape in words.
        expected: String,
        /// The shape given.
        found: Vec<usize>,
        /// What to do.
        hint: &'static str,
    },
    /// The device failed while results were read.
    #[error("read results of an encoder from the device: {0}\nhint: try the CPU (--device cpu)")]
    Device(String),
}
