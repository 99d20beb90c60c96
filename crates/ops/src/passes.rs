//! Passes over hidden states that inference takes at once where training takes them operation by operation.

use burn::backend::flex::{FlexTensor, Layout};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Dispatch, DispatchDevice, Flex, backend_extension};
use burn::tensor::{Bytes, DType, Device, Tensor};
use unif2ace_kernels::attention::{self, Mask, Past};
use unif2ace_kernels::gemm::Precision;
use unif2ace_kernels::rows::{self, Feature};

use crate::cpu::{dims, tensor, values, with_keys_values};
use crate::{kernel_precision, on_cpu};

/// Whether [`mean_of_part`], [`mix_part`], [`rounded`] and [`attention_after`] work on the device: burn's CPU backend without gradients.
pub fn has_passes(device: &Device) -> bool {
    on_cpu(device) && matches!(device.clone().as_dispatch(), DispatchDevice::Flex(_))
}

/// The operations as burn sees them.
#[backend_extension(Flex)]
pub trait PassOps: Backend {
    /// See [`mean_of_part`].
    fn f2_mean_of_part(x: FloatTensor<Self>, start: usize, num: usize) -> FloatTensor<Self>;
    /// See [`mix_part`]; features after the first `count` don't count.
    fn f2_mix_part(
        x: FloatTensor<Self>,
        n: FloatTensor<Self>,
        weights: [Vec<f32>; 3],
        first: FloatTensor<Self>,
        second: FloatTensor<Self>,
        count: usize,
        start: usize,
        num: usize,
    ) -> FloatTensor<Self>;
    /// See [`rounded`].
    fn f2_rounded(x: FloatTensor<Self>) -> FloatTensor<Self>;
    /// See [`attention_after`]: `q`, `k`, `v` and the keys and values before them.
    fn f2_attention_after(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        past_k: FloatTensor<Self>,
        past_v: FloatTensor<Self>,
        held: usize,
        mask: FloatTensor<Self>,
        heads: usize,
        precision: Precision,
    ) -> FloatTensor<Self>;
}

impl PassOps for Flex {
    fn f2_mean_of_part(x: FlexTensor, start: usize, num: usize) -> FlexTensor {
        let [batch, length, width] = dims(&x);
        tensor(rows::mean(&values(&x), length, width, start..start + num), [batch, width])
    }

    fn f2_mix_part(
        x: FlexTensor,
        n: FlexTensor,
        weights: [Vec<f32>; 3],
        first: FlexTensor,
        second: FlexTensor,
        count: usize,
        start: usize,
        num: usize,
    ) -> FlexTensor {
        let [_, length, width] = dims(&x);
        let [keep, v, w] = &weights;
        let (first, second) = (values(&first), values(&second));
        let features = [Feature { values: &first, weights: v }, Feature { values: &second, weights: w }];
        let mixed = rows::mix(&values(&x), &values(&n), keep, &features[..count], length, width, start..start + num);
        tensor(mixed, dims::<3>(&x))
    }

    fn f2_rounded(x: FlexTensor) -> FlexTensor {
        FlexTensor::new(
            Bytes::from_elems(rows::rounded(&values(&x))),
            Layout::contiguous(x.layout().shape().clone()),
            DType::BF16,
        )
    }

    fn f2_attention_after(
        q: FlexTensor,
        k: FlexTensor,
        v: FlexTensor,
        past_k: FlexTensor,
        past_v: FlexTensor,
        held: usize,
        mask: FlexTensor,
        heads: usize,
        precision: Precision,
    ) -> FlexTensor {
        let [batch, queries, width] = dims(&q);
        let keys = dims::<3>(&k)[1];
        let [rows, room, _] = dims(&past_k);
        let shape = attention::Shape { batch, queries, keys, key_room: keys, heads, head_dim: width / heads };
        let mask_values = values(&mask);
        let mask = Mask { values: &mask_values, rows: dims::<3>(&mask)[0] };
        let mixed = with_keys_values(&past_k, &past_v, |keys_values| {
            let past = Past { keys_values, keys: held, room, rows };
            with_keys_values(&k, &v, |new| attention::infer(&values(&q), new, Some(past), Some(mask), shape, precision))
        });
        tensor(mixed, [batch, queries, width])
    }
}

/// Means over `num` positions from `start`: `[B, L, D]` to `[B, D]`.
pub fn mean_of_part(x_BLD: Tensor<3>, start: usize, num: usize) -> Tensor<2> {
    Tensor::from_dispatch(Dispatch::f2_mean_of_part(x_BLD.into_dispatch(), start, num))
}

/// `x + keep n + Σ weight feature` at `num` positions from `start`, x elsewhere. `x` and `n` are `[B, L, D]`, `keep` and the weights B values,
/// the at most two features `[1 or B, num, D]`.
pub fn mix_part(
    x_BLD: Tensor<3>,
    n_BLD: Tensor<3>,
    keep_B: Vec<f32>,
    features: Vec<(Tensor<3>, Vec<f32>)>,
    start: usize,
    num: usize,
) -> Tensor<3> {
    let count = features.len().min(2);
    let mut features = features.into_iter();
    let mut next = || features.next().unwrap_or_else(|| (x_BLD.clone(), Vec::new()));
    let ((first, v), (second, w)) = (next(), next());
    let [x, n, first, second] = [x_BLD, n_BLD, first, second].map(Tensor::into_dispatch);
    Tensor::from_dispatch(Dispatch::f2_mix_part(x, n, [keep_B, v, w], first, second, count, start, num))
}

/// The same numbers in bf16, by the fast way of this CPU.
pub fn rounded(x: Tensor<3>) -> Tensor<3> {
    Tensor::from_dispatch(Dispatch::f2_rounded(x.into_dispatch()))
}

/// Softmax attention of H heads as [`crate::attention`] without norm and rotation, over the first `held` positions of `past` (keys and values,
/// `[1 or B, room, D]`, in f32 or bf16) and the new ones behind them, which are not copied together. The mask is `[1 or B, L, held + S]`.
pub fn attention_after(
    [q_BLD, k_BSD, v_BSD]: [Tensor<3>; 3],
    [past_k, past_v]: [Tensor<3>; 2],
    held: usize,
    mask_BLS: Tensor<3>,
    num_heads: usize,
) -> Tensor<3> {
    let [q, k, v, past_k, past_v, mask] = [q_BLD, k_BSD, v_BSD, past_k, past_v, mask_BLS].map(Tensor::into_dispatch);
    Tensor::from_dispatch(Dispatch::f2_attention_after(q, k, v, past_k, past_v, held, mask, num_heads, kernel_precision()))
}
