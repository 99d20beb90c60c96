//! Layers over pictures, channels last. B batch, H height, W width, C channels, N = H * W positions.
#![allow(non_snake_case)]

use std::sync::{Arc, OnceLock};

use burn::module::{Initializer, Module, Param};
use burn::tensor::{Device, Tensor};
use unif2ace_ops::{
    Activation, Conv2dOptions, PackedConv, attention, conv2d_nhwc, group_norm_nhwc, linear, pack_conv2d, packed_conv2d,
};

use super::transformer::TransformerStack;

const EPS: f64 = 1e-6;

/// Groups of a norm over that many channels: 32, or one a channel where there are fewer.
pub(super) fn num_groups(channels: usize) -> usize {
    channels.min(32)
}

/// A convolution with bias. The weight is stored `[out, in, kernel, kernel]` as in the checkpoints.
#[derive(Module, Debug)]
pub struct Conv2d {
    /// `[out, in, kernel, kernel]`.
    pub weight: Param<Tensor<4>>,
    /// `[out]`.
    pub bias: Param<Tensor<1>>,
    /// Of a frozen layer; made when it is first used, because who generates needs no encoder.
    #[module(skip)]
    packed: Option<Arc<OnceLock<PackedConv>>>,
}

impl Conv2d {
    /// A new layer, values uniform within `1/sqrt(fan in)`.
    pub fn new(num_in: usize, num_out: usize, kernel: usize, device: &Device) -> Self {
        let bound = 1.0 / ((num_in * kernel * kernel) as f64).sqrt();
        let uniform = Initializer::Uniform { min: -bound, max: bound };
        Self {
            weight: uniform.init([num_out, num_in, kernel, kernel], device),
            bias: uniform.init([num_out], device),
            packed: None,
        }
    }

    /// Freezes the weights for inference: they are packed once, in the process-wide precision of their first use.
    pub(super) fn pack(&mut self) {
        self.packed = Some(Arc::default());
    }

    /// `[B, H, W, in] -> [B, H', W', out]` with any stride and padding.
    pub fn forward_with(&self, x_BHWC: Tensor<4>, options: Conv2dOptions) -> Tensor<4> {
        match &self.packed {
            Some(packed) => {
                let packed = packed.get_or_init(|| pack_conv2d(self.weight.val(), self.bias.val()));
                packed_conv2d(x_BHWC, packed, options)
            }
            None => conv2d_nhwc(x_BHWC, self.weight.val(), Some(self.bias.val()), options),
        }
    }

    /// Stride 1, size kept: `[B, H, W, in] -> [B, H, W, out]`.
    pub fn forward(&self, x_BHWC: Tensor<4>) -> Tensor<4> {
        let [num_out, num_in, kernel, _] = self.weight.lazy_shape().dims();
        if kernel == 1 && self.packed.is_none() {
            let weight = self.weight.val().reshape([num_out, num_in]);
            return linear(x_BHWC, weight, Some(self.bias.val()), Activation::None);
        }
        self.forward_with(x_BHWC, Conv2dOptions { stride: 1, padding: [kernel / 2; 4], upsample: false })
    }
}

/// Group norm with 32 groups (fewer for fewer channels), eps 1e-6.
#[derive(Module, Debug)]
pub struct GroupNorm {
    /// `[C]`.
    pub weight: Param<Tensor<1>>,
    /// `[C]`.
    pub bias: Param<Tensor<1>>,
}

impl GroupNorm {
    /// The identity scale.
    pub fn new(channels: usize, device: &Device) -> Self {
        Self { weight: Initializer::Ones.init([channels], device), bias: Initializer::Zeros.init([channels], device) }
    }

    /// The norm alone, shape kept.
    pub fn forward(&self, x_BHWC: Tensor<4>) -> Tensor<4> {
        self.apply(x_BHWC, false)
    }

    /// The norm followed by `x * sigmoid(x)`.
    pub fn forward_silu(&self, x_BHWC: Tensor<4>) -> Tensor<4> {
        self.apply(x_BHWC, true)
    }

