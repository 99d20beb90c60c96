//! The operations that decide the model's speed, as functions of burn tensors.
//!
//! Each has a portable body in stock tensor operations ([`portable`]). Shapes: B batch, L query positions, S key positions, D width,
//! H heads, R rows or rotary dims, V vocabulary, E experts, K chosen experts, F inner width of an expert, C channels.
#![allow(non_snake_case)] // tensor names carry their shape

use std::sync::atomic::{AtomicBool, Ordering};

use burn::tensor::{Int, Tensor};

pub mod portable;

/// Activation after a linear layer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Activation {
    /// Identity.
    #[default]
    None,
    /// `gelu_new`: the tanh form.
    GeluNew,
    /// The exact form with the error function.
    GeluErf,
    /// `x sigmoid(1.702 x)`, CLIP's.
    QuickGelu,
    /// `x sigmoid(x)`.
    Silu,
}

/// Layer norm of queries and keys, shared by all heads; each tensor is `[head_dim]`.
#[derive(Debug, Clone)]
pub struct QkNorm {
    /// Scale of queries.
    pub q_weight: Tensor<1>,
    /// Shift of queries.
    pub q_bias: Tensor<1>,
    /// Scale of keys.
    pub k_weight: Tensor<1>,
    /// Shift of keys.
    pub k_bias: Tensor<1>,
    /// Guard of the variance.
    pub eps: f64,
}

/// Tables of rotary position embedding: `[B or 1, L, R]`, R the rotated dims of a head (the angles twice).
#[derive(Debug, Clone)]
pub struct Rotary {
    /// Cosines.
    pub cos_BLR: Tensor<3>,
    /// Sines.
    pub sin_BLR: Tensor<3>,
}

/// Geometry of a convolution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Conv2dOptions {
    /// Step of the window on both axes.
    pub stride: usize,
    /// Zeros added at the top, bottom, left and right.
    pub padding: [usize; 4],
    /// Double the picture (nearest) first.
    pub upsample: bool,
}

/// Precision of matrix products on the CPU; inputs, sums and outputs are f32 either way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    /// f32 factors.
    F32,
    /// Factors rounded to bfloat16.
    Bf16,
}

static BF16: AtomicBool = AtomicBool::new(false);

/// Sets the process-wide precision of matrix products.
pub fn set_precision(precision: Precision) {
    BF16.store(precision == Precision::Bf16, Ordering::Relaxed);
}

/// The process-wide precision of matrix products.
pub fn precision() -> Precision {
    if BF16.load(Ordering::Relaxed) { Precision::Bf16 } else { Precision::F32 }
}

/// `act(x W^T + b)` over the last axis: `x` `[.., in]`, `weight` `[out, in]`, `bias` `[out]`.
pub fn linear<const D: usize>(x: Tensor<D>, weight: Tensor<2>, bias: Option<Tensor<1>>, act: Activation) -> Tensor<D> {
    portable::linear(x, weight, bias, act)
}

/// Layer norm over the last axis with biased variance; `weight` and `bias` have its length.
pub fn layer_norm<const D: usize>(x: Tensor<D>, weight: Tensor<1>, bias: Tensor<1>, eps: f64) -> Tensor<D> {
    portable::layer_norm(x, weight, bias, eps)
}

/// Softmax attention of H heads on unpermuted `[B, L, H * head_dim]`: norm of queries and keys, rotary on the first R dims of a head,
/// `q k / sqrt(head_dim) + mask`, softmax over keys, times v. `mask` is additive `[B or 1, L, S]` and gets no gradient.
pub fn attention(
    q_BLD: Tensor<3>,
    k_BSD: Tensor<3>,
    v_BSD: Tensor<3>,
    num_heads: usize,
    qk_norm: Option<QkNorm>,
    rotary: Option<Rotary>,
    mask_BLS: Option<Tensor<3>>,
) -> Tensor<3> {
    portable::attention(q_BLD, k_BSD, v_BSD, num_heads, qk_norm, rotary, mask_BLS)
}

/// The part of [`attention`] before the scores, for keys that are cached: `norm` is (weight, bias, eps).
pub fn norm_rotate(
    x_BLD: Tensor<3>,
    num_heads: usize,
    norm: Option<(Tensor<1>, Tensor<1>, f64)>,
    rotary: Option<Rotary>,
) -> Tensor<3> {
    portable::norm_rotate(x_BLD, num_heads, norm, rotary)
}

/// Cross-entropy of each row in nats: `[R]`; 0 where the target is negative.
pub fn cross_entropy(logits_RV: Tensor<2>, targets_R: Tensor<1, Int>) -> Tensor<1> {
    portable::cross_entropy(logits_RV, targets_R)
}

/// Routed experts: `y_r = Σ_k gate[r,k] (act(x_r W1[e]^T + b1[e]) W2[e]^T + b2[e])` with `e = index[r,k]`.
#[allow(clippy::too_many_arguments)]
pub fn moe_mlp(
    x_RD: Tensor<2>,
    expert_index_RK: Tensor<2, Int>,
    gates_RK: Tensor<2>,
    w1_EFD: Tensor<3>,
    b1_EF: Tensor<2>,
    w2_EDF: Tensor<3>,
    b2_ED: Tensor<2>,
    act: Activation,
) -> Tensor<2> {
    portable::moe_mlp(x_RD, expert_index_RK, gates_RK, w1_EFD, b1_EF, w2_EDF, b2_ED, act)
}

/// Convolution, NHWC in and out; `weight` is `[out, in, kernel height, kernel width]` as in checkpoints.
pub fn conv2d_nhwc(x_BHWC: Tensor<4>, weight: Tensor<4>, bias: Option<Tensor<1>>, options: Conv2dOptions) -> Tensor<4> {
    portable::conv2d_nhwc(x_BHWC, weight, bias, options)
}

/// Group norm over NHWC, then SiLU if asked.
pub fn group_norm_nhwc(
    x_BHWC: Tensor<4>,
    weight: Tensor<1>,
    bias: Tensor<1>,
    num_groups: usize,
    eps: f64,
    silu: bool,
) -> Tensor<4> {
    portable::group_norm_nhwc(x_BHWC, weight, bias, num_groups, eps, silu)
}

/// Hyper-parameters of one AdamW update.
#[derive(Debug, Clone, Copy)]
pub struct AdamWParams {
    /// Learning rate.
    pub lr: f32,
    /// Decay of the first moment.
    pub beta1: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// Guard of the denominator.
    pub eps: f32,
    /// Decoupled weight decay.
    pub weight_decay: f32,
    /// `1 - beta1^t`.
    pub bias_correction1: f32,
    /// `1 - beta2^t`.
    pub bias_correction2: f32,
}

/// One AdamW update in place (Loshchilov and Hutter 2019); slices have one length.
pub fn adamw_step(param: &mut [f32], grad: &[f32], m: &mut [f32], v: &mut [f32], hp: &AdamWParams) {
    let root2 = hp.bias_correction2.sqrt();
    let step = hp.lr / hp.bias_correction1;
    for (((p, &g), m), v) in param.iter_mut().zip(grad).zip(m).zip(v) {
        *m = hp.beta1 * *m + (1.0 - hp.beta1) * g;
        *v = hp.beta2 * *v + (1.0 - hp.beta2) * g * g;
        *p -= hp.lr * hp.weight_decay * *p;
        *p -= step * *m / (v.sqrt() / root2 + hp.eps);
    }
}
