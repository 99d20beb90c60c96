//! The unified transformer: D3Diff on generation rows, next-token cross-entropy on understanding rows, balance losses.
//! B rows, L sequence, N image tokens, D width, R labelled places.

use std::path::Path;
use std::sync::Arc;

use burn::module::Module as _;
use burn::tensor::{Device, Int, Tensor, TensorData};
use unif2ace_comm::Communicator;
use unif2ace_data::{FaceRecord, TextTokenizer};
use unif2ace_diffusion::d3diff::{D3DiffConfig, d3diff_loss};
use unif2ace_diffusion::rng::Key;
use unif2ace_diffusion::sampler::SamplerConfig;
use unif2ace_model::config::ModelConfig;
use unif2ace_model::moe::{ExpertFeatures, Task};
use unif2ace_model::transformer::{Batch, Features as BatchFeatures, Input, Positions, Unif2ace};
use unif2ace_model::vq::Vq;
use unif2ace_pipeline::Denoiser;

use super::data;
use super::rows::{MmuRows, RowSource, T2iRows};
use super::share::{Pass, Share, each_pass};
use crate::error::{Result, TrainError};
use crate::features::Features;
use crate::feed::{Feed, NamedText};
use crate::metrics::{ExpertUse, sheet_path};
use crate::params::tensor_values;
use crate::recipe::UnifiedRecipe;
use crate::trainer::{Objective, StepLoss};

// Sample sheets.
const SHEET_COLUMNS: usize = 8;
const SHEET_STEPS: usize = 12;
const SHEET_GUIDANCE: f32 = 2.0;

/// Records with the features of their pictures.
#[derive(Default)]
pub struct FeaturedRecords {
    /// Names of the samples, for messages.
    pub keys: Vec<String>,
    /// What is known about each picture.
    pub records: Vec<FaceRecord>,
    /// What the frozen parts say.
    pub features: Features,
}

impl FeaturedRecords {
    /// Appends the records of another set.
    ///
    /// # Errors
    /// When their features are of other sizes.
    pub fn append(&mut self, other: Self) -> Result<()> {
        for index in 0..other.records.len() {
            self.features.push(&other.features.entry(index))?;
        }
        self.keys.extend(other.keys);
        self.records.extend(other.records);
        Ok(())
    }
}

/// Training of [`Unif2ace`].
pub struct UnifiedObjective {
    /// Loss weights and text options.
    pub recipe: UnifiedRecipe,
    /// Training rows of each step.
    pub train: Feed,
    /// Held-out pictures.
    pub held_out: FeaturedRecords,
    /// The model's tokenizer.
    pub tokenizer: TextTokenizer,
    /// Decodes the pictures of the sample sheets.
    pub vq: Vq,
    /// Who shares the rows.
    pub ranks: Arc<dyn Communicator>,
    /// Seed of the run.
    pub seed: u64,
    /// Device with gradients.
    pub device: Device,
    /// Names of the samples of the step whose loss was computed last.
    pub read: Vec<String>,
}

