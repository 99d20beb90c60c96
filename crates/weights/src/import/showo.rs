use std::path::Path;

use burn::module::Module;
use serde::Deserialize;
use serde_json::{Map, Value};
use unif2ace_model::config::{ModelConfig, MoeConfig, MoeLevel};
use unif2ace_model::moe::{FeatureResamplers, SequenceMoe, TokenMoe};

use super::{
    CONFIG, ImportOptions, ImportReport, check, load_finite, metadata, own_type, prepare_target, read_model_config,
    write_config_part,
};
use crate::manifest::{ManifestEntry, ShowOShape, show_o as manifest};
use crate::module::for_each_parameter;
use crate::{Result, SafetensorsDir, SafetensorsWriter, TensorSpec, WeightsError, named_parameters};

const TARGET: &str = "a Show-o checkpoint of these sizes";
const PROJECTOR: &str = "mm_projector.0.weight";

/// What a Show-o config.json may say. The release names only the vocabulary; the rest are Phi-1.5's numbers unless given.
#[derive(Deserialize)]
struct ShowOConfig {
    vocab_size: Option<usize>,
    llm_vocab_size: Option<usize>,
    codebook_size: Option<usize>,
    num_vq_tokens: Option<usize>,
    mask_token_id: Option<usize>,
    num_new_special_tokens: Option<usize>,
    w_clip_vit: Option<bool>,
    hidden_size: Option<usize>,
    num_hidden_layers: Option<usize>,
    num_attention_heads: Option<usize>,
    intermediate_size: Option<usize>,
    partial_rotary_factor: Option<f64>,
    rope_theta: Option<f64>,
    layer_norm_eps: Option<f64>,
    eos_token_id: Option<u32>,
    max_seq_length: Option<usize>,
}

/// Makes a model folder from a Show-o checkpoint: the backbone as it is, experts that change nothing at first ("upcycling",
/// arXiv 2503.08120): the dense MLP is the shared expert, routed experts have a zero output, the sequence branch a zero scale.
///
/// `source` is a folder in the hub's layout, config.json with one safetensors file or shards, any float type. One tensor, or one
/// block's experts, is in memory at a time.
///
/// # Errors
/// When the checkpoint is a pickle, damaged, or doesn't fit its configuration (every difference is listed); when the folder `target`
/// can't be written.
pub fn show_o(source: &Path, target: &Path, options: &ImportOptions) -> Result<ImportReport> {
    let tensors = SafetensorsDir::open(source)?;
    let (config, shape) = read_config(source, &tensors, options.level)?;
    let backbone = manifest(&shape);
    check(&tensors, &backbone, TARGET, |_| false)?;
    let weights_path = target.join("model.safetensors");
    prepare_target(target, &weights_path)?;

    options.device.seed(options.seed);
    let experts = Experts::new(&config, options);
    let specs = experts.specs(&backbone);
    let num_values = specs.iter().map(|spec| spec.shape.iter().product::<usize>() as u64).sum();
    let num_added = specs.len() - backbone.len();
    let origin = source.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let mut writer =
        SafetensorsWriter::create(&weights_path, specs, options.float.unwrap_or_else(|| own_type(&tensors)), &metadata(&origin))?;
    for part in experts.order(&backbone) {
        match part {
            Part::Backbone(name) => writer.write(name, &load_finite(&tensors, name, TARGET)?)?,
            Part::Block(layer) => experts.write_block(layer, &mut writer)?,
            Part::Resamplers => experts.write_resamplers(&mut writer)?,
        }
    }
    writer.finish()?;
    write_config_part(target, "model", &config)?;
    Ok(ImportReport { num_imported: backbone.len(), num_added, num_values, dropped: Vec::new() })
}

fn read_config(folder: &Path, tensors: &SafetensorsDir, level: MoeLevel) -> Result<(ModelConfig, ShowOShape)> {
    let fail = |reason: String| WeightsError::Config { path: folder.join(CONFIG), reason };
    let table: Map<String, Value> = read_model_config(folder)?;
    if table.is_empty() {
        return Err(fail("expected the checkpoint's config.json, found none or an empty one".into()));
    }
    if let Some(class) = table.get("_class_name").and_then(Value::as_str)
        && class != "Showo"
    {
        return Err(fail(format!("_class_name: expected Showo, found {class}")));
    }
    let given: ShowOConfig =
        serde_json::from_value(Value::Object(table)).map_err(|error| fail(format!("a field can't be used: {error}")))?;
    let base = ModelConfig::base();
    let vocab_size = given.vocab_size.unwrap_or(base.vocab_size);
    if let Some(mask) = given.mask_token_id
        && mask + 1 != vocab_size
    {
        return Err(fail(format!("mask_token_id: expected vocab_size - 1, found {mask} for vocab_size {vocab_size}")));
    }
    let projector_dim = match (given.w_clip_vit, tensors.shape(PROJECTOR)) {
        (Some(false), _) | (None, None) => None,
        (_, Some(&[_, dim])) => Some(dim),
        (Some(true), _) => Some(base.moe.clip_dim),
        (None, Some(_)) => None,
    };
    let config = ModelConfig {
        vocab_size,
        hidden_size: given.hidden_size.unwrap_or(base.hidden_size),
        num_hidden_layers: given.num_hidden_layers.unwrap_or(base.num_hidden_layers),
        num_attention_heads: given.num_attention_heads.unwrap_or(base.num_attention_heads),
        intermediate_size: given.intermediate_size.unwrap_or(base.intermediate_size),
        partial_rotary_factor: given.partial_rotary_factor.unwrap_or(base.partial_rotary_factor),
        rope_theta: given.rope_theta.unwrap_or(base.rope_theta),
        layer_norm_eps: given.layer_norm_eps.unwrap_or(base.layer_norm_eps),
        qk_layernorm: true,
        llm_vocab_size: given.llm_vocab_size.unwrap_or(base.llm_vocab_size),
        num_new_special_tokens: given.num_new_special_tokens.unwrap_or(base.num_new_special_tokens),
        eot_token_id: given.eos_token_id.unwrap_or(base.eot_token_id),
        codebook_size: given.codebook_size.unwrap_or(base.codebook_size),
        num_vq_tokens: given.num_vq_tokens.unwrap_or(base.num_vq_tokens),
        max_seq_length: given.max_seq_length.unwrap_or(base.max_seq_length),
        mm_projector_dim: projector_dim,
        moe: MoeConfig { level, sequence_scale_init: 0.0, ..base.moe.clone() },
        ..base
    };
    config.check().map_err(|error| fail(error.to_string()))?;
    let shape = ShowOShape {
        vocab_size: config.vocab_size,
        hidden_size: config.hidden_size,
        intermediate_size: config.intermediate_size,
        num_hidden_layers: config.num_hidden_layers,
        head_dim: config.head_dim(),
        clip_dim: config.mm_projector_dim,
    };
    Ok((config, shape))
}

