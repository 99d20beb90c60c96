//! How far numbers in bf16 and int8 are from those in f32: logits of the next token and of codes, on pictures of the face set.

use std::path::Path;

use burn::tensor::{Tensor, TensorData};
use serde_json::{Value, json};
use unif2ace_data::{Sample, decode_rgb, load_split};
use unif2ace_diffusion::MASKED;
use unif2ace_model::prompts::Prompter;
use unif2ace_model::transformer::Features;
use unif2ace_pipeline::{GridRequest, Pipeline, PipelineOptions, WeightFormat};

use crate::Outcome;

/// Logits of all pictures, one row a question and a place.
struct Logits {
    text: Vec<Vec<f32>>,
    codes: Vec<Vec<f32>>,
}

/// Prints the distances of bf16 and int8 from f32 on the first `num_images` of a split.
pub fn run(model: &Path, faces: &Path, split: &str, num_images: usize) -> Outcome {
    let samples = load_split(faces, split, num_images)?.samples;
    // What is read is the same for all: the codes in f32.
    let plain = load(model, WeightFormat::F32)?;
    let pixels = samples.iter().map(|sample| pixels(&plain, sample)).collect::<Outcome<Vec<_>>>()?;
    let grids = pixels.iter().map(|pixels| Ok(plain.encode(pixels.clone())?)).collect::<Outcome<Vec<_>>>()?;
    let expected = logits(&plain, &samples, &pixels, &grids)?;
    drop(plain);
    let mut report = serde_json::Map::new();
    report.insert("pictures".into(), samples.len().into());
    for (name, format) in [("bf16", WeightFormat::Bf16), ("int8", WeightFormat::Int8)] {
        let found = logits(&load(model, format)?, &samples, &pixels, &grids)?;
        let both =
            json!({ "next token": distance(&found.text, &expected.text), "codes": distance(&found.codes, &expected.codes) });
        report.insert(name.into(), both);
    }
    #[allow(clippy::print_stdout)]
    {
        println!("{:#}", Value::from(report));
    }
    Ok(())
}

fn load(model: &Path, weights: WeightFormat) -> Outcome<Pipeline> {
    Ok(Pipeline::from_pretrained(model, &PipelineOptions { weights: Some(weights), ..PipelineOptions::default() })?)
}

fn pixels(pipeline: &Pipeline, sample: &Sample) -> Outcome<Tensor<4>> {
    let side = pipeline.resolution();
    let values: Vec<f32> =
        decode_rgb(std::slice::from_ref(sample), side)?.iter().map(|&value| f32::from(value) / 127.5 - 1.0).collect();
    Ok(Tensor::from_data(TensorData::new(values, [1, side, side, 3]), &pipeline.device))
}

fn logits(pipeline: &Pipeline, samples: &[Sample], pixels: &[Tensor<4>], grids: &[Vec<u32>]) -> Outcome<Logits> {
    let config = pipeline.config();
    let encode = |text: &str| pipeline.tokenizer.encode(text).unwrap_or_default();
    let prompter = Prompter::new(config, &encode)?;
    let offset = config.special_ids().image_offset;
    let mut all = Logits { text: Vec::new(), codes: Vec::new() };
    for ((sample, pixels), grid) in samples.iter().zip(pixels).zip(grids) {
        let image: Vec<u32> = grid.iter().map(|code| code + offset).collect();
        let features = Features::Raw(pipeline.features(pixels.clone())?);
        let (reading, _) = pipeline.unified.read_image(&prompter.mmu_prefix(&image)?, features)?;
        for question in &sample.record.vqa {
            let row = prompter.question_ids(&question.question)?;
            let (last, _) = pipeline.unified.read_text(&mut reading.clone(), &[&row])?;
            all.text.push(pipeline.unified.text_logits(last).into_data().iter::<f32>().collect());
        }
        let Some(caption) = sample.record.captions.first() else { continue };
        // Every second place is masked.
        let wanted: Vec<usize> = (0..grid.len()).step_by(2).collect();
        let masked: Vec<u32> = grid.iter().enumerate().map(|(place, &code)| if place % 2 == 0 { MASKED } else { code }).collect();
        let request = GridRequest { grid: &masked, wanted: &wanted, masked_fraction: 0.5 };
        let found = pipeline.denoiser(&[caption], 0.0)?.logits(&[request])?.swap_remove(0);
        all.codes.extend(found.chunks(config.codebook_size).map(<[f32]>::to_vec));
    }
    Ok(all)
}

/// Means over rows: the error of the centred logits relative to their size, the divergence KL(f32 || found) in nats, and how often both have
/// the same most probable entry.
fn distance(found: &[Vec<f32>], expected: &[Vec<f32>]) -> Value {
    let (mut error, mut divergence, mut same) = (0.0, 0.0, 0usize);
    for (found, expected) in found.iter().zip(expected) {
        let centred = |row: &[f32]| -> Vec<f64> {
            let mean = row.iter().map(|&value| f64::from(value)).sum::<f64>() / row.len() as f64;
            row.iter().map(|&value| f64::from(value) - mean).collect()
        };
        let (f, e) = (centred(found), centred(expected));
        let norm = |row: &mut dyn Iterator<Item = f64>| row.map(|value| value * value).sum::<f64>().sqrt();
        error += norm(&mut f.iter().zip(&e).map(|(f, e)| f - e)) / norm(&mut e.iter().copied()).max(f64::MIN_POSITIVE);
        let log_sum = |row: &[f64]| {
            let most = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            most + row.iter().map(|value| (value - most).exp()).sum::<f64>().ln()
        };
        let (f_sum, e_sum) = (log_sum(&f), log_sum(&e));
        divergence += f.iter().zip(&e).map(|(f, e)| (e - e_sum).exp() * ((e - e_sum) - (f - f_sum))).sum::<f64>();
        let best =
            |row: &[f64]| row.iter().enumerate().fold(0, |best, (index, value)| if *value > row[best] { index } else { best });
        same += usize::from(best(&f) == best(&e));
    }
    let rows = expected.len().max(1) as f64;
    json!({
        "rows": expected.len(), "relative error": error / rows, "KL, nats": divergence / rows,
        "same most probable": same as f64 / rows,
    })
}
