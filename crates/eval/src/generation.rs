//! Pictures for many prompts at once. B prompts; with guidance their empty twins are B more rows.

use burn::tensor::{Int, Tensor, TensorData};
use unif2ace_diffusion::MASKED;
use unif2ace_diffusion::sampler::{KeyedDraws, SamplerConfig, SamplerState, guide};
use unif2ace_model::masks::{Marks, Mask, predict_next};
use unif2ace_model::moe::{ExpertFeatures, Task};
use unif2ace_model::prompts::Prompter;
use unif2ace_model::transformer::{Batch, CacheUse, Features, Input, KvCache, Positions};

use crate::error::{EvalError, Result};
use crate::model::Model;

/// Codes of one picture for each prompt; picture i uses the random numbers of (seed, `first_image` + i).
///
/// # Errors
/// When the sampler's settings are off.
pub(crate) fn generate(model: &Model, prompts: &[&str], sampler: &SamplerConfig, guidance_scale: f32, seed: u64, first_image: u64) -> Result<Vec<Vec<u32>>> {
    let config = model.unified.config();
    let ids = config.special_ids();
    let (n, num_codes) = (config.num_vq_tokens, config.codebook_size);
    let encode = |text: &str| model.encode(text);
    let prompter = Prompter::new(config, &encode).map_err(EvalError::step("prompts"))?.with_cut_prompts(true);
    let guided = guidance_scale > 0.0;
    let texts = prompts.iter().copied().chain(prompts.iter().filter(|_| guided).map(|_| ""));
    let heads: Vec<Vec<u32>> = texts.map(|text| prompter.t2i_head(text)).collect::<std::result::Result<_, _>>().map_err(EvalError::step("prompts"))?;
    let lengths: Vec<usize> = heads.iter().map(Vec::len).collect();
    let longest = lengths.iter().copied().max().unwrap_or(0);
    let rows: Vec<u32> = heads.iter().flat_map(|head| std::iter::repeat_n(ids.pad, longest - head.len()).chain(head.iter().copied())).collect();
    let offset = config.max_seq_length + 1 - longest;

    // The text is causal: its keys and values serve every step. The marks of an image, which the mask needs, follow it.
    let with_image: Vec<u32> = rows.chunks(longest).flat_map(|row| row.iter().copied().chain([ids.soi, ids.eoi])).collect();
    let mask = predict_next(&with_image, longest + 2, Marks::image(&ids), true).map_err(EvalError::step("mask"))?;
    let mask_BLS = mask.tensor(&model.device).narrow(1, 0, longest).narrow(2, 0, longest);
    let mut cache = KvCache::new();
    model.unified.hidden_cached(
        Batch {
            input: Input::Ids(id_rows(model, &rows, heads.len())),
            positions: Positions::From(offset),
            mask_BLS,
            task: Task::T2i,
            image_start: None,
            features: Features::Raw(ExpertFeatures::default()),
        },
        CacheUse::Append(&mut cache),
    );
    let image_mask = Mask::after_padded(&lengths, n + 2).tensor(&model.device);

    let mut states = Vec::new();
    for image in 0..prompts.len() as u64 {
        let draws = KeyedDraws::new(seed, first_image + image);
        states.push(SamplerState::new(sampler.clone(), vec![MASKED; n], num_codes, draws).map_err(EvalError::step("sampler"))?);
    }
    while states.iter().any(|state| !state.is_done()) {
        let mut image_rows = Vec::new();
        let mut levels = Vec::new();
        for copy in 0..if guided { 2 } else { 1 } {
            let _ = copy;
            for state in &states {
                let request = state.request();
                levels.push(request.masked_fraction);
                image_rows.push(ids.soi);
                image_rows.extend(request.grid.iter().map(|&code| if code == MASKED { ids.mask } else { code + ids.image_offset }));
                image_rows.push(ids.eoi);
            }
        }
        let hidden = model.unified.hidden_cached(
            Batch {
                input: Input::Ids(id_rows(model, &image_rows, heads.len())),
                positions: Positions::From(offset + longest),
                mask_BLS: image_mask.clone(),
                task: Task::T2i,
                image_start: Some(1),
                features: Features::Raw(ExpertFeatures { noise_level: Some(levels), ..ExpertFeatures::default() }),
            },
            CacheUse::Read(&cache),
        );
        let x_BND = hidden.x_BLD.narrow(1, 1, n);
        for (row, state) in states.iter_mut().enumerate() {
            if state.is_done() {
                continue;
            }
            let wanted: Vec<i64> = state.request().wanted.iter().map(|&place| place as i64).collect();
            let logits_of = |row: usize| -> Vec<f32> {
                let width = x_BND.dims()[2];
                let x_ND: Tensor<2> = x_BND.clone().narrow(0, row, 1).reshape([n, width]);
                let places = Tensor::<1, Int>::from_data(TensorData::new(wanted.clone(), [wanted.len()]), &model.device);
                model.unified.image_logits(x_ND.select(0, places)).into_data().iter::<f32>().collect()
            };
            let logits = if wanted.is_empty() {
                Vec::new()
            } else if guided {
                guide(&logits_of(row), &logits_of(prompts.len() + row), guidance_scale).map_err(EvalError::step("guidance"))?
            } else {
                logits_of(row)
            };
            state.step(&logits).map_err(EvalError::step("sampler"))?;
        }
    }
    states.into_iter().map(|state| state.into_codes().map_err(EvalError::step("sampler"))).collect()
}

fn id_rows(model: &Model, ids: &[u32], rows: usize) -> Tensor<2, Int> {
    let values: Vec<i64> = ids.iter().map(|&id| i64::from(id)).collect();
    Tensor::from_data(TensorData::new(values, [rows, ids.len() / rows]), &model.device)
}
