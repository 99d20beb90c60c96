//! The two grouped levels of the mixture of experts (arXiv 2503.08120): one group of experts a task.

mod features;
mod sequence;
mod token;

pub(crate) use features::NOISE_FREQUENCIES;
pub use features::{ExpertFeatures, FeatureResamplers, Resampled, Resampler};
pub use sequence::{SequenceGroup, SequenceMoe};
pub(crate) use token::balance_loss;
pub use token::{TokenExperts, TokenMoe, top_k};

use burn::tensor::Tensor;

/// Which group of experts a sequence uses. Text-only rows count as understanding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Task {
    /// Text to image.
    T2i,
    /// Multimodal understanding.
    Mmu,
}

/// What the routers of one forward pass did.
#[derive(Debug, Clone, Default)]
pub struct MoeStats {
    /// Sum over blocks of `Σ_i f_i P_i`, one value; `None` without token-level experts.
    pub balance_loss: Option<Tensor<1>>,
    /// Per block: how many (token, slot) pairs each routed expert got.
    pub token_use: Vec<Vec<u32>>,
    /// Per block: the mean of the routed experts' probabilities over the tokens that count, `[E]`.
    pub token_means: Vec<Tensor<1>>,
    /// Tokens that count, the same in every block.
    pub num_tokens: usize,
    /// Per block: how many images took each sequence expert.
    pub sequence_use: Vec<Vec<u32>>,
}

impl MoeStats {
    /// Adds what the token-level router of the next block did.
    pub(crate) fn add(&mut self, balance_loss: Tensor<1>, counts: Vec<u32>, mean_E: Tensor<1>, num_tokens: usize) {
        self.balance_loss = Some(match self.balance_loss.take() {
            Some(sum) => sum + balance_loss,
            None => balance_loss,
        });
        self.token_use.push(counts);
        self.token_means.push(mean_E);
        self.num_tokens = num_tokens;
    }
}
