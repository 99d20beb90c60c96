//! The text tower: causal attention, pooled at the end token. B batch, L tokens, D width.
#![allow(non_snake_case)]

use burn::module::Module;
use burn::tensor::{Device, Int, IntDType, Tensor};

use super::block::LayerSizes;
use super::{ClipTextConfig, Encoder, EncoderError};
use crate::nn::{Embedding, LayerNorm};

/// In the released configurations this id stands for "the largest id of the row" instead of a token.
const LEGACY_EOS: i64 = 2;
/// Ids may come in any width; positions are computed in one that every device has.
const INDEX: IntDType = IntDType::I32;

/// Tokens and positions.
#[derive(Module, Debug)]
pub struct TextEmbeddings {
    /// `[vocabulary, D]`.
    pub token_embedding: Embedding,
    /// `[longest text, D]`.
    pub position_embedding: Embedding,
}

/// The text tower.
#[derive(Module, Debug)]
pub struct TextTransformer {
    /// Ids to vectors.
    pub embeddings: TextEmbeddings,
    /// The layers.
    pub encoder: Encoder,
    /// After the layers.
    pub final_layer_norm: LayerNorm,
    #[module(skip)]
    config: ClipTextConfig,
}

/// What the text tower returns.
pub struct TextOutput {
    /// Normalised states, `[B, L, D]`.
    pub last_BLD: Tensor<3>,
    /// The state at the end token, `[B, D]`.
    pub pooled_BD: Tensor<2>,
}

impl TextTransformer {
    /// A tower with random weights.
    ///
    /// # Errors
    /// When the configuration describes no network.
    pub fn new(config: &ClipTextConfig, device: &Device) -> Result<Self, EncoderError> {
        config.check()?;
        let width = config.hidden_size;
        let sizes = LayerSizes {
            width,
            inner: config.intermediate_size,
            num_layers: config.num_hidden_layers,
            num_heads: config.num_attention_heads,
            act: config.hidden_act,
            eps: config.layer_norm_eps,
        };
        Ok(Self {
            embeddings: TextEmbeddings {
                token_embedding: Embedding::new(config.vocab_size, width, device),
                position_embedding: Embedding::new(config.max_position_embeddings, width, device),
            },
            encoder: Encoder::new(&sizes, device),
            final_layer_norm: LayerNorm::new(width, config.layer_norm_eps, device),
            config: config.clone(),
        })
    }

    /// The configuration it was built with.
    pub fn config(&self) -> &ClipTextConfig {
        &self.config
    }

    /// Runs the tower on ids `[B, L]` below the vocabulary's size, padded on the right with anything: what follows the end
    /// token is never seen. A row without end token is pooled at its first position, as the hub's code does.
    ///
    /// # Errors
    /// When the rows are longer than the positions.
    pub fn forward(&self, ids_BL: Tensor<2, Int>) -> Result<TextOutput, EncoderError> {
        let [batch, length] = ids_BL.dims();
        let longest = self.config.max_position_embeddings;
        if batch == 0 || length == 0 || length > longest {
            return Err(EncoderError::Shape {
                operation: "encode text",
                expected: format!("[batch, 1 to {longest}]"),
                found: vec![batch, length],
                hint: "cut the text, keeping the end token",
            });
        }
        let width = self.config.hidden_size;
        let device = ids_BL.device().without_autodiff();
        let positions_LD = self.embeddings.position_embedding.weight.val().slice([0..length, 0..width]);
        let x_BLD = self.embeddings.token_embedding.forward(ids_BL.clone()) + positions_LD.unsqueeze::<3>();
        let mask_1LL = causal_mask(length, &x_BLD.device());
        let (_, last_BLD) = self.encoder.forward(x_BLD, Some(mask_1LL));
        let last_BLD = self.final_layer_norm.forward(last_BLD);

        let ends_B = end_positions(ids_BL, self.config.eos_token_id);
        let first_B = Tensor::<1, Int>::arange(0..batch as i64, &device).cast(INDEX) * length as i64;
        let pooled_BD = last_BLD.clone().reshape([batch * length, width]).select(0, ends_B + first_B);
        Ok(TextOutput { last_BLD, pooled_BD })
    }
}

fn end_positions(ids_BL: Tensor<2, Int>, eos: i64) -> Tensor<1, Int> {
    let [batch, length] = ids_BL.dims();
    let scores_BL = if eos == LEGACY_EOS {
        ids_BL
    } else {
        // The earlier an end token, the larger its score, so that the first wins whatever a device does with ties.
        let device = ids_BL.device();
        let scores_L = Tensor::<1, Int>::arange(0..length as i64, &device).cast(INDEX).neg() + length as i64;
        ids_BL.equal_scalar(eos).int().cast(INDEX) * scores_L.unsqueeze::<2>()
    };
    scores_BL.argmax(1).cast(INDEX).reshape([batch])
}

/// Additive `[1, L, L]`: later positions are hidden.
fn causal_mask(length: usize, device: &Device) -> Tensor<3> {
    let values: Vec<f32> =
        (0..length).flat_map(|row| (0..length).map(move |column| if column > row { -1e9 } else { 0.0 })).collect();
    Tensor::<1>::from_floats(values.as_slice(), &device.clone().without_autodiff()).reshape([1, length, length])
}
