//! One TOML file per training run: typed, read once, unknown keys refused.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use unif2ace_data::Schema;
use unif2ace_diffusion::d3diff::D3DiffConfig;
use unif2ace_model::config::ModelConfig;
use unif2ace_model::encoders::{ClipConfig, ClipVisionConfig, FaceConfig, FaceHead, Pooling};
use unif2ace_model::transformer::Recompute;
use unif2ace_model::vq::VqConfig;

use crate::checkpoint::{Better, Keep};
pub use crate::data_config::{DataConfig, MixtureConfig};
pub use crate::decay::DecayGroups;
use crate::error::{Result, TrainError};
use crate::lora::LoraConfig;
use crate::stages::{self, Stage};
use crate::trainable::TrainableConfig;
use crate::useless;

/// A training run: what is trained is told by which of the model sections is present (exactly one).
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// Where the run lives and what it ends with.
    pub run: RunConfig,
    /// The data.
    pub data: DataConfig,
    /// Optimiser and schedule; absent for the tokenizer.
    pub optimizer: Option<OptimizerConfig>,
    /// Parameters that stay as they are; without it all are trained.
    pub trainable: Option<TrainableConfig>,
    /// Train low-rank adapters beside the weights of `init_from`, in place of the weights.
    pub lora: Option<LoraConfig>,
    /// Byte-pair encoding of the text.
    pub tokenizer: Option<TokenizerRecipe>,
    /// The VQ image tokenizer.
    pub vq: Option<VqRecipe>,
    /// The face-attribute network.
    pub face: Option<FaceRecipe>,
    /// The CLIP encoder pair.
    pub clip: Option<ClipRecipe>,
    /// The unified transformer.
    pub unified: Option<UnifiedRecipe>,
    /// The stages of a run that has several, each as a recipe of its own; `[[stage]]` in the file.
    #[serde(skip_deserializing, skip_serializing_if = "Vec::is_empty")]
    pub stages: Vec<Stage>,
    /// Steps of the stages before the one that this recipe is of.
    #[serde(skip)]
    pub first_step: u64,
}

/// Where a run keeps its files, how often it reports.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunConfig {
    /// Folder of checkpoints, metrics and sample sheets.
    pub output: PathBuf,
    /// Model folder that the finished part is written into.
    pub export: PathBuf,
    /// Seed of everything random in the run.
    pub seed: u64,
    /// Steps between two lines of metrics.
    #[serde(default = "default_log_every")]
    pub log_every: u64,
    /// Write the metrics as event files into `tensorboard/` too.
    #[serde(default = "default_tensorboard")]
    pub tensorboard: bool,
    /// Steps between two evaluations with a sample sheet; 0 for only at the end.
    #[serde(default)]
    pub evaluate_every: u64,
    /// Steps between two checkpoints.
    #[serde(default = "default_checkpoint_every")]
    pub checkpoint_every: u64,
    /// Newest checkpoints that are kept.
    #[serde(default = "default_keep_last")]
    pub keep_last: usize,
    /// Best checkpoints by `best_metric` that are kept beside them; with it, every evaluation is followed by a checkpoint.
    #[serde(default)]
    pub keep_best: usize,
    /// Name of the evaluations' measure that `keep_best` ranks by.
    pub best_metric: Option<String>,
    /// Whether a `lower` (the default) or a `higher` measure is better.
    pub best_is: Option<Better>,
    /// Steps with a loss or gradient that is not finite which are left out before the run stops at one.
    #[serde(default)]
    pub skip_nonfinite: u64,
    /// `f32` or `bf16`: the precision of matrix products; weights and sums stay f32.
    #[serde(default)]
    pub precision: PrecisionName,
}

impl RunConfig {
    /// Which checkpoints stay.
    pub fn keep(&self) -> Keep {
        let better = self.best_is.unwrap_or_default();
        Keep { last: self.keep_last, best: self.keep_best, metric: self.best_metric.clone(), better }
    }

