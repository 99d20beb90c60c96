//! The unified transformer: D3Diff on generation rows, next-token cross-entropy on understanding rows, balance losses.
//! B rows, L sequence, N image tokens, D width, R labelled places.

use std::path::Path;
use std::sync::Arc;

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
use super::share::Share;
use crate::error::Result;
use crate::features::Features;
use crate::feed::Feed;
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
    /// Tokens of the rows, pads included.
    pub num_tokens: usize,
    /// Named parts, as plain numbers.
    pub parts: Vec<(&'static str, f64)>,
}

/// Losses of a step's tasks, weighted and added.
#[derive(Default)]
pub struct LossSum {
    total: Option<Tensor<1>>,
    parts: Vec<(&'static str, f64)>,
    num_tokens: usize,
}

impl LossSum {
    /// Adds `coeff` times the loss of a task and `balance_coeff` times its balance loss, which the metrics call `balance_name`.
    pub fn add(&mut self, loss: TaskLoss, coeff: f64, balance_coeff: f64, balance_name: &'static str) {
        self.num_tokens += loss.num_tokens;
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
        Some(StepLoss { total: self.total?, parts: self.parts, num_tokens: self.num_tokens })
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

    fn rows<'a>(&'a self, set: &'a FeaturedRecords, key: Key) -> RowSource<'a> {
        RowSource { recipe: &self.recipe, tokenizer: &self.tokenizer, set, key }
    }
}

impl T2iRows {
    /// D3Diff over the masked places.
    ///
    /// # Errors
    /// When another rank has left.
    pub fn loss(&self, model: &Unif2ace, config: &D3DiffConfig, share: &Share<'_>, device: &Device) -> Result<TaskLoss> {
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
        let balance = share.balance(&hidden.stats)?;
        if self.places.is_empty() {
            // No image of the batch has a masked place: nothing to learn, but a loss with a graph.
            return Ok(TaskLoss {
                parts: vec![("mask", 0.0), ("score_cross_entropy", 0.0)],
                total: hidden.x_BLD.sum().mul_scalar(0.0),
                balance,
                num_tokens: self.ids.len(),
            });
        }
        let logits_RK = model.image_logits(pick(hidden.x_BLD, &self.places));
        let cross_entropy_R = unif2ace_ops::cross_entropy(logits_RK, target_tensor(&self.targets, device));
        let n = model.config().num_vq_tokens;
        let loss = d3diff_loss(cross_entropy_R, &self.image_of_row, &self.times, n, config).map_err(data)?;
        Ok(TaskLoss {
            parts: vec![
                ("mask", number(loss.mask) * share.fraction()),
                ("score_cross_entropy", number(loss.score_cross_entropy) * share.fraction()),
            ],
            total: loss.total.mul_scalar(share.fraction()),
            balance,
            num_tokens: self.ids.len(),
        })
    }
}

impl MmuRows {
    /// Next-token cross-entropy of answers and captions.
    ///
    /// # Errors
    /// When another rank has left.
    pub fn loss(&self, model: &Unif2ace, share: &Share<'_>, device: &Device) -> Result<TaskLoss> {
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
        let logits_RV = model.text_logits(pick(hidden.x_BLD, &self.places));
        let num_targets = self.targets.len();
        let losses_R = unif2ace_ops::cross_entropy(logits_RV, target_tensor(&self.targets, device));
        let answers: Vec<f64> = tensor_values(losses_R.clone())
            .iter()
            .zip(&self.of_answers)
            .filter(|(_, of)| **of)
            .map(|(&loss, _)| f64::from(loss))
            .collect();
        let all = share.over_all(&[num_targets, answers.len()])?;
        let total = losses_R.mean().mul_scalar(num_targets as f64 / all[0].max(1.0));
        Ok(TaskLoss {
            parts: vec![("mmu", number(total.clone())), ("mmu_answers", answers.iter().sum::<f64>() / all[1].max(1.0))],
            total,
            balance: share.balance(&hidden.stats)?,
            num_tokens: self.ids.len(),
        })
    }
}

impl UnifiedObjective {
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
        let key = Key::new(self.seed, 0).at_step(step as u32);
        let batches = [self.train.t2i(step)?, self.train.mmu(step)?];
        let texts = self.train.texts(step)?;
        self.read = batches.iter().flat_map(|batch| batch.keys.iter().cloned()).chain(texts.iter().cloned()).collect();
        let mut sum = LossSum::default();
        let tasks = [
            (self.recipe.t2i_coeff, self.recipe.balance_coeffs[0], "balance_t2i"),
            (self.recipe.mmu_coeff, self.recipe.balance_coeffs[1], "balance_mmu"),
            (self.recipe.text_coeff, self.recipe.balance_coeffs[1], "balance_text"),
        ];
        for (task, (coeff, balance_coeff, balance_name)) in tasks.into_iter().enumerate() {
            let num_rows = batches.get(task).map_or(texts.len(), |batch| batch.records.len());
            if coeff == 0.0 || num_rows == 0 {
                continue;
            }
            // The feed gives each rank its own rows of the whole batch.
            let share = Share::of(&*self.ranks, num_rows * self.ranks.world_size())?;
            let indices: Vec<usize> = (0..num_rows).collect();
            let loss = match task {
                0 => self.rows(&batches[0], key).t2i(&indices, &share, true)?.loss(
                    model,
                    &self.recipe.loss,
                    &share,
                    &self.device,
                )?,
                1 => self.rows(&batches[1], key).mmu(&indices, &share, &self.device)?.loss(model, &share, &self.device)?,
                _ => self.text(model, &texts, &share)?,
            };
            sum.add(loss, coeff, balance_coeff, balance_name);
        }
        sum.finish().ok_or_else(|| data("the recipe trains nothing: the coefficients or batch sizes of all tasks are 0"))
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
            let rows = self.rows(&self.held_out, key);
            let t2i = rows.t2i(&indices, &share, false)?.loss(model, &self.recipe.loss, &share, &device)?;
            let mmu = rows.mmu(&indices, &share, &device)?.loss(model, &share, &device)?;
            for (name, value) in t2i.parts.into_iter().chain(mmu.parts) {
                let name = format!("held_out_{name}");
                match sums.iter_mut().find(|(known, _)| *known == name) {
                    Some((_, sum)) => *sum += value,
                    None => sums.push((name, value)),
                }
            }
            batches += 1.0;
        }
        sums.iter_mut().for_each(|(_, sum)| *sum /= batches);
        self.write_samples(model, &folder.join(format!("sheet-{step:08}.png")))?;
        Ok(sums)
    }
}
