//! Outside features of the sequence-level experts, mapped to the image sequence's shape by resamplers: cross-attention from learned
//! positional queries. Computed once per image (noise: per denoising step) and shared by all blocks.
//! B batch, P feature positions, C feature width, N image tokens, D width.

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor, TensorData};
use unif2ace_ops::{Activation, attention};

use super::Task;
use crate::config::ModelConfig;
use crate::nn::{LayerNorm, Linear, normal};
use crate::packing::PackSource;

/// Sines and cosines each of the noise level's embedding.
pub(crate) const NOISE_FREQUENCIES: usize = 64;

/// Features of a batch; what is absent makes its expert a copy.
#[derive(Debug, Clone, Default)]
pub struct ExpertFeatures {
    /// Masked part of the image tokens of each row, 0 to 1: `[B]`.
    pub noise_level: Option<Vec<f32>>,
    /// CLIP patch features, `[B, P, C]`.
    pub clip_BPC: Option<Tensor<3>>,
    /// Face features (the face network's attributes or an identity embedding), `[B, F]`.
    pub face_BF: Option<Tensor<2>>,
}

/// Features in the shape of the image sequence, `[B, N, D]` each.
#[derive(Debug, Clone, Default)]
pub struct Resampled {
    /// Of the noise level.
    pub noise: Option<Tensor<3>>,
    /// Of the CLIP features.
    pub clip: Option<Tensor<3>>,
    /// Of the face feature.
    pub face: Option<Tensor<3>>,
}

/// Cross-attention from N learned queries to the feature's positions.
#[derive(Module, Debug)]
pub struct Resampler {
    /// `[N, D]`.
    pub queries: Param<Tensor<2>>,
    /// Over the feature.
    pub norm: LayerNorm,
    /// Feature to keys.
    pub k_proj: Linear,
    /// Feature to values.
    pub v_proj: Linear,
    /// After the attention.
    pub dense: Linear,
    #[module(skip)]
    num_heads: usize,
}

impl Resampler {
    /// From features of width `feature_dim`.
    pub fn new(feature_dim: usize, config: &ModelConfig, device: &Device) -> Self {
        let width = config.hidden_size;
        let fan_in = |num: usize| (num as f64).sqrt().recip();
        Self {
            queries: normal([config.num_vq_tokens, width], 1.0, device),
            norm: LayerNorm::new(feature_dim, config.layer_norm_eps, device),
            k_proj: Linear::with_std(feature_dim, width, true, fan_in(feature_dim), device),
            v_proj: Linear::with_std(feature_dim, width, true, fan_in(feature_dim), device),
            dense: Linear::with_std(width, width, true, fan_in(width), device),
            num_heads: config.num_attention_heads,
        }
    }

    fn pack<S: PackSource>(&mut self, path: &str, source: &mut S) -> Result<(), S::Error> {
        self.k_proj.pack(&format!("{path}.k_proj"), source)?;
        self.v_proj.pack(&format!("{path}.v_proj"), source)?;
        self.dense.pack(&format!("{path}.dense"), source)
    }

    /// `[B, P, C] -> [B, N, D]`.
    pub fn forward(&self, feature_BPC: Tensor<3>) -> Tensor<3> {
        let batch = feature_BPC.dims()[0];
        let feature = self.norm.forward(feature_BPC);
        let [num, width] = self.queries.dims();
        let q_BND = self.queries.val().reshape([1, num, width]).expand([batch, num, width]);
        let mixed = attention(
            q_BND,
            self.k_proj.forward(feature.clone()),
            self.v_proj.forward(feature),
            self.num_heads,
            None,
            None,
            None,
        );
        self.dense.forward(mixed)
    }
}

/// The three resamplers with what lies before them.
#[derive(Module, Debug)]
pub struct FeatureResamplers {
    /// Sinusoids of the masked part to the width.
    pub noise_fc1: Linear,
    /// To the positions of the resampler.
    pub noise_fc2: Linear,
    /// Of the noise embedding.
    pub noise: Resampler,
    /// Of CLIP patch features.
    pub clip: Resampler,
    /// One feature to several positions.
    pub face_tokens: Linear,
    /// Of the face feature.
    pub face: Resampler,
    #[module(skip)]
    num_feature_tokens: usize,
}

impl FeatureResamplers {
    /// New resamplers.
    pub fn new(config: &ModelConfig, device: &Device) -> Self {
        let moe = &config.moe;
        let width = config.hidden_size;
        let spread = moe.num_feature_tokens * moe.feature_token_dim;
        Self {
            noise_fc1: Linear::with_std(2 * NOISE_FREQUENCIES, width, true, 0.1, device),
            noise_fc2: Linear::with_std(width, spread, true, (width as f64).sqrt().recip(), device),
            noise: Resampler::new(moe.feature_token_dim, config, device),
            clip: Resampler::new(moe.clip_dim, config, device),
            face_tokens: Linear::with_std(moe.face_dim, spread, true, (moe.face_dim as f64).sqrt().recip(), device),
            face: Resampler::new(moe.feature_token_dim, config, device),
            num_feature_tokens: moe.num_feature_tokens,
        }
    }

    /// Packs the weights for inference, see [`Linear::pack`].
    pub(crate) fn pack<S: PackSource>(&mut self, path: &str, source: &mut S) -> Result<(), S::Error> {
        self.noise_fc1.pack(&format!("{path}.noise_fc1"), source)?;
        self.noise_fc2.pack(&format!("{path}.noise_fc2"), source)?;
        self.noise.pack(&format!("{path}.noise"), source)?;
        self.clip.pack(&format!("{path}.clip"), source)?;
        self.face_tokens.pack(&format!("{path}.face_tokens"), source)?;
        self.face.pack(&format!("{path}.face"), source)
    }

    /// Resamples what `task` uses of `features`.
    pub fn forward(&self, features: &ExpertFeatures, task: Task) -> Resampled {
        let device = self.noise_fc1.weight.val().device();
        match task {
            Task::T2i => Resampled {
                noise: features.noise_level.as_ref().map(|levels| {
                    let inner = self.noise_fc1.forward_act(sinusoids(levels, &device), Activation::Silu);
                    self.noise.forward(self.spread(self.noise_fc2.forward(inner)))
                }),
                ..Resampled::default()
            },
            Task::Mmu => Resampled {
                noise: None,
                clip: features.clip_BPC.clone().map(|clip| self.clip.forward(clip)),
                face: features.face_BF.clone().map(|face| self.face.forward(self.spread(self.face_tokens.forward(face)))),
            },
        }
    }

    fn spread(&self, x_BS: Tensor<2>) -> Tensor<3> {
        let [batch, spread] = x_BS.dims();
        x_BS.reshape([batch, self.num_feature_tokens, spread / self.num_feature_tokens])
    }
}

/// Sines and cosines of `1000 level` at geometric frequencies: `[B, 2 * NOISE_FREQUENCIES]`.
fn sinusoids(levels: &[f32], device: &Device) -> Tensor<2> {
    let mut values = Vec::with_capacity(levels.len() * 2 * NOISE_FREQUENCIES);
    for &level in levels {
        let angle = |index: usize| {
            let frequency = (-(10_000f32.ln()) * index as f32 / NOISE_FREQUENCIES as f32).exp();
            1000.0 * level * frequency
        };
        values.extend((0..NOISE_FREQUENCIES).map(|index| angle(index).sin()));
        values.extend((0..NOISE_FREQUENCIES).map(|index| angle(index).cos()));
    }
    Tensor::from_data(TensorData::new(values, [levels.len(), 2 * NOISE_FREQUENCIES]), device)
}
