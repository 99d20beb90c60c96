//! Which tensors weight decay acts on.

use serde::{Deserialize, Serialize};

/// Groups of parameters for weight decay.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DecayGroups {
    /// Tensors of two or more axes decay: neither biases nor norms.
    #[default]
    Corrected,
    /// As Show-o's trainer: everything decays whose name has none of four words in it, which were written for another
    /// model. Here only `bias` occurs, so the weights of norms and the embedding decay too.
    Reference,
}

/// Words in the names of parameters that Show-o's trainer leaves out.
const NO_DECAY: [&str; 4] = ["bias", "layer_norm.weight", "mlm_ln.weight", "embeddings.weight"];

impl DecayGroups {
    /// Whether the tensor at `path` decays.
    pub fn decays(self, path: &str, shape: &[usize]) -> bool {
        match self {
            Self::Corrected => shape.len() >= 2,
            Self::Reference => !NO_DECAY.iter().any(|word| path.contains(word)),
        }
    }
}
