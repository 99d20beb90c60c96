//! Sizes of the unified transformer, in the field names of Hugging Face configs.

use serde::{Deserialize, Serialize};

use crate::moe::{NOISE_FREQUENCIES, Task};

/// What is wrong with a configuration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "model config: {field}: expected {expected}, found {found}\nhint: compare with `ModelConfig::base()` or a shipped config.json"
)]
pub struct ConfigError {
    /// The field.
    pub field: &'static str,
    /// What it may be.
    pub expected: String,
    /// What it is.
    pub found: String,
}

/// Which levels of the mixture of experts exist (the paper's Table 4).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MoeLevel {
    /// The dense backbone.
    None,
    /// Token-level experts only.
    Token,
    /// Sequence-level experts only.
    Sequence,
    /// Both levels.
    #[default]
    Both,
}

impl MoeLevel {
    /// Whether the token level exists.
    pub fn token(self) -> bool {
        matches!(self, Self::Token | Self::Both)
    }

    /// Whether the sequence level exists.
    pub fn sequence(self) -> bool {
        matches!(self, Self::Sequence | Self::Both)
    }
}

/// Sizes of the experts (arXiv 2503.08120).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MoeConfig {
    /// Levels in use.
    pub level: MoeLevel,
    /// Routed experts of each group.
    pub num_routed_experts: usize,
    /// Routed experts a token takes.
    pub num_experts_per_tok: usize,
    /// Inner width of a routed expert.
    pub routed_intermediate_size: usize,
    /// Sequence experts an image takes, of the four of its group.
    pub num_sequence_experts_per_image: usize,
    /// Start of the sequence branch's per-block scale: 0 for upcycling (exact), above 0 for training from scratch.
    pub sequence_scale_init: f64,
    /// Width of the CLIP patch features.
    pub clip_dim: usize,
    /// Width of the face feature.
    pub face_dim: usize,
    /// Tokens that the face feature and the noise embedding are spread over before the resampler.
    pub num_feature_tokens: usize,
    /// Width of these tokens.
    pub feature_token_dim: usize,
}

/// Number of sequence-level experts of each group, fixed by their kinds: copy, copy, zero, noise and copy, copy, CLIP, face.
pub const NUM_SEQUENCE_EXPERTS: usize = 4;

/// Sizes of the unified transformer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelConfig {
    /// Text, special, image and mask tokens.
    pub vocab_size: usize,
    /// Width D.
    pub hidden_size: usize,
    /// Blocks.
    pub num_hidden_layers: usize,
    /// Heads H.
    pub num_attention_heads: usize,
    /// Inner width of the dense MLP, which is the shared expert.
    pub intermediate_size: usize,
    /// Part of a head's dims that is rotated.
    #[serde(default = "default_rotary_factor")]
    pub partial_rotary_factor: f64,
    /// Base of the rotary angles.
    #[serde(default = "default_rope_theta")]
    pub rope_theta: f64,
    /// Guard of every layer norm's variance.
    #[serde(default = "default_norm_eps")]
    pub layer_norm_eps: f64,
    /// Layer norm on queries and keys (always on in Show-o).
    #[serde(default = "default_true")]
    pub qk_layernorm: bool,
    /// Text tokens; `[PAD]` and the nine task tokens follow them.
    pub llm_vocab_size: usize,
    /// `[PAD]` and the nine task tokens.
    #[serde(default = "default_num_special")]
    pub num_new_special_tokens: usize,
    /// `<|endoftext|>`: begin, end and unknown of text.
    pub eot_token_id: u32,
    /// Image codes.
    pub codebook_size: usize,
    /// Image tokens N of a picture.
    pub num_vq_tokens: usize,
    /// Text budget M of a prompt.
    pub max_seq_length: usize,
    /// How a question is put, `{question}` being its place.
    #[serde(default = "default_question_template")]
    pub question_template: String,
    /// Width of the features that `mm_projector` maps (the CLIP variant of Show-o); absent without one.
    #[serde(default)]
    pub mm_projector_dim: Option<usize>,
    /// The experts.
    pub moe: MoeConfig,
}

