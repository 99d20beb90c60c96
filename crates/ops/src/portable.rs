//! Every operation in stock burn tensors: correct on any device, differentiable by burn, and the twin that the CPU kernels are tested against.
//!
//! Shapes: B batch, L query positions, S key positions, D width, H heads, R rows or rotary dims, V vocabulary, E experts, K chosen experts,
//! F inner width of an expert, C channels.

use burn::tensor::activation::{log_softmax, sigmoid, softmax};
use burn::tensor::module::{conv2d, interpolate};
use burn::tensor::ops::{ConvOptions, InterpolateMode, InterpolateOptions};
use burn::tensor::{DType, Int, Tensor};

use crate::{Activation, Conv2dOptions, Precision, QkNorm, Rotary};

/// A matrix product; in bf16 both factors are rounded, and so is the result.
fn product<const D: usize>(a: Tensor<D>, b: Tensor<D>, precision: Precision) -> Tensor<D> {
    match precision {
        Precision::F32 => a.matmul(b),
        Precision::Bf16 => a.cast(DType::BF16).matmul(b.cast(DType::BF16)).cast(DType::F32),
    }
}

/// See [`crate::linear`]; in f32.
pub fn linear<const D: usize>(x: Tensor<D>, weight: Tensor<2>, bias: Option<Tensor<1>>, act: Activation) -> Tensor<D> {
    linear_in(Precision::F32, x, weight, bias, act)
}

/// See [`crate::linear_in`].
pub fn linear_in<const D: usize>(
    precision: Precision,
    x: Tensor<D>,
    weight: Tensor<2>,
    bias: Option<Tensor<1>>,
    act: Activation,
) -> Tensor<D> {
    let mut dims = x.dims();
    let [num_out, num_in] = weight.dims();
    let rows = dims[..D - 1].iter().product::<usize>();
    let mut y = product(x.reshape([rows, num_in]), weight.transpose(), precision);
    if let Some(bias) = bias {
        y = y + bias.unsqueeze::<2>();
    }
    dims[D - 1] = num_out;
    activate(y, act).reshape(dims)
}

/// Applies an activation.
pub fn activate<const D: usize>(x: Tensor<D>, act: Activation) -> Tensor<D> {
    match act {
        Activation::None => x,
        Activation::GeluNew => {
            let cubic = x.clone() * x.clone() * x.clone() * 0.044_715;
            let inner = (x.clone() + cubic) * (2.0 / std::f64::consts::PI).sqrt();
            x * 0.5 * (inner.tanh() + 1.0)
        }
        Activation::GeluErf => burn::tensor::activation::gelu(x),
        Activation::QuickGelu => x.clone() * sigmoid(x * 1.702),
        Activation::Silu => burn::tensor::activation::silu(x),
    }
}

/// See [`crate::layer_norm`].
pub fn layer_norm<const D: usize>(x: Tensor<D>, weight: Tensor<1>, bias: Tensor<1>, eps: f64) -> Tensor<D> {
    let centred = x.clone() - x.mean_dim(D - 1);
    let variance = centred.clone().powi_scalar(2).mean_dim(D - 1);
    centred / (variance + eps).sqrt() * weight.unsqueeze::<D>() + bias.unsqueeze::<D>()
}

/// See [`crate::norm_rotate`].
pub fn norm_rotate(
    x_BLD: Tensor<3>,
    num_heads: usize,
    norm: Option<(Tensor<1>, Tensor<1>, f64)>,
    rotary: Option<Rotary>,
) -> Tensor<3> {
    let [batch, length, width] = x_BLD.dims();
    let head_dim = width / num_heads;
    let mut x_BLHd = x_BLD.reshape([batch, length, num_heads, head_dim]);
    if let Some((weight, bias, eps)) = norm {
        x_BLHd = layer_norm(x_BLHd, weight, bias, eps);
    }
    if let Some(Rotary { cos_BLR, sin_BLR }) = rotary {
        let dims = cos_BLR.dims()[2];
        let half = dims / 2;
        let (cos, sin): (Tensor<4>, Tensor<4>) = (cos_BLR.unsqueeze_dim(2), sin_BLR.unsqueeze_dim(2));
        let turned = x_BLHd.clone().narrow(3, 0, dims);
        let rotated = Tensor::cat(vec![-turned.clone().narrow(3, half, half), turned.clone().narrow(3, 0, half)], 3);
        let turned = turned * cos + rotated * sin;
        x_BLHd = if dims == head_dim { turned } else { Tensor::cat(vec![turned, x_BLHd.narrow(3, dims, head_dim - dims)], 3) };
    }
    x_BLHd.reshape([batch, length, width])
}

