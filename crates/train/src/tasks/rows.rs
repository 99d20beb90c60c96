//! Rows of a step as plain numbers, ready for the network: everything that is drawn and tokenised before a loss is computed.
//! B rows, L positions.

use burn::tensor::{Device, Tensor};
use unif2ace_data::TextTokenizer;
use unif2ace_diffusion::corruption::{independent_mask, keyed_uniforms};
use unif2ace_diffusion::rng::{Key, Stream};
use unif2ace_diffusion::schedule::low_discrepancy_times;
use unif2ace_model::masks::{Marks, Mask, packed, predict_next};
use unif2ace_model::prompts::Prompter;

use super::data;
use super::share::Share;
use super::texts::Texts;
use super::unified::FeaturedRecords;
use crate::error::Result;
use crate::recipe::UnifiedRecipe;

/// What rows are made from.
pub struct RowSource<'a> {
    /// Text options, sizes and the noise schedule.
    pub recipe: &'a UnifiedRecipe,
    /// The model's tokenizer.
    pub tokenizer: &'a TextTokenizer,
    /// Pictures with what is known about them.
    pub set: &'a FeaturedRecords,
    /// Seed and step of the draws; a row's place in the whole batch is added.
    pub key: Key,
}

/// Generation: text, then a partly masked image.
pub struct T2iRows {
    /// Token ids, `[B, L]`, with pads on the left.
    pub ids: Vec<u32>,
    /// B.
    pub num_rows: usize,
    /// Position of the first token: the row stands where it would with all its pads.
    pub first_position: usize,
    /// First image token in each row.
    pub image_start: usize,
    /// Who sees whom.
    pub mask: Mask,
    /// Masked places, row-major over B and L.
    pub places: Vec<i64>,
    /// Code of each masked place.
    pub targets: Vec<i64>,
    /// Row of each masked place.
    pub image_of_row: Vec<usize>,
    /// Diffusion time of each row.
    pub times: Vec<f64>,
    /// Masked part of each row's image.
    pub noise_level: Vec<f32>,
}

/// Understanding: image, then questions with their answers.
pub struct MmuRows {
    /// Token ids, `[B, L]`, with pads on the right.
    pub ids: Vec<u32>,
    /// B.
    pub num_rows: usize,
    /// Position of each token; every question starts behind the image.
    pub positions: Vec<Vec<u32>>,
    /// Who sees whom.
    pub mask: Mask,
    /// Places that predict a label, row-major over B and L.
    pub places: Vec<i64>,
    /// Token that each of them predicts.
    pub targets: Vec<i64>,
    /// Whether it belongs to an answer, not to a caption.
    pub of_answers: Vec<bool>,
    /// CLIP features, `[B, P, C]`.
    pub clip_BPC: Option<Tensor<3>>,
    /// Face features, `[B, F]`.
    pub face_BF: Option<Tensor<2>>,
}

impl RowSource<'_> {
    fn encode(&self, text: &str) -> Vec<u32> {
        // The tokenizer only fails on text that isn't there to be trained on.
        self.tokenizer.encode(text).unwrap_or_default()
    }

    fn row_key(&self, share: &Share<'_>, row: usize) -> Key {
        Key::new(self.key.seed, (share.first + row) as u64).at_step(self.key.step)
    }

    fn texts(&self, index: usize, key: Key) -> Texts<'_> {
        Texts { record: &self.set.records[index], key, paraphrase_fraction: self.recipe.paraphrase_fraction }
    }

    /// Generation rows of the pictures `indices`, this rank's `share` of a batch; with `dropout` some prompts are dropped.
    ///
    /// # Errors
    /// When a prompt doesn't fit the model.
    pub fn t2i(&self, indices: &[usize], share: &Share<'_>, dropout: bool) -> Result<T2iRows> {
        let config = &self.recipe.config;
        let ids = config.special_ids();
        let encode = |text: &str| self.encode(text);
        let prompter = Prompter::new(config, &encode).map_err(data)?.with_cut_prompts(true);
        let times = low_discrepancy_times(share.total, self.key)[share.first..][..share.num].to_vec();
        let mut heads = Vec::new();
        for (row, &index) in indices.iter().enumerate() {
            let row_key = self.row_key(share, row);
            let dropped = dropout && row_key.uniform_f64(Stream::Dropout, 0, 0) < self.recipe.cond_dropout_prob;
            let text = if dropped { String::new() } else { self.texts(index, row_key).prompt() };
            heads.push(prompter.t2i_head(&text).map_err(data)?);
        }
        let longest = heads.iter().map(Vec::len).max().unwrap_or(0);
        let n = config.num_vq_tokens;
        let length = longest + n + 2;
        let image_start = longest + 1;
        let (mut rows, mut places, mut targets, mut image_of_row) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let mut noise_level = Vec::new();
        for (row, (&index, head)) in indices.iter().zip(&heads).enumerate() {
            let probability = self.recipe.loss.schedule.at(times[row]).masked();
            // Each place by itself: the score term's weights are those of this process, in which an image may stay whole.
            let masked = independent_mask(&keyed_uniforms(n, self.row_key(share, row)), probability);
            noise_level.push(masked.iter().filter(|&&masked| masked).count() as f32 / n as f32);
            rows.extend(std::iter::repeat_n(ids.pad, longest - head.len()));
            rows.extend(head);
            rows.push(ids.soi);
            for (place, (&code, masked)) in self.set.features.codes_of(index).iter().zip(masked).enumerate() {
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
        Ok(T2iRows {
            ids: rows,
            num_rows: indices.len(),
            // `soi` at M + 1.
            first_position: config.max_seq_length + 1 - longest,
            image_start,
            mask,
            places,
            targets,
            image_of_row,
            times,
            noise_level,
        })
    }

    /// Understanding rows of the pictures `indices`, this rank's `share` of a batch.
    ///
    /// # Errors
    /// When a question doesn't fit the model.
    pub fn mmu(&self, indices: &[usize], share: &Share<'_>, device: &Device) -> Result<MmuRows> {
        let ids = self.recipe.config.special_ids();
        let encode = |text: &str| self.encode(text);
        let prompter = Prompter::new(&self.recipe.config, &encode).map_err(data)?;
        let (mut packed_rows, mut captioned_rows) = (Vec::new(), Vec::new());
        for (row, &index) in indices.iter().enumerate() {
            let texts = self.texts(index, self.row_key(share, row));
            let (turns, captioned) = texts.turns(self.recipe.questions_per_row, self.recipe.caption_fraction);
            captioned_rows.push(captioned);
            let turns: Vec<(&str, &str)> = turns.iter().map(|(question, answer)| (question.as_str(), answer.as_str())).collect();
            let image: Vec<u32> = self.set.features.codes_of(index).iter().map(|&code| ids.image_offset + code).collect();
            packed_rows.push(prompter.mmu_packed(&image, &turns, self.recipe.max_turn_tokens).map_err(data)?);
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
        Ok(MmuRows {
            ids: rows,
            num_rows: indices.len(),
            positions,
            mask,
            places,
            targets,
            of_answers,
            clip_BPC: self.set.features.clip_of(indices, device),
            face_BF: self.set.features.face_of(indices, device),
        })
    }
}
