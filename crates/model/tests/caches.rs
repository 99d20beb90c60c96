//! Reusing what does not change gives what one pass over the whole row gives, with every expert at work.
#![allow(clippy::unwrap_used, non_snake_case)]

mod experts_support;

use burn::tensor::{Device, Int, Tensor, TensorData};
use experts_support::{features, random_tiny, tiny, values};
use unif2ace_golden::{assert_close, max_abs_diff};
use unif2ace_model::config::MoeLevel;
use unif2ace_model::masks::{Marks, Mask, for_mmu, packed, predict_next};
use unif2ace_model::moe::{ExpertFeatures, Task};
use unif2ace_model::prompts::Prompter;
use unif2ace_model::transformer::{Batch, Features, Hidden, Input, Positions, PromptCache, Unif2ace};
use unif2ace_ops::WeightFormat;

const TOLERANCE: f32 = 1e-4;

fn ids_tensor(rows: &[Vec<u32>]) -> Tensor<2, Int> {
    let shape = [rows.len(), rows[0].len()];
    let ids = rows.concat().iter().map(|&id| i64::from(id)).collect::<Vec<_>>();
    Tensor::from_data(TensorData::new(ids, shape), &Device::flex())
}

fn pass(
    model: &Unif2ace,
    rows: &[Vec<u32>],
    mask: &Mask,
    positions: Positions,
    task: Task,
    start: usize,
    features: Features,
) -> Hidden {
    let batch = Batch {
        input: Input::Ids(ids_tensor(rows)),
        positions,
        mask_BLS: mask.tensor(&Device::flex()),
        task,
        image_start: Some(start),
        features,
    };
    model.check(&batch, 0).unwrap();
    model.hidden(batch)
}

fn words(text: &str) -> Vec<u32> {
    text.split_whitespace().map(|word| word.parse().unwrap()).collect()
}

fn noise_only(levels: &[f32]) -> ExpertFeatures {
    ExpertFeatures { noise_level: Some(levels.to_vec()), ..ExpertFeatures::default() }
}

#[test]
fn denoising_against_a_cached_prompt_equals_the_padded_row() {
    for level in [MoeLevel::None, MoeLevel::Both] {
        let model = random_tiny(level, &Device::flex());
        let config = model.config().clone();
        let ids = config.special_ids();
        let prompter = Prompter::new(&config, &words).unwrap().with_cut_prompts(true);
        let texts = ["", "1 2", "3 4 5 6", "7 8 9 10 11 12 13"];
        let heads = texts.map(|text| prompter.t2i_head(text).unwrap());
        let heads = model.read_prompts(&heads.each_ref().map(Vec::as_slice)).unwrap();
        let prompts = PromptCache::stack(&heads.iter().collect::<Vec<_>>()).unwrap();
        // Two denoising steps: the caches serve both.
        for step in 0..2u32 {
            let image = |row: u32| -> Vec<u32> {
                (0..4).map(|n| if (n + row + step).is_multiple_of(2) { ids.mask } else { ids.image_offset + n + row }).collect()
            };
            let images: Vec<Vec<u32>> = (0..4).map(image).collect();
            let levels = [1.0, 0.75, 0.5, 0.25];
            let rows: Vec<Vec<u32>> =
                texts.iter().zip(&images).map(|(text, image)| prompter.t2i_gen(text, image).unwrap()).collect();
            let mask = predict_next(&rows.concat(), rows[0].len(), Marks::image(&ids), true).unwrap();
            let start = config.max_seq_length + 2;
            let whole = pass(&model, &rows, &mask, Positions::From(0), Task::T2i, start, Features::Raw(noise_only(&levels)));
            let expected = values(whole.x_BLD.narrow(1, start, 4));
            let slices: Vec<&[u32]> = images.iter().map(Vec::as_slice).collect();
            let found = model.denoise(&prompts, &slices, Features::Raw(noise_only(&levels))).unwrap();
            eprintln!("{level:?} stacked: {:e}", max_abs_diff(&values(found.x_BLD.clone()), &expected).0);
            assert_close(&values(found.x_BLD), &expected, TOLERANCE, "stacked prompts");
            assert_eq!(found.stats.sequence_use, whole.stats.sequence_use);
            for (row, head) in heads.iter().enumerate() {
                let alone = model.denoise(head, &[slices[row]], Features::Raw(noise_only(&levels[row..=row]))).unwrap();
                let part = expected.len() / 4;
                assert_close(&values(alone.x_BLD), &expected[row * part..][..part], TOLERANCE, "one prompt");
            }
            // One prompt for several pictures.
            let shared = model.denoise(&heads[1], &[slices[1], slices[1]], Features::Raw(noise_only(&[0.75, 0.75]))).unwrap();
            let part = expected.len() / 4;
            let twice = [&expected[part..2 * part], &expected[part..2 * part]].concat();
            assert_close(&values(shared.x_BLD), &twice, TOLERANCE, "shared prompt");
        }
    }
}