fn default_rotary_factor() -> f64 {
    0.5
}
fn default_rope_theta() -> f64 {
    10_000.0
}
fn default_norm_eps() -> f64 {
    1e-5
}
fn default_true() -> bool {
    true
}
fn default_num_special() -> usize {
    10
}
fn default_question_template() -> String {
    "USER: \n{question} ASSISTANT:".into()
}

/// Ids of the tokens that are no text (as in Show-o).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpecialIds {
    /// `<|endoftext|>`, also the start of text.
    pub eot: u32,
    /// `[PAD]`.
    pub pad: u32,
    /// Start of image.
    pub soi: u32,
    /// End of image.
    pub eoi: u32,
    /// Start of video.
    pub sov: u32,
    /// End of video.
    pub eov: u32,
    /// Task: text to image.
    pub t2i: u32,
    /// Task: understanding.
    pub mmu: u32,
    /// Task: text to video.
    pub t2v: u32,
    /// Task: video to video.
    pub v2v: u32,
    /// Task: language-vision generation.
    pub lvg: u32,
    /// First image code.
    pub image_offset: u32,
    /// Masked image token.
    pub mask: u32,
}

impl ModelConfig {
    /// The 1.8B-parameter model: Show-o's backbone with both levels of experts.
    pub fn base() -> Self {
        Self {
            vocab_size: 58_498,
            hidden_size: 2048,
            num_hidden_layers: 24,
            num_attention_heads: 32,
            intermediate_size: 8192,
            partial_rotary_factor: 0.5,
            rope_theta: 10_000.0,
            layer_norm_eps: 1e-5,
            qk_layernorm: true,
            llm_vocab_size: 50_295,
            num_new_special_tokens: 10,
            eot_token_id: 50_256,
            codebook_size: 8192,
            num_vq_tokens: 256,
            max_seq_length: 128,
            question_template: default_question_template(),
            mm_projector_dim: None,
            moe: MoeConfig {
                level: MoeLevel::Both,
                num_routed_experts: 8,
                num_experts_per_tok: 4,
                routed_intermediate_size: 256,
                num_sequence_experts_per_image: 2,
                sequence_scale_init: 0.0,
                clip_dim: 1024,
                face_dim: 512,
                num_feature_tokens: 4,
                feature_token_dim: 256,
            },
        }
    }

    /// The small model that ships: 128 pixels, 64 image tokens, 1,600 text tokens.
    pub fn mini() -> Self {
        Self {
            vocab_size: 1600 + 10 + 8192 + 1,
            hidden_size: 256,
            num_hidden_layers: 7,
            num_attention_heads: 4,
            intermediate_size: 768,
            llm_vocab_size: 1600,
            eot_token_id: 1599,
            num_vq_tokens: 64,
            question_template: "{question}\n".into(),
            moe: MoeConfig {
                routed_intermediate_size: 48,
                sequence_scale_init: 0.5,
                clip_dim: 192,
                face_dim: 256,
                num_feature_tokens: 8,
                feature_token_dim: 128,
                ..Self::base().moe
            },
            ..Self::base()
        }
    }

    /// Width of a head.
    pub fn head_dim(&self) -> usize {
        self.hidden_size / self.num_attention_heads.max(1)
    }

    /// Rotated dims of a head.
    pub fn rotary_dim(&self) -> usize {
        (self.head_dim() as f64 * self.partial_rotary_factor).round() as usize
    }

    /// Reads a config.json; keys that mean nothing here are ignored.
    ///
    /// # Errors
    /// When a field is missing or of another kind, or the numbers describe no network.
    pub fn from_json(text: &str) -> Result<Self, ConfigError> {
        let config: Self = serde_json::from_str(text).map_err(|error| ConfigError {
            field: "config.json",
            expected: "a transformer's config".into(),
            found: error.to_string(),
        })?;
        config.check()?;
        Ok(config)
    }