    fn apply(&self, x_BHWC: Tensor<4>, silu: bool) -> Tensor<4> {
        let groups = num_groups(x_BHWC.dims()[3]);
        group_norm_nhwc(x_BHWC, self.weight.val(), self.bias.val(), groups, EPS, silu)
    }
}

/// Two normalised 3x3 convolutions around a shortcut.
#[derive(Module, Debug)]
pub struct ResBlock {
    /// Over the input channels.
    pub norm1: GroupNorm,
    /// Input to output channels.
    pub conv1: Conv2d,
    /// Over the output channels.
    pub norm2: GroupNorm,
    /// Output to output channels.
    pub conv2: Conv2d,
    /// 1x1, where the number of channels changes.
    pub nin_shortcut: Option<Conv2d>,
}

impl ResBlock {
    /// A new block.
    pub fn new(num_in: usize, num_out: usize, device: &Device) -> Self {
        Self {
            norm1: GroupNorm::new(num_in, device),
            conv1: Conv2d::new(num_in, num_out, 3, device),
            norm2: GroupNorm::new(num_out, device),
            conv2: Conv2d::new(num_out, num_out, 3, device),
            nin_shortcut: (num_in != num_out).then(|| Conv2d::new(num_in, num_out, 1, device)),
        }
    }

    pub(super) fn pack(&mut self) {
        [Some(&mut self.conv1), Some(&mut self.conv2), self.nin_shortcut.as_mut()].into_iter().flatten().for_each(Conv2d::pack);
    }

    /// `[B, H, W, in] -> [B, H, W, out]`.
    pub fn forward(&self, x_BHWC: Tensor<4>) -> Tensor<4> {
        let h_BHWC = self.conv1.forward(self.norm1.forward_silu(x_BHWC.clone()));
        let h_BHWC = self.conv2.forward(self.norm2.forward_silu(h_BHWC));
        match &self.nin_shortcut {
            Some(shortcut) => shortcut.forward(x_BHWC) + h_BHWC,
            None => x_BHWC + h_BHWC,
        }
    }
}

/// One-head attention over all positions of the grid.
#[derive(Module, Debug)]
pub struct AttnBlock {
    /// Before the projections.
    pub norm: GroupNorm,
    /// 1x1.
    pub q: Conv2d,
    /// 1x1.
    pub k: Conv2d,
    /// 1x1.
    pub v: Conv2d,
    /// 1x1.
    pub proj_out: Conv2d,
}

impl AttnBlock {
    /// A new block.
    pub fn new(channels: usize, device: &Device) -> Self {
        let conv = || Conv2d::new(channels, channels, 1, device);
        Self { norm: GroupNorm::new(channels, device), q: conv(), k: conv(), v: conv(), proj_out: conv() }
    }

    pub(super) fn pack(&mut self) {
        [&mut self.q, &mut self.k, &mut self.v, &mut self.proj_out].into_iter().for_each(Conv2d::pack);
    }

    /// Shape kept.
    pub fn forward(&self, x_BHWC: Tensor<4>) -> Tensor<4> {
        let [batch, height, width, channels] = x_BHWC.dims();
        let h_BHWC = self.norm.forward(x_BHWC.clone());
        let flat = |conv: &Conv2d| conv.forward(h_BHWC.clone()).reshape([batch, height * width, channels]);
        let y_BNC = attention(flat(&self.q), flat(&self.k), flat(&self.v), 1, None, None, None);
        let y_BHWC = y_BNC.reshape([batch, height, width, channels]);
        x_BHWC + self.proj_out.forward(y_BHWC)
    }
}

/// The middle of encoder and decoder: MAGVIT-v2's convolutions and attention, or a stack of transformer blocks.
#[derive(Module, Debug)]
pub struct Mid {
    /// Before the attention.
    pub block_1: Option<ResBlock>,
    /// Over the coarsest grid.
    pub attn_1: Option<AttnBlock>,
    /// After the attention.
    pub block_2: Option<ResBlock>,
    /// In place of the three above.
    pub transformer: Option<TransformerStack>,
}

