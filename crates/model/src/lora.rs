//! Low-rank adapters (LoRA, Hu et al. 2021): beside its weights a linear layer adds `alpha / rank * B A x`, and only A `[rank, in]` and B
//! `[out, rank]` are trained. A starts random and B as zero, so a new adapter changes nothing.

use burn::module::{Initializer, Module, Param};
use burn::tensor::{Tensor, TensorData};

use crate::moe::Resampler;
use crate::nn::{Linear, normal, values};
use crate::transformer::Unif2ace;

/// What A is called below its layer.
pub const LORA_A: &str = "lora_A.weight";
/// What B is called below its layer.
pub const LORA_B: &str = "lora_B.weight";

/// One of the two factors of an adapter.
#[derive(Module, Debug)]
pub struct Factor {
    /// A `[rank, in]` or B `[out, rank]`.
    pub weight: Param<Tensor<2>>,
}

/// Whether a path is that of an adapter's factor.
pub fn is_adapter(path: &str) -> bool {
    [LORA_A, LORA_B].iter().any(|name| path.strip_suffix(name).is_some_and(|layer| layer.ends_with('.')))
}

/// Adds `scale * B A` to the weights W `[out, in]`, in f32.
pub fn add_low_rank(w: &mut [f32], a: &[f32], b: &[f32], rank: usize, scale: f32) {
    let num_in = a.len() / rank.max(1);
    for (row, b) in w.chunks_exact_mut(num_in.max(1)).zip(b.chunks_exact(rank.max(1))) {
        let mut update = vec![0.0; num_in];
        for (a, &b) in a.chunks_exact(num_in.max(1)).zip(b) {
            update.iter_mut().zip(a).for_each(|(sum, &a)| *sum += b * a);
        }
        row.iter_mut().zip(update).for_each(|(w, update)| *w += scale * update);
    }
}

impl Linear {
    /// Puts a new adapter beside the weights: A uniform within `1 / sqrt(in)` (as in the authors' loralib), B zero.
    fn add_lora(&mut self, rank: usize, alpha: f64) {
        let [num_out, num_in] = self.weight.lazy_shape().dims();
        let device = self.weight.lazy_device();
        let bound = (num_in as f64).sqrt().recip();
        let down = Initializer::Uniform { min: -bound, max: bound };
        self.lora_A = Some(Factor { weight: down.init([rank, num_in], &device) });
        self.lora_B = Some(Factor { weight: normal([num_out, rank], 0.0, &device) });
        self.lora_scale = (alpha / rank as f64) as f32;
    }

    /// Takes the adapter into the weights.
    fn merge_lora(&mut self) {
        let Some((down, up)) = self.lora_A.take().zip(self.lora_B.take()) else { return };
        let shape = self.weight.dims();
        let mut merged = values(&self.weight);
        add_low_rank(&mut merged, &values(&down.weight), &values(&up.weight), down.weight.dims()[0], self.lora_scale);
        self.weight = self.weight.clone().map(|old| {
            let new = Tensor::from_data(TensorData::new(merged, shape), &old.device());
            if old.is_require_grad() { new.require_grad() } else { new }
        });
    }
}

/// Calls `visit` with path and layer of every linear layer, in the order of the model's parameters.
fn for_each_linear(model: &mut Unif2ace, visit: &mut dyn FnMut(&str, &mut Linear)) {
    for (index, block) in model.showo.model.layers.iter_mut().enumerate() {
        let mut visit = |name: &str, layer: &mut Linear| visit(&format!("showo.model.layers.{index}.{name}"), layer);
        let attention = &mut block.self_attn;
        visit("self_attn.q_proj", &mut attention.q_proj);
        visit("self_attn.k_proj", &mut attention.k_proj);
        visit("self_attn.v_proj", &mut attention.v_proj);
        visit("self_attn.dense", &mut attention.dense);
        visit("mlp.fc1", &mut block.mlp.fc1);
        visit("mlp.fc2", &mut block.mlp.fc2);
        if let Some(moe) = &mut block.moe {
            visit("moe.t2i.router", &mut moe.t2i.router);
            visit("moe.mmu.router", &mut moe.mmu.router);
        }
        if let Some(sequence) = &mut block.sequence {
            visit("sequence.t2i.router", &mut sequence.t2i.router);
            visit("sequence.mmu.router", &mut sequence.mmu.router);
        }
    }
    visit("showo.lm_head", &mut model.showo.lm_head);
    if let Some((first, _, last)) = &mut model.mm_projector {
        visit("mm_projector.0", first);
        visit("mm_projector.2", last);
    }
    if let Some(resamplers) = &mut model.resamplers {
        let mut resampler = |name: &str, resampler: &mut Resampler| {
            visit(&format!("resamplers.{name}.k_proj"), &mut resampler.k_proj);
            visit(&format!("resamplers.{name}.v_proj"), &mut resampler.v_proj);
            visit(&format!("resamplers.{name}.dense"), &mut resampler.dense);
        };
        resampler("noise", &mut resamplers.noise);
        resampler("clip", &mut resamplers.clip);
        resampler("face", &mut resamplers.face);
        visit("resamplers.noise_fc1", &mut resamplers.noise_fc1);
        visit("resamplers.noise_fc2", &mut resamplers.noise_fc2);
        visit("resamplers.face_tokens", &mut resamplers.face_tokens);
    }
}

impl Unif2ace {
    /// Paths of the linear layers, which may get an adapter each.
    pub fn linear_layers(&self) -> Vec<String> {
        let mut paths = Vec::new();
        for_each_linear(&mut self.clone(), &mut |path, _| paths.push(path.to_owned()));
        paths
    }

    /// Puts a new adapter beside each linear layer whose path is among the `targets`.
    #[must_use]
    pub fn with_lora(mut self, rank: usize, alpha: f64, targets: impl Fn(&str) -> bool) -> Self {
        for_each_linear(&mut self, &mut |path, layer| {
            if targets(path) {
                layer.add_lora(rank, alpha);
            }
        });
        self
    }

    /// Takes the adapters into the weights; a model without adapters stays as it is.
    pub fn merge_lora(&mut self) {
        for_each_linear(self, &mut |_, layer| layer.merge_lora());
    }
}
