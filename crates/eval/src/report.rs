//! What is measured, and how it is counted.

use std::collections::BTreeMap;
use std::path::PathBuf;

use burn::tensor::{Tensor, TensorData};
use serde::Serialize;
use serde_json::{Value, json};
use unif2ace_data::grammar::{asked, caption_claims, parse_answer};

use unif2ace_data::{FaceRecord, LabelledPrompt, Sample, Schema, decode_rgb, load_prompts, load_split};
use unif2ace_diffusion::sampler::SamplerConfig;
use unif2ace_model::encoders::{FaceNet, clip_pixels};
use unif2ace_pipeline::{AnswerOptions, Pipeline, ScoreOptions};

use crate::error::{EvalError, Result};
use crate::frechet::frechet_distance;

const BATCH: usize = 16;
const MAX_ANSWER_TOKENS: usize = 24;
const MAX_CAPTION_TOKENS: usize = 110;

/// What to measure on how much.
#[derive(Debug, Clone)]
pub struct EvalOptions {
    /// Folder of the face set.
    pub faces: PathBuf,
    /// Split, `test` as a rule.
    pub split: String,
    /// Pictures for reconstruction and answers (0: all).
    pub num_images: usize,
    /// Captions to generate from (0: none).
    pub num_generated: usize,
    /// Pictures whose likelihood is bounded (0: none).
    pub num_scored: usize,
    /// Sampler of the generation.
    pub sampler: SamplerConfig,
    /// Guidance of the generation.
    pub guidance_scale: f32,
    /// Seed of the generation.
    pub seed: u64,
    /// Labelled prompts in users' words to generate from too.
    pub prompts: Option<PathBuf>,
}

/// Hits among cases.
#[derive(Debug, Clone, Copy, Default, Serialize)]
struct Rate {
    hits: usize,
    cases: usize,
}

impl Rate {
    fn count(&mut self, hit: bool) {
        self.hits += usize::from(hit);
        self.cases += 1;
    }

    fn json(self) -> Value {
        json!({ "percent": (1000.0 * self.hits as f64 / self.cases.max(1) as f64).round() / 10.0, "cases": self.cases })
    }
}

/// Measures everything and returns it as JSON; `progress` is told what is being done.
///
/// # Errors
/// When the set can't be read or doesn't fit the model.
pub fn evaluate(model: &Pipeline, options: &EvalOptions, progress: &mut dyn FnMut(&str)) -> Result<Value> {
    options.sampler.validate().map_err(EvalError::step("sampler"))?;
    if !options.guidance_scale.is_finite() || options.guidance_scale < 0.0 {
        let found = options.guidance_scale;
        return Err(EvalError::Step { operation: "guidance scale", reason: format!("expected 0 or more, found {found}") });
    }
    let labelled = match &options.prompts {
        None => None,
        Some(path) => Some(load_prompts(path).map_err(EvalError::step("reading the prompts"))?),
    };
    if options.num_generated > 0 || labelled.is_some() {
        face_network(model)?;
    }
    let load = |split: &str, limit: usize| load_split(&options.faces, split, limit).map_err(EvalError::step("reading faces"));
    let samples = load(&options.split, options.num_images)?.samples;
    let side = model.resolution();
    let mut report = serde_json::Map::new();
    report.insert("split".into(), json!({ "name": options.split, "pictures": samples.len() }));
    progress("reconstruction");
    report.insert("vq".into(), reconstruction(model, &samples, side)?);
    progress("baseline");
    let train = load("train", 0)?.samples;
    let majority = majority(train.iter().map(|sample| &sample.record));
    drop(train);
    let (answers, captions) = understanding(model, &samples, side, &majority, progress)?;
    report.insert("answers".into(), answers);
    report.insert("captions".into(), captions);
    if options.num_generated > 0 {
        report.insert("generation".into(), generation(model, &samples, side, options, progress)?);
    }
    if options.num_scored > 0 {
        report.insert("likelihood".into(), likelihood(model, &samples, side, options, progress)?);
    }
    if let Some(labelled) = &labelled {
        progress("prompts in users' words");
        report.insert("prompts".into(), prompts(model, labelled, options)?);
    }
    Ok(Value::Object(report))
}

