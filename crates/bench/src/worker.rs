//! Does the work on demand, so that rivals can take turns without loading their weights each time.

use std::io::{BufRead, Write};
use std::path::Path;
use std::time::Instant;

use burn::tensor::{Tensor, TensorData};
use rayon::prelude::*;
use serde::Deserialize;
use serde_json::{Value, json};
use unif2ace_diffusion::MASKED;
use unif2ace_diffusion::sampler::{KeyedDraws, SamplerState};
use unif2ace_model::transformer::Features;
use unif2ace_pipeline::{DeviceName, GenerateOptions, GridRequest, Pipeline, PipelineOptions, WeightFormat};

use crate::Outcome;
use crate::case::Case;

#[derive(Debug, Deserialize)]
#[serde(tag = "work", rename_all = "snake_case", deny_unknown_fields)]
enum Work {
    /// A picture from the prompt: denoising, then decoding.
    Generate { num_inference_steps: Option<usize> },
    /// An answer: encoding a picture, reading picture and question, then token after token.
    Answer { max_new_tokens: Option<usize> },
    /// The image tokenizer alone on a picture of `side` pixels.
    Vq { side: usize },
    /// How fast this machine reads memory.
    Bandwidth,
    /// What the process holds.
    Memory,
}

/// Loads, says so, and works until standard input ends.
pub fn run(model: &Path, case: &Path, weights: WeightFormat, device: DeviceName) -> Outcome {
    let start = Instant::now();
    let case = Case::read(case)?;
    let pipeline =
        Pipeline::from_pretrained(model, &PipelineOptions { weights: Some(weights), device, ..PipelineOptions::default() })?;
    reply(&json!({ "ready": true, "seconds": start.elapsed().as_secs_f64() }))?;
    for line in std::io::stdin().lock().lines() {
        let work = serde_json::from_str(&line?)?;
        // While a rival has its turn they sleep.
        let _awake = unif2ace_ops::keep_awake();
        reply(&match work {
            Work::Generate { num_inference_steps } => generate(&pipeline, &case, num_inference_steps)?,
            Work::Answer { max_new_tokens } => answer(&pipeline, &case, max_new_tokens)?,
            Work::Vq { side } => vq(&pipeline, side)?,
            Work::Bandwidth => bandwidth(),
            Work::Memory => memory()?,
        })?;
    }
    Ok(())
}

/// Prints one line of JSON.
pub fn reply(value: &Value) -> Outcome {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{value}")?;
    Ok(out.flush()?)
}

/// Seconds since the last call, and the clock for the next.
pub struct Clock(Instant);

impl Clock {
    /// A clock whose first lap began at `start`.
    pub fn start(start: Instant) -> Self {
        Self(start)
    }

    /// Ends a lap.
    pub fn lap(&mut self) -> f64 {
        let now = Instant::now();
        (now - std::mem::replace(&mut self.0, now)).as_secs_f64()
    }
}

fn generate(pipeline: &Pipeline, case: &Case, num_inference_steps: Option<usize>) -> Outcome<Value> {
    let start = Instant::now();
    let mut clock = Clock(start);
    let options = GenerateOptions {
        num_inference_steps: num_inference_steps.unwrap_or(case.num_inference_steps),
        ..GenerateOptions::default()
    };
    let denoiser = pipeline.denoiser(&[&case.prompt], case.guidance_scale)?;
    let prompt_seconds = clock.lap();
    let config = pipeline.config();
    let draws = KeyedDraws::new(case.seed, 0);
    let mut state = SamplerState::new(options.sampler_config(), vec![MASKED; config.num_vq_tokens], config.codebook_size, draws)?;
    let mut step_seconds = Vec::new();
    while !state.is_done() {
        let logits = denoiser.logits(&[GridRequest::from(state.request())])?.swap_remove(0);
        state.step(&logits)?;
        step_seconds.push(clock.lap());
    }
    let codes = state.into_codes()?;
    pipeline.picture(&codes)?;
    let decode_seconds = clock.lap();
    let seconds = start.elapsed().as_secs_f64();
    Ok(json!({
        "seconds": seconds, "prompt_seconds": prompt_seconds, "step_seconds": step_seconds, "decode_seconds": decode_seconds,
        "codes": codes,
    }))
}

