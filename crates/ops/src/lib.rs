//! The operations that decide the model's speed, as functions of burn tensors.
//!
//! Each has a portable body in stock tensor operations ([`portable`]). Shapes: B batch, L query positions, S key positions, D width,
//! H heads, R rows or rotary dims, V vocabulary, E experts, K chosen experts, F inner width of an expert, C channels.
#![allow(non_snake_case)] // tensor names carry their shape

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, Ordering};

use burn::backend::{Dispatch, DispatchDevice};
use burn::tensor::{Device, Int, Tensor};
use unif2ace_kernels::activation::Activation as KernelActivation;
use unif2ace_kernels::gemm::Precision as KernelPrecision;

use cpu::CpuOps;
use experts::ExpertOps;
use pictures::PictureOps;

pub use packed::{
    PackedConv, PackedExperts, PackedLinear, PackedTable, pack_conv2d, pack_experts, pack_linear, packed_conv2d, packed_linear,
    packed_linears, packed_moe_mlp,
};
pub use parts::{add_to_part, part_of, sum_of};
pub use passes::{attention_after, has_passes, mean_of_part, mix_part, rounded};
pub use recompute::{Recomputed, Run, Traced};
pub use taps::{PartialGradients, TapListener, WatchedGradient, listen_to_taps, tap, watch_gradient};
pub use unif2ace_kernels::cpu::{Level as CpuLevel, MASK as CPU_MASK, level as cpu_level, unknown_mask as unknown_cpu_mask};
pub use unif2ace_kernels::gemm::{Element, Matrix, PackedMatrix, Part, WeightFormat};
pub use unif2ace_kernels::map::MappedFile;
pub use unif2ace_kernels::memory::{AlignedAllocator, keep_freed_memory};
pub use unif2ace_kernels::optim::{AdamW as AdamWParams, adamw as adamw_step, moving_average, scale, sum_of_squares};
pub use unif2ace_kernels::pool::{Awake, join_pool, keep_awake};
pub use unif2ace_kernels::store::Store;
pub use unif2ace_kernels::table::Table;

mod cpu;
mod experts;
mod packed;
mod parts;
mod passes;
mod pictures;
pub mod portable;
mod recompute;
mod taps;

static PORTABLE: AtomicBool = AtomicBool::new(false);

/// For tests: the CPU takes the portable bodies as every other device does, from here on, or its kernels again. No such device is needed then to
/// test what runs on one.
pub fn force_portable(force: bool) {
    PORTABLE.store(force, Ordering::Relaxed);
}

/// Whether the device is burn's CPU backend, on which the kernels run.
pub fn on_cpu(device: &Device) -> bool {
    !PORTABLE.load(Ordering::Relaxed) && matches!(device.clone().inner().as_dispatch(), DispatchDevice::Flex(_))
}

fn kernel_precision() -> KernelPrecision {
    precision().into()
}

impl From<Precision> for KernelPrecision {
    fn from(precision: Precision) -> Self {
        match precision {
            Precision::F32 => Self::F32,
            Precision::Bf16 => Self::Bf16,
        }
    }
}

impl From<Activation> for KernelActivation {
    fn from(act: Activation) -> Self {
        match act {
            Activation::None => Self::None,
            Activation::GeluNew => Self::GeluNew,
            Activation::GeluErf => Self::GeluErf,
            Activation::QuickGelu => Self::QuickGelu,
            Activation::Silu => Self::Silu,
        }
    }
}

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

/// Precision of matrix products; what goes in and comes out is f32 either way. Off the CPU only those of linear layers, attention and experts
/// follow it, and a product in bf16 is rounded itself as well.
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

thread_local! {
    static HERE: Cell<Option<Precision>> = const { Cell::new(None) };
}

/// Does `work` in a precision of its own, whatever other threads compute in.
pub fn in_precision<R>(precision: Precision, work: impl FnOnce() -> R) -> R {
    struct Back(Option<Precision>);
    impl Drop for Back {
        fn drop(&mut self) {
            HERE.set(self.0);
        }
    }
    let _back = Back(HERE.replace(Some(precision)));
    work()
}

/// The precision of matrix products that this thread asks for: that of [`in_precision`], else the process-wide one.
pub fn precision() -> Precision {
    if let Some(here) = HERE.get() {
        return here;
    }
    if BF16.load(Ordering::Relaxed) { Precision::Bf16 } else { Precision::F32 }
}

