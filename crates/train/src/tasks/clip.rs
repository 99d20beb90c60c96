//! The CLIP pair: pictures and their texts, each against the others of the batch.

use std::path::Path;

use burn::tensor::{Device, Int, Tensor, TensorData};
use unif2ace_data::{FaceRecord, TextTokenizer};
use unif2ace_diffusion::rng::Key;
use unif2ace_model::encoders::{Clip, clip_pixels};

use super::data;
use super::texts::Texts;
use crate::batches::{Augment, ImageStore, sample_indices};
use crate::error::Result;
use crate::params::tensor_values;
use crate::trainer::{Objective, StepLoss};

const EVALUATION_BATCH: usize = 50;

/// Pictures with what is said about them.
pub struct CaptionedImages {
    /// Pictures.
    pub images: ImageStore,
    /// Records, in the same order.
    pub records: Vec<FaceRecord>,
}

/// Training of [`Clip`].
pub struct ClipObjective {
    /// Training pictures.
    pub train: CaptionedImages,
    /// Held-out pictures.
    pub held_out: CaptionedImages,
    /// The model's tokenizer.
    pub tokenizer: TextTokenizer,
    /// Part of the texts that are own paraphrases.
    pub paraphrase_fraction: f64,
    /// Largest random shift in pixels.
    pub max_shift: usize,
    /// Rows per step.
    pub batch_size: usize,
    /// Seed of the run.
    pub seed: u64,
    /// Device with gradients.
    pub device: Device,
}

impl ClipObjective {
    /// Texts as one matrix of ids, each ended and filled up with the end of text.
    fn texts(&self, texts: &[String], limit: usize, eos: i64, device: &Device) -> Result<Tensor<2, Int>> {
        let mut rows: Vec<Vec<i64>> = Vec::with_capacity(texts.len());
        for text in texts {
            let mut ids: Vec<i64> = self.tokenizer.encode(text).map_err(data)?.into_iter().map(i64::from).collect();
            ids.truncate(limit - 1);
            ids.push(eos);
            rows.push(ids);
        }
        let longest = rows.iter().map(Vec::len).max().unwrap_or(0);
        let values: Vec<i64> = rows
            .into_iter()
            .flat_map(|mut ids| {
                ids.resize(longest, eos);
                ids
            })
            .collect();
        Ok(Tensor::from_data(TensorData::new(values, [texts.len(), longest]), &device.clone().inner()))
    }
}

impl Objective for ClipObjective {
    type Model = Clip;

    fn loss(&mut self, model: &Clip, step: u64) -> Result<StepLoss> {
        let indices = sample_indices(self.seed, step, self.batch_size, self.train.images.len());
        let augment = |row| Augment::random_shift(self.seed, step, row, self.max_shift);
        let pixels_BHWC = self.train.images.batch(&indices, augment, &self.device);
        let texts: Vec<String> = indices
            .iter()
            .enumerate()
            .map(|(row, &index)| {
                let key = Key::new(self.seed, row as u64).at_step(step as u32);
                Texts { record: &self.train.records[index], key, paraphrase_fraction: self.paraphrase_fraction }.prompt()
            })
            .collect();
        let config = &model.config().text_config;
        let ids_BL = self.texts(&texts, config.max_position_embeddings, config.eos_token_id, &self.device)?;
        let num_tokens = ids_BL.dims().iter().product();
        let total = model.loss(clip_pixels(pixels_BHWC), ids_BL).map_err(data)?;
        let loss = f64::from(tensor_values(total.clone())[0]);
        let parts = vec![("contrastive", loss)];
        Ok(StepLoss { total, parts, num_tokens, num_images: self.batch_size, num_broken: 0, experts: Vec::new() })
    }

    fn sample_names(&self, step: u64) -> Vec<String> {
        self.train.images.names(&sample_indices(self.seed, step, self.batch_size, self.train.images.len()))
    }

    fn evaluate(&mut self, model: &Clip, _step: u64, _folder: &Path) -> Result<Vec<(String, f64)>> {
        let device = self.device.clone().inner();
        let config = &model.config().text_config;
        let (mut hits, mut known) = (0, 0);
        for start in (0..self.held_out.images.len()).step_by(EVALUATION_BATCH) {
            let indices: Vec<usize> = (start..self.held_out.images.len().min(start + EVALUATION_BATCH)).collect();
            let pixels_BHWC = self.held_out.images.batch(&indices, |_| Augment::default(), &device);
            let texts: Vec<String> =
                indices.iter().filter_map(|&index| self.held_out.records[index].captions.first().cloned()).collect();
            let ids_BL = self.texts(&texts, config.max_position_embeddings, config.eos_token_id, &device)?;
            let image_BE = model.embed_image(clip_pixels(pixels_BHWC)).map_err(data)?;
            let text_BE = model.embed_text(ids_BL).map_err(data)?;
            let best = image_BE.matmul(text_BE.transpose()).argmax(1).into_data();
            hits += best.iter::<i64>().enumerate().filter(|&(row, column)| row as i64 == column).count();
            known += indices.len();
        }
        Ok(vec![(format!("held_out_top1_of_{EVALUATION_BATCH}"), hits as f64 / known.max(1) as f64)])
    }
}