#[test]
fn resampling_once_equals_resampling_in_every_pass() {
    let device = Device::flex();
    let model = random_tiny(MoeLevel::Both, &device);
    let ids = model.config().special_ids();
    let head = model.read_prompt(&[ids.t2i, 29, 5, 29]).unwrap();
    let raw = noise_only(&[0.4]);
    let image = [ids.mask, ids.image_offset, ids.mask, ids.image_offset + 3];
    let once = Features::Resampled(model.resample(&raw, Task::T2i));
    let found = values(model.denoise(&head, &[&image], once).unwrap().x_BLD);
    assert_eq!(found, values(model.denoise(&head, &[&image], Features::Raw(raw)).unwrap().x_BLD));
    let other = values(model.denoise(&head, &[&image], Features::Raw(noise_only(&[0.9]))).unwrap().x_BLD);
    assert!(max_abs_diff(&found, &other).0 > 1e-3, "the noise level has no effect: the test is blind");
}

#[test]
fn answering_with_a_cache_equals_the_whole_row() {
    let device = Device::flex();
    for level in [MoeLevel::None, MoeLevel::Both] {
        let model = random_tiny(level, &device);
        let config = model.config().clone();
        let ids = config.special_ids();
        let image: Vec<u32> = (0..4).map(|n| ids.image_offset + 3 * n).collect();
        let prompter = Prompter::new(&config, &words).unwrap();
        let prefix = prompter.mmu_prefix(&image).unwrap();
        let text = [29, 1, 2, 3, 4, 5, 6, 29];
        let row = [prefix.as_slice(), &text].concat();
        let mask = for_mmu(&row, row.len(), ids.eoi).unwrap();
        let outside = || Features::Raw(features(&config, 1, &device));
        let whole = pass(&model, std::slice::from_ref(&row), &mask, Positions::From(0), Task::Mmu, 2, outside());
        let expected = values(model.logits(whole.x_BLD));
        let vocab = config.vocab_size;
        let (start, stats) = model.read_image(&prefix, outside()).unwrap();
        assert_eq!(stats.sequence_use, whole.stats.sequence_use);
        // One by one, and in pieces after the same image.
        for pieces in [vec![1; 8], vec![3, 1, 4], vec![8]] {
            let mut reading = start.clone();
            let mut at = 0;
            for piece in pieces {
                let (last_1D, _) = model.read_text(&mut reading, &[&text[at..at + piece]]).unwrap();
                at += piece;
                let place = prefix.len() + at - 1;
                let found = values(model.logits(last_1D));
                assert_close(&found, &expected[place * vocab..][..vocab], TOLERANCE, &format!("{level:?} after {at} tokens"));
            }
            assert_eq!(reading.len(), row.len());
        }
        assert_eq!(start.len(), prefix.len(), "reading on from a clone leaves the original");
    }
}

#[test]
fn a_long_answer_outgrows_the_room_and_keeps_what_was_read() {
    let device = Device::flex();
    let model = random_tiny(MoeLevel::None, &device);
    let ids = model.config().special_ids();
    let image: Vec<u32> = (0..4).map(|n| ids.image_offset + 3 * n).collect();
    let prefix = Prompter::new(model.config(), &words).unwrap().mmu_prefix(&image).unwrap();
    let text: Vec<u32> = (0..300).map(|place| 1 + place * 7 % 20).collect();
    let row = [prefix.as_slice(), &text].concat();
    let mask = for_mmu(&row, row.len(), ids.eoi).unwrap();
    let whole = pass(&model, std::slice::from_ref(&row), &mask, Positions::From(0), Task::Mmu, 2, Features::default());
    let (expected, vocab) = (values(model.logits(whole.x_BLD)), model.config().vocab_size);
    let (mut reading, _) = model.read_image(&prefix, Features::default()).unwrap();
    for (at, word) in text.iter().enumerate() {
        let (last_1D, _) = model.read_text(&mut reading, &[&[*word]]).unwrap();
        let place = prefix.len() + at;
        assert_close(&values(model.logits(last_1D)), &expected[place * vocab..][..vocab], TOLERANCE, &format!("word {at}"));
    }
}