/// `act(x W^T + b)` over the last axis: `x` `[.., in]`, `weight` `[out, in]`, `bias` `[out]`.
pub fn linear<const D: usize>(x: Tensor<D>, weight: Tensor<2>, bias: Option<Tensor<1>>, act: Activation) -> Tensor<D> {
    linear_in(precision(), x, weight, bias, act)
}

/// [`linear`] in a precision of its own, for products that must not follow the process-wide one, such as a router's.
pub fn linear_in<const D: usize>(
    precision: Precision,
    x: Tensor<D>,
    weight: Tensor<2>,
    bias: Option<Tensor<1>>,
    act: Activation,
) -> Tensor<D> {
    if !on_cpu(&x.device()) {
        return portable::linear_in(precision, x, weight, bias, act);
    }
    let mut dims = x.dims();
    let [num_out, num_in] = weight.dims();
    let rows = dims[..D - 1].iter().product::<usize>();
    dims[D - 1] = num_out;
    let bias = bias.unwrap_or_else(|| Tensor::zeros([num_out], &x.device().without_autodiff()));
    let y = Dispatch::f2_linear(
        x.reshape([rows, num_in]).into_dispatch(),
        weight.into_dispatch(),
        bias.into_dispatch(),
        act.into(),
        precision.into(),
    );
    Tensor::<2>::from_dispatch(y).reshape(dims)
}

/// An activation by itself: [`linear`] without one, and then this, gives what [`linear`] with it gives, to the bit.
pub fn activate<const D: usize>(x: Tensor<D>, act: Activation) -> Tensor<D> {
    if act == Activation::None {
        return x;
    }
    if !on_cpu(&x.device()) {
        return portable::activate(x, act);
    }
    let dims = x.dims();
    let width = dims[D - 1];
    let rows = dims[..D - 1].iter().product::<usize>();
    Tensor::<2>::from_dispatch(Dispatch::f2_activate(x.reshape([rows, width]).into_dispatch(), act.into())).reshape(dims)
}

/// Layer norm over the last axis with biased variance; `weight` and `bias` have its length.
pub fn layer_norm<const D: usize>(x: Tensor<D>, weight: Tensor<1>, bias: Tensor<1>, eps: f64) -> Tensor<D> {
    if !on_cpu(&x.device()) {
        return portable::layer_norm(x, weight, bias, eps);
    }
    let dims = x.dims();
    let width = dims[D - 1];
    let rows = dims[..D - 1].iter().product::<usize>();
    let y = Dispatch::f2_layer_norm(
        x.reshape([rows, width]).into_dispatch(),
        weight.into_dispatch(),
        bias.into_dispatch(),
        eps as f32,
    );
    Tensor::<2>::from_dispatch(y).reshape(dims)
}

/// Softmax attention of H heads on unpermuted `[B, L, H * head_dim]`: norm of queries and keys, rotary on the first R dims of a head,
/// `q k / sqrt(head_dim) + mask`, softmax over keys, times v. `mask` is additive `[B or 1, L, S]` and gets no gradient. Keys and values may
/// have room for positions to come behind those that the mask knows of; what is there is not looked at. Where [`has_passes`], they may be
/// kept in bf16.
pub fn attention(
    q_BLD: Tensor<3>,
    k_BSD: Tensor<3>,
    v_BSD: Tensor<3>,
    num_heads: usize,
    qk_norm: Option<QkNorm>,
    rotary: Option<Rotary>,
    mask_BLS: Option<Tensor<3>>,
) -> Tensor<3> {
    let device = q_BLD.device();
    if !on_cpu(&device) {
        return portable::attention_in(precision(), q_BLD, k_BSD, v_BSD, num_heads, qk_norm, rotary, mask_BLS);
    }
    let (q_norm, k_norm) = match qk_norm {
        Some(n) => (Some((n.q_weight, n.q_bias, n.eps)), Some((n.k_weight, n.k_bias, n.eps))),
        None => (None, None),
    };
    let q_BLD = norm_rotate(q_BLD, num_heads, q_norm, rotary.clone());
    let k_BSD = norm_rotate(k_BSD, num_heads, k_norm, rotary);
    let masked = mask_BLS.is_some();
    let mask_BLS = mask_BLS.unwrap_or_else(|| Tensor::zeros([1, 1, 1], &device.without_autodiff()));
    Tensor::from_dispatch(Dispatch::f2_attention(
        q_BLD.into_dispatch(),
        k_BSD.into_dispatch(),
        v_BSD.into_dispatch(),
        mask_BLS.into_dispatch(),
        masked,
        num_heads,
        kernel_precision(),
    ))
}

