//! Token-level experts: a router, the top K of N small MLPs a token, and the balance loss. The shared expert is the block's dense MLP.
//! R rows (tokens), D width, E experts, K chosen experts, F inner width.

use burn::module::{Module, Param};
use burn::tensor::activation::softmax;
use burn::tensor::{Device, Int, Tensor, TensorData};
use unif2ace_ops::{Activation, PackedExperts, moe_mlp, packed_moe_mlp};

use super::Task;
use crate::config::ModelConfig;
use crate::nn::{INIT_STD, Linear, let_go, normal, values};
use crate::packing::{PackSource, WeightRows};

/// One group of routed experts.
#[derive(Module, Debug)]
pub struct TokenExperts {
    /// `[E, D]`, no bias.
    pub router: Linear,
    /// `[E, F, D]`.
    pub fc1_weight: Param<Tensor<3>>,
    /// `[E, F]`.
    pub fc1_bias: Param<Tensor<2>>,
    /// `[E, D, F]`; starts at zero, so that a new group adds nothing (upcycling is exact).
    pub fc2_weight: Param<Tensor<3>>,
    /// `[E, D]`.
    pub fc2_bias: Param<Tensor<2>>,
    #[module(skip)]
    num_experts_per_tok: usize,
    #[module(skip)]
    packed: Option<PackedExperts>,
}

/// Output of the routed experts.
pub struct Routed {
    /// `[R, D]`.
    pub y_RD: Tensor<2>,
    /// `Σ_i f_i P_i`, 1 when use is even.
    pub balance_loss: Tensor<1>,
    /// (token, slot) pairs of each expert.
    pub counts: Vec<u32>,
    /// `P`: the mean probability of each expert, `[E]`.
    pub mean_E: Tensor<1>,
    /// Tokens that count.
    pub num_tokens: usize,
}

impl TokenExperts {
    /// A new group whose output is zero.
    pub fn new(config: &ModelConfig, device: &Device) -> Self {
        let moe = &config.moe;
        let [experts, inner, width] = [moe.num_routed_experts, moe.routed_intermediate_size, config.hidden_size];
        Self {
            router: Linear::new(width, experts, false, device),
            fc1_weight: normal([experts, inner, width], INIT_STD, device),
            fc1_bias: normal([experts, inner], 0.0, device),
            fc2_weight: normal([experts, width, inner], 0.0, device),
            fc2_bias: normal([experts, width], 0.0, device),
            num_experts_per_tok: moe.num_experts_per_tok,
            packed: None,
        }
    }

    /// Packs the experts for inference, see [`Linear::pack`]. The router stays as it is, in f32.
    pub(crate) fn pack<S: PackSource>(&mut self, path: &str, source: &mut S) -> Result<(), S::Error> {
        if self.packed.is_some() {
            return Ok(());
        }
        let mut layer = |name: &str, weight: &Param<Tensor<3>>, bias: &Param<Tensor<2>>| {
            let [experts, num_out, num_in] = weight.lazy_shape().dims();
            let parameter = format!("{path}.{name}_weight");
            let matrices = (0..experts).map(|expert| {
                let rows = expert * num_out..(expert + 1) * num_out;
                source.matrix(&WeightRows { parameter: &parameter, rows, width: num_in }, &|| values(weight))
            });
            let matrices = matrices.collect::<Result<Vec<_>, _>>()?;
            Ok((matrices, source.bias(&format!("{path}.{name}_bias"), experts * num_out, &|| values(bias))?))
        };
        let (first, b1) = layer("fc1", &self.fc1_weight, &self.fc1_bias)?;
        let (second, b2) = layer("fc2", &self.fc2_weight, &self.fc2_bias)?;
        self.packed = Some(PackedExperts::new(first, second, b1, b2));
        (self.fc1_weight, self.fc2_weight) = (let_go(&self.fc1_weight), let_go(&self.fc2_weight));
        Ok(())
    }

    /// `y = Σ_{i in top K} p_i E_i(x)`, not renormalised (DeepSeekMoE's form). The router runs in f32.
    pub fn forward(&self, x_RD: Tensor<2>) -> Routed {
        self.forward_counting(x_RD, None)
    }