fn answer(pipeline: &Pipeline, case: &Case, max_new_tokens: Option<usize>) -> Outcome<Value> {
    let start = Instant::now();
    let mut clock = Clock(start);
    pipeline.encode(pixels(pipeline, pipeline.resolution()))?;
    let encode_seconds = clock.lap();
    // The codes of the case are read, not those of the pattern: rivals may round a code's bit differently.
    let image = pipeline.config().num_vq_tokens + 3;
    let (mut reading, _) = pipeline.unified.read_image(&case.question_ids[..image], Features::default())?;
    let mut row = case.question_ids[image..].to_vec();
    let mut tokens = Vec::new();
    let mut token_seconds = Vec::new();
    for _ in 0..max_new_tokens.unwrap_or(case.max_new_tokens) {
        let (last, _) = pipeline.unified.read_text(&mut reading, &[&row])?;
        let logits: Vec<f32> = pipeline.unified.text_logits(last).into_data().iter::<f32>().collect();
        let best = logits.iter().enumerate().fold(0, |best, (index, &value)| if value > logits[best] { index } else { best });
        tokens.push(best);
        row = vec![best as u32];
        token_seconds.push(clock.lap());
    }
    let seconds = start.elapsed().as_secs_f64();
    Ok(json!({ "seconds": seconds, "encode_seconds": encode_seconds, "token_seconds": token_seconds, "tokens": tokens }))
}

/// Some picture `[1, side, side, 3]` in -1..1.
fn pixels(pipeline: &Pipeline, side: usize) -> Tensor<4> {
    let values: Vec<f32> = (0..side * side * 3).map(|index| (index * 7919 % 2003) as f32 / 1001.5 - 1.0).collect();
    Tensor::from_data(TensorData::new(values, [1, side, side, 3]), &pipeline.device)
}

fn vq(pipeline: &Pipeline, side: usize) -> Outcome<Value> {
    let grid = side / pipeline.vq.config().downsampling();
    let pixels = pixels(pipeline, side);
    let mut clock = Clock(Instant::now());
    let codes = pipeline.vq.encode(pixels)?;
    let encode_seconds = clock.lap();
    let decoded = pipeline.vq.decode_indices(&codes, grid, grid)?.into_data();
    let decode_seconds = clock.lap();
    let mean = decoded.iter::<f32>().map(f64::from).sum::<f64>() / decoded.num_elements() as f64;
    Ok(json!({ "encode_seconds": encode_seconds, "decode_seconds": decode_seconds, "codes": codes, "mean": mean }))
}

/// Bytes a second that all threads read together from a block far larger than the caches: the best of several passes.
fn bandwidth() -> Value {
    let block = vec![1u64; 1 << 27];
    let pass = || {
        let start = Instant::now();
        let sum: u64 =
            block.par_chunks(1 << 16).map(|chunk| chunk.iter().fold(0u64, |sum, value| sum.wrapping_add(*value))).sum();
        std::hint::black_box(sum);
        (block.len() * 8) as f64 / start.elapsed().as_secs_f64()
    };
    json!({ "bytes_per_second": (0..7).map(|_| pass()).fold(0.0, f64::max) })
}

/// Peak and present resident memory in bytes, from the system's own count.
pub fn memory() -> Outcome<Value> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let bytes = |field: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(field))?;
        Some(line.trim().trim_end_matches(" kB").trim().parse::<u64>().ok()? << 10)
    };
    Ok(json!({ "peak": bytes("VmHWM:"), "resident": bytes("VmRSS:"), "file": bytes("RssFile:") }))
}
