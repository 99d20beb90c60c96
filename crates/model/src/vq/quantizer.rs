//! Lookup-free quantisation: each channel of the code is one bit. B batch, h and w the token grid, N = h * w, C bits.
#![allow(non_snake_case)]

use burn::tensor::activation::sigmoid;
use burn::tensor::{Device, Int, Tensor, TensorData};

use super::VqError;

/// What the quantiser makes of the encoder's output.
pub struct Quantized {
    /// +-1 (up to rounding) `[B, h, w, C]`; gradients pass straight through to the encoder.
    pub codes_BhwC: Tensor<4>,
    /// Codebook indices `[B, h*w]`, row by row; channel 0 is the most significant bit.
    pub indices_BN: Tensor<2, Int>,
    /// Pulls the encoder's output to its codes, weighted as in the reference. One value.
    pub commit_loss: Tensor<1>,
    /// `0.1 * (mean entropy - entropy of the mean)`: certain for each token, varied over the batch. One value.
    pub entropy_loss: Tensor<1>,
}

/// Soft use of the codebook by a batch, for training. Entropies in nats per bit, at most ln 2.
pub struct CodeUse {
    /// Mean entropy of a bit of one token; low when decided.
    pub token_entropy: Tensor<1>,
    /// Entropy of a bit's mean over the batch; high when both values are used.
    pub batch_entropy: Tensor<1>,
    /// Mean square of the correlation between different bits over the batch; low when bits say different things. Balanced but
    /// equal bits would leave most of the codebook unused, which the entropies per bit do not see.
    pub correlation: Tensor<1>,
}

/// `p ln p` with the limit 0 at 0.
fn p_log_p<const D: usize>(p: Tensor<D>) -> Tensor<D> {
    p.clone().clamp_min(1e-30).log() * p
}

fn two_way_entropy<const D: usize>(p: Tensor<D>, one_minus_p: Tensor<D>) -> Tensor<D> {
    (p_log_p(p) + p_log_p(one_minus_p)).neg()
}

/// Means over tokens per bit, then over bits. The two-way softmax of `[-(z-1)^2, -(z+1)^2] * sharpness` is `sigmoid(4 z sharpness)`.
fn entropies(z_BhwC: &Tensor<4>, sharpness: f64) -> (Tensor<1>, Tensor<1>, Tensor<2>) {
    let [batch, height, width, bits] = z_BhwC.dims();
    let x_RC = z_BhwC.clone().reshape([batch * height * width, bits]) * (4.0 * sharpness);
    let on_RC = sigmoid(x_RC.clone());
    let off_RC = sigmoid(x_RC.neg());
    let token = two_way_entropy(on_RC.clone(), off_RC.clone()).mean();
    let batch = two_way_entropy(on_RC.clone().mean_dim(0), off_RC.mean_dim(0)).mean();
    (token, batch, on_RC)
}

/// Quantises `[B, h, w, C]`: bit i is `z_i > 0`, code +-1 (spec of the backbone, 5.4).
pub fn quantize(z_BhwC: Tensor<4>) -> Quantized {
    let [batch, height, width, bits] = z_BhwC.dims();
    let device = z_BhwC.device();
    let z_fixed = z_BhwC.clone().detach();
    let on_BhwC = z_fixed.clone().greater_scalar(0.0);
    let exact_BhwC = on_BhwC.clone().float() * 2.0 - 1.0;

    let powers: Vec<i64> = (0..bits).rev().map(|bit| 1i64 << bit).collect();
    let powers_C = Tensor::<1, Int>::from_data(TensorData::new(powers, [bits]), &device.clone().without_autodiff());
    let indices_BN =
        on_BhwC.without_autodiff().int().mul(powers_C.reshape([1, 1, 1, bits])).sum_dim(3).reshape([batch, height * width]);

    let codes_BhwC = z_BhwC.clone() + (exact_BhwC.clone() - z_fixed.clone());
    let to_code = (exact_BhwC - z_BhwC.clone()).square().mean();
    let from_code = (codes_BhwC.clone() - z_fixed).square().mean();
    let (token, batch, _) = entropies(&z_BhwC, 1.0);
    Quantized { codes_BhwC, indices_BN, commit_loss: (to_code + from_code * 0.25) * 0.1, entropy_loss: (token - batch) * 0.1 }
}

/// How the batch uses the codebook, differentiable. `sharpness` scales the assumed certainty (1 as in the reference).
pub fn code_use(z_BhwC: Tensor<4>, sharpness: f64) -> CodeUse {
    let (token_entropy, batch_entropy, on_RC) = entropies(&z_BhwC, sharpness);
    let [rows, bits] = on_RC.dims();
    let soft_RC = on_RC * 2.0 - 1.0;
    let centred_RC = soft_RC.clone() - soft_RC.mean_dim(0);
    let scale_1C = (centred_RC.clone().square().mean_dim(0) + 1e-4).sqrt();
    let unit_RC = centred_RC / scale_1C;
    let correlation_CC = unit_RC.clone().transpose().matmul(unit_RC) / rows as f64;
    let off_diagonal = Tensor::<2>::ones([bits, bits], &correlation_CC.device()) - Tensor::eye(bits, &correlation_CC.device());
    let num_pairs = (bits * bits.saturating_sub(1)).max(1) as f64;
    CodeUse { token_entropy, batch_entropy, correlation: (correlation_CC.square() * off_diagonal).sum() / num_pairs }
}

/// The exact +-1 codes of `B * h * w` indices: `[B, h, w, C]`.
///
/// # Errors
/// When an index is outside the codebook or the indices don't fill whole grids.
pub fn lookup(indices: &[u32], [height, width]: [usize; 2], bits: usize, device: &Device) -> Result<Tensor<4>, VqError> {
    let per_image = height * width;
    if per_image == 0 || indices.is_empty() || !indices.len().is_multiple_of(per_image) {
        return Err(VqError::NumIndices { found: indices.len(), height, width });
    }
    let codebook_size = 1usize << bits;
    if let Some((position, &index)) = indices.iter().enumerate().find(|(_, index)| **index as usize >= codebook_size) {
        return Err(VqError::IndexOutOfRange { index, position, codebook_size });
    }
    let codes: Vec<f32> =
        indices.iter().flat_map(|index| (0..bits).rev().map(move |bit| if index >> bit & 1 == 1 { 1.0 } else { -1.0 })).collect();
    let shape = [indices.len() / per_image, height, width, bits];
    Ok(Tensor::from_data(TensorData::new(codes, shape), device))
}
