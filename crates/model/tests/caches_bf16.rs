//! With products in bf16 caches keep their numbers in bf16 too. A file of its own, because the precision holds for the whole process.
#![allow(clippy::unwrap_used, non_snake_case)]

mod experts_support;

use burn::tensor::{Device, Tensor, TensorData};
use experts_support::{random_tiny, values};
use unif2ace_golden::max_abs_diff;
use unif2ace_model::config::MoeLevel;
use unif2ace_model::masks::for_mmu;
use unif2ace_model::moe::Task;
use unif2ace_model::prompts::Prompter;
use unif2ace_model::transformer::{Batch, Features, Input, Positions, PromptCache, Unif2ace};
use unif2ace_ops::{Precision, set_precision};

/// Of the largest value: bf16 keeps eight bits of each number.
const TOLERANCE: f32 = 0.02;

fn words(text: &str) -> Vec<u32> {
    text.split_whitespace().map(|word| word.parse().unwrap()).collect()
}

fn near(found: &[f32], expected: &[f32], what: &str) {
    let scale = expected.iter().fold(0.0f32, |most, value| most.max(value.abs()));
    let difference = max_abs_diff(found, expected).0;
    assert!(difference < TOLERANCE * scale, "{what}: {difference} of {scale}");
}

/// Logits of a picture's row and of what follows it, in one pass without a cache: `[L, vocab]`.
fn whole(model: &Unif2ace, row: &[u32]) -> Vec<f32> {
    let ids = row.iter().map(|&id| i64::from(id)).collect::<Vec<_>>();
    let batch = Batch {
        input: Input::Ids(Tensor::from_data(TensorData::new(ids, [1, row.len()]), &Device::flex())),
        positions: Positions::From(0),
        mask_BLS: for_mmu(row, row.len(), model.config().special_ids().eoi).unwrap().tensor(&Device::flex()),
        task: Task::Mmu,
        image_start: Some(2),
        features: Features::default(),
    };
    values(model.logits(model.hidden(batch).x_BLD))
}

#[test]
fn caches_in_bf16_give_what_whole_rows_and_caches_in_f32_give() {
    for level in [MoeLevel::None, MoeLevel::Both] {
        let model = random_tiny(level, &Device::flex());
        let (ids, vocab) = (model.config().special_ids(), model.config().vocab_size);
        let prompter = Prompter::new(model.config(), &words).unwrap();
        let image: Vec<u32> = (0..4).map(|n| ids.image_offset + 3 * n).collect();
        let prefix = prompter.mmu_prefix(&image).unwrap();
        // Long enough to outgrow the room of a cache.
        let text: Vec<u32> = (0..230).map(|place| 1 + place * 7 % 20).collect();
        let row = [prefix.as_slice(), &text].concat();
        // Prompts of different lengths together.
        let draw = || {
            let heads = ["1 2", "3 4 5 6", ""].map(|text| prompter.t2i_head(text).unwrap());
            let prompts = model.read_prompts(&heads.each_ref().map(Vec::as_slice)).unwrap();
            let together = PromptCache::stack(&prompts.iter().collect::<Vec<_>>()).unwrap();
            values(model.denoise(&together, &[&[ids.mask; 4], &image, &image], Features::default()).unwrap().x_BLD)
        };

        set_precision(Precision::F32);
        let (said_in_f32, drawn_in_f32) = (whole(&model, &row), draw());
        set_precision(Precision::Bf16);
        let (said, drawn) = (whole(&model, &row), draw());
        assert!(max_abs_diff(&said, &said_in_f32).0 > 0.0, "products are not rounded: the test is blind");
        near(&drawn, &drawn_in_f32, &format!("{level:?} prompts together"));
        let (start, _) = model.read_image(&prefix, Features::default()).unwrap();
        for pieces in [vec![1; 230], vec![3, 1, 100, 1, 1, 124], vec![230]] {
            let (mut reading, mut at) = (start.clone(), 0);
            for piece in pieces {
                let (last_1D, _) = model.read_text(&mut reading, &[&text[at..at + piece]]).unwrap();
                at += piece;
                let place = prefix.len() + at - 1;
                near(&values(model.logits(last_1D)), &said[place * vocab..][..vocab], &format!("{level:?} after {at} tokens"));
            }
        }
        // A cache that was begun in the other precision goes on as it is.
        set_precision(Precision::F32);
        let mut reading = start;
        let (last_1D, _) = model.read_text(&mut reading, &[&text]).unwrap();
        near(&values(model.logits(last_1D)), &said_in_f32[(row.len() - 1) * vocab..], "the rest in f32");
    }
}