fn reconstruction(model: &Pipeline, samples: &[Sample], side: usize) -> Result<Value> {
    let mut used = vec![false; model.vq.config().codebook_size()];
    let mut psnr = 0.0;
    for batch in samples.chunks(BATCH) {
        let bytes = decode_rgb(batch, side).map_err(EvalError::step("decoding pictures"))?;
        let pixels_BHWC = tensor_of(model, &bytes, side);
        let codes = model.encode(pixels_BHWC.clone()).map_err(EvalError::step("encoding pictures"))?;
        codes.iter().for_each(|&code| used[code as usize] = true);
        let decoded = model.decode(&codes).map_err(EvalError::step("decoding codes"))?;
        let squares: Vec<f32> = (decoded - pixels_BHWC).powi_scalar(2).into_data().iter::<f32>().collect();
        for picture in squares.chunks_exact(side * side * 3) {
            let mean = picture.iter().map(|&v| f64::from(v)).sum::<f64>() / picture.len() as f64;
            psnr -= 10.0 * (mean / 4.0).log10();
        }
    }
    let code_use = used.iter().filter(|&&used| used).count() as f64 / used.len() as f64;
    Ok(json!({ "psnr_db": psnr / samples.len() as f64, "code_use_percent": 100.0 * code_use }))
}

/// What a question is about, whatever its words; the question itself where that can't be told.
fn question_key(question: &str) -> String {
    asked(question).map_or_else(|| question.to_owned(), |asked| asked.key())
}

/// Most frequent short answer of each question in training.
fn majority<'a>(records: impl Iterator<Item = &'a FaceRecord>) -> BTreeMap<String, String> {
    let mut counts: BTreeMap<String, BTreeMap<String, usize>> = BTreeMap::new();
    for item in records.flat_map(|record| &record.vqa) {
        *counts.entry(question_key(&item.question)).or_default().entry(item.short.clone()).or_default() += 1;
    }
    counts.into_iter().filter_map(|(key, shorts)| Some((key, shorts.into_iter().max_by_key(|(_, count)| *count)?.0))).collect()
}

fn understanding(
    model: &Pipeline,
    samples: &[Sample],
    side: usize,
    majority: &BTreeMap<String, String>,
    progress: &mut dyn FnMut(&str),
) -> Result<(Value, Value)> {
    let mut exact: BTreeMap<String, [Rate; 2]> = BTreeMap::new();
    let (mut precision, mut heldout_precision, mut num_claims) = (Rate::default(), Rate::default(), 0usize);
    let mut by_attribute: BTreeMap<&str, Rate> = BTreeMap::new();
    for (number, sample) in samples.iter().enumerate() {
        if number % 50 == 0 {
            progress(&format!("answers {number}/{}", samples.len()));
        }
        let bytes = decode_rgb(std::slice::from_ref(sample), side).map_err(EvalError::step("decoding pictures"))?;
        let picture = model.read_pixels(tensor_of(model, &bytes, side)).map_err(EvalError::step("reading pictures"))?;
        let record = &sample.record;
        let questions: Vec<&str> = record.vqa.iter().map(|item| item.question.as_str()).collect();
        let found = model.answers(&picture, &questions, &greedy(MAX_ANSWER_TOKENS)).map_err(EvalError::step("answering"))?;
        for (item, found) in record.vqa.iter().zip(&found) {
            let hit = parse_answer(&item.question, found).is_some_and(|short| short == item.short);
            let guess = majority.get(&question_key(&item.question)).is_some_and(|short| *short == item.short);
            let yes_no = matches!(item.short.as_str(), "yes" | "no");
            let mut groups =
                vec!["all".to_owned(), item.kind.clone(), if yes_no { "yes/no" } else { "other than yes/no" }.to_owned()];
            if record.heldout.is_some() {
                groups.push("held-out combinations".into());
            }
            for group in groups {
                let [ours, baseline] = exact.entry(group).or_default();
                ours.count(hit);
                baseline.count(guess);
            }
        }
        let caption = model.caption_of(&picture, &greedy(MAX_CAPTION_TOKENS)).map_err(EvalError::step("describing"))?;
        for claim in caption_claims(&caption) {
            num_claims += 1;
            // A claim that the picture can't settle counts as wrong: it was stated without being seen.
            let hit = claim.holds(record) == Some(true);
            precision.count(hit);
            by_attribute.entry(Schema::get().heads()[claim.head].name).or_default().count(hit);
            if record.heldout.is_some() {
                heldout_precision.count(hit);
            }
        }
    }
    let answers = exact
        .into_iter()
        .map(|(group, [ours, baseline])| (group, json!({ "exact": ours.json(), "majority_answer": baseline.json() })));
    let captions = json!({
        "precision": precision.json(),
        "attributes_per_caption": num_claims as f64 / samples.len() as f64,
        "precision_heldout": heldout_precision.json(),
        "by_attribute": by_attribute.into_iter().map(|(name, rate)| (name, rate.json())).collect::<BTreeMap<_, _>>(),
    });
    Ok((Value::Object(answers.collect()), captions))
}

