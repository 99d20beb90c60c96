//! The work that all rivals do, as ids and random numbers.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use unif2ace_data::TextTokenizer;
use unif2ace_diffusion::rng::{Key, Stream};
use unif2ace_model::config::ModelConfig;
use unif2ace_model::prompts::Prompter;
use unif2ace_weights::{FloatType, SafetensorsWriter, TensorSpec, read_model_config};

use crate::Outcome;

/// Everything but the weights.
#[derive(Debug, Serialize, Deserialize)]
pub struct Case {
    /// What to generate.
    pub prompt: String,
    /// What to ask.
    pub question: String,
    /// Guidance of generation.
    pub guidance_scale: f32,
    /// Steps of generation.
    pub num_inference_steps: usize,
    /// Tokens of the answer; its end mark is ignored.
    pub max_new_tokens: usize,
    /// Seed of the random numbers.
    pub seed: u64,
    /// Rows of generation, padded, all image tokens masked.
    pub prompt_ids: Vec<u32>,
    /// The empty prompt's row.
    pub empty_ids: Vec<u32>,
    /// Row of the question.
    pub question_ids: Vec<u32>,
    /// Codes of the picture in it.
    pub codes: Vec<u32>,
}

impl Case {
    /// Reads a case.
    pub fn read(folder: &Path) -> Outcome<Self> {
        Ok(serde_json::from_slice(&unif2ace_io::read_capped(folder.join("case.json"), 1 << 24)?)?)
    }
}

/// Writes case.json, and draws.safetensors with `code` `[T, N, K]` (Exp(1)) and `confidence` `[T, N]` (uniform), which are the numbers
/// that our samplers take for image 0.
pub fn write(model: &Path, folder: &Path) -> Outcome {
    let config: ModelConfig = serde_json::from_value(read_model_config(model)?.into())?;
    let tokenizer = TextTokenizer::from_file(model.join("tokenizer.json"))?;
    let encode = |text: &str| tokenizer.encode(text).unwrap_or_default();
    let prompter = Prompter::new(&config, &encode)?;
    let prompt = "A young woman with long curly red hair, green eyes and round glasses, smiling, in front of a light blue wall";
    let question = "What colour are the eyes of the person in the picture, and does the person wear glasses?";
    let (n, k) = (config.num_vq_tokens, config.codebook_size);
    let ids = config.special_ids();
    let masked = vec![ids.mask; n];
    let codes: Vec<u32> = (0..n).map(|place| (place * 2_654_435_761 % k) as u32).collect();
    let image: Vec<u32> = codes.iter().map(|&code| code + ids.image_offset).collect();
    let case = Case {
        prompt: prompt.into(),
        question: question.into(),
        guidance_scale: 5.0,
        num_inference_steps: 12,
        max_new_tokens: 64,
        seed: 0,
        prompt_ids: prompter.t2i_gen(prompt, &masked)?,
        empty_ids: prompter.t2i_gen("", &masked)?,
        question_ids: prompter.mmu_inference(question, &image)?,
        codes,
    };
    unif2ace_io::create_dir_all(folder)?;
    let steps = case.num_inference_steps;
    let key = |step: usize| Key::new(case.seed, 0).at_step(step as u32);
    let places = || (0..steps).flat_map(|step| (0..n).map(move |place| (step, place)));
    let code: Vec<f32> = places()
        .flat_map(|(step, place)| (0..k).map(move |code| (step, place, code)))
        .map(|(step, place, code)| key(step).exponential(Stream::Code, place as u32, code as u32))
        .collect();
    let confidence: Vec<f32> = places().map(|(step, place)| key(step).uniform(Stream::Confidence, place as u32, 0)).collect();
    let spec = |name: &str, shape: &[usize]| TensorSpec { name: name.into(), shape: shape.into() };
    let specs = vec![spec("code", &[steps, n, k]), spec("confidence", &[steps, n])];
    let mut writer = SafetensorsWriter::create(folder.join("draws.safetensors"), specs, FloatType::F32, &BTreeMap::new())?;
    writer.write("code", &code)?;
    writer.write("confidence", &confidence)?;
    writer.finish()?;
    let mut text = serde_json::to_vec_pretty(&case)?;
    text.push(b'\n');
    Ok(unif2ace_io::write_atomic(folder.join("case.json"), &text)?)
}
