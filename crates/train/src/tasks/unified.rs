//! The unified transformer: D3Diff on generation rows, next-token cross-entropy on understanding rows, balance losses.
//! B rows, L sequence, N image tokens, D width, R labelled places.

use std::path::Path;
use std::sync::Arc;

use burn::module::Module as _;
use burn::tensor::{Device, Int, Tensor, TensorData};
use unif2ace_comm::Communicator;
use unif2ace_data::{FaceRecord, TextTokenizer};
use unif2ace_diffusion::corruption::{independent_mask, keyed_uniforms};
use unif2ace_diffusion::d3diff::d3diff_loss;
use unif2ace_diffusion::rng::{Key, Stream};
use unif2ace_diffusion::sampler::SamplerConfig;
use unif2ace_diffusion::schedule::low_discrepancy_times;
use unif2ace_model::config::{ModelConfig, SpecialIds};
use unif2ace_model::masks::{Marks, packed, predict_next};
use unif2ace_model::moe::{ExpertFeatures, Task};
use unif2ace_model::prompts::Prompter;
use unif2ace_model::transformer::{Batch, Features as BatchFeatures, Input, Positions, Unif2ace};
use unif2ace_model::vq::Vq;
use unif2ace_pipeline::Denoiser;

use super::data;
use super::share::{Pass, Share, each_pass};
use super::texts::Texts;
use crate::error::{Result, TrainError};
use crate::features::Features;
use crate::feed::Feed;
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
pub(super) struct TaskLoss {
    pub total: Tensor<1>,
    pub balance: Option<Tensor<1>>,
    pub experts: ExpertUse,
    pub num_tokens: usize,
    pub parts: Vec<(&'static str, f64)>,
}

pub(super) fn number(tensor: Tensor<1>) -> f64 {
    f64::from(tensor_values(tensor)[0])
}

fn image_ids(ids: &SpecialIds, codes: &[u32]) -> Vec<u32> {
    codes.iter().map(|&code| ids.image_offset + code).collect()
}

impl UnifiedObjective {
    pub(super) fn config(&self) -> &ModelConfig {
        &self.recipe.config
    }

    pub(super) fn encode(&self, text: &str) -> Vec<u32> {
        // The tokenizer only fails on text that isn't there to be trained on.
        self.tokenizer.encode(text).unwrap_or_default()
    }

    pub(super) fn ids(&self, rows: &[u32], batch: usize, device: &Device) -> Tensor<2, Int> {
        let values: Vec<i64> = rows.iter().map(|&id| i64::from(id)).collect();
        Tensor::from_data(TensorData::new(values, [batch, rows.len() / batch]), &device.clone().inner())
    }

    /// Rows `places` (row-major over B and L) of the hidden states, `[R, D]`.
    pub(super) fn pick(x_BLD: Tensor<3>, places: &[i64]) -> Tensor<2> {
        let [batch, length, width] = x_BLD.dims();
        let device = x_BLD.device().inner();
        let places = Tensor::<1, Int>::from_data(TensorData::new(places.to_vec(), [places.len()]), &device);
        x_BLD.reshape([batch * length, width]).select(0, places)
    }

