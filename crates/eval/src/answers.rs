//! Greedy answers to many questions on one picture at once: the picture is read once, each question is a row after it.
//! B questions, L new positions, S positions so far.

use burn::tensor::{Int, Tensor, TensorData};
use unif2ace_model::masks::{HIDDEN, for_mmu};
use unif2ace_model::moe::{ExpertFeatures, Resampled, Task};
use unif2ace_model::prompts::Prompter;
use unif2ace_model::transformer::{Batch, CacheUse, Features, Input, KvCache, Positions};

use crate::error::{EvalError, Result};
use crate::model::Model;

/// Answers `questions` on the picture of `codes`, with at most `max_new_tokens` tokens each.
///
/// # Errors
/// When the codes don't fit the model.
pub(crate) fn answer(model: &Model, codes: &[u32], features: ExpertFeatures, questions: &[&str], max_new_tokens: usize) -> Result<Vec<String>> {
    let config = model.unified.config();
    let ids = config.special_ids();
    let encode = |text: &str| model.encode(text);
    let prompter = Prompter::new(config, &encode).map_err(EvalError::step("prompts"))?;
    let image: Vec<u32> = codes.iter().map(|&code| code + ids.image_offset).collect();
    let prefix = prompter.mmu_prefix(&image).map_err(EvalError::step("prompts"))?;
    let mut cache = KvCache::new();
    let mask = for_mmu(&prefix, prefix.len(), ids.eoi).map_err(EvalError::step("mask"))?;
    model.unified.hidden_cached(
        Batch {
            input: Input::Ids(id_rows(model, &prefix, 1)),
            positions: Positions::From(0),
            mask_BLS: mask.tensor(&model.device),
            task: Task::Mmu,
            image_start: Some(2),
            features: Features::Raw(features),
        },
        CacheUse::Append(&mut cache),
    );

    let rows: Vec<Vec<u32>> = questions.iter().map(|question| prompter.question_ids(question)).collect::<std::result::Result<_, _>>().map_err(EvalError::step("prompts"))?;
    let longest = rows.iter().map(Vec::len).max().unwrap_or(0);
    let pads: Vec<usize> = rows.iter().map(|row| longest - row.len()).collect();
    let padded: Vec<u32> = rows.iter().zip(&pads).flat_map(|(row, &pad)| std::iter::repeat_n(ids.pad, pad).chain(row.iter().copied())).collect();
    let mut new_ids = padded;
    let mut num_new = longest;
    let mut answers: Vec<Vec<u32>> = vec![Vec::new(); questions.len()];
    let mut done = vec![false; questions.len()];
    let mut past = prefix.len();
    for _ in 0..max_new_tokens {
        let positions: Vec<Vec<u32>> = pads
            .iter()
            .map(|&pad| (past..past + num_new).map(|place| (place - pad.min(place - prefix.len())) as u32).collect())
            .collect();
        let mask_BLS = question_mask(model, prefix.len(), &pads, past, num_new);
        let hidden = model.unified.hidden_cached(
            Batch {
                input: Input::Ids(id_rows(model, &new_ids, questions.len())),
                positions: Positions::Rows(positions),
                mask_BLS,
                task: Task::Mmu,
                image_start: None,
                features: Features::Resampled(Resampled::default()),
            },
            CacheUse::Append(&mut cache),
        );
        past += num_new;
        let last_B1D = hidden.x_BLD.narrow(1, num_new - 1, 1);
        let next: Vec<i64> = model.unified.text_logits(last_B1D).argmax(2).into_data().iter::<i64>().collect();
        for ((answer, done), &id) in answers.iter_mut().zip(&mut done).zip(&next) {
            *done |= id == i64::from(ids.eot);
            if !*done {
                answer.push(id as u32);
            }
        }
        if done.iter().all(|&done| done) {
            break;
        }
        new_ids = next.into_iter().map(|id| id as u32).collect();
        num_new = 1;
    }
    answers.iter().map(|ids| model.tokenizer.decode(ids).map_err(EvalError::step("decoding text"))).collect()
}

/// New positions see the picture, and of their own row everything up to themselves but the pads on the left.
fn question_mask(model: &Model, prefix: usize, pads: &[usize], past: usize, num_new: usize) -> Tensor<3> {
    let total = past + num_new;
    let mut values = Vec::with_capacity(pads.len() * num_new * total);
    for &pad in pads {
        for query in past..total {
            for key in 0..total {
                let hidden_pad = (prefix..prefix + pad).contains(&key) && key != query;
                values.push(if key <= query && !hidden_pad { 0.0 } else { HIDDEN });
            }
        }
    }
    Tensor::from_data(TensorData::new(values, [pads.len(), num_new, total]), &model.device)
}

fn id_rows(model: &Model, ids: &[u32], rows: usize) -> Tensor<2, Int> {
    let values: Vec<i64> = ids.iter().map(|&id| i64::from(id)).collect();
    Tensor::from_data(TensorData::new(values, [rows, ids.len() / rows]), &model.device)
}