/// The part of [`attention`] before the scores, for keys that are cached: `norm` is (weight, bias, eps).
pub fn norm_rotate(
    x_BLD: Tensor<3>,
    num_heads: usize,
    norm: Option<(Tensor<1>, Tensor<1>, f64)>,
    rotary: Option<Rotary>,
) -> Tensor<3> {
    if !on_cpu(&x_BLD.device()) {
        return portable::norm_rotate(x_BLD, num_heads, norm, rotary);
    }
    let [batch, length, width] = x_BLD.dims();
    let mut x_BLD = x_BLD;
    if let Some((weight, bias, eps)) = norm {
        let heads = x_BLD.reshape([batch, length, num_heads, width / num_heads]);
        x_BLD = layer_norm(heads, weight, bias, eps).reshape([batch, length, width]);
    }
    match rotary {
        Some(Rotary { cos_BLR, sin_BLR }) if cos_BLR.dims()[2] > 0 => Tensor::from_dispatch(Dispatch::f2_rotate(
            x_BLD.into_dispatch(),
            cos_BLR.into_dispatch(),
            sin_BLR.into_dispatch(),
            num_heads,
        )),
        _ => x_BLD,
    }
}

/// Cross-entropy of each row in nats: `[R]`; 0 where the target is negative.
pub fn cross_entropy(logits_RV: Tensor<2>, targets_R: Tensor<1, Int>) -> Tensor<1> {
    if !on_cpu(&logits_RV.device()) {
        return portable::cross_entropy(logits_RV, targets_R);
    }
    Tensor::from_dispatch(Dispatch::f2_cross_entropy(logits_RV.into_dispatch(), targets_R.into_dispatch()))
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
    if !on_cpu(&x_RD.device()) {
        return portable::moe_mlp_in(precision(), x_RD, expert_index_RK, gates_RK, w1_EFD, b1_EF, w2_EDF, b2_ED, act);
    }
    Tensor::from_dispatch(Dispatch::f2_moe(
        x_RD.into_dispatch(),
        expert_index_RK.into_dispatch(),
        gates_RK.into_dispatch(),
        w1_EFD.into_dispatch(),
        b1_EF.into_dispatch(),
        w2_EDF.into_dispatch(),
        b2_ED.into_dispatch(),
        act.into(),
        kernel_precision(),
    ))
}

/// Convolution, NHWC in and out; `weight` is `[out, in, kernel height, kernel width]` as in checkpoints.
pub fn conv2d_nhwc(x_BHWC: Tensor<4>, weight: Tensor<4>, bias: Option<Tensor<1>>, options: Conv2dOptions) -> Tensor<4> {
    let device = x_BHWC.device();
    if !on_cpu(&device) {
        return portable::conv2d_nhwc(x_BHWC, weight, bias, options);
    }
    let bias = bias.unwrap_or_else(|| Tensor::zeros([weight.dims()[0]], &device.without_autodiff()));
    Tensor::from_dispatch(Dispatch::f2_conv2d(
        x_BHWC.into_dispatch(),
        weight.into_dispatch(),
        bias.into_dispatch(),
        options,
        kernel_precision(),
    ))
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
    if !on_cpu(&x_BHWC.device()) {
        return portable::group_norm_nhwc(x_BHWC, weight, bias, num_groups, eps, silu);
    }
    Tensor::from_dispatch(Dispatch::f2_group_norm(
        x_BHWC.into_dispatch(),
        weight.into_dispatch(),
        bias.into_dispatch(),
        num_groups,
        eps as f32,
        silu,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_precision_of_its_own_ends_with_the_work_and_is_for_one_thread() {
        let before = precision();
        in_precision(Precision::Bf16, || {
            assert_eq!(precision(), Precision::Bf16);
            in_precision(Precision::F32, || assert_eq!(precision(), Precision::F32));
            assert_eq!(precision(), Precision::Bf16);
            assert_eq!(std::thread::scope(|scope| scope.spawn(precision).join().ok()), Some(before));
        });
        assert_eq!(precision(), before);
        assert!(std::panic::catch_unwind(|| in_precision(Precision::Bf16, || std::panic::resume_unwind(Box::new(())))).is_err());
        assert_eq!(precision(), before);
    }
}
