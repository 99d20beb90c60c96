//! The unified transformer: Show-o's backbone with grouped token-level and sequence-level experts (arXiv 2503.08120).
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
mod code_rows;
mod generate;
mod positions;
mod recompute;

pub use attention::{Attention, LayerCache};
pub use block::{Block, Mlp};
pub use code_rows::init_code_rows_from_bits;
pub use generate::{PromptCache, Reading};
pub use positions::Positions;
pub use recompute::Recompute;

use std::ops::Range;

use burn::module::Module;
use burn::tensor::{Device, Int, Tensor};
use unif2ace_ops::{Activation, PackedLinear, WeightFormat, on_cpu, packed_linear, tap};

use crate::config::{ConfigError, ModelConfig};
use crate::moe::{ExpertFeatures, FeatureResamplers, MoeStats, Resampled, Task};
use crate::nn::{Embedding, LayerNorm, Linear, let_go, values};
use crate::packing::{Own, PackSource, WeightRows};

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
    #[module(skip)]
    packed_head: Option<PackedHead>,
    #[module(skip)]
    recompute: Recompute,
}

/// The head's rows in the four parts of the vocabulary: text, special tokens, image codes, the rest.
#[derive(Debug, Clone)]
struct PackedHead([Option<PackedLinear>; 4]);

impl PackedHead {
    const TEXT: usize = 0;
    const IMAGE: usize = 2;
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
#[allow(clippy::large_enum_variant)] // one at a time exists
#[derive(Debug, Clone)]
pub enum Features {
    /// To be resampled.
    Raw(ExpertFeatures),
    /// By [`Unif2ace::resample`].
    Resampled(Resampled),
}

impl Default for Features {
    /// None: the experts that would mix them in copy.
    fn default() -> Self {
        Self::Resampled(Resampled::default())
    }
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

    /// Some of the positions, in the same memory.
    fn part(&self, positions: Range<usize>) -> Self {
        Self { layers: self.layers.iter().map(|layer| layer.part(positions.clone())).collect() }
    }