    /// Generation: text, then a partly masked image.
    fn t2i(
        &self,
        model: &Unif2ace,
        set: &FeaturedRecords,
        indices: &[usize],
        share: &Share<'_>,
        key: Key,
        device: &Device,
        dropout: bool,
    ) -> Result<Option<TaskLoss>> {
        if self.has_nothing_to_count(share) {
            return Ok(None);
        }
        let ids = self.config().special_ids();
        let encode = |text: &str| self.encode(text);
        let prompter = Prompter::new(self.config(), &encode).map_err(data)?.with_cut_prompts(true);
        let times = &low_discrepancy_times(share.total, key)[share.first..][..share.num];
        let row_key = |row: usize| Key::new(key.seed, (share.first + row) as u64).at_step(key.step);
        let mut heads = Vec::new();
        for (row, &index) in indices.iter().enumerate() {
            let row_key = row_key(row);
            let dropped = dropout && row_key.uniform_f64(Stream::Dropout, 0, 0) < self.recipe.cond_dropout_prob;
            let texts = Texts { record: &set.records[index], key: row_key, paraphrase_fraction: self.recipe.paraphrase_fraction };
            let text = if dropped { String::new() } else { texts.prompt() };
            heads.push(prompter.t2i_head(&text).map_err(data)?);
        }
        let longest = heads.iter().map(Vec::len).max().unwrap_or(0);
        let n = self.config().num_vq_tokens;
        let length = longest + n + 2;
        let image_start = longest + 1;
        let (mut rows, mut places, mut targets, mut image_of_row) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let mut noise_level = Vec::new();
        for (row, (&index, head)) in indices.iter().zip(&heads).enumerate() {
            let probability = self.recipe.loss.schedule.at(times[row]).masked();
            // Each place by itself: the score term's weights are those of this process, in which an image may stay whole.
            let masked = independent_mask(&keyed_uniforms(n, row_key(row)), probability);
            noise_level.push(masked.iter().filter(|&&masked| masked).count() as f32 / n as f32);
            rows.extend(std::iter::repeat_n(ids.pad, longest - head.len()));
            rows.extend(head);
            rows.push(ids.soi);
            for (place, (&code, masked)) in set.features.codes_of(index).iter().zip(masked).enumerate() {
                if masked {
                    rows.push(ids.mask);
                    places.push((row * length + image_start + place) as i64);
                    targets.push(i64::from(code));
                    image_of_row.push(row);
                } else {
                    rows.push(ids.image_offset + code);
                }
            }
            rows.push(ids.eoi);
        }
        let mask = predict_next(&rows, length, Marks::image(&ids), true).map_err(data)?;
        let batch = Batch {
            input: Input::Ids(self.ids(&rows, indices.len(), device)),
            // The row stands where it would with all its pads: `soi` at M + 1.
            positions: Positions::From(self.config().max_seq_length + 1 - longest),
            mask_BLS: mask.tensor(&device.clone().inner()),
            task: Task::T2i,
            image_start: Some(image_start),
            features: BatchFeatures::Raw(ExpertFeatures { noise_level: Some(noise_level), ..ExpertFeatures::default() }),
        };
        let hidden = model.hidden(batch);
        let (balance, experts) = (share.balance(&hidden.stats)?, ExpertUse::of(&hidden.stats));
        if share.is_counting() {
            return Ok(None);
        }
        if places.is_empty() {
            // No image of the batch has a masked place: nothing to learn, but a loss with a graph.
            return Ok(Some(TaskLoss {
                parts: vec![("mask", 0.0), ("score_cross_entropy", 0.0)],
                total: hidden.x_BLD.sum().mul_scalar(0.0),
                balance,
                experts,
                num_tokens: rows.len(),
            }));
        }
        let logits_RK = model.image_logits(Self::pick(hidden.x_BLD, &places));
        let num_targets = targets.len();
        let targets_R = Tensor::<1, Int>::from_data(TensorData::new(targets, [num_targets]), &device.clone().inner());
        let cross_entropy_R = unif2ace_ops::cross_entropy(logits_RK, targets_R);
        let loss = d3diff_loss(cross_entropy_R, &image_of_row, times, n, &self.recipe.loss).map_err(data)?;
        Ok(Some(TaskLoss {
            parts: vec![
                ("mask", number(loss.mask) * share.fraction()),
                ("score_cross_entropy", number(loss.score_cross_entropy) * share.fraction()),
            ],
            total: loss.total.mul_scalar(share.fraction()),
            balance,
            experts,
            num_tokens: rows.len(),
        }))
    }

    /// Understanding: image, then questions with their answers.
    fn mmu(
        &self,
        model: &Unif2ace,
        set: &FeaturedRecords,
        indices: &[usize],
        share: &Share<'_>,
        key: Key,
        device: &Device,
    ) -> Result<Option<TaskLoss>> {
        let ids = self.config().special_ids();
        let encode = |text: &str| self.encode(text);
        let prompter = Prompter::new(self.config(), &encode).map_err(data)?;
        let (mut packed_rows, mut captioned_rows) = (Vec::new(), Vec::new());
        for (row, &index) in indices.iter().enumerate() {
            let row_key = Key::new(key.seed, (share.first + row) as u64).at_step(key.step);
            let texts = Texts { record: &set.records[index], key: row_key, paraphrase_fraction: self.recipe.paraphrase_fraction };
            let (turns, captioned) = texts.turns(self.recipe.questions_per_row, self.recipe.caption_fraction);
            captioned_rows.push(captioned);
            let turns: Vec<(&str, &str)> = turns.iter().map(|(question, answer)| (question.as_str(), answer.as_str())).collect();
            packed_rows.push(prompter.mmu_packed(&image_ids(&ids, set.features.codes_of(index)), &turns).map_err(data)?);
        }
        let length = packed_rows.iter().map(|row| row.ids.len()).max().unwrap_or(0);
        let prefix = packed_rows.first().map_or(0, |row| row.prefix);
        let blocks: Vec<Vec<usize>> = packed_rows.iter().map(|row| row.blocks.clone()).collect();
        let (mask, positions) = packed(prefix, &blocks, length).map_err(data)?;
        let (mut rows, mut places, mut targets, mut of_answers) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for (row, packed) in packed_rows.iter().enumerate() {
            let caption_start =
                packed.ids.len() - if captioned_rows[row] { packed.blocks.last().map_or(0, |&block| block) } else { 0 };
            for (place, &label) in packed.labels.iter().enumerate().skip(1) {
                if label >= 0 {
                    places.push((row * length + place - 1) as i64);
                    targets.push(label);
                    of_answers.push(place < caption_start);
                }
            }
            rows.extend(&packed.ids);
            rows.extend(std::iter::repeat_n(ids.pad, length - packed.ids.len()));
        }
        let num_targets = targets.len();
        let all = share.over_all(&[num_targets, of_answers.iter().filter(|of| **of).count()])?;
        if self.has_nothing_to_count(share) {
            return Ok(None);
        }
        let batch = Batch {
            input: Input::Ids(self.ids(&rows, indices.len(), device)),
            positions: Positions::Rows(positions),
            mask_BLS: mask.tensor(&device.clone().inner()),
            task: Task::Mmu,
            image_start: Some(2),
            features: BatchFeatures::Raw(ExpertFeatures {
                noise_level: None,
                clip_BPC: set.features.clip_of(indices, device),
                face_BF: set.features.face_of(indices, device),
            }),
        };
        let hidden = model.hidden(batch);
        let balance = share.balance(&hidden.stats)?;
        if share.is_counting() {
            return Ok(None);
        }
        let logits_RV = model.text_logits(Self::pick(hidden.x_BLD, &places));
        let targets_R = Tensor::<1, Int>::from_data(TensorData::new(targets, [num_targets]), &device.clone().inner());
        let losses_R = unif2ace_ops::cross_entropy(logits_RV, targets_R);
        let answers: Vec<f64> = tensor_values(losses_R.clone())
            .iter()
            .zip(&of_answers)
            .filter(|(_, of)| **of)
            .map(|(&loss, _)| f64::from(loss))
            .collect();
        let total = losses_R.mean().mul_scalar(num_targets as f64 / all[0].max(1.0));
        Ok(Some(TaskLoss {
            parts: vec![("mmu", number(total.clone())), ("mmu_answers", answers.iter().sum::<f64>() / all[1].max(1.0))],
            total,
            balance,
            experts: ExpertUse::of(&hidden.stats),
            num_tokens: rows.len(),
        }))
    }
}

/// What a step reads: rows of generation and of understanding, texts.
struct StepRows {
    featured: [FeaturedRecords; 2],
    texts: Vec<String>,
}

fn nothing() -> TrainError {
    data("the recipe trains nothing: the coefficients or batch sizes of all tasks are 0")
}

impl UnifiedObjective {
    /// Whether a pass that only counts has come to the end of what it needs: with token-level experts their use is counted, too.
    pub(super) fn has_nothing_to_count(&self, share: &Share<'_>) -> bool {
        share.is_counting() && !self.config().moe.level.token()
    }

