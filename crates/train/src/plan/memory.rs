//! How much memory a run takes, by formula (docs/scaling.md, "Memory on the CPU").

use serde::Serialize;
use unif2ace_model::config::ModelConfig;

use crate::recipe::{OptimizerConfig, Recipe, UnifiedRecipe};

/// Bytes of an f32.
const F32: u64 = 4;

/// Bytes at the peak of a step, on one rank.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// All parameters, f32.
    pub weights: u64,
    /// Of the trained parameters: the graph's and the optimiser's copy, and with several passes the sum of those before.
    pub gradients: u64,
    /// First and second moments.
    pub moments: u64,
    /// The moving average of the weights.
    pub ema: u64,
    /// What the backward pass needs of the forward pass; `None` where there is no formula.
    pub activations: Option<u64>,
    /// The sum.
    pub total: u64,
}

impl Memory {
    /// Of a recipe whose part has so many parameters, in all and trained.
    pub(super) fn of(recipe: &Recipe, optimizer: &OptimizerConfig, all: u64, trained: u64) -> Self {
        let copies = if optimizer.accumulation_steps > 1 { 3 } else { 2 };
        let weights = F32 * all;
        let gradients = copies * F32 * trained;
        let moments = 2 * F32 * trained;
        let ema = if optimizer.ema_decay > 0.0 { F32 * trained } else { 0 };
        let activations = activations(recipe, optimizer);
        let total = weights + gradients + moments + ema + activations.unwrap_or(0);
        Self { weights, gradients, moments, ema, activations, total }
    }
}

/// Rows of the longest kind: a full prompt, the image, three marks.
pub(super) fn row_length(config: &ModelConfig) -> usize {
    config.max_seq_length + config.num_vq_tokens + 3
}

/// Rows of all tasks in one pass.
pub(super) fn rows_of_unified(unified: &UnifiedRecipe, batch_size: usize) -> usize {
    let counts = |coeff: f64, rows: usize| if coeff == 0.0 { 0 } else { rows };
    counts(unified.t2i_coeff, batch_size)
        + counts(unified.mmu_coeff, unified.mmu_batch_size)
        + counts(unified.text_coeff, unified.text_batch_size)
}

fn activations(recipe: &Recipe, optimizer: &OptimizerConfig) -> Option<u64> {
    let passes = optimizer.accumulation_steps.max(1);
    if let Some(unified) = &recipe.unified {
        let rows = rows_of_unified(unified, optimizer.batch_size) / passes;
        return Some(F32 * rows as u64 * values_of_row(unified) as u64);
    }
    let tower = |width: usize, inner: usize, heads: usize, layers: usize, length: usize| {
        layers * length * (10 * width + 2 * inner + heads * length)
    };
    let vision = |config: &unif2ace_model::encoders::ClipVisionConfig| {
        let length = (config.image_size / config.patch_size.max(1)).pow(2) + 1;
        tower(config.hidden_size, config.intermediate_size, config.num_attention_heads, config.num_hidden_layers, length)
    };
    let values = match (&recipe.face, &recipe.clip) {
        (Some(face), _) => vision(&face.vision_config),
        (_, Some(clip)) => {
            let text = &clip.config.text_config;
            let length = text.max_position_embeddings;
            let layers = text.num_hidden_layers;
            vision(&clip.config.vision_config)
                + tower(text.hidden_size, text.intermediate_size, text.num_attention_heads, layers, length)
        }
        _ => return None,
    };
    Some(F32 * (optimizer.batch_size / passes * values) as u64)
}

/// Values kept of a row of the unified transformer: blocks in full or as their input alone, one block being computed again, and the head's
/// logits with their gradient.
fn values_of_row(unified: &UnifiedRecipe) -> usize {
    let config = &unified.config;
    let length = row_length(config);
    let num_blocks = config.num_hidden_layers;
    let num_recomputed = unified.recompute.num_of(num_blocks);
    let full = values_of_block(config);
    let input = length * config.hidden_size;
    let again = if num_recomputed > 0 { full } else { 0 };
    // While a recomputed block runs again, the blocks above it are free: the larger of the two moments counts.
    let kept = (num_blocks - num_recomputed) * full;
    let head = 2 * config.num_vq_tokens * config.codebook_size;
    num_recomputed * input + kept.max(again) + head + 3 * input
}

/// Values kept of a block and row: the input and its norm, queries, keys and values before and after norm and rotation, what attention
/// mixed, its weights, the MLP before and after its activation, the chosen experts' inner values, and the image's part four times.
fn values_of_block(config: &ModelConfig) -> usize {
    let (width, length) = (config.hidden_size, row_length(config));
    let attention = 8 * width + config.num_attention_heads * length;
    let mlp = 2 * config.intermediate_size;
    let moe = &config.moe;
    let token = if moe.level.token() {
        moe.num_experts_per_tok * moe.routed_intermediate_size + 4 * moe.num_routed_experts + 2 * width
    } else {
        0
    };
    let sequence = if moe.level.sequence() { 5 * width * config.num_vq_tokens } else { 0 };
    length * (attention + mlp + token) + sequence
}