    /// Refuses settings of checkpoints that contradict each other or have no effect.
    fn check_keep(&self) -> std::result::Result<(), String> {
        let best = self.keep_best > 0;
        match (&self.best_metric, self.best_is) {
            _ if self.keep_last == 0 => Err("keep_last must be at least 1".into()),
            (None, _) if best => Err("keep_best needs best_metric, the name of a measure of the evaluations".into()),
            (Some(_), _) | (_, Some(_)) if !best => Err("best_metric and best_is have no effect without keep_best".into()),
            _ if best && self.evaluate_every == 0 => Err("keep_best needs evaluate_every".into()),
            _ => Ok(()),
        }
    }
}

/// Name of a compute precision.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PrecisionName {
    /// 32-bit floats.
    #[default]
    F32,
    /// bfloat16 factors, f32 sums.
    Bf16,
}

/// Shape of the learning rate over a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScheduleName {
    /// Linear warm-up, then half a cosine to `min_lr_ratio`.
    Cosine,
    /// Linear warm-up, then `num_cycles` times half a cosine, each from the peak.
    CosineWithRestarts,
    /// Linear warm-up, then constant.
    #[serde(alias = "constant_with_warmup")]
    Constant,
    /// Linear warm-up, then a straight fall to `min_lr_ratio`.
    Linear,
    /// Linear warm-up, constant, and a linear fall over the last `decay_ratio` of the steps.
    Wsd,
}

/// AdamW and its learning-rate schedule.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OptimizerConfig {
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Rows per step.
    pub batch_size: usize,
    /// Passes that a step's rows are computed in, one after the other: as many times less memory for activations, and the same loss. With
    /// token-level experts each step first counts which experts its tokens take, by a forward pass without gradients.
    #[serde(default = "default_accumulation_steps")]
    pub accumulation_steps: usize,
    /// Steps of the whole run.
    pub num_steps: u64,
    /// Decay rates of the two moments.
    #[serde(default = "default_betas")]
    pub betas: [f64; 2],
    /// Denominator guard.
    #[serde(default = "default_eps")]
    pub eps: f64,
    /// Decoupled weight decay, on what `decay_groups` says.
    #[serde(default)]
    pub weight_decay: f64,
    /// `corrected`: tensors of two or more axes decay. `reference`: all but biases, as in Show-o's trainer.
    #[serde(default)]
    pub decay_groups: DecayGroups,
    /// Steps of linear warm-up.
    #[serde(default)]
    pub warmup_steps: u64,
    /// Shape of the schedule.
    #[serde(default = "default_schedule")]
    pub schedule: ScheduleName,
    /// Cycles of `cosine_with_restarts`.
    #[serde(default = "default_num_cycles")]
    pub num_cycles: u32,
    /// Last learning rate as a fraction of the peak.
    #[serde(default)]
    pub min_lr_ratio: f64,
    /// Part of the run over which `wsd` falls.
    #[serde(default = "default_decay_ratio")]
    pub decay_ratio: f64,
    /// Global norm at which gradients are clipped; 0 for never.
    #[serde(default)]
    pub max_grad_norm: f64,
    /// Decay of the moving average of the weights that is evaluated and exported; 0 for none.
    #[serde(default)]
    pub ema_decay: f64,
    /// Keep moments and averages in the host's memory and update there, also where a run has one device that is not the CPU: 12 bytes a
    /// parameter less on it, and 8 bytes a parameter on the way each step.
    #[serde(default)]
    pub on_host: bool,
}

/// Refuses numbers outside of their range: `(key, value, whether it may be, the range in words)`.
fn check_ranges(section: &str, ranges: &[(&str, f64, bool, &str)]) -> std::result::Result<(), String> {
    match ranges.iter().find(|(_, value, fits, _)| !fits || !value.is_finite()) {
        Some((key, value, _, expected)) => Err(format!("`{key}` of [{section}]: expected {expected}, found {value}")),
        None => Ok(()),
    }
}

