//! Both towers and the contrastive loss. B batch, E width of the common space.
#![allow(non_snake_case)]

use burn::module::{Module, Param};
use burn::tensor::{Device, Int, Tensor};
use unif2ace_ops::cross_entropy;

use super::{ClipConfig, EncoderError, TextTransformer, VisionTransformer};
use crate::nn::Linear;

/// Mean and standard deviation of CLIP's pixels (red, green, blue in 0..1).
const MEAN: [f32; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
const STD: [f32; 3] = [0.268_629_54, 0.261_302_58, 0.275_777_11];
/// CLIP never scales cosines by more than 100.
const MAX_LOGIT_SCALE: f64 = 4.605_170_185_988_092;

/// CLIP: pictures and texts in one space. Field paths are the hub's tensor names.
#[derive(Module, Debug)]
pub struct Clip {
    /// The text tower.
    pub text_model: TextTransformer,
    /// The picture tower.
    pub vision_model: VisionTransformer,
    /// Without bias.
    pub visual_projection: Linear,
    /// Without bias.
    pub text_projection: Linear,
    /// Logarithm of the scale, one value (a scalar in the hub's files).
    pub logit_scale: Param<Tensor<1>>,
    #[module(skip)]
    config: ClipConfig,
}

impl Clip {
    /// A network with random weights.
    ///
    /// # Errors
    /// When the configuration describes no network.
    pub fn new(config: &ClipConfig, device: &Device) -> Result<Self, EncoderError> {
        config.check()?;
        let projection = |width: usize| {
            let std = 1.0 / (width as f64).sqrt();
            Linear::with_std(width, config.projection_dim, false, std, device)
        };
        let scale = Tensor::from_floats([config.logit_scale_init_value as f32], device);
        Ok(Self {
            text_model: TextTransformer::new(&config.text_config, device)?,
            vision_model: VisionTransformer::new(&config.vision_config, device)?,
            visual_projection: projection(config.vision_config.hidden_size),
            text_projection: projection(config.text_config.hidden_size),
            logit_scale: Param::from_tensor(scale),
            config: config.clone(),
        })
    }

    /// The configuration it was built with.
    pub fn config(&self) -> &ClipConfig {
        &self.config
    }

    /// Unit vectors `[B, E]` of normalised pictures `[B, H, W, 3]` (see [`clip_pixels`]).
    ///
    /// # Errors
    /// When the pictures have another shape than the configuration's.
    pub fn embed_image(&self, pixels_BHWC: Tensor<4>) -> Result<Tensor<2>, EncoderError> {
        let output = self.vision_model.forward(pixels_BHWC)?;
        Ok(l2_normalise(self.visual_projection.forward(output.pooled_BD)))
    }

    /// Unit vectors `[B, E]` of texts `[B, L]` (ids, see [`TextTransformer::forward`]).
    ///
    /// # Errors
    /// When the texts are longer than the positions.
    pub fn embed_text(&self, ids_BL: Tensor<2, Int>) -> Result<Tensor<2>, EncoderError> {
        let output = self.text_model.forward(ids_BL)?;
        Ok(l2_normalise(self.text_projection.forward(output.pooled_BD)))
    }

    /// The training loss of matching pairs: row i of both belongs together.
    ///
    /// # Errors
    /// When an input has a wrong shape or the numbers of pictures and texts differ.
    pub fn loss(&self, pixels_BHWC: Tensor<4>, ids_BL: Tensor<2, Int>) -> Result<Tensor<1>, EncoderError> {
        let (num_images, num_texts) = (pixels_BHWC.dims()[0], ids_BL.dims()[0]);
        if num_images != num_texts {
            return Err(EncoderError::Shape {
                operation: "contrastive loss",
                expected: format!("{num_images} texts for {num_images} pictures"),
                found: ids_BL.dims().to_vec(),
                hint: "give one text for each picture",
            });
        }
        let image_BE = self.embed_image(pixels_BHWC)?;
        let text_BE = self.embed_text(ids_BL)?;
        Ok(contrastive_loss(image_BE, text_BE, self.logit_scale.val()))
    }
}

/// Pictures `[B, H, W, 3]` in -1..1 as CLIP takes them.
pub fn clip_pixels(pixels_BHWC: Tensor<4>) -> Tensor<4> {
    let device = pixels_BHWC.device().without_autodiff();
    let of = |values: [f32; 3]| Tensor::<1>::from_floats(values, &device).reshape([1, 1, 1, 3]);
    ((pixels_BHWC + 1.0) * 0.5 - of(MEAN)) / of(STD)
}

/// Rows scaled to length 1 (a zero row stays zero).
pub fn l2_normalise(x_BE: Tensor<2>) -> Tensor<2> {
    let length_B1 = x_BE.clone().square().sum_dim(1).clamp_min(1e-24).sqrt();
    x_BE / length_B1
}

/// Radford et al. 2021: cross-entropy of the scaled cosines, pictures over texts and texts over pictures, mean of both. Rows are unit
/// vectors `[B, E]`; `logit_scale` is the logarithm of the scale, which is held at 100 or below.
pub fn contrastive_loss(image_BE: Tensor<2>, text_BE: Tensor<2>, logit_scale: Tensor<1>) -> Tensor<1> {
    let batch = image_BE.dims()[0];
    let scale = logit_scale.clamp_max(MAX_LOGIT_SCALE).exp().reshape([1, 1]);
    let logits_BB = image_BE.matmul(text_BE.transpose()) * scale;
    let device = logits_BB.device().without_autodiff();
    let own_B = Tensor::<1, Int>::arange(0..batch as i64, &device);
    let images = cross_entropy(logits_BB.clone(), own_B.clone()).mean();
    let texts = cross_entropy(logits_BB.transpose(), own_B).mean();
    (images + texts) * 0.5
}