fn generation(
    model: &Pipeline,
    samples: &[Sample],
    side: usize,
    options: &EvalOptions,
    progress: &mut dyn FnMut(&str),
) -> Result<Value> {
    let count = options.num_generated.min(samples.len());
    // Held-out combinations come last in the split; taking evenly keeps their share.
    let chosen: Vec<&Sample> = (0..count).map(|index| &samples[index * samples.len() / count]).collect();
    let face = face_network(model)?;
    let [mut real, mut rebuilt, mut made, mut shuffled, mut made_heldout] = [Rate::default(); 5];
    let mut by_attribute: BTreeMap<&str, [Rate; 3]> = BTreeMap::new();
    let [mut features_of_made, mut features_of_real] = [const { Vec::new() }; 2];
    for (start, batch) in chosen.chunks(BATCH).enumerate().map(|(index, batch)| (index * BATCH, batch)) {
        progress(&format!("generation {start}/{count}"));
        let prompts: Vec<&str> = batch.iter().filter_map(|sample| sample.record.captions.first().map(String::as_str)).collect();
        let pictures_BHWC = draw(model, &prompts, options, start as u64)?;
        features_of_made.extend(clip_features(model, &pictures_BHWC)?);
        let of_made = read_attributes(face, pictures_BHWC)?;
        let owned: Vec<Sample> = batch.iter().map(|&sample| sample.clone()).collect();
        let bytes = decode_rgb(&owned, side).map_err(EvalError::step("decoding pictures"))?;
        let pixels_BHWC = tensor_of(model, &bytes, side);
        let codes = model.encode(pixels_BHWC.clone()).map_err(EvalError::step("encoding pictures"))?;
        let of_rebuilt = read_attributes(face, model.decode(&codes).map_err(EvalError::step("decoding codes"))?)?;
        features_of_real.extend(clip_features(model, &pixels_BHWC)?);
        let of_real = read_attributes(face, pixels_BHWC)?;
        for (row, sample) in batch.iter().enumerate() {
            let claims = caption_claims(prompts[row]);
            let other =
                caption_claims(chosen[(start + row + count / 2) % count].record.captions.first().map_or("", String::as_str));
            for claim in &claims {
                let hit = claim.accepts(of_made[row][claim.head]);
                made.count(hit);
                if sample.record.heldout.is_some() {
                    made_heldout.count(hit);
                }
                let hit_of_real = claim.accepts(of_real[row][claim.head]);
                let hit_of_rebuilt = claim.accepts(of_rebuilt[row][claim.head]);
                real.count(hit_of_real);
                rebuilt.count(hit_of_rebuilt);
                let rates = by_attribute.entry(Schema::get().heads()[claim.head].name).or_default();
                for (rate, hit) in rates.iter_mut().zip([hit, hit_of_rebuilt, hit_of_real]) {
                    rate.count(hit);
                }
            }
            for claim in &other {
                shuffled.count(claim.accepts(of_made[row][claim.head]));
            }
        }
    }
    let by_attribute = by_attribute
        .into_iter()
        .map(|(name, [made, rebuilt, real])| {
            let rates = json!({ "generated": made.json(), "reconstructed": rebuilt.json(), "real": real.json() });
            (name.to_owned(), rates)
        })
        .collect();
    let width = features_of_real.len() / count.max(1);
    let small_frechet = match width > 0 && count > 1 {
        true => Some(frechet_distance(&features_of_made, &features_of_real, width)?),
        false => None,
    };
    Ok(json!({
        "captions": count,
        "small_frechet_distance": small_frechet,
        "agreement": made.json(),
        "agreement_heldout": made_heldout.json(),
        "agreement_of_real_pictures": real.json(),
        "agreement_of_reconstructed_pictures": rebuilt.json(),
        "agreement_with_shuffled_captions": shuffled.json(),
        "sampler": options.sampler.sampler.to_string(),
        "num_inference_steps": options.sampler.num_steps,
        "guidance_scale": options.guidance_scale,
        "top_k": options.sampler.top_k,
        "seed": options.seed,
        "by_attribute": Value::Object(by_attribute),
    }))
}

