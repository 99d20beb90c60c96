//! One block: attention, dense MLP and routed experts in parallel on one norm, then the sequence-level experts on the image.

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use tracing::debug_span;
use unif2ace_ops::{Activation, Rotary, sum_of};

use super::attention::{Attention, LayerCacheUse};
use crate::config::ModelConfig;
use crate::moe::{MoeStats, Resampled, SequenceMoe, Task, TokenMoe};
use crate::nn::{LayerNorm, Linear};
use crate::packing::PackSource;

/// The dense two-layer MLP; with experts it is the shared one, always on for both tasks.
#[derive(Module, Debug)]
pub struct Mlp {
    /// `[intermediate, D]`.
    pub fc1: Linear,
    /// `[D, intermediate]`.
    pub fc2: Linear,
}

impl Mlp {
    /// A new MLP.
    pub fn new(config: &ModelConfig, device: &Device) -> Self {
        Self {
            fc1: Linear::new(config.hidden_size, config.intermediate_size, true, device),
            fc2: Linear::new(config.intermediate_size, config.hidden_size, true, device),
        }
    }

    /// `[B, L, D] -> [B, L, D]`.
    pub fn forward(&self, x_BLD: Tensor<3>) -> Tensor<3> {
        self.fc2.forward(self.fc1.forward_act(x_BLD, Activation::GeluNew))
    }
}

/// One block.
#[derive(Module, Debug)]
pub struct Block {
    /// The one norm before attention and MLPs.
    pub input_layernorm: LayerNorm,
    /// Attention.
    pub self_attn: Attention,
    /// Dense MLP, the shared expert.
    pub mlp: Mlp,
    /// Routed token-level experts.
    pub moe: Option<TokenMoe>,
    /// Sequence-level experts.
    pub sequence: Option<SequenceMoe>,
}

/// The image among the positions of a pass.
pub(super) struct ImageSpan<'a> {
    pub(super) start: usize,
    pub(super) num_tokens: usize,
    pub(super) resampled: &'a Resampled,
}

impl Block {
    /// A new block.
    pub fn new(config: &ModelConfig, device: &Device) -> Self {
        Self {
            input_layernorm: LayerNorm::new(config.hidden_size, config.layer_norm_eps, device),
            self_attn: Attention::new(config, device),
            mlp: Mlp::new(config, device),
            moe: config.moe.level.token().then(|| TokenMoe::new(config, device)),
            sequence: config.moe.level.sequence().then(|| SequenceMoe::new(config, device)),
        }
    }

    pub(super) fn pack<S: PackSource>(&mut self, path: &str, source: &mut S) -> Result<(), S::Error> {
        self.self_attn.pack(&format!("{path}.self_attn"), source)?;
        self.mlp.fc1.pack(&format!("{path}.mlp.fc1"), source)?;
        self.mlp.fc2.pack(&format!("{path}.mlp.fc2"), source)?;
        if let Some(moe) = &mut self.moe {
            moe.t2i.pack(&format!("{path}.moe.t2i"), source)?;
            moe.mmu.pack(&format!("{path}.moe.mmu"), source)?;
        }
        Ok(())
    }

    /// Queries, keys and values; packed layers meet the inner layer of the MLP at the same time, with the same rows.
    fn project(&self, h_BLD: &Tensor<3>) -> ([Tensor<3>; 3], Option<Tensor<3>>) {
        let _span = debug_span!("projections").entered();
        let attn = &self.self_attn;
        let plain = |layer| (layer, Activation::None);
        let layers = [plain(&attn.q_proj), plain(&attn.k_proj), plain(&attn.v_proj), (&self.mlp.fc1, Activation::GeluNew)];
        match Linear::forward_all(h_BLD, layers) {
            Some([q, k, v, inner]) => ([q, k, v], Some(inner)),
            None => (attn.project(h_BLD.clone()), None),
        }
    }

    #[allow(clippy::too_many_arguments)] // one call site; a struct would only rename the arguments
    pub(super) fn forward(
        &self,
        x_BLD: Tensor<3>,
        rotary: &Rotary,
        mask_BLS: &Tensor<3>,
        real: Option<&[bool]>,
        task: Task,
        image: Option<&ImageSpan<'_>>,
        cache: LayerCacheUse<'_>,
        stats: &mut MoeStats,
    ) -> Tensor<3> {
        let [batch, length, width] = x_BLD.dims();
        let h_BLD = self.input_layernorm.forward(x_BLD.clone());
        let (projected, inner) = self.project(&h_BLD);
        let attended = debug_span!("attention").in_scope(|| self.self_attn.forward(projected, rotary, mask_BLS, cache));
        let dense = debug_span!("mlp").in_scope(|| match inner {
            Some(inner_BLF) => self.mlp.fc2.forward(inner_BLF),
            None => self.mlp.forward(h_BLD.clone()),
        });
        let mut routed_BLD = None;
        if let Some(moe) = &self.moe {
            let _span = debug_span!("token experts").entered();
            let routed = moe.group(task).forward_counting(h_BLD.reshape([batch * length, width]), real);
            routed_BLD = Some(routed.y_RD.reshape([batch, length, width]));
            stats.add(routed.balance_loss, routed.counts, routed.mean_E, routed.num_tokens);
        }
        let mut x_BLD = sum_of(attended, dense, x_BLD, routed_BLD);
        if let (Some(sequence), Some(image)) = (&self.sequence, image) {
            let _span = debug_span!("sequence experts").entered();
            let (y_BLD, counts) = sequence.forward(x_BLD, image.start, image.num_tokens, task, image.resampled);
            x_BLD = y_BLD;
            stats.sequence_use.push(counts);
        }
        x_BLD
    }
}
