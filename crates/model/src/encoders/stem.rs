//! From pixels to a grid of tokens. B batch, H height, W width, C channels, D width.
#![allow(non_snake_case)]

use burn::module::{Module, Param};
use burn::tensor::activation::gelu;
use burn::tensor::{Device, Tensor};
use unif2ace_ops::{Activation, Conv2dOptions, linear};

use crate::nn::{LayerNorm, normal};
use crate::vq::layers::{Conv2d, space_to_depth};

/// A linear map of each patch, without bias; the weight is stored as a convolution's.
#[derive(Module, Debug)]
pub struct PatchEmbedding {
    /// `[D, channels, patch, patch]`.
    pub weight: Param<Tensor<4>>,
}

impl PatchEmbedding {
    /// Normal weights.
    pub fn new(channels: usize, width: usize, patch: usize, device: &Device) -> Self {
        let std = 1.0 / ((channels * patch * patch) as f64).sqrt();
        let shape = [width, channels, patch, patch];
        Self { weight: normal(shape, std, device) }
    }

    /// `[B, H, W, C] -> [B, H/patch, W/patch, D]`.
    pub fn forward(&self, x_BHWC: Tensor<4>) -> Tensor<4> {
        let weight = self.weight.val();
        let [width, channels, patch, _] = weight.dims();
        let weight = weight.permute([0, 2, 3, 1]).reshape([width, patch * patch * channels]);
        linear(space_to_depth(x_BHWC, patch), weight, None, Activation::None)
    }
}

/// One halving of the convolutional stem.
#[derive(Module, Debug)]
pub struct StemStage {
    /// 3x3, stride 2.
    pub conv: Conv2d,
    /// Over the channels of each position.
    pub norm: LayerNorm,
}

/// Convolutions of stride 2 in place of the patch embedding: each halves the grid and doubles the channels.
#[derive(Module, Debug)]
pub struct ConvStem {
    /// From the pixels on.
    pub stages: Vec<StemStage>,
    /// 1x1 to the width.
    pub proj: Conv2d,
}

impl ConvStem {
    /// A stem for patches of `patch` (a power of two) pixels.
    pub fn new(channels: usize, width: usize, patch: usize, eps: f64, device: &Device) -> Self {
        let num_stages = patch.trailing_zeros() as usize;
        let mut num_in = channels;
        let stages = (0..num_stages)
            .map(|stage| {
                let num_out = (width >> (num_stages - 1 - stage)).max(16);
                let conv = Conv2d::new(num_in, num_out, 3, device);
                num_in = num_out;
                StemStage { conv, norm: LayerNorm::new(num_out, eps, device) }
            })
            .collect();
        Self { stages, proj: Conv2d::new(num_in, width, 1, device) }
    }

    /// `[B, H, W, C] -> [B, H/patch, W/patch, D]`.
    pub fn forward(&self, x_BHWC: Tensor<4>) -> Tensor<4> {
        let options = Conv2dOptions { stride: 2, padding: [1; 4], upsample: false };
        let x_BHWC =
            self.stages.iter().fold(x_BHWC, |x_BHWC, stage| gelu(stage.norm.forward(stage.conv.forward_with(x_BHWC, options))));
        self.proj.forward(x_BHWC)
    }
}
