//! The picture tower. B batch, H height, W width, C channels, P patches, D width.
#![allow(non_snake_case)]

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor};

use super::block::LayerSizes;
use super::{ClipVisionConfig, ConvStem, Encoder, EncoderError, PatchEmbedding, Stem};
use crate::nn::{Embedding, LayerNorm, normal};

/// Class token, patches and positions.
#[derive(Module, Debug)]
pub struct VisionEmbeddings {
    /// `[D]`, the first token of every picture.
    pub class_embedding: Param<Tensor<1>>,
    /// CLIP's; absent with the convolutional stem.
    pub patch_embedding: Option<PatchEmbedding>,
    /// Ours.
    pub stem: Option<ConvStem>,
    /// `[1 + P, D]`.
    pub position_embedding: Embedding,
}

/// The picture tower, with the hub's spelling of the field names.
#[derive(Module, Debug)]
pub struct VisionTransformer {
    /// Pixels to tokens.
    pub embeddings: VisionEmbeddings,
    /// Before the layers (`layrnorm` is the hub's spelling).
    pub pre_layrnorm: LayerNorm,
    /// The layers.
    pub encoder: Encoder,
    /// Over the pooled state only.
    pub post_layernorm: LayerNorm,
    #[module(skip)]
    config: ClipVisionConfig,
}

/// What the picture tower returns.
pub struct VisionOutput {
    /// The state before the last layer without the class token and without norm, `[B, P, D]`: the features of the CLIP expert
    /// (spec of the backbone, 6).
    pub features_BPD: Tensor<3>,
    /// The state after the last layer, without norm, class token first, `[B, 1 + P, D]`.
    pub last_BLD: Tensor<3>,
    /// The normalised class token of the last state, `[B, D]`.
    pub pooled_BD: Tensor<2>,
}

impl VisionTransformer {
    /// A tower with random weights.
    ///
    /// # Errors
    /// When the configuration describes no network.
    pub fn new(config: &ClipVisionConfig, device: &Device) -> Result<Self, EncoderError> {
        config.check()?;
        let (width, eps) = (config.hidden_size, config.layer_norm_eps);
        let (channels, patch) = (config.num_channels, config.patch_size);
        let is_patch = config.stem == Stem::Patch;
        let sizes = LayerSizes {
            width,
            inner: config.intermediate_size,
            num_layers: config.num_hidden_layers,
            num_heads: config.num_attention_heads,
            act: config.hidden_act,
            eps,
        };
        Ok(Self {
            embeddings: VisionEmbeddings {
                class_embedding: normal([width], (width as f64).sqrt().recip(), device),
                patch_embedding: is_patch.then(|| PatchEmbedding::new(channels, width, patch, device)),
                stem: (!is_patch).then(|| ConvStem::new(channels, width, patch, eps, device)),
                position_embedding: Embedding::new(1 + config.num_patches(), width, device),
            },
            pre_layrnorm: LayerNorm::new(width, eps, device),
            encoder: Encoder::new(&sizes, device),
            post_layernorm: LayerNorm::new(width, eps, device),
            config: config.clone(),
        })
    }

    /// The configuration it was built with.
    pub fn config(&self) -> &ClipVisionConfig {
        &self.config
    }

    /// The tokens that enter the first layer, `[B, 1 + P, D]`.
    ///
    /// # Errors
    /// When the pictures are not `[B, image_size, image_size, num_channels]`.
    pub fn embed(&self, pixels_BHWC: Tensor<4>) -> Result<Tensor<3>, EncoderError> {
        let [batch, height, width, channels] = pixels_BHWC.dims();
        let (side, num_channels) = (self.config.image_size, self.config.num_channels);
        if batch == 0 || [height, width, channels] != [side, side, num_channels] {
            return Err(EncoderError::Shape {
                operation: "encode picture",
                expected: format!("[batch, {side}, {side}, {num_channels}]"),
                found: vec![batch, height, width, channels],
                hint: "resize and crop the pictures to the encoder's size, channels last",
            });
        }
        let grid_BhwD = match (&self.embeddings.patch_embedding, &self.embeddings.stem) {
            (Some(patches), _) => patches.forward(pixels_BHWC),
            (None, Some(stem)) => stem.forward(pixels_BHWC),
            (None, None) => {
                return Err(EncoderError::Config {
                    field: "stem",
                    expected: "a patch embedding or a stem".into(),
                    found: "neither".into(),
                });
            }
        };
        let hidden = self.config.hidden_size;
        let patches_BPD = grid_BhwD.reshape([batch, self.config.num_patches(), hidden]);
        let class_B1D = self.embeddings.class_embedding.val().reshape([1, 1, hidden]).expand([batch, 1, hidden]);
        let positions_1LD = self.embeddings.position_embedding.weight.val().unsqueeze::<3>();
        let x_BLD = Tensor::cat(vec![class_B1D, patches_BPD], 1) + positions_1LD;
        Ok(self.pre_layrnorm.forward(x_BLD))
    }

    /// Runs the tower on pictures `[B, H, W, C]`, normalised as in training (see [`super::clip_pixels`]).
    ///
    /// # Errors
    /// When the pictures have another shape than the configuration's.
    pub fn forward(&self, pixels_BHWC: Tensor<4>) -> Result<VisionOutput, EncoderError> {
        let x_BLD = self.embed(pixels_BHWC)?;
        let [batch, length, width] = x_BLD.dims();
        let (before_BLD, last_BLD) = self.encoder.forward(x_BLD, None);
        let class_BD = last_BLD.clone().slice([0..batch, 0..1, 0..width]).reshape([batch, width]);
        Ok(VisionOutput {
            features_BPD: before_BLD.slice([0..batch, 1..length, 0..width]),
            pooled_BD: self.post_layernorm.forward(class_BD),
            last_BLD,
        })
    }
}
