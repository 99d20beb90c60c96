//! What a recipe would train, told without training: parameters, memory, steps, data. Nothing is written and no picture is encoded.

mod memory;
mod text;

use std::collections::{BTreeMap, BTreeSet};

use burn::module::Module;
use burn::tensor::Device;
use serde::Serialize;
use unif2ace_data::{MixtureEntry, TaskName, TextTokenizer};
use unif2ace_model::encoders::{Clip, FaceNet};
use unif2ace_model::lora::is_adapter;
use unif2ace_model::transformer::Unif2ace;
use unif2ace_model::vq::Vq;
use unif2ace_weights::named_parameters;

pub use self::memory::Memory;
use crate::checkpoint::Checkpoints;
use crate::error::{Result, TrainError};
use crate::recipe::Recipe;
use crate::stages::{self, Stage};
use crate::tasks::data;
use crate::{features, lora, trainable};

/// A run that has not begun.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Plan {
    /// What is trained.
    pub part: &'static str,
    /// Its parameters; `None` for the text tokenizer, which has none.
    pub parameters: Option<Parameters>,
    /// What is done; `None` where there are stages.
    #[serde(flatten)]
    pub work: Option<Work>,
    /// What each stage does.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub stages: Vec<StagePlan>,
    /// Step of the newest checkpoint that lies in the run's folder already.
    pub checkpoint: Option<u64>,
}

/// What a recipe without stages does, or a stage of one.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Work {
    /// Bytes by formula.
    pub memory: Option<Memory>,
    /// The loop.
    pub steps: Option<Steps>,
    /// The sets, in the recipe's order.
    pub sets: Vec<SetPlan>,
    /// Training samples by task, over all sets that the recipe reads for it.
    pub samples_by_task: BTreeMap<&'static str, usize>,
}

/// A stage.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StagePlan {
    /// Its name.
    pub name: String,
    /// What it does.
    #[serde(flatten)]
    pub work: Work,
}

/// Numbers of values.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Parameters {
    /// All.
    pub all: u64,
    /// Those that the run changes.
    pub trained: u64,
    /// All, by piece of the network, in the network's order.
    pub pieces: Vec<(String, u64)>,
}

/// The loop.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Steps {
    /// Updates of the whole run.
    pub num_steps: u64,
    /// Rows a step by task.
    pub rows: BTreeMap<&'static str, usize>,
    /// Passes that they are computed in.
    pub passes: usize,
    /// Blocks that run again in the backward pass.
    pub recomputed_blocks: usize,
    /// Tokens a step if each row has the text that `max_seq_length` allows: shorter texts make shorter rows, several long questions in one row a
    /// longer one. Of parts without tokens the pictures.
    pub tokens: usize,
    /// Learning rate of the first step, the largest, and that of the last step.
    pub learning_rates: [f64; 3],
    /// Step of the largest.
    pub peak_step: u64,
    /// Bytes of the checkpoints that are kept, with one that is being written.
    pub checkpoint_bytes: u64,
}

/// A set of the data.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SetPlan {
    /// Where it lies.
    pub path: String,
    /// What it is used for.
    pub tasks: Vec<&'static str>,
    /// Its share of a task's samples, relative to the others.
    pub weight: f64,
    /// Samples of the training split.
    pub train: usize,
    /// Samples of the held-out split; `None` where none is read.
    pub held_out: Option<usize>,
}

/// What `recipe` would train.
///
/// # Errors
/// When its data, its network's sizes or the parts that it builds on can't be used: what the run itself would say first.
pub fn plan(recipe: &Recipe) -> Result<Plan> {
    let network = Network::of_recipe(recipe)?;
    let parameters = network.parameters();
    let frozen = stages::frozen(recipe, &Device::flex())?;
    let of_stage = |(stage, frozen): (&Stage, &BTreeSet<String>)| {
        // With adapters nothing else is trained, and [trainable] is refused.
        let trained = |all: &Parameters| if recipe.lora.is_some() { all.trained } else { network.trained(frozen) };
        let parameters = parameters.as_ref().map(|all| Parameters { trained: trained(all), ..all.clone() });
        let work = work(&stage.recipe, parameters.as_ref())?;
        Ok(StagePlan { name: stage.name.clone(), work })
    };
    let checkpoints = Checkpoints::new(recipe.run.output.join("checkpoints"), recipe.run.keep());
    Ok(Plan {
        part: network.part,
        work: if recipe.stages.is_empty() { Some(work(recipe, parameters.as_ref())?) } else { None },
        stages: recipe.stages.iter().zip(&frozen).map(of_stage).collect::<Result<_>>()?,
        parameters,
        checkpoint: checkpoints.newest_step()?,
    })
}