/// From 0 to below 1.
fn is_decay(value: f64) -> bool {
    (0.0..1.0).contains(&value)
}

fn is_fraction(value: f64) -> bool {
    (0.0..=1.0).contains(&value)
}

impl UnifiedRecipe {
    fn check(&self) -> std::result::Result<(), String> {
        const WEIGHT: &str = "a number of at least 0";
        const FRACTION: &str = "a number from 0 to 1";
        let weights = [
            ("t2i_coeff", self.t2i_coeff),
            ("mmu_coeff", self.mmu_coeff),
            ("text_coeff", self.text_coeff),
            ("balance_coeffs", self.balance_coeffs[0]),
            ("balance_coeffs", self.balance_coeffs[1]),
        ];
        let fractions = [
            ("cond_dropout_prob", self.cond_dropout_prob),
            ("paraphrase_fraction", self.paraphrase_fraction),
            ("caption_fraction", self.caption_fraction),
        ];
        let weights = weights.map(|(key, value)| (key, value, value >= 0.0, WEIGHT));
        let fractions = fractions.map(|(key, value)| (key, value, is_fraction(value), FRACTION));
        let tokens =
            [("max_turn_tokens", self.max_turn_tokens as f64, self.max_turn_tokens >= 2, "a whole number of at least 2")];
        check_ranges("unified", &weights)?;
        check_ranges("unified", &fractions)?;
        check_ranges("unified", &tokens)
    }
}

impl OptimizerConfig {
    fn check(&self) -> std::result::Result<(), String> {
        const DECAY: &str = "a number from 0 to below 1";
        const POSITIVE: &str = "a number above 0";
        const WEIGHT: &str = "a number of at least 0";
        const FRACTION: &str = "a number from 0 to 1";
        check_ranges(
            "optimizer",
            &[
                ("learning_rate", self.learning_rate, self.learning_rate >= 0.0, WEIGHT),
                ("betas", self.betas[0], is_decay(self.betas[0]), DECAY),
                ("betas", self.betas[1], is_decay(self.betas[1]), DECAY),
                ("eps", self.eps, self.eps > 0.0, POSITIVE),
                ("weight_decay", self.weight_decay, self.weight_decay >= 0.0, WEIGHT),
                ("num_cycles", f64::from(self.num_cycles), self.num_cycles > 0, "a whole number of at least 1"),
                ("min_lr_ratio", self.min_lr_ratio, is_fraction(self.min_lr_ratio), FRACTION),
                ("decay_ratio", self.decay_ratio, is_fraction(self.decay_ratio), FRACTION),
                ("max_grad_norm", self.max_grad_norm, self.max_grad_norm >= 0.0, WEIGHT),
                ("ema_decay", self.ema_decay, is_decay(self.ema_decay), DECAY),
            ],
        )
    }

    /// Learning rate of step `step` (as Show-o's schedules: the first step is 0, and with a warm-up its rate is 0, as the reference's).
    pub fn learning_rate_at(&self, step: u64) -> f64 {
        if step < self.warmup_steps {
            return self.learning_rate * step as f64 / self.warmup_steps as f64;
        }
        let total = self.num_steps.max(self.warmup_steps + 1);
        let done = (step - self.warmup_steps) as f64 / (total - self.warmup_steps) as f64;
        let shape = match self.schedule {
            ScheduleName::Constant => 1.0,
            ScheduleName::Linear => (1.0 - done).max(0.0),
            ScheduleName::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * done.min(1.0)).cos()),
            ScheduleName::CosineWithRestarts if done >= 1.0 => 0.0,
            ScheduleName::CosineWithRestarts => {
                0.5 * (1.0 + (std::f64::consts::PI * (done * f64::from(self.num_cycles)).fract()).cos())
            }
            ScheduleName::Wsd => {
                let left = (1.0 - step as f64 / total as f64).max(0.0);
                (left / self.decay_ratio.max(1e-9)).min(1.0)
            }
        };
        self.learning_rate * (self.min_lr_ratio + (1.0 - self.min_lr_ratio) * shape)
    }
}