    /// Caches as rows of one, padded on the left with zeros to the longest; `None` for an empty list.
    fn stack(caches: &[&Self]) -> Option<Self> {
        let longest = caches.iter().map(|cache| cache.len()).max()?;
        let num_layers = caches.iter().map(|cache| cache.layers.len()).min()?;
        let layer = |index: usize| LayerCache::stack(caches.iter().map(|cache| &cache.layers[index]), longest);
        Some(Self { layers: (0..num_layers).map(layer).collect() })
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
            mm_projector: config
                .mm_projector_dim
                .map(|dim| (Linear::new(dim, width, true, device), GeluErf, Linear::new(width, width, true, device))),
            resamplers: config.moe.level.sequence().then(|| FeatureResamplers::new(config, device)),
            config: config.clone(),
            packed_head: None,
            recompute: Recompute::None,
        })
    }

    /// Keeps only the inputs of some blocks in training, which takes less memory and more time and changes no number. Without gradients it does
    /// nothing.
    #[must_use]
    pub fn with_recompute(mut self, recompute: Recompute) -> Self {
        self.recompute = recompute;
        self
    }

    /// Packs all large weights once for inference: in f32 and bf16 every result stays what it is in a process of that precision, but for
    /// the embedding's rounding in bf16; int8 rounds the layers' rows too. Norms and routers stay in f32. On devices other than the CPU the
    /// model stays as it is.
    #[must_use]
    pub fn pack(mut self, format: WeightFormat) -> Self {
        if on_cpu(&self.showo.lm_head.weight.lazy_device()) {
            let Ok(()) = self.pack_from(&mut Own(format));
        }
        self
    }

    /// As [`Unif2ace::pack`], with packed weights from elsewhere; the plain ones are not looked at.
    ///
    /// # Errors
    /// The source's; the model is packed in part then.
    pub fn pack_from<S: PackSource>(&mut self, source: &mut S) -> Result<(), S::Error> {
        self.merge_lora();
        self.showo.model.embed_tokens.pack("showo.model.embed_tokens", source)?;
        for (index, layer) in self.showo.model.layers.iter_mut().enumerate() {
            layer.pack(&format!("showo.model.layers.{index}"), source)?;
        }
        if let Some((first, _, last)) = &mut self.mm_projector {
            first.pack("mm_projector.0", source)?;
            last.pack("mm_projector.2", source)?;
        }
        if let Some(resamplers) = &mut self.resamplers {
            resamplers.pack("resamplers", source)?;
        }
        if self.packed_head.is_some() {
            return Ok(());
        }
        let [text, image, codes] = self.vocabulary();
        let head = &self.showo.lm_head;
        let bias = match &head.bias {
            Some(bias) => Some(source.bias("showo.lm_head.bias", self.config.vocab_size, &|| values(bias))?),
            None => None,
        };
        let (mut parts, mut start) = ([const { None }; 4], 0);
        for (part, end) in parts.iter_mut().zip([text, image, image + codes, self.config.vocab_size]) {
            let rows = std::mem::replace(&mut start, end)..end;
            if !rows.is_empty() {
                let bias = bias.as_ref().map(|bias| bias[rows.clone()].to_vec());
                let rows = WeightRows { parameter: "showo.lm_head.weight", rows, width: self.config.hidden_size };
                *part = Some(PackedLinear::new(source.matrix(&rows, &|| values(&head.weight))?, bias));
            }
        }
        self.packed_head = Some(PackedHead(parts));
        self.showo.lm_head.weight = let_go(&self.showo.lm_head.weight);
        Ok(())
    }

    /// Text tokens, place of the first image code, image codes.
    fn vocabulary(&self) -> [usize; 3] {
        [self.config.llm_vocab_size, self.config.special_ids().image_offset as usize, self.config.codebook_size]
    }

    /// The configuration it was built with.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Token embeddings, `[B, L, D]`.
    pub fn embed(&self, ids_BL: Tensor<2, Int>) -> Tensor<3> {
        self.showo.model.embed_tokens.forward(ids_BL)
    }

    /// Outside features `[B, P, C]` as sequence embeddings `[B, P, D]` (Show-o's CLIP variant); `None` without a projector.
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
        let mut real = None;
        let mut x_BLD = match batch.input {
            Input::Ids(ids_BL) => {
                let pad = i64::from(self.config.special_ids().pad);
                real = Some(ids_BL.clone().into_data().iter::<i64>().map(|id| id != pad).collect::<Vec<bool>>());
                self.embed(ids_BL)
            }
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
        let num_recomputed = self.recompute.num_of(self.showo.model.layers.len());
        let mut stats = MoeStats::default();
        for (index, layer) in self.showo.model.layers.iter().enumerate() {
            let _block = tracing::debug_span!("block", index).entered();
            observe(index, &x_BLD);
            let layer_cache = match &mut cache {
                CacheUse::None => attention::LayerCacheUse::None,
                CacheUse::Append(cache) => attention::LayerCacheUse::Append(&mut cache.layers[index]),
                CacheUse::Read(cache) => {
                    cache.layers.get(index).map_or(attention::LayerCacheUse::None, attention::LayerCacheUse::Read)
                }
            };
            let (real, image) = (real.as_deref(), image.as_ref());
            // Behind this place the gradients of the blocks above are done.
            let tapped_BLD = tap(x_BLD);
            let recomputed = index < num_recomputed && matches!(layer_cache, attention::LayerCacheUse::None);
            x_BLD = if recomputed && tapped_BLD.is_autodiff() {
                layer.forward_recomputed(tapped_BLD, &rotary, &batch.mask_BLS, real, batch.task, image, &mut stats)
            } else {
                layer.forward(tapped_BLD, &rotary, &batch.mask_BLS, real, batch.task, image, layer_cache, &mut stats)
            };
        }
        Hidden { x_BLD: self.showo.model.final_layernorm.forward(x_BLD), stats }
    }

    /// Logits over the whole vocabulary, `[.., V]`.
    pub fn logits<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        match &self.packed_head {
            None => self.showo.lm_head.forward(x),
            Some(PackedHead(parts)) => {
                let part = |layer: &PackedLinear| packed_linear(x.clone(), layer, Activation::None);
                Tensor::cat(parts.iter().flatten().map(part).collect(), D - 1)
            }
        }
    }

    /// Logits over the image codes only, `[.., K]`.
    pub fn image_logits<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        let [_, image, codes] = self.vocabulary();
        self.head_rows(x, PackedHead::IMAGE, image, codes)
    }

    /// Logits over the text tokens only, `[.., llm_vocab_size]`.
    pub fn text_logits<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        let [text, ..] = self.vocabulary();
        self.head_rows(x, PackedHead::TEXT, 0, text)
    }

    fn head_rows<const D: usize>(&self, x: Tensor<D>, part: usize, start: usize, num: usize) -> Tensor<D> {
        if let Some(packed) = self.packed_head.as_ref().and_then(|head| head.0[part].as_ref()) {
            return packed_linear(x, packed, Activation::None);
        }
        self.showo.lm_head.forward_rows(x, start..start + num)
    }
}