#[test]
fn packed_weights_give_what_plain_ones_give() {
    let device = Device::flex();
    for level in [MoeLevel::None, MoeLevel::Both] {
        let model = random_tiny(level, &device);
        let config = model.config().clone();
        let ids = config.special_ids();
        let prompter = Prompter::new(&config, &words).unwrap();
        let image: Vec<u32> = (0..4).map(|n| ids.image_offset + 3 * n).collect();
        let run = |model: &Unif2ace| {
            let head = model.read_prompt(&prompter.t2i_head("1 2 3").unwrap()).unwrap();
            let drawn = model.denoise(&head, &[&image], Features::Raw(noise_only(&[0.5]))).unwrap().x_BLD;
            let prefix = prompter.mmu_prefix(&image).unwrap();
            let (mut reading, _) = model.read_image(&prefix, Features::Raw(features(&config, 1, &device))).unwrap();
            let (said, _) = model.read_text(&mut reading, &[&[29, 1, 2]]).unwrap();
            let text = model.text_logits(said.clone());
            [values(model.image_logits(drawn.clone())), values(model.logits(drawn)), values(text), values(model.logits(said))]
        };
        let expected = run(&model);
        assert_eq!(run(&model.clone().pack(WeightFormat::F32)), expected, "{level:?}");
        for (format, tolerance) in [(WeightFormat::Bf16, 0.03), (WeightFormat::Int8, 0.05)] {
            for (found, expected) in run(&model.clone().pack(format)).iter().zip(&expected) {
                let scale = expected.iter().fold(0.0f32, |most, value| most.max(value.abs()));
                let difference = max_abs_diff(found, expected).0;
                assert!(difference > 0.0, "{format:?} rounds nothing: the test is blind");
                assert!(difference < tolerance * scale, "{level:?} {format:?}: {difference} of {scale}");
            }
        }
    }
}

#[test]
fn one_pass_forms_give_what_operation_by_operation_gives() {
    // With gradients on, sums of branches and sequence experts run operation by operation; without, in one pass each.
    for level in [MoeLevel::None, MoeLevel::Token, MoeLevel::Sequence, MoeLevel::Both] {
        let config = random_tiny(level, &Device::flex()).config().clone();
        let ids = config.special_ids();
        let image: Vec<i64> = (0..4).map(|n| i64::from(ids.image_offset) + 3 * n).collect();
        let run = |model: &Unif2ace, device: &Device, task: Task| {
            let row = [&[i64::from(ids.mmu), i64::from(ids.soi)], image.as_slice(), &[i64::from(ids.eoi), 29, 1]].concat();
            let length = row.len();
            let rows = [row.clone(), row].concat();
            let noise = noise_only(&[0.5, 0.25]);
            let seen = if task == Task::T2i { noise } else { features(&config, 2, device) };
            let batch = Batch {
                mask_BLS: Mask::open(length, length).tensor(device),
                input: Input::Ids(Tensor::from_data(TensorData::new(rows, [2, length]), device)),
                positions: Positions::From(0),
                task,
                image_start: Some(2),
                features: Features::Raw(seen),
            };
            values(model.hidden(batch).x_BLD)
        };
        for task in [Task::T2i, Task::Mmu] {
            let device = Device::flex();
            let tracked = device.clone().autodiff();
            let found = run(&random_tiny(level, &device), &device, task);
            let expected = run(&random_tiny(level, &tracked), &tracked, task);
            assert_close(&found, &expected, TOLERANCE, &format!("{level:?} {task:?}"));
        }
    }
}

#[test]
fn questions_side_by_side_equal_questions_alone() {
    let device = Device::flex();
    for level in [MoeLevel::None, MoeLevel::Both] {
        let model = random_tiny(level, &device);
        let config = model.config().clone();
        let ids = config.special_ids();
        let image: Vec<u32> = (0..4).map(|n| ids.image_offset + 3 * n).collect();
        let prefix = Prompter::new(&config, &words).unwrap().mmu_prefix(&image).unwrap();
        let (start, _) = model.read_image(&prefix, Features::Raw(features(&config, 1, &device))).unwrap();
        let questions: [&[u32]; 3] = [&[29, 1, 2], &[29, 3], &[29, 4, 5, 6, 7, 8]];
        let answers: [&[u32]; 2] = [&[9, 10, 11], &[12, 13, 14]];
        let mut together = start.clone();
        let mut found = vec![values(model.read_text(&mut together, &questions).unwrap().0)];
        for tokens in answers {
            let rows: Vec<&[u32]> = tokens.chunks(1).collect();
            found.push(values(model.read_text(&mut together, &rows).unwrap().0));
        }
        let width = config.hidden_size;
        for (row, question) in questions.iter().enumerate() {
            let mut alone = start.clone();
            for (step, found) in found.iter().enumerate() {
                let ids = if step == 0 { *question } else { &answers[step - 1][row..=row] };
                let expected = values(model.read_text(&mut alone, &[ids]).unwrap().0);
                assert_close(&found[row * width..][..width], &expected, TOLERANCE, &format!("{level:?} row {row} step {step}"));
            }
        }
    }
}