/// Byte-pair encoding.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenizerRecipe {
    /// Entries in all, the end-of-text token included.
    pub vocab_size: usize,
    /// Paraphrased captions per training sample that are added to the set's own text.
    #[serde(default)]
    pub num_paraphrases: usize,
}

/// The VQ tokenizer.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VqRecipe {
    /// Network sizes.
    pub config: VqConfig,
    /// Weight of the commitment loss.
    pub commit_weight: f64,
    /// Weight of the entropy loss (certain tokens, even use of the bits).
    pub entropy_weight: f64,
    /// Weight of the mean absolute error beside the squared error.
    #[serde(default)]
    pub l1_weight: f64,
    /// Train the decoder alone: codes stay what they are, and so does what a transformer has learnt of them.
    #[serde(default)]
    pub decoder_only: bool,
}

/// The attribute network.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FaceRecipe {
    /// The picture tower; the heads are the attribute schema's.
    pub vision_config: ClipVisionConfig,
    /// Width of the embedding.
    pub embedding_size: usize,
    /// Which states make the embedding.
    pub pooling: Pooling,
    /// Largest random shift in pixels.
    #[serde(default)]
    pub max_shift: usize,
    /// Mirror every second picture, with left and right changing places in its attributes.
    #[serde(default)]
    pub flip: bool,
}

impl FaceRecipe {
    /// The network, with a head for each attribute of the schema.
    pub(crate) fn network(&self) -> FaceConfig {
        let heads = Schema::get().heads();
        FaceConfig {
            vision_config: self.vision_config.clone(),
            embedding_size: self.embedding_size,
            pooling: self.pooling,
            heads: heads.iter().map(|head| FaceHead { name: head.name.into(), num_classes: head.num_classes }).collect(),
        }
    }
}

/// The contrastive pair.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClipRecipe {
    /// Network sizes.
    pub config: ClipConfig,
    /// `face.safetensors` whose picture tower this one starts from.
    pub init_vision_from: Option<PathBuf>,
    /// `tokenizer.json` of the model folder.
    pub tokenizer: PathBuf,
    /// Part of the captions that are own paraphrases of the attributes.
    #[serde(default)]
    pub paraphrase_fraction: f64,
    /// Largest random shift in pixels.
    #[serde(default)]
    pub max_shift: usize,
}

/// The unified transformer, on top of the frozen parts in the run's model folder.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UnifiedRecipe {
    /// Network sizes.
    pub config: ModelConfig,
    /// Model folder whose `model.safetensors` the transformer starts from; random weights without it.
    pub init_from: Option<PathBuf>,
    /// The generation loss.
    pub loss: D3DiffConfig,
    /// Rows of understanding a step, beside `batch_size` rows of generation.
    pub mmu_batch_size: usize,
    /// Probability that a prompt is dropped, for classifier-free guidance.
    pub cond_dropout_prob: f64,
    /// Weight of the generation loss.
    pub t2i_coeff: f64,
    /// Weight of the understanding loss.
    pub mmu_coeff: f64,
    /// Rows of text alone a step, where the mixture has sets for `text`.
    #[serde(default)]
    pub text_batch_size: usize,
    /// Weight of the loss on text alone.
    #[serde(default = "default_text_coeff")]
    pub text_coeff: f64,
    /// Weights of the balance losses of generation and understanding.
    pub balance_coeffs: [f64; 2],
    /// Part of the captions and questions that are own paraphrases.
    pub paraphrase_fraction: f64,
    /// Questions packed into one row.
    pub questions_per_row: usize,
    /// Most tokens of a question with its answer, or of a request with its caption; longer ones are cut. A row takes memory by its length, all rows of
    /// a pass by the longest one's.
    #[serde(default = "default_max_turn_tokens")]
    pub max_turn_tokens: usize,
    /// Part of the understanding rows that also hold a request for a caption. Most of a caption's loss is the order in which it tells
    /// things, so answers are learnt sooner with fewer captions.
    #[serde(default = "default_caption_fraction")]
    pub caption_fraction: f64,
    /// Blocks that keep only their inputs and run again in the backward pass: `"none"`, `"blocks"` (all) or a number (the first so many).
    /// Less memory for activations, up to a third more time, the same numbers.
    #[serde(default)]
    pub recompute: Recompute,
}