    /// Parameters in all, and those that a token of `task` meets: not the other group's experts, and of its own group's routed experts only
    /// as many as are chosen.
    pub fn num_parameters(&self, task: Task) -> (usize, usize) {
        let (width, moe) = (self.hidden_size, &self.moe);
        let linear = |num_in: usize, num_out: usize| num_in * num_out + num_out;
        let norms = if self.qk_layernorm { 4 * self.head_dim() } else { 0 };
        let mlp = linear(width, self.intermediate_size) + linear(self.intermediate_size, width);
        let block = 2 * width + 4 * linear(width, width) + norms + mlp;
        let mut total = self.num_hidden_layers * block + 2 * width + self.vocab_size * width + linear(width, self.vocab_size);
        total += self.mm_projector_dim.map_or(0, |dim| linear(dim, width) + linear(width, width));
        let mut idle = 0;
        if moe.level.token() {
            let expert = linear(width, moe.routed_intermediate_size) + linear(moe.routed_intermediate_size, width);
            let group = moe.num_routed_experts * (width + expert);
            total += self.num_hidden_layers * 2 * group;
            idle += self.num_hidden_layers * (group + (moe.num_routed_experts - moe.num_experts_per_tok) * expert);
        }
        if moe.level.sequence() {
            let group = linear(width, NUM_SEQUENCE_EXPERTS) + 4;
            let resampler = |dim: usize| self.num_vq_tokens * width + 2 * dim + 2 * linear(dim, width) + linear(width, width);
            let spread = moe.num_feature_tokens * moe.feature_token_dim;
            let noise = linear(2 * NOISE_FREQUENCIES, width) + linear(width, spread) + resampler(moe.feature_token_dim);
            let sight = resampler(moe.clip_dim) + linear(moe.face_dim, spread) + resampler(moe.feature_token_dim);
            total += self.num_hidden_layers * (2 * width + 1 + 2 * group) + noise + sight;
            idle += self.num_hidden_layers * group + if task == Task::T2i { sight } else { noise };
        }
        (total, total - idle)
    }

    /// Ids of the tokens that are no text.
    pub fn special_ids(&self) -> SpecialIds {
        let pad = self.llm_vocab_size as u32;
        SpecialIds {
            eot: self.eot_token_id,
            pad,
            soi: pad + 1,
            eoi: pad + 2,
            sov: pad + 3,
            eov: pad + 4,
            t2i: pad + 5,
            mmu: pad + 6,
            t2v: pad + 7,
            v2v: pad + 8,
            lvg: pad + 9,
            image_offset: pad + self.num_new_special_tokens as u32,
            mask: self.vocab_size as u32 - 1,
        }
    }