fn work(recipe: &Recipe, parameters: Option<&Parameters>) -> Result<Work> {
    let sets = sets(recipe)?;
    let mut work = Work { memory: None, steps: None, samples_by_task: samples_by_task(recipe, &sets)?, sets };
    if let Some(parameters) = parameters {
        let optimizer = recipe.optimizer()?;
        work.memory = Some(Memory::of(recipe, optimizer, parameters.all, parameters.trained));
        work.steps = Some(steps(recipe, parameters)?);
    }
    Ok(work)
}

/// A part's network as its parameters, which are not drawn.
struct Network {
    part: &'static str,
    /// Names and numbers of values.
    specs: Vec<(String, u64)>,
    /// Names of those that the run does not change.
    frozen: BTreeSet<String>,
}

impl Network {
    fn of<M: Module>(recipe: &Recipe, part: &'static str, module: &M) -> Result<Self> {
        let size = |shape: Vec<usize>| shape.into_iter().map(|size| size as u64).product();
        let specs = named_parameters(module).into_iter().map(|(name, shape)| (name, size(shape))).collect();
        Ok(Self { part, specs, frozen: trainable::frozen(recipe, module)? })
    }

    /// Also refuses what the run would refuse of its parts and its patterns of parameters.
    fn of_recipe(recipe: &Recipe) -> Result<Self> {
        let device = Device::flex();
        if let Some(vq) = &recipe.vq {
            let mut network = Self::of(recipe, "image tokenizer", &Vq::new(&vq.config, &device).map_err(data)?)?;
            if vq.decoder_only {
                let encoder = network.specs.iter().map(|(name, _)| name).filter(|name| name.starts_with("encoder."));
                network.frozen.extend(encoder.cloned());
            }
            return Ok(network);
        }
        if let Some(face) = &recipe.face {
            return Self::of(recipe, "face network", &FaceNet::new(&face.network(), &device).map_err(data)?);
        }
        if let Some(clip) = &recipe.clip {
            TextTokenizer::from_file(&clip.tokenizer).map_err(data)?;
            return Self::of(recipe, "CLIP pair", &Clip::new(&clip.config, &device).map_err(data)?);
        }
        if let Some(unified) = &recipe.unified {
            let mut model = Unif2ace::new(&unified.config, &device).map_err(data)?;
            TextTokenizer::from_file(recipe.run.export.join("tokenizer.json")).map_err(data)?;
            features::read_parts(&recipe.run.export, &unified.config, &device)?;
            if let Some(config) = &recipe.lora {
                model = lora::attach(recipe, config, model)?;
            }
            let mut network = Self::of(recipe, "unified transformer", &model)?;
            // A parameter that one stage trains is trained.
            let stages = recipe.stages_from(0);
            if let Some((_, first)) = stages.first() {
                network.frozen = trainable::frozen(first, &model)?;
            }
            for (_, stage) in stages.iter().skip(1) {
                let frozen = trainable::frozen(stage, &model)?;
                network.frozen.retain(|name| frozen.contains(name));
            }
            return Ok(network);
        }
        Ok(Self { part: "text tokenizer", specs: Vec::new(), frozen: BTreeSet::new() })
    }

    /// Values of the parameters that aren't frozen.
    fn trained(&self, frozen: &BTreeSet<String>) -> u64 {
        self.specs.iter().filter(|(name, _)| !frozen.contains(name)).map(|(_, size)| size).sum()
    }

    /// `None` where there is nothing to train by gradients.
    fn parameters(&self) -> Option<Parameters> {
        let mut pieces: Vec<(String, u64)> = Vec::new();
        let (mut all, mut trained) = (0, 0);
        for (name, size) in &self.specs {
            all += size;
            trained += if self.frozen.contains(name) { 0 } else { *size };
            let piece = piece(name);
            match pieces.iter_mut().find(|(known, _)| *known == piece) {
                Some((_, sum)) => *sum += size,
                None => pieces.push((piece, *size)),
            }
        }
        (all > 0).then_some(Parameters { all, trained, pieces })
    }
}

/// The piece of its network that a parameter belongs to.
fn piece(name: &str) -> String {
    let inside = |part: &str| name.contains(part);
    let piece = match name {
        _ if is_adapter(name) => "adapters",
        _ if inside(".moe.t2i.") => "token experts, generation",
        _ if inside(".moe.mmu.") => "token experts, understanding",
        _ if inside(".sequence.") => "sequence experts",
        _ if name.starts_with("showo.model.layers.") && inside(".mlp.") => "MLPs (shared experts)",
        _ if name.starts_with("showo.model.layers.") => "attention and norms",
        _ if name.starts_with("showo.model.embed_tokens") => "embedding",
        _ if name.starts_with("showo.lm_head") => "head",
        _ if name.starts_with("showo.model.") => "final norm",
        _ if name.starts_with("resamplers.") => "feature resamplers",
        _ => name.split('.').next().unwrap_or(name),
    };
    piece.to_owned()
}

