//! The unified transformer: Show-o's backbone (showo.md §1) with grouped token-level and sequence-level experts (unif2ace.md §2).
//!
//! ```text
//! h = LayerNorm(x)
//! x = x + attention(h) + mlp(h) + routed_experts(h)          token level: `mlp` is the shared expert
//! x_image = x_image + scale * sequence_experts(LayerNorm(x_image))
//! ```
//! Routed experts start with a zero output and `scale` at zero, so a model upcycled from Show-o computes exactly what Show-o computes.
//!
//! Legend: B batch, L new positions, S all positions a query may see, D width, V vocabulary, K image codes, R rotary dims, M rows.

mod attention;
mod block;
mod positions;

pub use attention::{Attention, LayerCache};
pub use block::{Block, Mlp};
pub use positions::Positions;

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{Device, Int, Tensor};
use unif2ace_ops::{Activation, linear};

use crate::config::{ConfigError, ModelConfig};
use crate::moe::{ExpertFeatures, FeatureResamplers, MoeStats, Resampled, Task};
use crate::nn::{Embedding, LayerNorm, Linear};

/// The backbone below `showo.model`.
#[derive(Module, Debug)]
pub struct Backbone {
    /// `[V, D]`.
    pub embed_tokens: Embedding,
    /// Blocks.
    pub layers: Vec<Block>,
    /// Before the head.
    pub final_layernorm: LayerNorm,
}

/// The tensors of a Show-o checkpoint, below `showo`.
#[derive(Module, Debug)]
pub struct ShowO {
    /// Embedding and blocks.
    pub model: Backbone,
    /// `[V, D]` with bias; not tied to the embedding.
    pub lm_head: Linear,
}

/// The activation between the projector's layers; it has no parameters but takes the place in their numbering.
#[derive(Module, Debug)]
pub struct GeluErf;

/// The unified model.
#[derive(Module, Debug)]
pub struct Unif2ace {
    /// What Show-o has, plus the experts inside its blocks.
    pub showo: ShowO,
    /// Maps outside features into the sequence, in the CLIP variant of Show-o: tensors `mm_projector.0` and `mm_projector.2`.
    pub mm_projector: Option<(Linear, GeluErf, Linear)>,
    /// Features of the sequence-level experts.
    pub resamplers: Option<FeatureResamplers>,
    #[module(skip)]
    config: ModelConfig,
}

/// What a row starts from.
#[derive(Debug, Clone)]
pub enum Input {
    /// Token ids `[B, L]`.
    Ids(Tensor<2, Int>),
    /// Embeddings `[B, L, D]`.
    Embeddings(Tensor<3>),
}

/// One forward pass: all rows have one task.
#[derive(Debug, Clone)]
pub struct Batch {
    /// Ids or embeddings.
    pub input: Input,
    /// Where the tokens stand.
    pub positions: Positions,
    /// Additive, 0 or -2^63, `[B or 1, L, S]`. There is no default: without a mask everything would see everything.
    pub mask_BLS: Tensor<3>,
    /// Which group of experts.
    pub task: Task,
    /// First of the N image tokens among the L new positions, the same for all rows; `None` when there is no image in them.
    pub image_start: Option<usize>,
    /// Outside features for the sequence-level experts.
    pub features: Features,
}

/// Features as they come, or already resampled (they don't change between two passes over one image).
#[derive(Debug, Clone)]
pub enum Features {
    /// To be resampled.
    Raw(ExpertFeatures),
    /// By [`Unif2ace::resample`].
    Resampled(Resampled),
}

/// Keys and values of earlier positions, ready to attend to.
#[derive(Debug, Clone, Default)]
pub struct KvCache {
    layers: Vec<LayerCache>,
}

impl KvCache {
    /// An empty cache.
    pub fn new() -> Self {
        Self::default()
    }

    /// Positions held.
    pub fn len(&self) -> usize {
        self.layers.first().map_or(0, LayerCache::len)
    }