/// Losses of one pass of one task: this rank's shares, which add up to the losses of the whole batch.
pub struct TaskLoss {
    /// What is minimised, but for the balance loss.
    pub total: Tensor<1>,
    /// Balance loss of the routed experts, where there are any.
    pub balance: Option<Tensor<1>>,
    /// Which experts the tokens took.
    pub experts: ExpertUse,
    /// Tokens of the rows, pads included.
    pub num_tokens: usize,
    /// Pictures of the rows.
    pub num_images: usize,
    /// Named parts, as plain numbers.
    pub parts: Vec<(&'static str, f64)>,
}

/// Losses of a step's tasks, weighted and added.
#[derive(Default)]
pub struct LossSum {
    total: Option<Tensor<1>>,
    parts: Vec<(&'static str, f64)>,
    experts: Vec<(&'static str, ExpertUse)>,
    num_tokens: usize,
    num_images: usize,
}

impl LossSum {
    /// Adds `coeff` times the loss of a task and `balance_coeff` times its balance loss; `names` are what the metrics call the two.
    pub fn add(&mut self, loss: TaskLoss, coeff: f64, balance_coeff: f64, names: [&'static str; 2]) {
        let [name, balance_name] = names;
        self.num_tokens += loss.num_tokens;
        self.num_images += loss.num_images;
        self.experts.push((name, loss.experts));
        self.parts.extend(loss.parts);
        let mut sum = loss.total.mul_scalar(coeff);
        if let Some(balance) = loss.balance {
            self.parts.push((balance_name, number(balance.clone())));
            sum = sum + balance.mul_scalar(balance_coeff);
        }
        self.total = Some(match self.total.take() {
            Some(total) => total + sum,
            None => sum,
        });
    }

    /// The step's loss; `None` when no task was added.
    pub fn finish(self) -> Option<StepLoss> {
        let Self { total, parts, experts, num_tokens, num_images } = self;
        Some(StepLoss { total: total?, parts, num_tokens, num_images, num_broken: 0, experts })
    }
}

pub(super) fn number(tensor: Tensor<1>) -> f64 {
    f64::from(tensor_values(tensor)[0])
}

/// Ids of `batch` rows, `[B, L]`.
pub(super) fn id_tensor(rows: &[u32], batch: usize, device: &Device) -> Tensor<2, Int> {
    let values: Vec<i64> = rows.iter().map(|&id| i64::from(id)).collect();
    Tensor::from_data(TensorData::new(values, [batch, rows.len() / batch]), &device.clone().inner())
}

/// Targets of R places, `[R]`.
pub(super) fn target_tensor(targets: &[i64], device: &Device) -> Tensor<1, Int> {
    Tensor::from_data(TensorData::new(targets.to_vec(), [targets.len()]), &device.clone().inner())
}

/// Rows `places` (row-major over B and L) of the hidden states, `[R, D]`.
pub(super) fn pick(x_BLD: Tensor<3>, places: &[i64]) -> Tensor<2> {
    let [batch, length, width] = x_BLD.dims();
    let device = x_BLD.device();
    x_BLD.reshape([batch * length, width]).select(0, target_tensor(places, &device))
}

impl UnifiedObjective {
    pub(super) fn config(&self) -> &ModelConfig {
        &self.recipe.config
    }

    pub(super) fn encode(&self, text: &str) -> Vec<u32> {
        // The tokenizer only fails on text that isn't there to be trained on.
        self.tokenizer.encode(text).unwrap_or_default()
    }

    fn source<'a>(&'a self, set: &'a FeaturedRecords, key: Key) -> RowSource<'a> {
        RowSource { recipe: &self.recipe, tokenizer: &self.tokenizer, set, key }
    }
}

impl T2iRows {
    /// D3Diff over the masked places; `None` when the share only counts.
    ///
    /// # Errors
    /// When another rank has left.
    pub fn loss(&self, model: &Unif2ace, config: &D3DiffConfig, share: &Share<'_>, device: &Device) -> Result<Option<TaskLoss>> {
        if has_nothing_to_count(model, share) {
            return Ok(None);
        }
        let batch = Batch {
            input: Input::Ids(id_tensor(&self.ids, self.num_rows, device)),
            positions: Positions::From(self.first_position),
            mask_BLS: self.mask.tensor(&device.clone().inner()),
            task: Task::T2i,
            image_start: Some(self.image_start),
            features: BatchFeatures::Raw(ExpertFeatures {
                noise_level: Some(self.noise_level.clone()),
                ..ExpertFeatures::default()
            }),
        };
        let hidden = model.hidden(batch);
        let (balance, experts) = (share.balance(&hidden.stats)?, ExpertUse::of(&hidden.stats));
        if share.is_counting() {
            return Ok(None);
        }
        let (num_tokens, num_images) = (self.ids.len(), self.num_rows);
        if self.places.is_empty() {
            // No image of the batch has a masked place: nothing to learn, but a loss with a graph.
            return Ok(Some(TaskLoss {
                parts: vec![("mask", 0.0), ("score_cross_entropy", 0.0)],
                total: hidden.x_BLD.sum().mul_scalar(0.0),
                balance,
                experts,
                num_tokens,
                num_images,
            }));
        }
        let logits_RK = model.image_logits(pick(hidden.x_BLD, &self.places));
        let cross_entropy_R = unif2ace_ops::cross_entropy(logits_RK, target_tensor(&self.targets, device));
        let n = model.config().num_vq_tokens;
        let loss = d3diff_loss(cross_entropy_R, &self.image_of_row, &self.times, n, config).map_err(data)?;
        Ok(Some(TaskLoss {
            parts: vec![
                ("mask", number(loss.mask) * share.fraction()),
                ("score_cross_entropy", number(loss.score_cross_entropy) * share.fraction()),
            ],
            total: loss.total.mul_scalar(share.fraction()),
            balance,
            experts,
            num_tokens,
            num_images,
        }))
    }
}

impl MmuRows {
    /// Next-token cross-entropy of answers and captions; `None` when the share only counts.
    ///
    /// # Errors
    /// When another rank has left.
    pub fn loss(&self, model: &Unif2ace, share: &Share<'_>, device: &Device) -> Result<Option<TaskLoss>> {
        let num_targets = self.targets.len();
        let all = share.over_all(&[num_targets, self.of_answers.iter().filter(|of| **of).count()])?;
        if has_nothing_to_count(model, share) {
            return Ok(None);
        }
        let batch = Batch {
            input: Input::Ids(id_tensor(&self.ids, self.num_rows, device)),
            positions: Positions::Rows(self.positions.clone()),
            mask_BLS: self.mask.tensor(&device.clone().inner()),
            task: Task::Mmu,
            image_start: Some(2),
            features: BatchFeatures::Raw(ExpertFeatures {
                noise_level: None,
                clip_BPC: self.clip_BPC.clone(),
                face_BF: self.face_BF.clone(),
            }),
        };
        let hidden = model.hidden(batch);
        let (balance, experts) = (share.balance(&hidden.stats)?, ExpertUse::of(&hidden.stats));
        if share.is_counting() {
            return Ok(None);
        }
        let logits_RV = model.text_logits(pick(hidden.x_BLD, &self.places));
        let losses_R = unif2ace_ops::cross_entropy(logits_RV, target_tensor(&self.targets, device));
        let answers: Vec<f64> = tensor_values(losses_R.clone())
            .iter()
            .zip(&self.of_answers)
            .filter(|(_, of)| **of)
            .map(|(&loss, _)| f64::from(loss))
            .collect();
        let total = losses_R.mean().mul_scalar(num_targets as f64 / all[0].max(1.0));
        Ok(Some(TaskLoss {
            parts: vec![("mmu", number(total.clone())), ("mmu_answers", answers.iter().sum::<f64>() / all[1].max(1.0))],
            total,
            balance,
            experts,
            num_tokens: self.ids.len(),
            num_images: self.num_rows,
        }))
    }
}

/// Whether a pass that only counts has come to the end of what it needs: with token-level experts their use is counted, too.
pub(super) fn has_nothing_to_count(model: &Unif2ace, share: &Share<'_>) -> bool {
    share.is_counting() && !model.config().moe.level.token()
}

/// What a step reads: rows of generation and of understanding, texts.
struct StepRows {
    featured: [FeaturedRecords; 2],
    texts: Vec<String>,
    num_broken: usize,
}

fn nothing() -> TrainError {
    data("the recipe trains nothing: the coefficients or batch sizes of all tasks are 0")
}

impl UnifiedObjective {
    fn rows(&mut self, step: u64) -> Result<StepRows> {
        let featured = [self.train.t2i(step)?, self.train.mmu(step)?];
        let texts = self.train.texts(step)?;
        let (names, texts): (Vec<_>, Vec<_>) = texts.into_iter().map(|NamedText { key, text }| (key, text)).unzip();
        self.read = featured.iter().flat_map(|batch| batch.keys.iter().cloned()).chain(names).collect();
        Ok(StepRows { featured, texts, num_broken: self.train.take_num_broken() })
    }

    /// The loss of a pass; `None` when it only counts, and when nothing is trained.
    fn pass(&self, model: &Unif2ace, rows: &StepRows, step: u64, pass: Pass<'_>) -> Result<Option<StepLoss>> {
        let key = Key::new(self.seed, 0).at_step(step as u32);
        let StepRows { featured, texts, num_broken } = rows;
        let mut sum = LossSum::default();
        let tasks = [
            (self.recipe.t2i_coeff, self.recipe.balance_coeffs[0], ["t2i", "balance_t2i"]),
            (self.recipe.mmu_coeff, self.recipe.balance_coeffs[1], ["mmu", "balance_mmu"]),
            (self.recipe.text_coeff, self.recipe.balance_coeffs[1], ["text", "balance_text"]),
        ];
        for (task, (coeff, balance_coeff, names)) in tasks.into_iter().enumerate() {
            let num_rows = featured.get(task).map_or(texts.len(), |batch| batch.records.len());
            if coeff == 0.0 || num_rows == 0 {
                continue;
            }
            // The feed gives each rank its own rows of the whole batch.
            let share = Share::of(&*self.ranks, num_rows * self.ranks.world_size())?.of_pass(pass)?;
            let first = pass.index * share.num;
            let indices: Vec<usize> = (first..first + share.num).collect();
            let device = &self.device;
            let loss = match task {
                0 => {
                    let rows = self.source(&featured[0], key).t2i(&indices, &share, true)?;
                    rows.loss(model, &self.recipe.loss, &share, device)?
                }
                1 => self.source(&featured[1], key).mmu(&indices, &share, device)?.loss(model, &share, device)?,
                _ => self.text(model, &texts[first..first + share.num], &share)?,
            };
            if let Some(loss) = loss {
                sum.add(loss, coeff, balance_coeff, names);
            }
        }
        // Passes are added up; the first one counts what was read for all.
        let num_broken = if pass.index == 0 { *num_broken } else { 0 };
        Ok(sum.finish().map(|step| StepLoss { num_broken, ..step }))
    }

    /// Held-out pictures as the image tokenizer gives them back, above pictures made from their captions, which a text file beside the
    /// sheet lists.
    fn write_samples(&self, model: &Unif2ace, path: &Path) -> Result<()> {
        let device = self.device.clone().inner();
        let count = SHEET_COLUMNS.min(self.held_out.records.len());
        let captions: Vec<&str> =
            self.held_out.records[..count].iter().map(|record| record.captions.first().map_or("", String::as_str)).collect();
        let denoiser = Denoiser::new(model, &self.tokenizer, &device, &captions, SHEET_GUIDANCE).map_err(data)?;
        let made =
            denoiser.sample(&SamplerConfig { num_steps: SHEET_STEPS, ..SamplerConfig::default() }, self.seed, 0).map_err(data)?;
        let known: Vec<u32> = (0..count).flat_map(|index| self.held_out.features.codes_of(index)).copied().collect();
        let side = self.vq.config().resolution / self.vq.config().downsampling();
        let decode =
            |codes: &[u32]| self.vq.decode_indices(codes, side, side).map(|image_BHWC| image_BHWC.clamp(-1.0, 1.0)).map_err(data);
        super::write_sheet(&decode(&known)?, &decode(&made)?, path)?;
        Ok(unif2ace_io::write_atomic(path.with_extension("txt"), captions.join("\n").as_bytes())?)
    }
}

impl Objective for UnifiedObjective {
    type Model = Unif2ace;

    fn loss(&mut self, model: &Unif2ace, step: u64) -> Result<StepLoss> {
        let rows = self.rows(step)?;
        self.pass(model, &rows, step, Pass::WHOLE)?.ok_or_else(nothing)
    }

    fn passes(
        &mut self,
        model: &Unif2ace,
        step: u64,
        num_passes: usize,
        take: &mut dyn FnMut(StepLoss) -> Result<()>,
    ) -> Result<()> {
        if num_passes == 1 {
            return take(self.loss(model, step)?);
        }
        let rows = self.rows(step)?;
        // Which experts the tokens of all passes take must be known before the first loss. The same device gives the same bits.
        let without_gradients = model.clone().no_grad();
        each_pass(&*self.ranks, num_passes, |pass| {
            let model = if pass.is_counting() { &without_gradients } else { model };
            self.pass(model, &rows, step, pass)?.map_or(Ok(()), &mut *take)
        })
    }

    fn sample_names(&self, _step: u64) -> Vec<String> {
        self.read.clone()
    }

    fn evaluate(&mut self, model: &Unif2ace, step: u64, folder: &Path) -> Result<Vec<(String, f64)>> {
        const BATCH: usize = 16;
        let device = self.device.clone().inner();
        let num = self.held_out.records.len();
        let mut sums: Vec<(String, f64)> = Vec::new();
        let mut batches = 0.0;
        for start in (0..num).step_by(BATCH) {
            let indices: Vec<usize> = (start..num.min(start + BATCH)).collect();
            let key = Key::new(self.seed, 1 << 40).at_step(start as u32);
            let share = Share::whole(indices.len());
            let rows = self.source(&self.held_out, key);
            let t2i = rows.t2i(&indices, &share, false)?.loss(model, &self.recipe.loss, &share, &device)?;
            let mmu = rows.mmu(&indices, &share, &device)?.loss(model, &share, &device)?;
            for (name, value) in [t2i, mmu].into_iter().flatten().flat_map(|loss| loss.parts) {
                let name = format!("held_out_{name}");
                match sums.iter_mut().find(|(known, _)| *known == name) {
                    Some((_, sum)) => *sum += value,
                    None => sums.push((name, value)),
                }
            }
            batches += 1.0;
        }
        sums.iter_mut().for_each(|(_, sum)| *sum /= batches);
        self.write_samples(model, &sheet_path(folder, step))?;
        Ok(sums)
    }
}
