use serde::{Deserialize, Serialize};
use unif2ace_ops::Activation;

use super::EncoderError;

/// Activation of the MLPs, with the hub's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HiddenAct {
    /// `x sigmoid(1.702 x)`.
    QuickGelu,
    /// The exact form.
    Gelu,
    /// The tanh form.
    GeluNew,
}

impl HiddenAct {
    pub(super) fn activation(self) -> Activation {
        match self {
            Self::QuickGelu => Activation::QuickGelu,
            Self::Gelu => Activation::GeluErf,
            Self::GeluNew => Activation::GeluNew,
        }
    }
}

/// How a picture becomes tokens.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stem {
    /// One linear map of each patch: CLIP exactly.
    #[default]
    Patch,
    /// Convolutions of stride 2 down to the same grid; learns far more from few pictures.
    Conv,
}

/// Picture tower, the hub's field names.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ClipVisionConfig {
    /// Width.
    pub hidden_size: usize,
    /// Inner width of the MLPs.
    pub intermediate_size: usize,
    /// Number of layers.
    pub num_hidden_layers: usize,
    /// Heads of the attention.
    pub num_attention_heads: usize,
    /// Channels of the pictures.
    #[serde(default = "rgb")]
    pub num_channels: usize,
    /// Side of the (square) pictures.
    pub image_size: usize,
    /// Side of the (square) patches.
    pub patch_size: usize,
    /// Activation of the MLPs.
    #[serde(default = "quick_gelu")]
    pub hidden_act: HiddenAct,
    /// Guard of the variance in the norms.
    #[serde(default = "eps")]
    pub layer_norm_eps: f64,
    /// Ours; CLIP's where absent.
    #[serde(default)]
    pub stem: Stem,
}

/// Text tower, the hub's field names.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ClipTextConfig {
    /// Entries of the vocabulary.
    pub vocab_size: usize,
    /// Width.
    pub hidden_size: usize,
    /// Inner width of the MLPs.
    pub intermediate_size: usize,
    /// Number of layers.
    pub num_hidden_layers: usize,
    /// Heads of the attention.
    pub num_attention_heads: usize,
    /// Longest text in tokens.
    pub max_position_embeddings: usize,
    /// Activation of the MLPs.
    #[serde(default = "quick_gelu")]
    pub hidden_act: HiddenAct,
    /// Guard of the variance in the norms.
    #[serde(default = "eps")]
    pub layer_norm_eps: f64,
    /// The token whose first position is pooled. The released CLIP models say 2, which stands for "the largest id of the row".
    #[serde(default = "legacy_eos")]
    pub eos_token_id: i64,
}

/// Both towers and the space they meet in, the hub's field names.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ClipConfig {
    /// The text tower.
    pub text_config: ClipTextConfig,
    /// The picture tower.
    pub vision_config: ClipVisionConfig,
    /// Width of the common space.
    pub projection_dim: usize,
    /// Logarithm of the initial scale of the cosines.
    #[serde(default = "logit_scale")]
    pub logit_scale_init_value: f64,
}

fn rgb() -> usize {
    3
}
fn quick_gelu() -> HiddenAct {
    HiddenAct::QuickGelu
}
fn eps() -> f64 {
    1e-5
}
fn legacy_eos() -> i64 {
    2
}
fn logit_scale() -> f64 {
    2.6592
}

fn wrong<T>(field: &'static str, expected: impl Into<String>, found: impl ToString) -> Result<T, EncoderError> {
    Err(EncoderError::Config { field, expected: expected.into(), found: found.to_string() })
}

fn check_tower(hidden: usize, inner: usize, layers: usize, heads: usize) -> Result<(), EncoderError> {
    if hidden == 0 || hidden > 1 << 16 {
        return wrong("hidden_size", "1 to 65536", hidden);
    }
    if inner == 0 || inner > 1 << 18 {
        return wrong("intermediate_size", "1 to 262144", inner);
    }
    if layers == 0 || layers > 1024 {
        return wrong("num_hidden_layers", "1 to 1024", layers);
    }
    if heads == 0 || !hidden.is_multiple_of(heads) {
        return wrong("num_attention_heads", format!("a divisor of hidden_size {hidden}"), heads);
    }
    Ok(())
}

impl ClipVisionConfig {
    /// openai/clip-vit-large-patch14-336.
    pub fn large_patch14_336() -> Self {
        Self {
            hidden_size: 1024,
            intermediate_size: 4096,
            num_hidden_layers: 24,
            num_attention_heads: 16,
            num_channels: 3,
            image_size: 336,
            patch_size: 14,
            hidden_act: HiddenAct::QuickGelu,
            layer_norm_eps: 1e-5,
            stem: Stem::Patch,
        }
    }

    /// The small model's: 128 pixels, 64 patches, convolutional stem.
    pub fn mini() -> Self {
        Self {
            hidden_size: 160,
            intermediate_size: 640,
            num_hidden_layers: 4,
            num_attention_heads: 5,
            num_channels: 3,
            image_size: 128,
            patch_size: 16,
            hidden_act: HiddenAct::QuickGelu,
            layer_norm_eps: 1e-5,
            stem: Stem::Conv,
        }
    }

    /// Patches of a picture.
    pub fn num_patches(&self) -> usize {
        let side = self.image_size / self.patch_size.max(1);
        side * side
    }