    /// Checks that the numbers describe a network.
    ///
    /// # Errors
    /// Names the first field that does not fit.
    pub fn check(&self) -> Result<(), ConfigError> {
        let wrong = |field, expected: String, found: String| Err(ConfigError { field, expected, found });
        for (field, value) in [
            ("hidden_size", self.hidden_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("num_attention_heads", self.num_attention_heads),
            ("intermediate_size", self.intermediate_size),
            ("llm_vocab_size", self.llm_vocab_size),
            ("codebook_size", self.codebook_size),
            ("num_vq_tokens", self.num_vq_tokens),
            ("max_seq_length", self.max_seq_length),
        ] {
            if value == 0 || value > 1 << 20 {
                return wrong(field, "1 to 1048576".into(), value.to_string());
            }
        }
        for (field, value) in [
            ("num_hidden_layers", self.num_hidden_layers),
            ("num_new_special_tokens", self.num_new_special_tokens),
            ("moe.num_routed_experts", self.moe.num_routed_experts),
        ] {
            if value > 1 << 12 {
                return wrong(field, "at most 4096".into(), value.to_string());
            }
        }
        if !self.hidden_size.is_multiple_of(self.num_attention_heads) {
            return wrong(
                "hidden_size",
                format!("a multiple of {} heads", self.num_attention_heads),
                self.hidden_size.to_string(),
            );
        }
        let rotary = self.rotary_dim();
        if !(0.0..=1.0).contains(&self.partial_rotary_factor) || !rotary.is_multiple_of(2) {
            return wrong(
                "partial_rotary_factor",
                "0 to 1, giving an even number of dims".into(),
                self.partial_rotary_factor.to_string(),
            );
        }
        let vocab = self.llm_vocab_size + self.num_new_special_tokens + self.codebook_size + 1;
        if self.vocab_size != vocab || self.num_new_special_tokens != 10 {
            return wrong(
                "vocab_size",
                format!("text + 10 special + image codes + 1 mask = {vocab}"),
                self.vocab_size.to_string(),
            );
        }
        if self.eot_token_id as usize >= self.llm_vocab_size {
            return wrong("eot_token_id", format!("below llm_vocab_size {}", self.llm_vocab_size), self.eot_token_id.to_string());
        }
        let moe = &self.moe;
        if moe.num_experts_per_tok == 0 || moe.num_experts_per_tok > moe.num_routed_experts {
            return wrong(
                "moe.num_experts_per_tok",
                format!("1 to {} routed experts", moe.num_routed_experts),
                moe.num_experts_per_tok.to_string(),
            );
        }
        if !(1..=NUM_SEQUENCE_EXPERTS).contains(&moe.num_sequence_experts_per_image) {
            return wrong("moe.num_sequence_experts_per_image", "1 to 4".into(), moe.num_sequence_experts_per_image.to_string());
        }
        for (field, value) in [
            ("moe.routed_intermediate_size", moe.routed_intermediate_size),
            ("moe.clip_dim", moe.clip_dim),
            ("moe.face_dim", moe.face_dim),
            ("moe.num_feature_tokens", moe.num_feature_tokens),
            ("moe.feature_token_dim", moe.feature_token_dim),
        ] {
            if value == 0 || value > 1 << 20 {
                return wrong(field, "1 to 1048576".into(), value.to_string());
            }
        }
        for (field, value, low) in [("layer_norm_eps", self.layer_norm_eps, 0.0), ("rope_theta", self.rope_theta, 1.0)] {
            if !(value.is_finite() && value > low) {
                return wrong(field, format!("above {low}"), value.to_string());
            }
        }
        if !moe.sequence_scale_init.is_finite() {
            return wrong("moe.sequence_scale_init", "a number".into(), moe.sequence_scale_init.to_string());
        }
        if self.max_seq_length < 2 {
            return wrong("max_seq_length", "at least 2".into(), self.max_seq_length.to_string());
        }
        if !self.question_template.contains("{question}") {
            return wrong("question_template", "text with {question} in it".into(), format!("{:?}", self.question_template));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shipped_configs_are_whole_and_ids_are_the_spec_s() {
        ModelConfig::mini().check().unwrap();
        let base = ModelConfig::base();
        base.check().unwrap();
        let ids = base.special_ids();
        assert_eq!((ids.pad, ids.soi, ids.t2i, ids.mmu, ids.lvg), (50_295, 50_296, 50_300, 50_301, 50_304));
        assert_eq!((ids.image_offset, ids.mask, ids.eot), (50_305, 58_497, 50_256));
        assert_eq!((base.head_dim(), base.rotary_dim()), (64, 32));
    }

    #[test]
    fn the_full_model_has_about_1_8_billion_parameters() {
        let mut base = ModelConfig::base();
        let (total, generation) = base.num_parameters(Task::T2i);
        let understanding = base.num_parameters(Task::Mmu).1;
        assert_eq!((total, generation, understanding), (1_876_349_466, 1_557_885_786, 1_564_969_818));
        base.moe.level = MoeLevel::None;
        assert_eq!(base.num_parameters(Task::Mmu), (1_448_176_770, 1_448_176_770));
        base.mm_projector_dim = Some(1024);
        assert_eq!(base.num_parameters(Task::T2i).0, 1_454_472_322);
    }

    #[test]
    fn configs_survive_json_and_unknown_keys() {
        let mini = ModelConfig::mini();
        let text = serde_json::to_string(&mini).unwrap().replacen('{', "{\"load_from_showo\": true, ", 1);
        assert_eq!(ModelConfig::from_json(&text).unwrap(), mini);
        assert!(ModelConfig::from_json("{}").unwrap_err().to_string().contains("missing field"));
        assert!(ModelConfig::from_json(&text.replace("\"hidden_size\":256", "\"hidden_size\":0")).is_err());
    }

    #[test]
    fn a_wrong_number_is_named() {
        let mut config = ModelConfig::mini();
        config.num_attention_heads = 7;
        assert_eq!(config.check().unwrap_err().field, "hidden_size");
        let mut config = ModelConfig::mini();
        config.vocab_size += 1;
        assert_eq!(config.check().unwrap_err().field, "vocab_size");
    }
}
