//! Self-attention with normalised, partly rotated queries and keys, and its cache.

use std::ops::Range;

use burn::module::Module;
use burn::tensor::{DType, Device, Tensor};
use unif2ace_ops::{Precision, QkNorm, Rotary, attention, attention_after, has_passes, norm_rotate, precision, rounded};

use crate::config::ModelConfig;
use crate::nn::{LayerNorm, Linear};
use crate::packing::PackSource;

/// Projections and norms, named as in the checkpoint.
#[derive(Module, Debug)]
pub struct Attention {
    /// Queries.
    pub q_proj: Linear,
    /// Keys.
    pub k_proj: Linear,
    /// Values.
    pub v_proj: Linear,
    /// After the heads.
    pub dense: Linear,
    /// `[head_dim]`, shared by the heads.
    pub q_layernorm: Option<LayerNorm>,
    /// `[head_dim]`, shared by the heads.
    pub k_layernorm: Option<LayerNorm>,
    #[module(skip)]
    num_heads: usize,
}

/// Keys (normalised and rotated) and values of one block, `[B, room, D]`, of which the first `len` positions are held; in bf16 where
/// products are and the kernels take them so: a token reads all of them once.
#[derive(Debug, Clone, Default)]
pub struct LayerCache {
    keys_values: Option<(Tensor<3>, Tensor<3>)>,
    len: usize,
}

/// Positions that a cache makes room for beyond those that it must hold: after a picture a short question and the 128 tokens of an answer.
const ROOM: usize = 192;

impl LayerCache {
    /// Positions held.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing is held.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Layers as rows of one, padded on the left with zeros to `longest` positions.
    pub(super) fn stack<'a>(layers: impl Iterator<Item = &'a Self>, longest: usize) -> Self {
        let held: Vec<_> = layers.filter_map(Self::held).collect();
        let Some(dtype) = held.first().map(|(keys, _)| keys.dtype()) else { return Self::default() };
        let padded = |x_BSD: &Tensor<3>| {
            let x_BSD = as_dtype(x_BSD.clone(), dtype);
            let [rows, length, width] = x_BSD.dims();
            if length == longest {
                return x_BSD;
            }
            Tensor::cat(vec![Tensor::zeros([rows, longest - length, width], (&x_BSD.device(), dtype)), x_BSD], 1)
        };
        let keys = Tensor::cat(held.iter().map(|(keys, _)| padded(keys)).collect(), 0);
        let values = Tensor::cat(held.iter().map(|(_, values)| padded(values)).collect(), 0);
        Self { keys_values: Some((keys, values)), len: longest }
    }

    /// Some of the positions, in the same memory.
    pub(super) fn part(&self, positions: Range<usize>) -> Self {
        let part = |x_BSD: &Tensor<3>| x_BSD.clone().narrow(1, positions.start, positions.len());
        Self { keys_values: self.keys_values.as_ref().map(|(keys, values)| (part(keys), part(values))), len: positions.len() }
    }

    /// What is held, without the room behind it.
    fn held(&self) -> Option<(Tensor<3>, Tensor<3>)> {
        let (keys, values) = self.keys_values.as_ref()?;
        Some((keys.clone().narrow(1, 0, self.len), values.clone().narrow(1, 0, self.len)))
    }

    /// The held positions followed by new ones; one row of held positions serves all rows of a batch.
    fn followed_by(&self, keys: Tensor<3>, values: Tensor<3>) -> (Tensor<3>, Tensor<3>) {
        match self.held() {
            None => (keys, values),
            Some((old_keys, old_values)) => {
                let (batch, dtype) = (keys.dims()[0], old_keys.dtype());
                let join = |old: Tensor<3>, new: Tensor<3>| Tensor::cat(vec![spread(old, batch), as_dtype(new, dtype)], 1);
                (join(old_keys, keys), join(old_values, values))
            }
        }
    }

    /// Takes new positions in, and gives all with the room behind them. A cache that nobody shares grows in place.
    fn append(&mut self, keys: Tensor<3>, values: Tensor<3>) -> (Tensor<3>, Tensor<3>) {
        let [batch, new, width] = keys.dims();
        let (len, end) = (self.len, self.len + new);
        let dtype = self.keys_values.as_ref().map_or_else(|| kept_dtype(&keys.device()), |(keys, _)| keys.dtype());
        let put = |old: Option<Tensor<3>>, new: Tensor<3>| {
            let roomy = match old {
                Some(old) if old.dims()[0] == batch && old.dims()[1] >= end => old,
                old => {
                    let room = Tensor::zeros([batch, (end + ROOM).max(2 * len) - len, width], (&new.device(), dtype));
                    let held = old.filter(|_| len > 0).map(|old| spread(old.narrow(1, 0, len), batch));
                    Tensor::cat(held.into_iter().chain([room]).collect(), 1)
                }
            };
            roomy.slice_assign([0..batch, len..end, 0..width], as_dtype(new, dtype))
        };
        let (old_keys, old_values) = self.keys_values.take().unzip();
        let joined = (put(old_keys, keys), put(old_values, values));
        (self.keys_values, self.len) = (Some(joined.clone()), end);
        joined
    }
}