    /// Whether nothing is held.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// What to do with a cache.
pub enum CacheUse<'a> {
    /// No earlier positions.
    None,
    /// Attend to the cached positions and keep the new ones too.
    Append(&'a mut KvCache),
    /// Attend to the cached positions and leave them as they are (denoising against a fixed prompt).
    Read(&'a KvCache),
}

/// Output of the blocks.
pub struct Hidden {
    /// After the final norm, `[B, L, D]`.
    pub x_BLD: Tensor<3>,
    /// What the routers did.
    pub stats: MoeStats,
}

impl Unif2ace {
    /// A network with random weights.
    ///
    /// # Errors
    /// When the configuration describes no network.
    pub fn new(config: &ModelConfig, device: &Device) -> Result<Self, ConfigError> {
        config.check()?;
        let width = config.hidden_size;
        Ok(Self {
            showo: ShowO {
                model: Backbone {
                    embed_tokens: Embedding::new(config.vocab_size, width, device),
                    layers: (0..config.num_hidden_layers).map(|_| Block::new(config, device)).collect(),
                    final_layernorm: LayerNorm::new(width, config.layer_norm_eps, device),
                },
                lm_head: Linear::new(width, config.vocab_size, true, device),
            },
            mm_projector: config.mm_projector_dim.map(|dim| {
                (Linear::new(dim, width, true, device), GeluErf, Linear::new(width, width, true, device))
            }),
            resamplers: config.moe.level.sequence().then(|| FeatureResamplers::new(config, device)),
            config: config.clone(),
        })
    }

    /// The configuration it was built with.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Token embeddings, `[B, L, D]`.
    pub fn embed(&self, ids_BL: Tensor<2, Int>) -> Tensor<3> {
        self.showo.model.embed_tokens.forward(ids_BL)
    }

    /// Outside features `[B, P, C]` as sequence embeddings `[B, P, D]` (the CLIP variant, showo.md §6); `None` without a projector.
    pub fn project(&self, feature_BPC: Tensor<3>) -> Option<Tensor<3>> {
        let (first, _, last) = self.mm_projector.as_ref()?;
        Some(last.forward(first.forward_act(feature_BPC, Activation::GeluErf)))
    }

    /// Maps outside features to the image's shape once for many passes.
    pub fn resample(&self, features: &ExpertFeatures, task: Task) -> Resampled {
        self.resamplers.as_ref().map_or_else(Resampled::default, |resamplers| resamplers.forward(features, task))
    }

    /// All blocks and the final norm.
    pub fn hidden(&self, batch: Batch) -> Hidden {
        self.hidden_observed(batch, CacheUse::None, &mut |_, _| {})
    }

    /// As [`Unif2ace::hidden`] for positions after those in a cache. Exact: earlier positions never see later ones, as long as the mask
    /// says so.
    pub fn hidden_cached(&self, batch: Batch, cache: CacheUse<'_>) -> Hidden {
        self.hidden_observed(batch, cache, &mut |_, _| {})
    }

    /// As [`Unif2ace::hidden_cached`]; `observe(i, x)` sees the input `[B, L, D]` of block i.
    pub fn hidden_observed(&self, batch: Batch, mut cache: CacheUse<'_>, observe: &mut dyn FnMut(usize, &Tensor<3>)) -> Hidden {
        let mut x_BLD = match batch.input {
            Input::Ids(ids_BL) => self.embed(ids_BL),
            Input::Embeddings(x_BLD) => x_BLD,
        };
        let resampled = match (batch.features, batch.image_start) {
            (Features::Resampled(resampled), _) => resampled,
            (Features::Raw(features), Some(_)) => self.resample(&features, batch.task),
            (Features::Raw(_), None) => Resampled::default(),
        };
        let rotary = batch.positions.rotary(x_BLD.dims()[1], &self.config, &x_BLD.device());
        let image = batch.image_start.map(|start| block::ImageSpan {
            start,
            num_tokens: self.config.num_vq_tokens,
            resampled: &resampled,
        });
        if let CacheUse::Append(cache) = &mut cache {
            cache.layers.resize_with(self.showo.model.layers.len(), LayerCache::default);
        }
        let mut stats = MoeStats::default();
        for (index, layer) in self.showo.model.layers.iter().enumerate() {
            observe(index, &x_BLD);
            let layer_cache = match &mut cache {
                CacheUse::None => attention::LayerCacheUse::None,
                CacheUse::Append(cache) => attention::LayerCacheUse::Append(&mut cache.layers[index]),
                CacheUse::Read(cache) => cache.layers.get(index).map_or(attention::LayerCacheUse::None, attention::LayerCacheUse::Read),
            };
            x_BLD = layer.forward(x_BLD, &rotary, &batch.mask_BLS, batch.task, image.as_ref(), layer_cache, &mut stats);
        }
        Hidden { x_BLD: self.showo.model.final_layernorm.forward(x_BLD), stats }
    }

    /// Logits over the whole vocabulary, `[.., V]`.
    pub fn logits<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        self.showo.lm_head.forward(x)
    }

    /// Logits over the image codes only, `[.., K]`.
    pub fn image_logits<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        self.head_rows(x, self.config.special_ids().image_offset as usize, self.config.codebook_size)
    }