/// Mean bound of the negative log-likelihood of pictures given their first captions; see [`Pipeline::score`].
fn likelihood(
    model: &Pipeline,
    samples: &[Sample],
    side: usize,
    options: &EvalOptions,
    progress: &mut dyn FnMut(&str),
) -> Result<Value> {
    let count = options.num_scored.min(samples.len());
    let (mut nats, mut bits, mut variance) = (0.0, 0.0, 0.0);
    for index in 0..count {
        if index % 20 == 0 {
            progress(&format!("likelihood {index}/{count}"));
        }
        let sample = &samples[index * samples.len() / count];
        let bytes = decode_rgb(std::slice::from_ref(sample), side).map_err(EvalError::step("decoding pictures"))?;
        let codes = model.encode(tensor_of(model, &bytes, side)).map_err(EvalError::step("encoding pictures"))?;
        let caption = sample.record.captions.first().map_or("", String::as_str);
        let scoring = ScoreOptions { seed: options.seed.wrapping_add(index as u64), ..ScoreOptions::default() };
        let score = model.score_codes(&codes, caption, &scoring).map_err(EvalError::step("scoring"))?;
        nats += score.nats;
        bits += score.bits_per_token;
        variance += score.standard_error.powi(2);
    }
    let count_f = count.max(1) as f64;
    Ok(json!({
        "pictures": count,
        "nats_per_picture": nats / count_f,
        "standard_error_of_the_estimate": variance.sqrt() / count_f,
        "bits_per_token": bits / count_f,
    }))
}

/// Pooled features of the model's own CLIP tower, row after row; none where the model has no CLIP.
fn clip_features(model: &Pipeline, pixels_BHWC: &Tensor<4>) -> Result<Vec<f32>> {
    let Some(clip) = &model.clip else { return Ok(Vec::new()) };
    let output = clip.vision_model.forward(clip_pixels(pixels_BHWC.clone())).map_err(EvalError::step("CLIP features"))?;
    Ok(output.pooled_BD.into_data().iter::<f32>().collect())
}

/// Agreement on the labelled prompts, by all attributes and by each.
fn prompts(model: &Pipeline, labelled: &[LabelledPrompt], options: &EvalOptions) -> Result<Value> {
    let face = face_network(model)?;
    let mut all = Rate::default();
    let mut by_attribute: BTreeMap<&str, Rate> = BTreeMap::new();
    for (start, batch) in labelled.chunks(BATCH).enumerate().map(|(index, batch)| (index * BATCH, batch)) {
        let texts: Vec<&str> = batch.iter().map(|prompt| prompt.text.as_str()).collect();
        let found = read_attributes(face, draw(model, &texts, options, start as u64)?)?;
        for (prompt, found) in batch.iter().zip(&found) {
            for claim in &prompt.claims {
                let hit = claim.accepts(found[claim.head]);
                all.count(hit);
                by_attribute.entry(Schema::get().heads()[claim.head].name).or_default().count(hit);
            }
        }
    }
    let by_attribute = by_attribute.into_iter().map(|(name, rate)| (name.to_owned(), rate.json())).collect();
    Ok(json!({ "prompts": labelled.len(), "agreement": all.json(), "by_attribute": Value::Object(by_attribute) }))
}

/// One picture for each prompt, `[B, side, side, 3]`; picture i uses the random numbers of (seed, `first_image` + i).
fn draw(model: &Pipeline, prompts: &[&str], options: &EvalOptions, first_image: u64) -> Result<Tensor<4>> {
    let denoiser = model.denoiser(prompts, options.guidance_scale).map_err(EvalError::step("reading prompts"))?;
    let codes = denoiser.sample(&options.sampler, options.seed, first_image).map_err(EvalError::step("denoising"))?;
    model.decode(&codes).map_err(EvalError::step("decoding codes"))
}

fn greedy(max_new_tokens: usize) -> AnswerOptions {
    AnswerOptions { max_new_tokens, ..AnswerOptions::default() }
}

fn face_network(model: &Pipeline) -> Result<&FaceNet> {
    model.face.as_ref().ok_or_else(|| EvalError::Step {
        operation: "attributes",
        reason: "the model folder has no face.safetensors, which reads the attributes of pictures".into(),
    })
}

/// Pictures of `side` as `[B, side, side, 3]` in -1..1 from their bytes.
fn tensor_of(model: &Pipeline, bytes: &[u8], side: usize) -> Tensor<4> {
    let values: Vec<f32> = bytes.iter().map(|&byte| f32::from(byte) / 127.5 - 1.0).collect();
    Tensor::from_data(TensorData::new(values, [bytes.len() / (side * side * 3), side, side, 3]), &model.device)
}

/// The attribute network's reading of pictures, one value a head of the schema.
fn read_attributes(face: &FaceNet, pixels_BHWC: Tensor<4>) -> Result<Vec<Vec<u16>>> {
    let output = face.forward(clip_pixels(pixels_BHWC)).map_err(EvalError::step("attributes"))?;
    let found = face.predict(&output).map_err(EvalError::step("attributes"))?;
    debug_assert_eq!(Schema::get().heads().len(), face.config().heads.len());
    Ok(found.into_iter().map(|row| row.into_iter().map(|class| class as u16).collect()).collect())
}
