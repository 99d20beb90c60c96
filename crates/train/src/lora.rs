//! `[lora]` of a recipe: low-rank adapters beside the frozen weights of a model folder (Hu et al. 2021).

use std::path::Path;

use serde::{Deserialize, Serialize};
use unif2ace_model::transformer::Unif2ace;
use unif2ace_weights::{LORA_FILE, LoraInfo, NameMap, SafetensorsDir, WeightsError, load_into, save_lora};

use crate::error::{Result, TrainError};
use crate::patterns::Pattern;
use crate::recipe::Recipe;

/// Which layers get adapters, and of which size. The run trains and saves the adapters alone.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoraConfig {
    /// Rank of the updates.
    pub rank: usize,
    /// Updates are `alpha / rank * B A`.
    pub alpha: f64,
    /// Patterns of the linear layers: whole parts of their paths, `*` for anything. The attention and the dense MLP of every block where
    /// absent.
    #[serde(default = "default_targets")]
    pub targets: Vec<String>,
}

fn default_targets() -> Vec<String> {
    ["layers.*.self_attn", "layers.*.mlp"].map(str::to_owned).into()
}

impl LoraConfig {
    /// Refuses what can't be meant.
    pub(crate) fn check(&self, recipe: &Recipe) -> std::result::Result<(), String> {
        if recipe.unified.as_ref().is_none_or(|unified| unified.init_from.is_none()) {
            return Err("[lora] needs `init_from` in [unified], the model folder whose weights the adapters stand beside".into());
        }
        if recipe.trainable.is_some() {
            return Err("[trainable] has no effect beside [lora], which trains the adapters alone".into());
        }
        if self.rank == 0 || !(self.alpha.is_finite() && self.alpha > 0.0) {
            let (rank, alpha) = (self.rank, self.alpha);
            return Err(format!(
                "[lora]: expected a rank of at least 1 and a positive alpha, found rank {rank} and alpha {alpha}"
            ));
        }
        if self.targets.is_empty() {
            return Err("`targets` of [lora] is empty: expected patterns of linear layers".into());
        }
        Pattern::all(&self.targets).map(drop).map_err(|reason| format!("[lora]: {reason}"))
    }
}

/// The transformer with the weights of a model folder.
///
/// # Errors
/// When there are none, or of other names or shapes; each is listed.
pub(crate) fn load_base(model: Unif2ace, folder: &Path) -> Result<Unif2ace> {
    let source = SafetensorsDir::open(folder.join("model.safetensors"))?;
    load_into(model, &source, &NameMap::identity()).map_err(|error| match error {
        WeightsError::Mismatch { origin, problems, .. } => {
            let hint = "[unified.config] must have the sizes of the model in `init_from`, which are in its config.json";
            WeightsError::Mismatch { origin, target: "the recipe's model".into(), problems, hint }.into()
        }
        other => other.into(),
    })
}

/// The model with new adapters.
///
/// # Errors
/// When a target fits no linear layer, or the rank is more than a layer has.
pub(crate) fn attach(recipe: &Recipe, config: &LoraConfig, model: Unif2ace) -> Result<Unif2ace> {
    let refuse = |reason, hint| TrainError::Recipe { path: recipe.run.output.clone(), reason, hint };
    let layers = model.linear_layers();
    let targets = Pattern::all(&config.targets).map_err(|reason| TrainError::recipe(&recipe.run.output, reason))?;
    for target in &targets {
        if !layers.iter().any(|layer| target.fits(layer)) {
            let nearest = target.nearest(layers.iter().map(String::as_str)).unwrap_or_default();
            return Err(refuse(
                format!("[lora]: `{}` in `targets` fits no linear layer", target.text()),
                format!("did you mean `{nearest}`? The routed experts' matrices are no linear layers"),
            ));
        }
    }
    Ok(model.with_lora(config.rank, config.alpha, |layer| targets.iter().any(|target| target.fits(layer))))
}

/// SHA-256 of the weights that the recipe's adapters stand beside; none without adapters.
///
/// # Errors
/// When they can't be read.
pub(crate) fn base_digest(recipe: &Recipe) -> Result<Option<String>> {
    let base = recipe.unified.as_ref().and_then(|unified| unified.init_from.as_ref());
    let (Some(_), Some(folder)) = (&recipe.lora, base) else { return Ok(None) };
    Ok(Some(unif2ace_io::sha256_file(folder.join("model.safetensors"))?))
}

/// Writes the adapters into the recipe's model folder.
///
/// # Errors
/// When the folder can't be written.
pub(crate) fn write(recipe: &Recipe, config: &LoraConfig, model: &Unif2ace) -> Result<()> {
    let base = recipe.unified.as_ref().and_then(|unified| unified.init_from.as_ref()?.file_name());
    let info = LoraInfo {
        rank: config.rank,
        alpha: config.alpha,
        targets: config.targets.clone(),
        base: base.unwrap_or_default().to_string_lossy().into_owned(),
    };
    unif2ace_io::create_dir_all(&recipe.run.export)?;
    Ok(save_lora(model, recipe.run.export.join(LORA_FILE), &info)?)
}