fn default_max_turn_tokens() -> usize {
    512
}

fn default_caption_fraction() -> f64 {
    1.0
}

/// Show-o's `lm_coeff`.
fn default_text_coeff() -> f64 {
    0.1
}
fn default_log_every() -> u64 {
    20
}
fn default_tensorboard() -> bool {
    true
}
fn default_checkpoint_every() -> u64 {
    500
}
fn default_keep_last() -> usize {
    2
}
fn default_accumulation_steps() -> usize {
    1
}
fn default_betas() -> [f64; 2] {
    [0.9, 0.99]
}
fn default_eps() -> f64 {
    1e-8
}
fn default_schedule() -> ScheduleName {
    ScheduleName::Cosine
}
fn default_num_cycles() -> u32 {
    1
}
fn default_decay_ratio() -> f64 {
    0.3
}

/// The hint that goes with a message of the TOML reader: for an unknown key, the nearest of the expected ones.
pub(crate) fn hint(message: &str) -> String {
    let mut names = message.split('`').skip(1).step_by(2);
    let found = message.contains("unknown ").then(|| names.next()).flatten();
    match found.and_then(|found| nearest(found, names)) {
        Some(name) => format!("did you mean `{name}`?"),
        None => "the recipes in recipes/mini train every part and name every key".to_string(),
    }
}

/// The name that is most like `found`, if one is.
pub(crate) fn nearest<'a>(found: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let likeness = |name: &&str| strsim::jaro_winkler(found, name);
    names.max_by(|one, other| likeness(one).total_cmp(&likeness(other))).filter(|name| likeness(name) > 0.75)
}

impl Recipe {
    /// Reads and checks a recipe.
    ///
    /// # Errors
    /// When the file can't be read, a key is unknown, missing or without effect, or not exactly one part is named.
    pub fn read(path: &Path) -> Result<Self> {
        let text = unif2ace_io::read_to_string_capped(path, 1 << 20)?;
        let recipe = Self::parse(&text).map_err(|reason| TrainError::recipe(path, reason))?;
        let refuse = |(reason, hint)| TrainError::Recipe { path: path.to_path_buf(), reason, hint };
        useless::check(&text, &recipe).map_err(refuse)?;
        Ok(recipe)
    }

    pub(crate) fn parse(text: &str) -> std::result::Result<Self, String> {
        let read = |error: toml::de::Error| error.to_string().trim_end().to_string();
        let mut table: toml::Table = toml::from_str(text).map_err(read)?;
        let stages = stages::split(&mut table)?;
        if stages.is_empty() {
            // From the text, so that errors show the line.
            return toml::from_str::<Self>(text).map_err(read)?.checked();
        }
        let mut recipe = table.try_into::<Self>().map_err(read)?.checked()?;
        let mut first_step = 0;
        for (name, table) in stages {
            let stage = table.try_into::<Self>().map_err(read).and_then(Self::checked);
            let recipe_of = Self { first_step, ..stage.map_err(|reason| format!("stage `{name}`: {reason}"))? };
            first_step = recipe_of.last_step();
            recipe.stages.push(Stage { name, recipe: recipe_of });
        }
        Ok(recipe)
    }

