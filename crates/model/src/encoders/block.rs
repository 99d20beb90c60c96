//! The layer that both towers share: pre-norm attention and MLP. B batch, L tokens, D width, S keys.
#![allow(non_snake_case)]

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use unif2ace_ops::attention;

use super::HiddenAct;
use crate::nn::{LayerNorm, Linear};

/// Multi-head attention with biases.
#[derive(Module, Debug)]
pub struct SelfAttention {
    /// Keys.
    pub k_proj: Linear,
    /// Values.
    pub v_proj: Linear,
    /// Queries.
    pub q_proj: Linear,
    /// After the heads.
    pub out_proj: Linear,
    #[module(skip)]
    num_heads: usize,
}

impl SelfAttention {
    fn forward(&self, x_BLD: Tensor<3>, mask_BLS: Option<Tensor<3>>) -> Tensor<3> {
        let q_BLD = self.q_proj.forward(x_BLD.clone());
        let k_BLD = self.k_proj.forward(x_BLD.clone());
        let v_BLD = self.v_proj.forward(x_BLD);
        let y_BLD = attention(q_BLD, k_BLD, v_BLD, self.num_heads, None, None, mask_BLS);
        self.out_proj.forward(y_BLD)
    }
}

/// Two linear layers.
#[derive(Module, Debug)]
pub struct Mlp {
    /// Width to inner width.
    pub fc1: Linear,
    /// Inner width to width.
    pub fc2: Linear,
    #[module(skip)]
    act: HiddenAct,
}

/// One layer.
#[derive(Module, Debug)]
pub struct EncoderLayer {
    /// The attention.
    pub self_attn: SelfAttention,
    /// Before the attention.
    pub layer_norm1: LayerNorm,
    /// The MLP.
    pub mlp: Mlp,
    /// Before the MLP.
    pub layer_norm2: LayerNorm,
}

/// Sizes of a tower's layers.
pub(super) struct LayerSizes {
    pub width: usize,
    pub inner: usize,
    pub num_layers: usize,
    pub num_heads: usize,
    pub act: HiddenAct,
    pub eps: f64,
}

impl EncoderLayer {
    fn new(sizes: &LayerSizes, device: &Device) -> Self {
        let (width, inner) = (sizes.width, sizes.inner);
        // CLIP's initial scales: those that feed the residual stream shrink with the depth.
        let depth = (2.0 * sizes.num_layers as f64).sqrt();
        let plain = 1.0 / (width as f64).sqrt();
        let linear = |num_in, num_out, std| Linear::with_std(num_in, num_out, true, std, device);
        Self {
            self_attn: SelfAttention {
                k_proj: linear(width, width, plain),
                v_proj: linear(width, width, plain),
                q_proj: linear(width, width, plain),
                out_proj: linear(width, width, plain / depth),
                num_heads: sizes.num_heads,
            },
            layer_norm1: LayerNorm::new(width, sizes.eps, device),
            mlp: Mlp {
                fc1: linear(width, inner, 1.0 / (2.0 * width as f64).sqrt()),
                fc2: linear(inner, width, plain / depth),
                act: sizes.act,
            },
            layer_norm2: LayerNorm::new(width, sizes.eps, device),
        }
    }

    /// `[B, L, D]`, shape kept; the mask is additive `[B or 1, L, L]`.
    pub fn forward(&self, x_BLD: Tensor<3>, mask_BLS: Option<Tensor<3>>) -> Tensor<3> {
        let h_BLD = self.layer_norm1.forward(x_BLD.clone());
        let x_BLD = x_BLD + self.self_attn.forward(h_BLD, mask_BLS);
        let h_BLD = self.layer_norm2.forward(x_BLD.clone());
        let h_BLD = self.mlp.fc1.forward_act(h_BLD, self.mlp.act.activation());
        x_BLD + self.mlp.fc2.forward(h_BLD)
    }
}

/// A stack of layers.
#[derive(Module, Debug)]
pub struct Encoder {
    /// From the input on.
    pub layers: Vec<EncoderLayer>,
}

impl Encoder {
    pub(super) fn new(sizes: &LayerSizes, device: &Device) -> Self {
        Self { layers: (0..sizes.num_layers).map(|_| EncoderLayer::new(sizes, device)).collect() }
    }

    /// The state before the last layer and the one after it.
    pub fn forward(&self, x_BLD: Tensor<3>, mask_BLS: Option<Tensor<3>>) -> (Tensor<3>, Tensor<3>) {
        let mut before = x_BLD.clone();
        let mut x_BLD = x_BLD;
        for layer in &self.layers {
            before = x_BLD.clone();
            x_BLD = layer.forward(x_BLD, mask_BLS.clone());
        }
        (before, x_BLD)
    }
}