    /// As [`TokenExperts::forward`], where only the rows that are `real` count in the balance loss and the statistics: pads are one
    /// repeated vector, which would outweigh the text. With no real row the balance loss is 0.
    pub fn forward_counting(&self, x_RD: Tensor<2>, real: Option<&[bool]>) -> Routed {
        let rows = x_RD.dims()[0];
        let k = self.num_experts_per_tok;
        let probs_RE = softmax(self.router.forward_f32(x_RD.clone()), 1);
        let (indices, mut counts) = top_k(&probs_RE, k);
        let num_real = real.map_or(rows, |real| real.iter().filter(|&&real| real).count());
        if let Some(real) = real {
            for (slots, _) in indices.chunks_exact(k).zip(real).filter(|(_, real)| !**real) {
                slots.iter().for_each(|&expert| counts[expert as usize] -= 1);
            }
        }
        let index_RK = Tensor::<2, Int>::from_data(TensorData::new(indices, [rows, k]), &x_RD.device().without_autodiff());
        let gates_RK = probs_RE.clone().gather(1, index_RK.clone());
        let mean_E: Tensor<1> = match real {
            None => probs_RE.mean_dim(0),
            Some(real) => {
                let weights: Vec<f32> = real.iter().map(|&real| if real { 1.0 / num_real as f32 } else { 0.0 }).collect();
                let weights_R1 = Tensor::<2>::from_data(TensorData::new(weights, [rows, 1]), &x_RD.device().without_autodiff());
                (probs_RE * weights_R1).sum_dim(0)
            }
        }
        .squeeze_dim(0);
        let balance_loss = balance_loss(&mean_E, &counts);
        let act = Activation::GeluNew;
        let y_RD = match &self.packed {
            Some(packed) => packed_moe_mlp(x_RD, index_RK, gates_RK, packed, act),
            None => {
                let (w1, b1) = (self.fc1_weight.val(), self.fc1_bias.val());
                let (w2, b2) = (self.fc2_weight.val(), self.fc2_bias.val());
                moe_mlp(x_RD, index_RK, gates_RK, w1, b1, w2, b2, act)
            }
        };
        Routed { y_RD, balance_loss, counts, mean_E, num_tokens: num_real }
    }
}

/// `Σ_i f_i P_i` of one block: `P` are the mean probabilities `[E]`, and `f` the parts of the tokens' slots that each expert got, times E,
/// so that even routing gives 1.
pub(crate) fn balance_loss(mean_E: &Tensor<1>, counts: &[u32]) -> Tensor<1> {
    let experts = counts.len();
    let scale = experts as f32 / counts.iter().sum::<u32>().max(1) as f32;
    let f: Vec<f32> = counts.iter().map(|&count| count as f32 * scale).collect();
    let f_E = Tensor::<1>::from_data(TensorData::new(f, [experts]), &mean_E.device().without_autodiff());
    (mean_E.clone() * f_E).sum()
}

/// The `k` largest entries of each row of `probs_RE`, largest first (the lower index wins a tie): row-major indices, and how often
/// each column was taken.
pub fn top_k(probs_RE: &Tensor<2>, k: usize) -> (Vec<i64>, Vec<u32>) {
    let [rows, columns] = probs_RE.dims();
    let probs: Vec<f32> = probs_RE.clone().into_data().iter::<f32>().collect();
    let mut indices = Vec::with_capacity(rows * k);
    let mut counts = vec![0; columns];
    for row in probs.chunks_exact(columns) {
        let start = indices.len();
        for _ in 0..k {
            let taken = &indices[start..];
            let mut best: Option<usize> = None;
            for (column, &value) in row.iter().enumerate() {
                let free = !taken.contains(&(column as i64));
                if free && best.is_none_or(|b| value > row[b]) {
                    best = Some(column);
                }
            }
            let best = best.unwrap_or(0);
            counts[best] += 1;
            indices.push(best as i64);
        }
    }
    (indices, counts)
}

/// The two groups; they share nothing but the block's dense MLP.
#[derive(Module, Debug)]
pub struct TokenMoe {
    /// Generation.
    pub t2i: TokenExperts,
    /// Understanding.
    pub mmu: TokenExperts,
}

impl TokenMoe {
    /// Two new groups.
    pub fn new(config: &ModelConfig, device: &Device) -> Self {
        Self { t2i: TokenExperts::new(config, device), mmu: TokenExperts::new(config, device) }
    }

    /// The group of a task.
    pub fn group(&self, task: Task) -> &TokenExperts {
        match task {
            Task::T2i => &self.t2i,
            Task::Mmu => &self.mmu,
        }
    }
}
