//! Sequence-level experts over the image part of a sequence as a whole: one routing decision an image, two of four experts.
//! Text positions pass through unchanged. B batch, N image tokens, D width, four experts.

use burn::module::{Module, Param};
use burn::tensor::activation::softmax;
use burn::tensor::{Device, Tensor, TensorData};

use unif2ace_ops::{add_to_part, has_passes, mean_of_part, mix_part, part_of};

use super::{Resampled, Task, top_k};
use crate::config::{ModelConfig, NUM_SEQUENCE_EXPERTS};
use crate::nn::{LayerNorm, Linear};

/// Router and mixing weights of one task's experts: copy, copy, zero, noise (generation) or copy, copy, CLIP, face (understanding).
#[derive(Module, Debug)]
pub struct SequenceGroup {
    /// `[4, D]` on the mean of the image features.
    pub router: Linear,
    /// `[2, 2]`: logits of `(w, 1 - w)` for the third and the fourth expert. The zero expert doesn't use its row.
    pub mix: Param<Tensor<2>>,
    #[module(skip)]
    num_experts_per_image: usize,
}

/// A sublayer of the block: `x_image += scale * SequenceMoe(LayerNorm(x_image))`.
#[derive(Module, Debug)]
pub struct SequenceMoe {
    /// Before the experts.
    pub norm: LayerNorm,
    /// One value a block; 0 makes the sublayer the identity (upcycling is exact).
    pub scale: Param<Tensor<1>>,
    /// Generation.
    pub t2i: SequenceGroup,
    /// Understanding.
    pub mmu: SequenceGroup,
}

impl SequenceGroup {
    fn new(config: &ModelConfig, device: &Device) -> Self {
        Self {
            router: Linear::new(config.hidden_size, NUM_SEQUENCE_EXPERTS, true, device),
            mix: Param::from_tensor(Tensor::zeros([2, 2], device)),
            num_experts_per_image: config.moe.num_sequence_experts_per_image,
        }
    }

    /// Weights of the four experts `[B, 4]` from the mean over the image `[B, D]`, and how many images took each.
    fn gates(&self, pooled_BD: Tensor<2>) -> (Tensor<2>, Vec<u32>) {
        let batch = pooled_BD.dims()[0];
        let device = pooled_BD.device().without_autodiff();
        let probs_B4 = softmax(self.router.forward_f32(pooled_BD), 1);
        let k = self.num_experts_per_image;
        let (indices, counts) = top_k(&probs_B4, k);
        let mut chosen = vec![0.0f32; batch * NUM_SEQUENCE_EXPERTS];
        for (slot, &index) in indices.iter().enumerate() {
            chosen[slot / k * NUM_SEQUENCE_EXPERTS + index as usize] = 1.0;
        }
        let chosen_B4 = Tensor::<2>::from_data(TensorData::new(chosen, [batch, NUM_SEQUENCE_EXPERTS]), &device);
        let kept_B4 = probs_B4 * chosen_B4;
        // The kept weights sum to one, so copy + copy is the identity.
        (kept_B4.clone() / kept_B4.sum_dim(1), counts)
    }

    /// What the third and the fourth expert of a task mix in; without the expert of the zero kind both are features.
    fn features(task: Task, resampled: &Resampled) -> [Option<&Option<Tensor<3>>>; 2] {
        match task {
            Task::T2i => [None, Some(&resampled.noise)],
            Task::Mmu => [Some(&resampled.clip), Some(&resampled.face)],
        }
    }