    /// The recipe, unless it contradicts itself.
    fn checked(self) -> std::result::Result<Self, String> {
        let recipe = self;
        recipe.run.check_keep()?;
        let parts = [
            recipe.tokenizer.is_some(),
            recipe.vq.is_some(),
            recipe.face.is_some(),
            recipe.clip.is_some(),
            recipe.unified.is_some(),
        ];
        let named = parts.iter().filter(|&&present| present).count();
        if named != 1 {
            return Err(format!("expected exactly one of [tokenizer], [vq], [face], [clip], [unified], found {named}"));
        }
        recipe.data.check()?;
        match &recipe.optimizer {
            None if recipe.tokenizer.is_none() => {
                return Err("section [optimizer] is missing".into());
            }
            Some(optimizer) if optimizer.batch_size == 0 || optimizer.num_steps == 0 => {
                return Err("batch_size and num_steps must be at least 1".into());
            }
            Some(optimizer) => optimizer.check()?,
            None => {}
        }
        if let Some(unified) = &recipe.unified {
            unified.check()?;
        }
        if let Some(trainable) = &recipe.trainable {
            trainable.check()?;
        }
        if let Some(lora) = &recipe.lora {
            lora.check(&recipe)?;
        }
        Ok(recipe)
    }

    /// The optimiser section, which every recipe but the tokenizer's has.
    ///
    /// # Errors
    /// When it is absent.
    pub fn optimizer(&self) -> Result<&OptimizerConfig> {
        self.optimizer.as_ref().ok_or_else(|| TrainError::recipe(&self.run.output, "section [optimizer] is missing"))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)] // a test may end by them
mod tests {
    use super::*;

    fn optimizer(schedule: ScheduleName) -> OptimizerConfig {
        OptimizerConfig {
            learning_rate: 1.0,
            batch_size: 1,
            accumulation_steps: 1,
            num_steps: 110,
            betas: default_betas(),
            eps: 1e-8,
            weight_decay: 0.0,
            decay_groups: DecayGroups::default(),
            warmup_steps: 10,
            schedule,
            num_cycles: 1,
            min_lr_ratio: 0.0,
            decay_ratio: 0.5,
            max_grad_norm: 0.0,
            ema_decay: 0.0,
            on_host: false,
        }
    }

    #[test]
    fn warm_up_then_shape() {
        let cosine = optimizer(ScheduleName::Cosine);
        assert!((cosine.learning_rate_at(1) - 0.1).abs() < 1e-12);
        assert!((cosine.learning_rate_at(10) - 1.0).abs() < 1e-12);
        assert!((cosine.learning_rate_at(60) - 0.5).abs() < 1e-12);
        let wsd = optimizer(ScheduleName::Wsd);
        assert!((wsd.learning_rate_at(40) - 1.0).abs() < 1e-12);
        assert!((wsd.learning_rate_at(82) - (28.0 / 110.0 / 0.5)).abs() < 1e-12);
        assert!((optimizer(ScheduleName::Constant).learning_rate_at(109) - 1.0).abs() < 1e-12);
    }