#[test]
fn packed_questions_equal_separate_ones() {
    let device = Device::flex();
    for level in [MoeLevel::None, MoeLevel::Both] {
        let model = random_tiny(level, &device);
        let config = model.config().clone();
        let ids = config.special_ids();
        let image: Vec<u32> = (0..4).map(|n| ids.image_offset + 2 * n + 1).collect();
        let template = unif2ace_model::config::ModelConfig { question_template: "{question} 7\n".into(), ..config.clone() };
        let prompter = Prompter::new(&template, &words).unwrap();
        let turns = [("1 2", "3"), ("4", "5 6 8"), ("9 9 9", "1 1")];
        let whole = prompter.mmu_packed(&image, &turns, 100).unwrap();
        let length = whole.ids.len() + 2;
        let mut row = whole.ids.clone();
        row.resize(length, ids.pad);
        let (mask, positions) = packed(whole.prefix, std::slice::from_ref(&whole.blocks), length).unwrap();
        let outside = || Features::Raw(features(&config, 1, &device));
        let hidden = pass(&model, &[row], &mask, Positions::Rows(positions), Task::Mmu, 2, outside());
        let width = config.hidden_size;
        let found = values(hidden.x_BLD);
        let mut at = whole.prefix;
        for (turn, &block) in turns.iter().zip(&whole.blocks) {
            let alone = prompter.mmu_packed(&image, &[*turn], 100).unwrap();
            let mask = for_mmu(&alone.ids, alone.ids.len(), ids.eoi).unwrap();
            let expected = values(pass(&model, &[alone.ids], &mask, Positions::From(0), Task::Mmu, 2, outside()).x_BLD);
            assert_close(
                &found[at * width..][..block * width],
                &expected[alone.prefix * width..],
                TOLERANCE,
                &format!("{level:?} {turn:?}"),
            );
            at += block;
        }
    }
}

#[test]
fn wrong_inputs_are_errors() {
    let device = Device::flex();
    let model = random_tiny(MoeLevel::Both, &device);
    let config = tiny(MoeLevel::Both);
    let ids = config.special_ids();
    assert!(model.read_prompt(&[]).is_err());
    assert!(model.read_prompts(&[]).is_err());
    assert!(model.read_prompts(&[&[1], &[]]).is_err());
    assert!(model.read_prompt(&[1; 8]).unwrap_err().to_string().contains("1 to 7 tokens"));
    assert!(model.read_prompt(&[57]).is_err(), "an id beyond the vocabulary");
    let prompt = model.read_prompt(&[ids.t2i, 29]).unwrap();
    let image = [ids.mask; 4];
    assert!(model.denoise(&prompt, &[&image[..3]], Features::default()).is_err());
    assert!(model.denoise(&prompt, &[], Features::default()).is_err());
    assert!(model.denoise(&prompt, &[&image], Features::Raw(noise_only(&[0.5, 0.5]))).is_err());
    assert!(model.denoise(&prompt, &[&image], Features::Raw(noise_only(&[1.5]))).is_err());
    let two = PromptCache::stack(&[&prompt, &prompt]).unwrap();
    assert!(model.denoise(&two, &[&image], Features::default()).is_err());
    assert!(PromptCache::stack(&[]).is_err());
    assert!(model.read_image(&[ids.mmu, ids.soi], Features::default()).is_err());
    let prefix = [&[ids.mmu, ids.soi], image.as_slice(), &[ids.eoi]].concat();
    let mut wrong = features(&config, 1, &device);
    wrong.face_BF = Some(Tensor::zeros([1, 3], &device));
    assert!(model.read_image(&prefix, Features::Raw(wrong)).unwrap_err().to_string().contains("face"));
    let (mut reading, _) = model.read_image(&prefix, Features::default()).unwrap();
    assert!(model.read_text(&mut reading, &[]).is_err());
    assert!(model.read_text(&mut reading, &[&[1], &[]]).is_err());
    assert!(model.read_text(&mut reading, &[&[1000]]).is_err());
    assert_eq!(reading.len(), 7, "a refused text leaves nothing behind");
    model.read_text(&mut reading, &[&[1, 2], &[3]]).unwrap();
    assert!(model.read_text(&mut reading, &[&[1]]).unwrap_err().to_string().contains("2 rows"));
    assert!(model.read_text(&mut reading, &[&[1], &[1, 2]]).is_err());
}
