//! What can go wrong for a user, and what to do about it.

use std::path::PathBuf;

/// An error of the pipeline. Its text may end in a `hint:` line.
#[derive(Debug, thiserror::Error)]
pub enum PipelineError {
    /// The model folder can't be used.
    #[error("model folder {}: {reason}\nhint: give a folder with config.json and model.safetensors, such as models/mini", path.display())]
    Model {
        /// The folder.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A setting or an input is out of range.
    #[error("{what}: expected {expected}, found {found}\nhint: {hint}")]
    Input {
        /// The setting.
        what: &'static str,
        /// What it may be.
        expected: String,
        /// What it was.
        found: String,
        /// What to do.
        hint: &'static str,
    },
    /// The caller asked to stop.
    #[error("stopped before the picture was finished; nothing was written")]
    Stopped,
    /// The device that was asked for isn't there, or can't do what was asked for.
    #[error("device {found}: {reason}\nhint: {hint}")]
    Device {
        /// Its name.
        found: String,
        /// What is missing.
        reason: String,
        /// What to do.
        hint: &'static str,
    },
    /// Pictures.
    #[error(transparent)]
    Image(#[from] unif2ace_image::ImageError),
    /// Prompts, masks and networks.
    #[error(transparent)]
    Network(#[from] unif2ace_model::error::ModelError),
    /// The image tokenizer.
    #[error(transparent)]
    Vq(#[from] unif2ace_model::vq::VqError),
    /// The experts' encoders.
    #[error(transparent)]
    Encoder(#[from] unif2ace_model::encoders::EncoderError),
    /// Samplers and schedules.
    #[error(transparent)]
    Diffusion(#[from] unif2ace_diffusion::DiffusionError),
    /// Text.
    #[error(transparent)]
    Text(#[from] unif2ace_data::DataError),
    /// A file of adapters.
    #[error(transparent)]
    Lora(#[from] unif2ace_weights::WeightsError),
    /// The disk.
    #[error(transparent)]
    Io(#[from] unif2ace_io::IoError),
    /// A diagram can't be drawn.
    #[error("drawing the expert use: {0}")]
    Drawing(String),
}

impl PipelineError {
    /// The error of a question without words.
    pub fn empty_question() -> Self {
        Self::Input {
            what: "question",
            expected: "a question about the face".into(),
            found: "nothing".into(),
            hint: "for example \"What colour is her hair?\"",
        }
    }
}

/// Result of a pipeline operation.
pub type Result<T> = std::result::Result<T, PipelineError>;