/// See [`crate::attention`]; in f32.
pub fn attention(
    q_BLD: Tensor<3>,
    k_BSD: Tensor<3>,
    v_BSD: Tensor<3>,
    num_heads: usize,
    qk_norm: Option<QkNorm>,
    rotary: Option<Rotary>,
    mask_BLS: Option<Tensor<3>>,
) -> Tensor<3> {
    attention_in(Precision::F32, q_BLD, k_BSD, v_BSD, num_heads, qk_norm, rotary, mask_BLS)
}

/// See [`crate::attention`], with products in a precision and softmax in f32.
pub fn attention_in(
    precision: Precision,
    q_BLD: Tensor<3>,
    k_BSD: Tensor<3>,
    v_BSD: Tensor<3>,
    num_heads: usize,
    qk_norm: Option<QkNorm>,
    rotary: Option<Rotary>,
    mask_BLS: Option<Tensor<3>>,
) -> Tensor<3> {
    let [batch, length, width] = q_BLD.dims();
    let keys = mask_BLS.as_ref().map_or(k_BSD.dims()[1], |mask| mask.dims()[2]);
    let [k_BSD, v_BSD] = [k_BSD, v_BSD].map(|x_BSD| x_BSD.narrow(1, 0, keys));
    let head_dim = width / num_heads;
    let (q_norm, k_norm) = match qk_norm {
        Some(n) => (Some((n.q_weight, n.q_bias, n.eps)), Some((n.k_weight, n.k_bias, n.eps))),
        None => (None, None),
    };
    let q = norm_rotate(q_BLD, num_heads, q_norm, rotary.clone());
    let k = norm_rotate(k_BSD, num_heads, k_norm, rotary);
    let heads = |x: Tensor<3>, length: usize| x.reshape([batch, length, num_heads, head_dim]).swap_dims(1, 2);
    let mut scores_BHLS = product(heads(q, length), heads(k, keys).swap_dims(2, 3), precision) * (1.0 / (head_dim as f64).sqrt());
    if let Some(mask) = mask_BLS {
        scores_BHLS = scores_BHLS + mask.unsqueeze_dim::<4>(1);
    }
    let mixed = product(softmax(scores_BHLS, 3), heads(v_BSD, keys), precision);
    mixed.swap_dims(1, 2).reshape([batch, length, width])
}

/// See [`crate::cross_entropy`].
pub fn cross_entropy(logits_RV: Tensor<2>, targets_R: Tensor<1, Int>) -> Tensor<1> {
    let rows = logits_RV.dims()[0];
    let ignored = targets_R.clone().lower_elem(0);
    let safe = targets_R.clamp_min(0).reshape([rows, 1]);
    let picked = log_softmax(logits_RV, 1).gather(1, safe).reshape([rows]);
    (-picked).mask_fill(ignored, 0.0)
}

/// See [`crate::moe_mlp`]; in f32.
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
    moe_mlp_in(Precision::F32, x_RD, expert_index_RK, gates_RK, w1_EFD, b1_EF, w2_EDF, b2_ED, act)
}

