//! Names and shapes of the published checkpoints, derived from their sizes (Show-o spec 1.4 and 5.6).

use unif2ace_model::vq::VqConfig;

use crate::DType;

/// One tensor of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManifestEntry {
    /// Tensor name.
    pub name: String,
    /// Axis lengths.
    pub shape: Vec<usize>,
    /// Number type in the release.
    pub dtype: DType,
}

impl ManifestEntry {
    fn float(name: String, shape: &[usize]) -> Self {
        Self { name, shape: shape.to_vec(), dtype: DType::F32 }
    }

    /// Whether the reference's optimiser decays the tensor.
    pub fn is_decayed(&self) -> bool {
        is_decayed(&self.name)
    }
}

/// Whether the reference's optimiser decays a tensor of this name: everything but biases. It means to spare norms and embeddings
/// too, but its patterns don't fit Phi's names, so they are decayed; equal numbers need the same (spec 8, quirk 8).
pub fn is_decayed(name: &str) -> bool {
    !name.contains("bias")
}

/// The sizes that the names and shapes of a Show-o checkpoint follow from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShowOShape {
    /// Rows of the embedding: text, specials, image codes, mask token.
    pub vocab_size: usize,
    /// Width.
    pub hidden_size: usize,
    /// Inner width of the feed-forward part.
    pub intermediate_size: usize,
    /// Number of blocks.
    pub num_hidden_layers: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// Width of CLIP's features where the checkpoint has the projector (`w_clip_vit`).
    pub clip_dim: Option<usize>,
}

impl ShowOShape {
    /// The released checkpoints; with or without CLIP's projector.
    pub fn released(w_clip_vit: bool) -> Self {
        Self {
            vocab_size: 58_498,
            hidden_size: 2048,
            intermediate_size: 8192,
            num_hidden_layers: 24,
            head_dim: 64,
            clip_dim: w_clip_vit.then_some(1024),
        }
    }
}

/// The tensors of a Show-o checkpoint, in the release's order.
pub fn show_o(shape: &ShowOShape) -> Vec<ManifestEntry> {
    let (width, inner, head, vocab) = (shape.hidden_size, shape.intermediate_size, shape.head_dim, shape.vocab_size);
    let mut list = Entries::default();
    list.push("showo.model.embed_tokens.weight", &[vocab, width]);
    for layer in 0..shape.num_hidden_layers {
        let path = format!("showo.model.layers.{layer}");
        for name in ["q_proj", "k_proj", "v_proj", "dense"] {
            list.affine(&format!("{path}.self_attn.{name}"), &[width, width]);
        }
        list.affine(&format!("{path}.self_attn.q_layernorm"), &[head]);
        list.affine(&format!("{path}.self_attn.k_layernorm"), &[head]);
        list.affine(&format!("{path}.mlp.fc1"), &[inner, width]);
        list.affine(&format!("{path}.mlp.fc2"), &[width, inner]);
        list.affine(&format!("{path}.input_layernorm"), &[width]);
    }
    list.affine("showo.model.final_layernorm", &[width]);
    list.affine("showo.lm_head", &[vocab, width]);
    if let Some(clip_dim) = shape.clip_dim {
        list.affine("mm_projector.0", &[width, clip_dim]);
        list.affine("mm_projector.2", &[width, width]);
    }
    list.0
}

/// The tensors of a MAGVIT-v2 checkpoint, in the release's order, with the two buffers of the quantiser at the end.
pub fn magvitv2(config: &VqConfig) -> Vec<ManifestEntry> {
    let mut list = Entries::default();
    let levels = config.enc_mult.len();
    let channels = |mult: &[usize], level: usize| config.ch * mult[level];
    let deepest = |mult: &[usize]| config.ch * mult.last().copied().unwrap_or(1);

    list.conv("encoder.conv_in", config.in_channels, config.ch, 3);
    let mut width = config.ch;
    for level in 0..levels {
        let next = channels(&config.enc_mult, level);
        for block in 0..config.enc_blocks[level] {
            list.res_block(&format!("encoder.down.{level}.block.{block}"), width, next);
            width = next;
        }
        if level + 1 < levels {
            list.conv(&format!("encoder.down.{level}.downsample.conv"), width, width, 3);
        }
    }
    list.middle("encoder.mid", width);
    list.affine("encoder.norm_out", &[width]);
    list.conv("encoder.conv_out", width, config.z_channels, 3);
    list.conv("encoder.quant_conv", config.z_channels, config.z_channels, 1);

    let deep = deepest(&config.dec_mult);
    list.conv("decoder.conv_in", config.z_channels, deep, 3);
    list.middle("decoder.mid", deep);
    // The network works from the coarsest level down; the release lists the finest first.
    for level in 0..levels {
        let entering = if level + 1 < levels { channels(&config.dec_mult, level + 1) } else { deep };
        let next = channels(&config.dec_mult, level);
        for block in 0..config.dec_blocks[level] {
            list.res_block(&format!("decoder.up.{level}.block.{block}"), if block == 0 { entering } else { next }, next);
        }
        if level > 0 {
            list.conv(&format!("decoder.up.{level}.upsample.conv"), next, next, 3);
        }
    }
    let last = channels(&config.dec_mult, 0);
    list.affine("decoder.norm_out", &[last]);
    list.conv("decoder.conv_out", last, config.in_channels, 3);
    list.conv("decoder.post_quant_conv", config.z_channels, config.z_channels, 1);

    list.push("quantize.embedding", &[config.codebook_size(), config.z_channels]);
    let power_vals = "quantize.power_vals".to_string();
    list.0.push(ManifestEntry { name: power_vals, shape: vec![config.z_channels], dtype: DType::I64 });
    list.0
}

#[derive(Default)]
struct Entries(Vec<ManifestEntry>);

impl Entries {
    fn push(&mut self, name: &str, shape: &[usize]) {
        self.0.push(ManifestEntry::float(name.to_string(), shape));
    }

    /// A weight and a bias as long as the weight's first axis.
    fn affine(&mut self, path: &str, weight: &[usize]) {
        self.push(&format!("{path}.weight"), weight);
        self.push(&format!("{path}.bias"), &weight[..1]);
    }

    fn conv(&mut self, path: &str, num_in: usize, num_out: usize, kernel: usize) {
        self.affine(path, &[num_out, num_in, kernel, kernel]);
    }

    fn res_block(&mut self, path: &str, num_in: usize, num_out: usize) {
        self.affine(&format!("{path}.norm1"), &[num_in]);
        self.conv(&format!("{path}.conv1"), num_in, num_out, 3);
        self.affine(&format!("{path}.norm2"), &[num_out]);
        self.conv(&format!("{path}.conv2"), num_out, num_out, 3);
        if num_in != num_out {
            self.conv(&format!("{path}.nin_shortcut"), num_in, num_out, 1);
        }
    }

    fn middle(&mut self, path: &str, width: usize) {
        self.res_block(&format!("{path}.block_1"), width, width);
        self.affine(&format!("{path}.attn_1.norm"), &[width]);
        for name in ["q", "k", "v", "proj_out"] {
            self.conv(&format!("{path}.attn_1.{name}"), width, width, 1);
        }
        self.res_block(&format!("{path}.block_2"), width, width);
    }
}