    /// `[B, N, D] -> [B, N, D]` and how many images took each expert.
    ///
    /// Every expert is linear in the image and one feature, so the weighted sum is `a x + b S3 + c S4` with numbers a, b, c an image.
    pub fn forward(&self, x_BND: Tensor<3>, task: Task, resampled: &Resampled) -> (Tensor<3>, Vec<u32>) {
        let [batch, _, width] = x_BND.dims();
        let (gates_B4, counts) = self.gates(x_BND.clone().mean_dim(1).reshape([batch, width]));
        let gate = |expert: usize| -> Tensor<3> { gates_B4.clone().narrow(1, expert, 1).reshape([batch, 1, 1]) };

        let mut keep_B11 = gate(0) + gate(1);
        let mut y_BND: Option<Tensor<3>> = None;
        let mix_22 = softmax(self.mix.val(), 1);
        for (row, feature) in Self::features(task, resampled).into_iter().enumerate() {
            let Some(feature) = feature else { continue };
            let gate = gate(2 + row);
            match feature {
                None => keep_B11 = keep_B11 + gate,
                Some(feature_BND) => {
                    let weight =
                        |column: usize| -> Tensor<3> { mix_22.clone().narrow(0, row, 1).narrow(1, column, 1).reshape([1, 1, 1]) };
                    keep_B11 = keep_B11 + gate.clone() * weight(0);
                    let part = feature_BND.clone() * (gate * weight(1));
                    y_BND = Some(match y_BND {
                        Some(sum) => sum + part,
                        None => part,
                    });
                }
            }
        }
        let kept = x_BND * keep_B11;
        (y_BND.map_or(kept.clone(), |features| kept + features), counts)
    }

    /// The numbers of [`SequenceGroup::forward`] times `scale`: a for each image, and the features with b and c.
    fn weights(
        &self,
        gates_B4: Tensor<2>,
        task: Task,
        resampled: &Resampled,
        scale: f32,
    ) -> (Vec<f32>, Vec<(Tensor<3>, Vec<f32>)>) {
        let gates: Vec<f32> = gates_B4.into_data().iter::<f32>().collect();
        let mix: Vec<f32> = softmax(self.mix.val(), 1).into_data().iter::<f32>().collect();
        let of = |expert: usize| gates.iter().skip(expert).step_by(NUM_SEQUENCE_EXPERTS);
        let mut keep: Vec<f32> = of(0).zip(of(1)).map(|(first, second)| (first + second) * scale).collect();
        let mut features = Vec::new();
        for (row, feature) in Self::features(task, resampled).into_iter().enumerate() {
            let Some(feature) = feature else { continue };
            let (kept, mixed) = if feature.is_some() { (mix[2 * row], mix[2 * row + 1]) } else { (1.0, 0.0) };
            keep.iter_mut().zip(of(2 + row)).for_each(|(keep, gate)| *keep += gate * kept * scale);
            if let Some(feature_BND) = feature {
                features.push((feature_BND.clone(), of(2 + row).map(|gate| gate * mixed * scale).collect()));
            }
        }
        (keep, features)
    }
}

impl SequenceMoe {
    /// A new sublayer.
    pub fn new(config: &ModelConfig, device: &Device) -> Self {
        Self {
            norm: LayerNorm::new(config.hidden_size, config.layer_norm_eps, device),
            scale: Param::from_tensor(Tensor::full([1], config.moe.sequence_scale_init, device)),
            t2i: SequenceGroup::new(config, device),
            mmu: SequenceGroup::new(config, device),
        }
    }

    /// The group of a task.
    pub fn group(&self, task: Task) -> &SequenceGroup {
        match task {
            Task::T2i => &self.t2i,
            Task::Mmu => &self.mmu,
        }
    }

    /// Applies the sublayer to places `image_start .. image_start + num_tokens` of `[B, L, D]`.
    pub fn forward(
        &self,
        x_BLD: Tensor<3>,
        image_start: usize,
        num_tokens: usize,
        task: Task,
        resampled: &Resampled,
    ) -> (Tensor<3>, Vec<u32>) {
        if has_passes(&x_BLD.device()) {
            let group = self.group(task);
            let n_BLD = self.norm.forward(x_BLD.clone());
            let (gates_B4, counts) = group.gates(mean_of_part(n_BLD.clone(), image_start, num_tokens));
            let scale = self.scale.val().into_data().iter::<f32>().next().unwrap_or_default();
            let (keep_B, features) = group.weights(gates_B4, task, resampled, scale);
            return (mix_part(x_BLD, n_BLD, keep_B, features, image_start, num_tokens), counts);
        }
        let x_BND = part_of(x_BLD.clone(), image_start, num_tokens);
        let (y_BND, counts) = self.group(task).forward(self.norm.forward(x_BND), task, resampled);
        (add_to_part(x_BLD, y_BND * self.scale.val().reshape([1, 1, 1]), image_start), counts)
    }
}