    /// Logits over the text tokens only, `[.., llm_vocab_size]`.
    pub fn text_logits<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        self.head_rows(x, 0, self.config.llm_vocab_size)
    }

    fn head_rows<const D: usize>(&self, x: Tensor<D>, start: usize, num: usize) -> Tensor<D> {
        let head = &self.showo.lm_head;
        let bias = head.bias.as_ref().map(|bias| bias.val().narrow(0, start, num));
        linear(x, head.weight.val().narrow(0, start, num), bias, Activation::None)
    }

    /// Parameters in all, and those that one token of `task` meets (its group's chosen experts; the other group's none).
    pub fn num_parameters(&self, task: Task) -> (usize, usize) {
        let total = self.num_params();
        let moe = &self.config.moe;
        let mut idle = 0;
        for layer in &self.showo.model.layers {
            if let Some(token) = &layer.moe {
                let experts = |group: &crate::moe::TokenExperts| {
                    [group.fc1_weight.val().shape().num_elements(), group.fc2_weight.val().shape().num_elements(),
                     group.fc1_bias.val().shape().num_elements(), group.fc2_bias.val().shape().num_elements()].iter().sum::<usize>()
                };
                let other = match task {
                    Task::T2i => &token.mmu,
                    Task::Mmu => &token.t2i,
                };
                idle += other.num_params();
                let unchosen = moe.num_routed_experts - moe.num_experts_per_tok;
                idle += experts(token.group(task)) * unchosen / moe.num_routed_experts;
            }
            if let Some(sequence) = &layer.sequence {
                idle += match task {
                    Task::T2i => sequence.mmu.num_params(),
                    Task::Mmu => sequence.t2i.num_params(),
                };
            }
        }
        if let Some(resamplers) = &self.resamplers {
            let noise = resamplers.noise_fc1.num_params() + resamplers.noise_fc2.num_params() + resamplers.noise.num_params();
            idle += match task {
                Task::T2i => resamplers.num_params() - noise,
                Task::Mmu => noise,
            };
        }
        (total, total - idle)
    }
}

/// Gives every image code's rows of the embedding and the head a start that follows its bits: `row = sum_i ±b_i` with random vectors b_i, so
/// that codes which look alike start alike. For training from scratch; without it each of the 8,192 rows must be learned alone.
pub fn init_code_rows_from_bits(model: Unif2ace, seed: u64) -> Unif2ace {
    struct Rows {
        path: Vec<String>,
        offset: usize,
        codes: usize,
        seed: u64,
    }
    impl ModuleMapper for Rows {
        fn enter_module(&mut self, name: &str, _container: &str) {
            self.path.push(name.to_owned());
        }
        fn exit_module(&mut self, _name: &str, _container: &str) {
            self.path.pop();
        }
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            let path = self.path.join(".");
            let stream = match path.as_str() {
                "showo.model.embed_tokens.weight" => 0,
                "showo.lm_head.weight" => 1,
                _ => return param,
            };
            let (offset, codes, seed) = (self.offset, self.codes, self.seed);
            param.map(|tensor| code_rows(tensor, offset, codes, seed, stream))
        }
    }
    let config = model.config().clone();
    let offset = config.special_ids().image_offset as usize;
    model.map(&mut Rows { path: Vec::new(), offset, codes: config.codebook_size, seed })
}

fn code_rows<const D: usize>(tensor: Tensor<D>, offset: usize, codes: usize, seed: u64, image: u64) -> Tensor<D> {
    use unif2ace_diffusion::rng::{Key, Stream};
    let shape = tensor.dims();
    let width = shape[D - 1];
    let device = tensor.device();
    let tracked = tensor.is_require_grad();
    let bits = codes.next_power_of_two().trailing_zeros() as usize;
    let key = Key::new(seed, image);
    let std = crate::nn::INIT_STD as f32 / (bits.max(1) as f32).sqrt();
    // Sum of uniforms: close enough to normal, and keyed.
    let normal = |bit: usize, column: usize| -> f32 {
        let sum: f32 = (0..4).map(|part| key.uniform(Stream::Init, bit as u32, (column * 4 + part) as u32)).sum();
        (sum - 2.0) * 3f32.sqrt() * std
    };
    let table: Vec<f32> = (0..bits).flat_map(|bit| (0..width).map(move |column| (bit, column))).map(|(bit, column)| normal(bit, column)).collect();
    let mut values: Vec<f32> = tensor.into_data().iter::<f32>().collect();
    for code in 0..codes {
        let row = &mut values[(offset + code) * width..][..width];
        // The random part that tells look-alikes apart stays, at a fifth.
        row.iter_mut().for_each(|value| *value *= 0.2);
        for bit in 0..bits {
            let sign = if code >> (bits - 1 - bit) & 1 == 1 { 1.0 } else { -1.0 };
            for (value, &direction) in row.iter_mut().zip(&table[bit * width..][..width]) {
                *value += sign * direction;
            }
        }
    }
    let tensor = Tensor::from_data(burn::tensor::TensorData::new(values, shape), &device);
    if tracked { tensor.require_grad() } else { tensor }
}