fn sets(recipe: &Recipe) -> Result<Vec<SetPlan>> {
    let config = &recipe.data;
    let entries = config.open("train")?;
    let held_out = if recipe.tokenizer.is_some() { Vec::new() } else { config.open("val")? };
    let mut held_out = held_out.into_iter();
    let plan = |entry: &MixtureEntry| SetPlan {
        path: entry.set.path().display().to_string(),
        tasks: entry.tasks.iter().map(|task| task.name()).collect(),
        weight: entry.weight,
        train: entry.set.len(),
        held_out: if entry.tasks == [TaskName::Text] { None } else { held_out.next().map(|entry| entry.set.len()) },
    };
    Ok(entries.iter().map(plan).collect())
}

fn samples_by_task(recipe: &Recipe, sets: &[SetPlan]) -> Result<BTreeMap<&'static str, usize>> {
    let Some(unified) = &recipe.unified else { return Ok(BTreeMap::new()) };
    let optimizer = recipe.optimizer()?;
    let groups: [(&[TaskName], f64, usize); 3] = [
        (&[TaskName::T2i], unified.t2i_coeff, optimizer.batch_size),
        (&[TaskName::Caption, TaskName::Vqa], unified.mmu_coeff, unified.mmu_batch_size),
        (&[TaskName::Text], unified.text_coeff, unified.text_batch_size),
    ];
    let mut samples = BTreeMap::new();
    for (tasks, coeff, rows) in groups {
        if coeff == 0.0 || rows == 0 {
            continue;
        }
        let count = |task: &TaskName| {
            let of_task = sets.iter().filter(|set| set.tasks.contains(&task.name()));
            (task.name(), of_task.map(|set| set.train).sum::<usize>())
        };
        let counts: Vec<_> = tasks.iter().map(count).collect();
        if counts.iter().all(|&(_, count)| count == 0) {
            let names: Vec<&str> = tasks.iter().map(|task| task.name()).collect();
            let reason = format!("no set of [data] is for the tasks {}, which [unified] trains", names.join(", "));
            return Err(TrainError::recipe(&recipe.run.output, reason));
        }
        samples.extend(counts);
    }
    Ok(samples)
}

fn steps(recipe: &Recipe, parameters: &Parameters) -> Result<Steps> {
    let optimizer = recipe.optimizer()?;
    let (mut rows, mut tokens, mut recomputed_blocks) = (BTreeMap::new(), optimizer.batch_size, 0);
    match &recipe.unified {
        None => drop(rows.insert("pictures", optimizer.batch_size)),
        Some(unified) => {
            let all = [
                ("t2i", unified.t2i_coeff, optimizer.batch_size),
                ("mmu", unified.mmu_coeff, unified.mmu_batch_size),
                ("text", unified.text_coeff, unified.text_batch_size),
            ];
            rows.extend(all.into_iter().filter(|&(_, coeff, rows)| coeff != 0.0 && rows > 0).map(|(name, _, rows)| (name, rows)));
            tokens = memory::rows_of_unified(unified, optimizer.batch_size) * memory::row_length(&unified.config);
            recomputed_blocks = unified.recompute.num_of(unified.config.num_hidden_layers);
        }
    }
    let rate = |step: u64| optimizer.learning_rate_at(step);
    let last = optimizer.num_steps - 1;
    // The rates rise once and then only fall, but for restarts at the same peak.
    let peak_step = optimizer.warmup_steps.min(last);
    let averages = if optimizer.ema_decay > 0.0 { 1 } else { 0 };
    // Of a run with adapters only they are saved.
    let weights = if recipe.lora.is_some() { parameters.trained } else { parameters.all };
    let a_checkpoint = 4 * (weights + (2 + averages) * parameters.trained);
    Ok(Steps {
        num_steps: optimizer.num_steps,
        rows,
        passes: optimizer.accumulation_steps,
        recomputed_blocks,
        tokens,
        learning_rates: [rate(0), rate(peak_step), rate(last)],
        peak_step: peak_step + 1,
        checkpoint_bytes: a_checkpoint * (recipe.run.keep_last + recipe.run.keep_best + 1) as u64,
    })
}