    fn rows(&mut self, step: u64) -> Result<StepRows> {
        let featured = [self.train.t2i(step)?, self.train.mmu(step)?];
        let texts = self.train.texts(step)?;
        self.read = featured.iter().flat_map(|batch| batch.keys.iter().cloned()).chain(texts.iter().cloned()).collect();
        Ok(StepRows { featured, texts })
    }

    /// The loss of a pass; `None` when it only counts, and when nothing is trained.
    fn pass(&self, model: &Unif2ace, rows: &StepRows, step: u64, pass: Pass<'_>) -> Result<Option<StepLoss>> {
        let key = Key::new(self.seed, 0).at_step(step as u32);
        let StepRows { featured, texts } = rows;
        let mut total: Option<Tensor<1>> = None;
        let (mut parts, mut experts, mut num_tokens, mut num_images) = (Vec::new(), Vec::new(), 0, 0);
        let tasks = [
            (self.recipe.t2i_coeff, self.recipe.balance_coeffs[0], "t2i", "balance_t2i"),
            (self.recipe.mmu_coeff, self.recipe.balance_coeffs[1], "mmu", "balance_mmu"),
            (self.recipe.text_coeff, self.recipe.balance_coeffs[1], "text", "balance_text"),
        ];
        for (task, (coeff, balance_coeff, name, balance_name)) in tasks.into_iter().enumerate() {
            let num_rows = featured.get(task).map_or(texts.len(), |batch| batch.records.len());
            if coeff == 0.0 || num_rows == 0 {
                continue;
            }
            // The feed gives each rank its own rows of the whole batch.
            let share = Share::of(&*self.ranks, num_rows * self.ranks.world_size())?.of_pass(pass)?;
            let first = pass.index * share.num;
            let indices: Vec<usize> = (first..first + share.num).collect();
            let loss = match task {
                0 => self.t2i(model, &featured[0], &indices, &share, key, &self.device, true)?,
                1 => self.mmu(model, &featured[1], &indices, &share, key, &self.device)?,
                _ => self.text(model, &texts[first..first + share.num], &share)?,
            };
            let Some(loss) = loss else { continue };
            num_tokens += loss.num_tokens;
            num_images += if task < featured.len() { share.num } else { 0 };
            experts.push((name, loss.experts));
            parts.extend(loss.parts);
            let mut sum = loss.total.mul_scalar(coeff);
            if let Some(balance) = loss.balance {
                parts.push((balance_name, number(balance.clone())));
                sum = sum + balance.mul_scalar(balance_coeff);
            }
            total = Some(match total {
                Some(total) => total + sum,
                None => sum,
            });
        }
        Ok(total.map(|total| StepLoss { total, parts, num_tokens, num_images, experts }))
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
            let t2i = self.t2i(model, &self.held_out, &indices, &share, key, &device, false)?;
            let mmu = self.mmu(model, &self.held_out, &indices, &share, key, &device)?;
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