    #[test]
    fn numbers_outside_of_their_range_are_refused_by_name() {
        let golden = include_str!("../../../recipes/debug/golden.toml");
        assert!(Recipe::parse(golden).is_ok());
        let cases = [
            ("betas = [0.9, 0.98]", "betas = [0.9, 1.0]", "`betas` of [optimizer]: expected a number from 0 to below 1, found 1"),
            ("learning_rate = 2.0e-3", "learning_rate = -1.0", "`learning_rate`"),
            ("learning_rate = 2.0e-3", "learning_rate = nan", "`learning_rate`"),
            ("weight_decay = 0.02", "weight_decay = -0.1", "`weight_decay`"),
            ("max_grad_norm = 1.0", "max_grad_norm = -1.0", "`max_grad_norm`"),
            ("ema_decay = 0.95", "ema_decay = 1.0", "`ema_decay`"),
            ("warmup_steps = 5", "warmup_steps = 5\nnum_cycles = 0", "`num_cycles`"),
            ("warmup_steps = 5", "warmup_steps = 5\neps = 0.0", "`eps`"),
            (
                "cond_dropout_prob = 0.1",
                "cond_dropout_prob = 10.0",
                "`cond_dropout_prob` of [unified]: expected a number from 0 to 1, found 10",
            ),
            ("t2i_coeff = 1.0", "t2i_coeff = -1.0", "`t2i_coeff`"),
            ("t2i_coeff = 1.0", "t2i_coeff = 1.0\nmax_turn_tokens = 1", "`max_turn_tokens`"),
            ("balance_coeffs = [0.01, 0.01]", "balance_coeffs = [0.01, -1.0]", "`balance_coeffs`"),
        ];
        for (given, changed, expected) in cases {
            assert!(golden.contains(given), "{given}");
            let error = Recipe::parse(&golden.replace(given, changed)).err().unwrap_or_default();
            assert!(error.contains(expected), "{changed}: {error}");
        }
    }

    #[test]
    fn learning_rates_match_the_golden_table() {
        let table = unif2ace_golden::json(unif2ace_golden::root().join("schedule/lr.json"));
        for entry in table.as_array().unwrap() {
            let schedule: ScheduleName = serde_json::from_value(entry["scheduler"].clone()).unwrap();
            let recipe = OptimizerConfig {
                learning_rate: entry["peak_lr"].as_f64().unwrap(),
                num_steps: entry["total"].as_u64().unwrap(),
                warmup_steps: entry["warmup"].as_u64().unwrap(),
                ..optimizer(schedule)
            };
            for pair in entry["values"].as_array().unwrap() {
                let (step, expected) = (pair[0].as_u64().unwrap(), pair[1].as_f64().unwrap());
                let found = recipe.learning_rate_at(step);
                assert!((found - expected).abs() <= 1e-12 * expected.abs(), "{schedule:?} {step}: {found} for {expected}");
            }
        }
    }

    #[test]
    fn settings_of_checkpoints_without_effect_are_refused() {
        let refusal = |lines: &str| {
            let run = "[run]\noutput='r'\nexport='m'\nseed=1\n";
            Recipe::parse(&format!("{run}{lines}\n[data]\npath='d'\n[tokenizer]\nvocab_size=10\n")).err().unwrap_or_default()
        };
        assert_eq!(refusal("evaluate_every=5\nkeep_best=1\nbest_metric='m'\nbest_is='higher'"), "");
        assert!(refusal("keep_last=0").contains("at least 1"));
        assert!(refusal("evaluate_every=5\nkeep_best=1").contains("needs best_metric"));
        assert!(refusal("best_metric='m'").contains("no effect"));
        assert!(refusal("best_is='lower'").contains("no effect"));
        assert!(refusal("keep_best=1\nbest_metric='m'").contains("needs evaluate_every"));
        assert!(refusal("evaluate_every=5\nkeep_best=1\nbest_metric='m'\nbest_is='bigger'").contains("higher"));
    }

    #[test]
    fn unknown_keys_and_missing_parts_are_refused() {
        let base = "[run]\noutput='r'\nexport='m'\nseed=1\n[data]\npath='d'\n";
        assert!(Recipe::parse(base).unwrap_err().contains("exactly one"));
        let unknown = format!("{base}[tokenizer]\nvocab_size=10\nvocab=3\n");
        let error = Recipe::parse(&unknown).unwrap_err();
        assert!(error.contains("`vocab`"), "{error}");
        assert_eq!(hint(&error), "did you mean `vocab_size`?");
        let strange = Recipe::parse(&format!("{base}[weather]\nrain=true\n")).unwrap_err();
        assert!(hint(&strange).contains("recipes/mini"), "{}", hint(&strange));
        assert!(Recipe::parse(&format!("{base}[tokenizer]\nvocab_size=10\n")).is_ok());
    }
}