/// One step of writing.
enum Part<'a> {
    Backbone(&'a str),
    /// The experts of a block.
    Block(usize),
    Resamplers,
}

/// What is added to the backbone.
struct Experts<'a> {
    config: &'a ModelConfig,
    options: &'a ImportOptions,
    /// Names below a block and their shapes, the same in every block.
    block: Vec<(String, Vec<usize>)>,
    resamplers: Option<FeatureResamplers>,
}

const RESAMPLERS: &str = "resamplers";

impl<'a> Experts<'a> {
    fn new(config: &'a ModelConfig, options: &'a ImportOptions) -> Self {
        let level = config.moe.level;
        let mut block = Vec::new();
        if level.token() {
            block.extend(prefixed("moe", &TokenMoe::new(config, &options.device)));
        }
        if level.sequence() {
            block.extend(prefixed("sequence", &SequenceMoe::new(config, &options.device)));
        }
        let resamplers = level.sequence().then(|| FeatureResamplers::new(config, &options.device));
        Self { config, options, block, resamplers }
    }

    /// The order of the tensors: a block's experts follow the block, the resamplers come last.
    fn order<'b>(&self, backbone: &'b [ManifestEntry]) -> Vec<Part<'b>> {
        let mut parts = Vec::with_capacity(backbone.len());
        for (place, entry) in backbone.iter().enumerate() {
            parts.push(Part::Backbone(entry.name.as_str()));
            let layer = layer_of(&entry.name);
            let next = backbone.get(place + 1).and_then(|next| layer_of(&next.name));
            if let Some(layer) = layer
                && next != Some(layer)
            {
                parts.push(Part::Block(layer));
            }
        }
        parts.push(Part::Resamplers);
        parts
    }

    fn specs(&self, backbone: &[ManifestEntry]) -> Vec<TensorSpec> {
        let shapes = backbone.iter().map(|entry| (entry.name.as_str(), entry.shape.as_slice()));
        let shapes: std::collections::HashMap<_, _> = shapes.collect();
        let mut specs = Vec::new();
        for part in self.order(backbone) {
            match part {
                Part::Backbone(name) => {
                    let shape = shapes.get(name).map(|shape| shape.to_vec()).unwrap_or_default();
                    specs.push(TensorSpec { name: name.to_string(), shape });
                }
                Part::Block(layer) => specs.extend(
                    self.block
                        .iter()
                        .map(|(name, shape)| TensorSpec { name: format!("{}.{name}", layer_path(layer)), shape: shape.clone() }),
                ),
                Part::Resamplers => specs.extend(
                    self.resamplers
                        .iter()
                        .flat_map(|resamplers| prefixed(RESAMPLERS, resamplers))
                        .map(|(name, shape)| TensorSpec { name, shape }),
                ),
            }
        }
        specs
    }

    fn write_block(&self, layer: usize, writer: &mut SafetensorsWriter) -> Result<()> {
        let (path, device) = (layer_path(layer), &self.options.device);
        if self.config.moe.level.token() {
            write_module(&format!("{path}.moe"), &TokenMoe::new(self.config, device), writer)?;
        }
        if self.config.moe.level.sequence() {
            write_module(&format!("{path}.sequence"), &SequenceMoe::new(self.config, device), writer)?;
        }
        Ok(())
    }

    fn write_resamplers(&self, writer: &mut SafetensorsWriter) -> Result<()> {
        self.resamplers.as_ref().map_or(Ok(()), |resamplers| write_module(RESAMPLERS, resamplers, writer))
    }
}

fn layer_path(layer: usize) -> String {
    format!("showo.model.layers.{layer}")
}

fn layer_of(name: &str) -> Option<usize> {
    name.strip_prefix("showo.model.layers.")?.split('.').next()?.parse().ok()
}

fn prefixed<M: Module>(prefix: &str, module: &M) -> Vec<(String, Vec<usize>)> {
    named_parameters(module).into_iter().map(|(name, shape)| (format!("{prefix}.{name}"), shape)).collect()
}

fn write_module<M: Module>(prefix: &str, module: &M, writer: &mut SafetensorsWriter) -> Result<()> {
    for_each_parameter(module, |name, values| writer.write(&format!("{prefix}.{name}"), values))
}
