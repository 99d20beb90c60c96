//! What each shortcut of inference gains over the plain way of computing the same numbers, and how cost grows with pictures, steps, image
//! tokens and prompt length. A few blocks of the full model's width stand for all, since every block costs the same. That the numbers are
//! the same is what `crates/model/tests/caches.rs` and `crates/ops/tests` check.

use std::time::Instant;

use burn::tensor::{Device, Distribution, Int, Tensor, TensorData};
use serde_json::{Value, json};
use unif2ace_model::config::ModelConfig;
use unif2ace_model::masks::Mask;
use unif2ace_model::moe::Task;
use unif2ace_model::transformer::{Batch, CacheUse, Features, Input, KvCache, Positions, PromptCache, Unif2ace};
use unif2ace_ops::{Activation, Precision, WeightFormat, pack_experts, packed_moe_mlp, set_precision};

use crate::Outcome;

/// Tokens of a usual prompt, masked places of a usual step, tokens of a question.
const PROMPT: usize = 32;
const WANTED: usize = 128;
const QUESTION: usize = 16;

/// Median seconds of some calls, after one that isn't counted.
fn median(calls: usize, mut work: impl FnMut() -> Outcome) -> Outcome<f64> {
    work()?;
    let mut times = Vec::with_capacity(calls);
    for _ in 0..calls {
        let start = Instant::now();
        work()?;
        times.push(start.elapsed().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    Ok(times[calls / 2])
}

struct Bench {
    model: Unif2ace,
    config: ModelConfig,
    device: Device,
    rounds: usize,
}

impl Bench {
    fn new(num_hidden_layers: usize, num_vq_tokens: usize, rounds: usize) -> Outcome<Self> {
        let device = Device::flex();
        let config = ModelConfig { num_hidden_layers, num_vq_tokens, ..ModelConfig::base() };
        let model = Unif2ace::new(&config, &device)?.pack(WeightFormat::Bf16);
        Ok(Self { model, config, device, rounds })
    }

    /// `count` image ids, all masked.
    fn image(&self) -> Vec<u32> {
        vec![self.config.special_ids().mask; self.config.num_vq_tokens]
    }

    fn prompt(&self, length: usize) -> Outcome<PromptCache> {
        Ok(self.model.read_prompt(&(0..length as u32).map(|id| 100 + id).collect::<Vec<_>>())?)
    }

    fn ids(&self, rows: &[Vec<u32>]) -> Tensor<2, Int> {
        let values: Vec<i64> = rows.iter().flatten().map(|&id| i64::from(id)).collect();
        Tensor::from_data(TensorData::new(values, [rows.len(), rows[0].len()]), &self.device)
    }

    /// One pass over whole rows, nothing cached.
    fn whole(&self, rows: &[Vec<u32>], task: Task, image_start: Option<usize>) -> Tensor<3> {
        let length = rows[0].len();
        let batch = Batch {
            input: Input::Ids(self.ids(rows)),
            positions: Positions::From(0),
            mask_BLS: Mask::causal(length, length).tensor(&self.device),
            task,
            image_start,
            features: Features::default(),
        };
        self.model.hidden(batch).x_BLD
    }

    fn seconds(&self, work: impl FnMut() -> Outcome) -> Outcome<f64> {
        median(self.rounds, work)
    }

    /// A guided step of `pictures` pictures.
    fn step(&self, prompt: &PromptCache, pictures: usize) -> Outcome<f64> {
        let image = self.image();
        let rows: Vec<&[u32]> = (0..2 * pictures).map(|_| image.as_slice()).collect();
        self.seconds(|| {
            self.model.denoise(prompt, &rows, Features::default())?.x_BLD.into_data();
            Ok(())
        })
    }
}

fn row(what: &str, plain: f64, ours: f64) -> Value {
    json!({ "what": what, "plain_seconds": plain, "ours_seconds": ours, "gain": plain / ours })
}

fn gains(bench: &Bench) -> Outcome<Vec<Value>> {
    let (image, prompt) = (bench.image(), bench.prompt(PROMPT)?);
    let mut found = Vec::new();

    let step = bench.step(&prompt, 1)?;
    let text: Vec<u32> = (0..PROMPT as u32).map(|id| 100 + id).collect();
    let row_of = |text: &[u32]| [text, &[bench.config.special_ids().soi], &image, &[bench.config.special_ids().eoi]].concat();
    let rows = vec![row_of(&text); 2];
    let recomputed = bench.seconds(|| {
        bench.whole(&rows, Task::T2i, Some(PROMPT + 1)).into_data();
        Ok(())
    })?;
    found.push(row("a step: the prompt is read once, not at each step", recomputed, step));

    let padding = vec![bench.config.special_ids().pad; bench.config.max_seq_length + 1 - PROMPT];
    let padded = vec![[padding.as_slice(), &rows[0]].concat(); 2];
    let with_pads = bench.seconds(|| {
        bench.whole(&padded, Task::T2i, Some(bench.config.max_seq_length + 2)).into_data();
        Ok(())
    })?;
    found.push(row("a step: pads are counted, not computed", with_pads, recomputed));

    let hidden = Tensor::<2>::random([2 * image.len(), bench.config.hidden_size], Distribution::Default, &bench.device);
    let all = bench.seconds(|| {
        bench.model.logits(hidden.clone()).into_data();
        Ok(())
    })?;
    let wanted = bench.seconds(|| {
        bench.model.image_logits(hidden.clone().narrow(0, 0, 2 * WANTED)).into_data();
        Ok(())
    })?;
    found.push(row("logits of a step: half of the places are still masked, code columns only", all, wanted));

    let prefix: Vec<u32> = [vec![100, 101], image.clone(), vec![102]].concat();
    let question: Vec<u32> = (0..QUESTION as u32).map(|id| 200 + id).collect();
    let (reading, _) = bench.model.read_image(&prefix, Features::default())?;
    let mut asked = reading.clone();
    bench.model.read_text(&mut asked, &[&question])?;
    let token = bench.seconds(|| {
        bench.model.read_text(&mut asked.clone(), &[&[300]])?.0.into_data();
        Ok(())
    })?;
    let whole = vec![[prefix.as_slice(), &question, &[300]].concat()];
    let recomputed = bench.seconds(|| {
        bench.whole(&whole, Task::Mmu, Some(2)).into_data();
        Ok(())
    })?;
    found.push(row("a token of an answer: keys and values are kept", recomputed, token));

    let questions = vec![question.as_slice(); 8];
    let shared = bench.seconds(|| {
        let (mut reading, _) = bench.model.read_image(&prefix, Features::default())?;
        bench.model.read_text(&mut reading, &questions)?.0.into_data();
        Ok(())
    })?;
    let apart = bench.seconds(|| {
        for question in &questions {
            let (mut reading, _) = bench.model.read_image(&prefix, Features::default())?;
            bench.model.read_text(&mut reading, &[question])?.0.into_data();
        }
        Ok(())
    })?;
    found.push(row("8 questions on one picture: it is read once, they together", apart, shared));

    found.push(experts(bench)?);
    Ok(found)
}

/// The chosen experts on their rows against all experts on all rows, of which those that weren't chosen count nothing.
fn experts(bench: &Bench) -> Outcome<Value> {
    let (device, moe) = (&bench.device, &bench.config.moe);
    let (experts, chosen, inner) = (moe.num_routed_experts, moe.num_experts_per_tok, moe.routed_intermediate_size);
    let (rows, width) = (2 * bench.config.num_vq_tokens, bench.config.hidden_size);
    let x_RD = Tensor::<2>::random([rows, width], Distribution::Default, device);
    let weight = |shape| Tensor::<3>::random(shape, Distribution::Default, device);
    let (b1, b2) = (Tensor::<2>::zeros([experts, inner], device), Tensor::<2>::zeros([experts, width], device));
    let (w1, w2) = (weight([experts, inner, width]), weight([experts, width, inner]));
    let bank = pack_experts(w1, b1, w2, b2, WeightFormat::Bf16);
    // Slot k of a row: expert and gate. The chosen ones come first, so that fewer slots are those alone.
    let run = |slots: usize| -> Outcome<Tensor<2>> {
        let places = || (0..rows).flat_map(|row| (0..slots).map(move |k| (row, k)));
        let index: Vec<i64> = places().map(|(row, k)| ((row + 2 * k + k / chosen) % experts) as i64).collect();
        let gates: Vec<f32> = places().map(|(_, k)| if k < chosen { 0.25 } else { 0.0 }).collect();
        let index_RK = Tensor::<2, Int>::from_data(TensorData::new(index, [rows, slots]), device);
        let gates_RK = Tensor::<2>::from_data(TensorData::new(gates, [rows, slots]), device);
        Ok(packed_moe_mlp(x_RD.clone(), index_RK, gates_RK, &bank, Activation::GeluNew))
    };
    let expected = run(chosen)?;
    let size = expected.clone().abs().max().into_scalar::<f32>();
    let difference = (run(experts)? - expected).abs().max().into_scalar::<f32>();
    if difference > 1e-5 * size {
        return Err(format!("all experts give other numbers than the chosen ones: {difference} off").into());
    }
    let seconds = |slots| {
        bench.seconds(|| {
            run(slots)?.into_data();
            Ok(())
        })
    };
    Ok(row("token experts of a step: the chosen ones on their rows", seconds(experts)?, seconds(chosen)?))
}

fn curves(bench: &Bench, num_hidden_layers: usize, rounds: usize) -> Outcome<Value> {
    let usual = bench.prompt(PROMPT)?;
    let mut found = serde_json::Map::new();
    let mut put = |what: &str, points: Vec<Value>| found.insert(what.to_owned(), points.into());
    let mut points = Vec::new();
    for pictures in [1, 2, 4, 8] {
        points.push(json!({ "pictures": pictures, "step_seconds": bench.step(&usual, pictures)? }));
    }
    put("pictures a pass", points);
    let mut points = Vec::new();
    for steps in [4, 8, 16, 32] {
        let image = bench.image();
        let seconds = bench.seconds(|| {
            let prompt = bench.prompt(PROMPT)?;
            for _ in 0..steps {
                bench.model.denoise(&prompt, &[&image, &image], Features::default())?.x_BLD.into_data();
            }
            Ok(())
        })?;
        points.push(json!({ "num_inference_steps": steps, "seconds": seconds }));
    }
    put("steps", points);
    let mut points = Vec::new();
    for length in [8, 32, 64, 128] {
        let read = bench.seconds(|| bench.prompt(length).map(drop))?;
        let prompt = bench.prompt(length)?;
        points.push(json!({ "prompt_tokens": length, "prompt_seconds": read, "step_seconds": bench.step(&prompt, 1)? }));
    }
    put("prompt length", points);
    let mut points = Vec::new();
    for num_vq_tokens in [64, 256, 1024] {
        let bench = Bench::new(num_hidden_layers, num_vq_tokens, rounds)?;
        points.push(json!({ "image_tokens": num_vq_tokens, "step_seconds": bench.step(&bench.prompt(PROMPT)?, 1)? }));
    }
    put("image tokens", points);
    let mut points = Vec::new();
    for past in [300, 600, 1200] {
        let mut cache = KvCache::new();
        let read = |cache: &mut KvCache, first: usize, length: usize| {
            let batch = Batch {
                input: Input::Ids(bench.ids(&[vec![100; length]])),
                positions: Positions::From(first),
                mask_BLS: Mask::causal(length, first + length).tensor(&bench.device),
                task: Task::Mmu,
                image_start: None,
                features: Features::default(),
            };
            bench.model.hidden_cached(batch, CacheUse::Append(cache)).x_BLD.into_data();
        };
        read(&mut cache, 0, past);
        let seconds = bench.seconds(|| {
            read(&mut cache.clone(), past, 1);
            Ok(())
        })?;
        points.push(json!({ "positions_before": past, "token_seconds": seconds }));
    }
    put("positions before a token", points);
    Ok(Value::Object(found))
}

/// Prints gains and curves of a model of `num_hidden_layers` full-width blocks in bf16 as JSON.
pub fn run(num_hidden_layers: usize, rounds: usize) -> Outcome {
    set_precision(Precision::Bf16);
    let bench = Bench::new(num_hidden_layers, ModelConfig::base().num_vq_tokens, rounds)?;
    let report = json!({
        "num_hidden_layers": num_hidden_layers,
        "gains": gains(&bench)?,
        "curves": curves(&bench, num_hidden_layers, rounds)?,
    });
    #[allow(clippy::print_stdout)]
    {
        println!("{report:#}");
    }
    Ok(())
}
