//! Text alone: next-token cross-entropy, so that the backbone keeps its language (Show-o's `loss_lm`).

use unif2ace_model::masks::{Marks, predict_next};
use unif2ace_model::moe::Task;
use unif2ace_model::prompts::Prompter;
use unif2ace_model::transformer::{Batch, Features, Input, Positions, Unif2ace};

use super::data;
use super::share::Share;
use super::unified::{TaskLoss, UnifiedObjective, has_nothing_to_count, id_tensor, number, pick, target_tensor};
use crate::error::Result;
use crate::metrics::ExpertUse;

impl UnifiedObjective {
    /// Rows of text, cut to `max_seq_length` tokens; the understanding group of experts reads them.
    pub(super) fn text(&self, model: &Unif2ace, texts: &[String], share: &Share<'_>) -> Result<Option<TaskLoss>> {
        let ids = self.config().special_ids();
        let encode = |text: &str| self.encode(text);
        let prompter = Prompter::new(self.config(), &encode).map_err(data)?;
        let rows = texts.iter().map(|text| prompter.lm(text, self.config().max_seq_length).map_err(data));
        let rows = rows.collect::<Result<Vec<_>>>()?;
        let used = |row: &[u32]| row.iter().rposition(|&id| id != ids.pad).map_or(0, |last| last + 1);
        let length = rows.iter().map(|row| used(&row.ids)).max().unwrap_or(0).max(2);
        let flat: Vec<u32> = rows.iter().flat_map(|row| &row.ids[..length]).copied().collect();
        let (mut places, mut targets) = (Vec::new(), Vec::new());
        for (number, row) in rows.iter().enumerate() {
            for (place, &label) in row.labels[..length].iter().enumerate().skip(1) {
                if label >= 0 {
                    places.push((number * length + place - 1) as i64);
                    targets.push(label);
                }
            }
        }
        let mask = predict_next(&flat, length, Marks::image(&ids), false).map_err(data)?;
        let num_targets = targets.len();
        let all = share.over_all(&[num_targets])?[0];
        if has_nothing_to_count(model, share) {
            return Ok(None);
        }
        let hidden = model.hidden(Batch {
            input: Input::Ids(id_tensor(&flat, rows.len(), &self.device)),
            positions: Positions::From(0),
            mask_BLS: mask.tensor(&self.device.clone().inner()),
            task: Task::Mmu,
            image_start: None,
            features: Features::default(),
        });
        let balance = share.balance(&hidden.stats)?;
        if share.is_counting() {
            return Ok(None);
        }
        let total = if places.is_empty() {
            // Texts of one token each predict nothing.
            hidden.x_BLD.sum().mul_scalar(0.0)
        } else {
            let logits_RV = model.text_logits(pick(hidden.x_BLD, &places));
            unif2ace_ops::cross_entropy(logits_RV, target_tensor(&targets, &self.device))
                .mean()
                .mul_scalar(num_targets as f64 / all.max(1.0))
        };
        Ok(Some(TaskLoss {
            parts: vec![("text", number(total.clone()))],
            total,
            balance,
            experts: ExpertUse::of(&hidden.stats),
            num_tokens: flat.len(),
            num_images: 0,
        }))
    }
}