/// See [`crate::moe_mlp`]. Dense: every expert sees every row, rows of other experts weigh 0.
#[allow(clippy::too_many_arguments)]
pub fn moe_mlp_in(
    precision: Precision,
    x_RD: Tensor<2>,
    expert_index_RK: Tensor<2, Int>,
    gates_RK: Tensor<2>,
    w1_EFD: Tensor<3>,
    b1_EF: Tensor<2>,
    w2_EDF: Tensor<3>,
    b2_ED: Tensor<2>,
    act: Activation,
) -> Tensor<2> {
    let [rows, width] = x_RD.dims();
    let num_experts = w1_EFD.dims()[0];
    let mut y_RD = Tensor::zeros([rows, width], &x_RD.device());
    for expert in 0..num_experts {
        let pick2 = |t: &Tensor<3>| -> Tensor<2> { t.clone().narrow(0, expert, 1).squeeze_dim(0) };
        let pick1 = |t: &Tensor<2>| -> Tensor<1> { t.clone().narrow(0, expert, 1).squeeze_dim(0) };
        let others = expert_index_RK.clone().not_equal_elem(expert as i64);
        let weight_R1 = gates_RK.clone().mask_fill(others, 0.0).sum_dim(1);
        let inner = linear_in(precision, x_RD.clone(), pick2(&w1_EFD), Some(pick1(&b1_EF)), act);
        y_RD = y_RD + linear_in(precision, inner, pick2(&w2_EDF), Some(pick1(&b2_ED)), Activation::None) * weight_R1;
    }
    y_RD
}

/// See [`crate::conv2d_nhwc`].
pub fn conv2d_nhwc(x_BHWC: Tensor<4>, weight: Tensor<4>, bias: Option<Tensor<1>>, options: Conv2dOptions) -> Tensor<4> {
    let mut x_BCHW = x_BHWC.permute([0, 3, 1, 2]);
    if options.upsample {
        let [_, _, height, width] = x_BCHW.dims();
        x_BCHW = interpolate(x_BCHW, InterpolateOptions::new(InterpolateMode::Nearest).with_output_size([2 * height, 2 * width]));
    }
    let [top, bottom, left, right] = options.padding;
    x_BCHW = x_BCHW.pad((left, right, top, bottom), 0.0);
    let plain = ConvOptions::new([options.stride; 2], [0, 0], [1, 1], 1);
    conv2d(x_BCHW, weight, bias, plain).permute([0, 2, 3, 1])
}

/// See [`crate::group_norm_nhwc`].
pub fn group_norm_nhwc(
    x_BHWC: Tensor<4>,
    weight: Tensor<1>,
    bias: Tensor<1>,
    num_groups: usize,
    eps: f64,
    silu: bool,
) -> Tensor<4> {
    let [batch, height, width, channels] = x_BHWC.dims();
    let grouped_BPGc = x_BHWC.reshape([batch, height * width, num_groups, channels / num_groups]);
    let mean = |t: Tensor<4>| t.mean_dim(1).mean_dim(3);
    let centred = grouped_BPGc.clone() - mean(grouped_BPGc);
    let variance = mean(centred.clone().powi_scalar(2));
    let normal = (centred / (variance + eps).sqrt()).reshape([batch, height, width, channels]);
    let y = normal * weight.unsqueeze::<4>() + bias.unsqueeze::<4>();
    if silu { burn::tensor::activation::silu(y) } else { y }
}

/// See [`crate::sum_of`].
pub fn sum_of(a: Tensor<3>, b: Tensor<3>, c: Tensor<3>, d: Option<Tensor<3>>) -> Tensor<3> {
    let sum = a + b + c;
    match d {
        Some(d) => sum + d,
        None => sum,
    }
}

/// See [`crate::part_of`].
pub fn part_of(x_BLD: Tensor<3>, start: usize, num: usize) -> Tensor<3> {
    x_BLD.narrow(1, start, num)
}

/// See [`crate::add_to_part`].
pub fn add_to_part(x_BLD: Tensor<3>, y_BND: Tensor<3>, start: usize) -> Tensor<3> {
    let (length, num) = (x_BLD.dims()[1], y_BND.dims()[1]);
    let mut parts = vec![x_BLD.clone().narrow(1, start, num) + y_BND];
    if start > 0 {
        parts.insert(0, x_BLD.clone().narrow(1, 0, start));
    }
    let end = start + num;
    if end < length {
        parts.push(x_BLD.narrow(1, end, length - end));
    }
    Tensor::cat(parts, 1)
}