impl Mid {
    /// A new middle; with `num_transformer_blocks` above 0 it is transformer blocks over `num_positions` places.
    pub fn new(channels: usize, num_transformer_blocks: usize, num_positions: usize, device: &Device) -> Self {
        let classic = num_transformer_blocks == 0;
        Self {
            block_1: classic.then(|| ResBlock::new(channels, channels, device)),
            attn_1: classic.then(|| AttnBlock::new(channels, device)),
            block_2: classic.then(|| ResBlock::new(channels, channels, device)),
            transformer: (!classic).then(|| TransformerStack::new(num_transformer_blocks, num_positions, channels, device)),
        }
    }

    pub(super) fn pack(&mut self) {
        [&mut self.block_1, &mut self.block_2].into_iter().flatten().for_each(ResBlock::pack);
        self.attn_1.iter_mut().for_each(AttnBlock::pack);
    }

    /// Shape kept.
    pub fn forward(&self, mut x_BHWC: Tensor<4>) -> Tensor<4> {
        if let Some(block) = &self.block_1 {
            x_BHWC = block.forward(x_BHWC);
        }
        if let Some(attention) = &self.attn_1 {
            x_BHWC = attention.forward(x_BHWC);
        }
        if let Some(block) = &self.block_2 {
            x_BHWC = block.forward(x_BHWC);
        }
        match &self.transformer {
            Some(stack) => stack.forward(x_BHWC),
            None => x_BHWC,
        }
    }
}

/// Halves the grid: zeros at the right and the bottom only, 3x3, stride 2; odd sides are floored.
#[derive(Module, Debug)]
pub struct Downsample {
    /// 3x3.
    pub conv: Conv2d,
}

impl Downsample {
    /// A new layer.
    pub fn new(channels: usize, device: &Device) -> Self {
        Self { conv: Conv2d::new(channels, channels, 3, device) }
    }

    /// `[B, H, W, C] -> [B, H/2, W/2, C]`.
    pub fn forward(&self, x_BHWC: Tensor<4>) -> Tensor<4> {
        let options = Conv2dOptions { stride: 2, padding: [0, 1, 0, 1], upsample: false };
        self.conv.forward_with(x_BHWC, options)
    }
}

/// Doubles the grid by repeating values, then 3x3.
#[derive(Module, Debug)]
pub struct Upsample {
    /// 3x3.
    pub conv: Conv2d,
}

impl Upsample {
    /// A new layer.
    pub fn new(channels: usize, device: &Device) -> Self {
        Self { conv: Conv2d::new(channels, channels, 3, device) }
    }

    /// `[B, H, W, C] -> [B, 2H, 2W, C]`.
    pub fn forward(&self, x_BHWC: Tensor<4>) -> Tensor<4> {
        let options = Conv2dOptions { stride: 1, padding: [1; 4], upsample: true };
        self.conv.forward_with(x_BHWC, options)
    }
}

/// Folds squares of `patch` pixels into channels: `[B, H, W, C] -> [B, H/p, W/p, p*p*C]`, inside a patch row by row.
pub fn space_to_depth(x_BHWC: Tensor<4>, patch: usize) -> Tensor<4> {
    if patch == 1 {
        return x_BHWC;
    }
    let [batch, height, width, channels] = x_BHWC.dims();
    x_BHWC.reshape([batch, height / patch, patch, width / patch, patch * channels]).swap_dims(2, 3).reshape([
        batch,
        height / patch,
        width / patch,
        patch * patch * channels,
    ])
}

/// The inverse of [`space_to_depth`]: `[B, H, W, p*p*C] -> [B, p*H, p*W, C]`.
pub fn depth_to_space(x_BHWC: Tensor<4>, patch: usize) -> Tensor<4> {
    if patch == 1 {
        return x_BHWC;
    }
    let [batch, height, width, folded] = x_BHWC.dims();
    let channels = folded / (patch * patch);
    x_BHWC.reshape([batch, height, width, patch, patch * channels]).swap_dims(2, 3).reshape([
        batch,
        height * patch,
        width * patch,
        channels,
    ])
}
