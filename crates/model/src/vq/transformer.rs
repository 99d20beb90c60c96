//! Transformer blocks at the coarsest grid, the small model's middle. They learn aligned portraits several times faster than
//! convolutions do on a CPU: each position has a vector of its own and all work is in matrix products.
//! B batch, N positions, D channels.
#![allow(non_snake_case)]

use burn::module::{Initializer, Module, Param};
use burn::tensor::{Device, Tensor};
use unif2ace_ops::{Activation, attention};

use crate::nn::{LayerNorm, Linear};

const EPS: f64 = 1e-5;
const HEAD_DIM: usize = 64;

/// Heads of the attention over that many channels.
pub(super) fn num_heads(channels: usize) -> usize {
    (channels / HEAD_DIM).max(1)
}

/// A pre-norm block: attention over all positions, then an MLP four times as wide.
#[derive(Module, Debug)]
pub struct TransformerBlock {
    /// Before the attention.
    pub norm1: LayerNorm,
    /// Queries, keys and values in one product, `[3 D, D]`.
    pub qkv: Linear,
    /// After the attention.
    pub proj: Linear,
    /// Before the MLP.
    pub norm2: LayerNorm,
    /// `[4 D, D]`.
    pub fc1: Linear,
    /// `[D, 4 D]`.
    pub fc2: Linear,
    #[module(skip)]
    num_heads: usize,
}

impl TransformerBlock {
    fn new(channels: usize, device: &Device) -> Self {
        let linear =
            |num_in: usize, num_out: usize| Linear::with_std(num_in, num_out, true, (3.0 * num_in as f64).sqrt().recip(), device);
        Self {
            norm1: LayerNorm::new(channels, EPS, device),
            qkv: linear(channels, 3 * channels),
            proj: linear(channels, channels),
            norm2: LayerNorm::new(channels, EPS, device),
            fc1: linear(channels, 4 * channels),
            fc2: linear(4 * channels, channels),
            num_heads: num_heads(channels),
        }
    }

    fn forward(&self, x_BND: Tensor<3>) -> Tensor<3> {
        let channels = x_BND.dims()[2];
        let qkv = self.qkv.forward(self.norm1.forward(x_BND.clone()));
        let part = |index: usize| qkv.clone().narrow(2, index * channels, channels);
        let mixed = attention(part(0), part(1), part(2), self.num_heads, None, None, None);
        let x_BND = x_BND + self.proj.forward(mixed);
        let inner = self.fc1.forward_act(self.norm2.forward(x_BND.clone()), Activation::GeluNew);
        x_BND + self.fc2.forward(inner)
    }
}

/// Position vectors and blocks.
#[derive(Module, Debug)]
pub struct TransformerStack {
    /// `[N, D]`.
    pub position: Param<Tensor<2>>,
    /// In order.
    pub block: Vec<TransformerBlock>,
}

impl TransformerStack {
    /// `num_blocks` blocks over `num_positions` places of `channels` channels.
    pub fn new(num_blocks: usize, num_positions: usize, channels: usize, device: &Device) -> Self {
        let normal = Initializer::Normal { mean: 0.0, std: 0.02 };
        Self {
            position: normal.init([num_positions, channels], device),
            block: (0..num_blocks).map(|_| TransformerBlock::new(channels, device)).collect(),
        }
    }

    /// `[B, h, w, D]`, shape kept.
    pub fn forward(&self, x_BHWC: Tensor<4>) -> Tensor<4> {
        let [batch, height, width, channels] = x_BHWC.dims();
        let mut x_BND = x_BHWC.reshape([batch, height * width, channels]) + self.position.val().unsqueeze::<3>();
        for block in &self.block {
            x_BND = block.forward(x_BND);
        }
        x_BND.reshape([batch, height, width, channels])
    }
}