/// What a new cache keeps its numbers in.
fn kept_dtype(device: &Device) -> DType {
    if precision() == Precision::Bf16 && has_passes(device) { DType::BF16 } else { DType::F32 }
}

fn as_dtype(x: Tensor<3>, dtype: DType) -> Tensor<3> {
    match dtype {
        _ if x.dtype() == dtype => x,
        DType::BF16 if has_passes(&x.device()) => rounded(x),
        _ => x.cast(dtype),
    }
}

/// One row for every row of a batch.
fn spread(x_BSD: Tensor<3>, batch: usize) -> Tensor<3> {
    let [rows, length, width] = x_BSD.dims();
    if rows == batch { x_BSD } else { x_BSD.expand([batch, length, width]) }
}

pub(super) enum LayerCacheUse<'a> {
    None,
    Append(&'a mut LayerCache),
    Read(&'a LayerCache),
}

impl Attention {
    /// A new layer.
    pub fn new(config: &ModelConfig, device: &Device) -> Self {
        let width = config.hidden_size;
        let linear = || Linear::new(width, width, true, device);
        let norm = || config.qk_layernorm.then(|| LayerNorm::new(config.head_dim(), config.layer_norm_eps, device));
        Self {
            q_proj: linear(),
            k_proj: linear(),
            v_proj: linear(),
            dense: linear(),
            q_layernorm: norm(),
            k_layernorm: norm(),
            num_heads: config.num_attention_heads,
        }
    }

    pub(super) fn pack<S: PackSource>(&mut self, path: &str, source: &mut S) -> Result<(), S::Error> {
        self.q_proj.pack(&format!("{path}.q_proj"), source)?;
        self.k_proj.pack(&format!("{path}.k_proj"), source)?;
        self.v_proj.pack(&format!("{path}.v_proj"), source)?;
        self.dense.pack(&format!("{path}.dense"), source)
    }

    /// Queries, keys and values of `[B, L, D]`.
    pub(super) fn project(&self, h_BLD: Tensor<3>) -> [Tensor<3>; 3] {
        let (q, k) = (self.q_proj.forward(h_BLD.clone()), self.k_proj.forward(h_BLD.clone()));
        [q, k, self.v_proj.forward(h_BLD)]
    }

    /// From what was projected to `[B, L, D]`; `mask_BLS` is additive over cached and new positions.
    pub(super) fn forward(
        &self,
        [q, k, v]: [Tensor<3>; 3],
        rotary: &Rotary,
        mask_BLS: &Tensor<3>,
        cache: LayerCacheUse<'_>,
    ) -> Tensor<3> {
        let mixed = match cache {
            LayerCacheUse::None => {
                let norm = self.q_layernorm.as_ref().zip(self.k_layernorm.as_ref()).map(|(q, k)| QkNorm {
                    q_weight: q.weight.val(),
                    q_bias: q.bias.val(),
                    k_weight: k.weight.val(),
                    k_bias: k.bias.val(),
                    eps: q.eps,
                });
                attention(q, k, v, self.num_heads, norm, Some(rotary.clone()), Some(mask_BLS.clone()))
            }
            cached => {
                let ready = |x, norm: &Option<LayerNorm>| {
                    let norm = norm.as_ref().map(|norm| (norm.weight.val(), norm.bias.val(), norm.eps));
                    norm_rotate(x, self.num_heads, norm, Some(rotary.clone()))
                };
                let (q, k) = (ready(q, &self.q_layernorm), ready(k, &self.k_layernorm));
                if let LayerCacheUse::Read(LayerCache { keys_values: Some((keys, values)), len }) = cached
                    && has_passes(&q.device())
                {
                    let mixed =
                        attention_after([q, k, v], [keys.clone(), values.clone()], *len, mask_BLS.clone(), self.num_heads);
                    return self.dense.forward(mixed);
                }
                let (k, v) = match cached {
                    LayerCacheUse::Append(cache) => cache.append(k, v),
                    LayerCacheUse::Read(cache) => cache.followed_by(k, v),
                    LayerCacheUse::None => (k, v),
                };
                attention(q, k, v, self.num_heads, None, None, Some(mask_BLS.clone()))
            }
        };
        self.dense.forward(mixed)
    }
}