    /// Checks that the numbers describe a network.
    ///
    /// # Errors
    /// Names the first field that does not fit.
    pub fn check(&self) -> Result<(), EncoderError> {
        check_tower(self.hidden_size, self.intermediate_size, self.num_hidden_layers, self.num_attention_heads)?;
        if self.num_channels == 0 || self.num_channels > 1024 {
            return wrong("num_channels", "1 to 1024", self.num_channels);
        }
        if self.image_size == 0 || self.image_size > 1 << 14 {
            return wrong("image_size", "1 to 16384", self.image_size);
        }
        if self.patch_size == 0 || !self.image_size.is_multiple_of(self.patch_size) {
            let expected = format!("a divisor of image_size {}", self.image_size);
            return wrong("patch_size", expected, self.patch_size);
        }
        if self.stem == Stem::Conv && (self.patch_size < 2 || !self.patch_size.is_power_of_two()) {
            return wrong("patch_size", "a power of two with the conv stem", self.patch_size);
        }
        Ok(())
    }
}

impl ClipTextConfig {
    /// Checks that the numbers describe a network.
    ///
    /// # Errors
    /// Names the first field that does not fit.
    pub fn check(&self) -> Result<(), EncoderError> {
        check_tower(self.hidden_size, self.intermediate_size, self.num_hidden_layers, self.num_attention_heads)?;
        if self.vocab_size == 0 || self.vocab_size > 1 << 24 {
            return wrong("vocab_size", "1 to 16777216", self.vocab_size);
        }
        if self.max_position_embeddings == 0 || self.max_position_embeddings > 1 << 16 {
            return wrong("max_position_embeddings", "1 to 65536", self.max_position_embeddings);
        }
        Ok(())
    }
}

impl ClipConfig {
    /// openai/clip-vit-large-patch14-336.
    pub fn large_patch14_336() -> Self {
        Self {
            text_config: ClipTextConfig {
                vocab_size: 49408,
                hidden_size: 768,
                intermediate_size: 3072,
                num_hidden_layers: 12,
                num_attention_heads: 12,
                max_position_embeddings: 77,
                hidden_act: HiddenAct::QuickGelu,
                layer_norm_eps: 1e-5,
                eos_token_id: 2,
            },
            vision_config: ClipVisionConfig::large_patch14_336(),
            projection_dim: 768,
            logit_scale_init_value: 2.6592,
        }
    }

    /// The small model's, over the vocabulary of its own tokenizer.
    pub fn mini(vocab_size: usize, eos_token_id: i64) -> Self {
        Self {
            text_config: ClipTextConfig {
                vocab_size,
                hidden_size: 160,
                intermediate_size: 640,
                num_hidden_layers: 3,
                num_attention_heads: 5,
                max_position_embeddings: 128,
                hidden_act: HiddenAct::QuickGelu,
                layer_norm_eps: 1e-5,
                eos_token_id,
            },
            vision_config: ClipVisionConfig::mini(),
            projection_dim: 128,
            logit_scale_init_value: 2.6592,
        }
    }

    /// Checks that the numbers describe a network.
    ///
    /// # Errors
    /// Names the first field that does not fit.
    pub fn check(&self) -> Result<(), EncoderError> {
        self.text_config.check()?;
        self.vision_config.check()?;
        if self.projection_dim == 0 || self.projection_dim > 1 << 16 {
            return wrong("projection_dim", "1 to 65536", self.projection_dim);
        }
        if !self.logit_scale_init_value.is_finite() {
            return wrong("logit_scale_init_value", "a number", self.logit_scale_init_value);
        }
        Ok(())
    }
}

/// Which token states make the picture's embedding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pooling {
    /// The class token, as CLIP.
    Class,
    /// The mean of the patches; sees small parts sooner when trained on few pictures.
    Mean,
    /// Every patch, narrowed and side by side: each place keeps its own weights, which suits aligned portraits best.
    Grid,
}

/// One attribute of the face network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FaceHead {
    /// The attribute's key in the schema.
    pub name: String,
    /// Number of values, those of the schema in its order.
    pub num_classes: usize,
}

/// Face attribute network.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FaceConfig {
    /// The picture tower.
    pub vision_config: ClipVisionConfig,
    /// Width of the embedding that the classifiers read.
    pub embedding_size: usize,
    /// What is pooled.
    pub pooling: Pooling,
    /// The attributes, in the order of the logits.
    pub heads: Vec<FaceHead>,
}

impl FaceConfig {
    /// The small model's, for a list of (attribute, number of values).
    pub fn mini(heads: impl IntoIterator<Item = (String, usize)>) -> Self {
        Self {
            vision_config: ClipVisionConfig::mini(),
            embedding_size: 256,
            pooling: Pooling::Mean,
            heads: heads.into_iter().map(|(name, num_classes)| FaceHead { name, num_classes }).collect(),
        }
    }

    /// Classes of all attributes together.
    pub fn num_classes(&self) -> usize {
        self.heads.iter().map(|head| head.num_classes).sum()
    }

    /// Checks that the numbers describe a network.
    ///
    /// # Errors
    /// Names the first field that does not fit.
    pub fn check(&self) -> Result<(), EncoderError> {
        self.vision_config.check()?;
        if self.embedding_size == 0 || self.embedding_size > 1 << 16 {
            return wrong("embedding_size", "1 to 65536", self.embedding_size);
        }
        if self.heads.is_empty() || self.heads.len() > 4096 {
            return wrong("heads", "1 to 4096 attributes", self.heads.len());
        }
        for (index, head) in self.heads.iter().enumerate() {
            if head.num_classes < 2 || head.num_classes > 1 << 16 {
                let found = format!("{} for {}", head.num_classes, head.name);
                return wrong("heads", "2 to 65536 classes each", found);
            }
            if self.heads[..index].iter().any(|other| other.name == head.name) {
                return wrong("heads", "each name once", &head.name);
            }
        }
        Ok(())
    }
}
