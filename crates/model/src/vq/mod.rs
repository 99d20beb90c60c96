//! The image tokenizer: a convolutional network with lookup-free quantisation, equal in numbers to the MAGVIT-v2 tokenizer of
//! Show-o (`VqConfig::magvitv2`) and scalable down to the small model (`VqConfig::mini`). Pictures are channels last,
//! RGB in -1..1. B batch, H and W pixels, h and w tokens, N = h * w, C bits of a code.
#![allow(non_snake_case)]

mod coder;
mod config;
pub mod layers;
mod quantizer;
mod transformer;

use burn::module::Module;
use burn::tensor::{Device, Tensor};

pub use coder::{Decoder, DownLevel, Encoder, UpLevel};
pub use config::VqConfig;
use layers::num_groups;
pub use quantizer::{CodeUse, Quantized, code_use, lookup, quantize};
use unif2ace_ops::on_cpu;

/// What can be wrong with a tokenizer's input.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum VqError {
    /// A number of the configuration does not fit.
    #[error("vq config: {field}: expected {expected}, found {found}\nhint: compare with the config.json of a released model")]
    Config {
        /// The field.
        field: &'static str,
        /// What it must be.
        expected: String,
        /// What it is.
        found: String,
    },
    /// A picture of a size that has no token grid.
    #[error(
        "encode image: expected sides of at least {least} pixels and multiples of {multiple}, found {height}x{width}\nhint: resize or crop the picture to multiples of {least}"
    )]
    ImageSize {
        /// Pixels.
        height: usize,
        /// Pixels.
        width: usize,
        /// Both sides must be a multiple.
        multiple: usize,
        /// Smallest side.
        least: usize,
    },
    /// A picture with another number of channels.
    #[error("encode image: expected {expected} channels, found {found}\nhint: convert the picture to RGB, channels last")]
    Channels {
        /// Of the configuration.
        expected: usize,
        /// Of the picture.
        found: usize,
    },
    /// An index that is no code.
    #[error(
        "decode tokens: expected codes below {codebook_size}, found {index} at position {position}\nhint: subtract the image token offset and fill masked positions first"
    )]
    IndexOutOfRange {
        /// The index.
        index: u32,
        /// Where, counted over the batch.
        position: usize,
        /// Number of codes.
        codebook_size: usize,
    },
    /// A size that position vectors don't cover.
    #[error(
        "token grid: expected a picture of {resolution}x{resolution} pixels, found {height}x{width}\nhint: resize and crop first; this tokenizer has position vectors for one size"
    )]
    OnlyResolution {
        /// Rows of pixels.
        height: usize,
        /// Columns of pixels.
        width: usize,
        /// The only side.
        resolution: usize,
    },
    /// Indices that do not fill whole grids.
    #[error(
        "decode tokens: expected a multiple of {height}x{width} codes, found {found}\nhint: give the grid of the tokens, not of the pixels"
    )]
    NumIndices {
        /// Number of indices.
        found: usize,
        /// Rows of a grid.
        height: usize,
        /// Columns of a grid.
        width: usize,
    },
    /// The device failed while results were read.
    #[error("read tokens from the device: {0}\nhint: try the CPU (--device cpu)")]
    Device(String),
}

/// The tokenizer network. Field paths are the checkpoint's tensor names; the quantiser has no parameters.
#[derive(Module, Debug)]
pub struct Vq {
    /// Pixels to the continuous code.
    pub encoder: Encoder,
    /// Codes to pixels.
    pub decoder: Decoder,
    #[module(skip)]
    config: VqConfig,
}

impl Vq {
    /// A network with random weights.
    ///
    /// # Errors
    /// When the configuration describes no network.
    pub fn new(config: &VqConfig, device: &Device) -> Result<Self, VqError> {
        config.check()?;
        Ok(Self { encoder: Encoder::new(config, device), decoder: Decoder::new(config, device), config: config.clone() })
    }

    /// Freezes the convolutions for inference: their weights are packed when they are first used, and later changes don't show. On devices
    /// other than the CPU nothing happens.
    #[must_use]
    pub fn pack(mut self) -> Self {
        if on_cpu(&self.encoder.conv_in.bias.lazy_device()) {
            self.encoder.pack();
            self.decoder.pack();
        }
        self
    }

    /// The configuration it was built with.
    pub fn config(&self) -> &VqConfig {
        &self.config
    }

    /// `[B, H, W, 3]` in -1..1 to the continuous code `[B, h, w, C]`. The sizes must have passed [`VqConfig::grid`].
    pub fn encode_z(&self, pixels_BHWC: Tensor<4>) -> Tensor<4> {
        self.encoder.forward(pixels_BHWC)
    }

    /// The codes of a continuous code, with the training losses.
    pub fn quantize(&self, z_BhwC: Tensor<4>) -> Quantized {
        quantize(z_BhwC)
    }

    /// `[B, H, W, 3]` in -1..1 to `B * h * w` codebook indices, picture by picture, row by row.
    ///
    /// # Errors
    /// When the pictures have a size without a token grid or other channels.
    pub fn encode(&self, pixels_BHWC: Tensor<4>) -> Result<Vec<u32>, VqError> {
        let [_, height, width, channels] = pixels_BHWC.dims();
        self.config.grid(height, width)?;
        if channels != self.config.in_channels {
            return Err(VqError::Channels { expected: self.config.in_channels, found: channels });
        }
        quantize(self.encode_z(pixels_BHWC))
            .indices_BN
            .try_into_vec_as::<u32>()
            .map_err(|error| VqError::Device(error.to_string()))
    }

    /// +-1 codes `[B, h, w, C]` to pictures `[B, H, W, 3]`, about -1..1, not clamped.
    pub fn decode_codes(&self, codes_BhwC: Tensor<4>) -> Tensor<4> {
        self.decoder.forward(codes_BhwC)
    }

    /// Codebook indices of whole grids of `height x width` tokens to pictures `[B, H, W, 3]`, about -1..1, not clamped.
    ///
    /// # Errors
    /// When an index is no code or the indices do not fill whole grids.
    pub fn decode_indices(&self, indices: &[u32], height: usize, width: usize) -> Result<Tensor<4>, VqError> {
        let device = self.decoder.conv_in.weight.val().device();
        let codes_BhwC = lookup(indices, [height, width], self.config.z_channels, &device)?;
        let down = self.config.downsampling();
        self.config.grid(height * down, width * down)?;
        Ok(self.decode_codes(codes_BhwC))
    }
}
