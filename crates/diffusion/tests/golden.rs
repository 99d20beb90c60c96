//! Schedules, masking, sampling, extrapolation and text draws against the reference's stored numbers.

#![allow(non_snake_case, clippy::unwrap_used, clippy::panic)]

use unif2ace_diffusion::MASKED;
use unif2ace_diffusion::canvas::{Canvas, Direction};
use unif2ace_diffusion::corruption::{
    Labels, apply, mask_probability, num_to_mask, predict_all_weights, random_mask, rectangle_mask,
};
use unif2ace_diffusion::sampler::{Draws, SamplerConfig, SamplerState, exponential_race, guide, truncated_softmax};
use unif2ace_diffusion::schedule::MaskSchedule;
use unif2ace_diffusion::text::{TextSampling, next_token};
use unif2ace_golden::{Tensors, assert_close, cases, json, name, root};

#[test]
fn mask_schedules() {
    let tensors = Tensors::load(root().join("schedule/schedules.safetensors"));
    let (_, times) = tensors.f32("t");
    let mut compared = 0;
    for name in tensors.names().into_iter().filter(|name| name != "t") {
        let schedule: MaskSchedule = name.parse().unwrap();
        let actual: Vec<f32> = times.iter().map(|&t| schedule.masked_fraction(t)).collect();
        assert_close(&actual, &tensors.f32(&name).1, 1e-6, &name);
        compared += 1;
    }
    assert!(compared >= 4);
}

/// Rows of a stored `[B, N]` tensor.
fn rows<T: Clone>((shape, values): (Vec<usize>, Vec<T>)) -> Vec<Vec<T>> {
    values.chunks(*shape.last().unwrap()).map(<[T]>::to_vec).collect()
}

#[test]
fn masking() {
    let tensors = Tensors::load(root().join("schedule/masking.safetensors"));
    let table = json(root().join("schedule/masking.json"));
    let mut compared = 0;
    for case in table.as_array().unwrap() {
        let name = case["name"].as_str().unwrap();
        let stored = |part: &str| format!("{name}.{part}");
        let images = if tensors.has(&stored("image_tokens")) { stored("image_tokens") } else { "rounding.image_tokens".into() };
        let images = rows(tensors.i64(&images));
        let inputs = rows(tensors.i64(&stored("input_ids")));
        let labels = rows(tensors.i64(&stored("labels")));
        let (_, probabilities) = tensors.f32(&stored("mask_prob"));
        // Cases without a mask id in the table use 999.
        let mask_id = case["mask_token_id"].as_i64().unwrap_or(999);
        if let Some(schedule) = case["schedule"].as_str() {
            let schedule: MaskSchedule = schedule.parse().unwrap();
            let limit = case["min_masking_rate"].as_f64().unwrap() as f32;
            let (_, uniforms) = tensors.f32(&stored("u_timestep"));
            let actual: Vec<f32> = uniforms.iter().map(|&u| mask_probability(schedule, u, limit)).collect();
            assert_close(&actual, &probabilities, 1e-6, name);
        }
        let mut draws = case["randint_calls_lo_hi_value"].as_array().into_iter().flatten();
        let uniforms = tensors.has(&stored("u_perm")).then(|| rows(tensors.f32(&stored("u_perm"))));
        let weights = tensors.has(&stored("loss_weight")).then(|| rows(tensors.f32(&stored("loss_weight"))));
        for (row, image) in images.iter().enumerate() {
            let count = num_to_mask(image.len(), probabilities[row]);
            if let Some(expected) = case["num_masked"].as_array() {
                assert_eq!(count, expected[row].as_u64().unwrap() as usize, "{name} row {row}");
            }
            let masked = match &uniforms {
                Some(uniforms) => random_mask(&uniforms[row], count),
                None => rectangle_mask(image.len(), count, |low, high| {
                    let call: Vec<usize> =
                        draws.next().unwrap().as_array().unwrap().iter().map(|v| v.as_u64().unwrap() as usize).collect();
                    assert_eq!((low, high), (call[0], call[1]), "{name} row {row}");
                    call[2]
                })
                .unwrap(),
            };
            let kind = if weights.is_some() { Labels::All } else { Labels::Masked };
            let corrupted = apply(image, &masked, mask_id, kind).unwrap();
            assert_eq!(corrupted.inputs, inputs[row], "{name} row {row}");
            assert_eq!(corrupted.labels, labels[row], "{name} row {row}");
            if let Some(weights) = &weights {
                assert_close(&predict_all_weights(&masked, probabilities[row]), &weights[row], 1e-6, name);
            }
            compared += 1;
        }
        assert!(draws.next().is_none(), "{name}: unused draws");
    }
    assert!(compared > 0);
}

/// The random numbers of one image of a stored case.
struct Stored {
    exponential_TNK: Vec<Vec<f32>>,
    uniform_TN: Vec<Vec<f32>>,
}

impl Draws for Stored {
    fn code(&mut self, step: usize, place: usize, probabilities: &[f32]) -> usize {
        let q = &self.exponential_TNK[step][place * probabilities.len()..];
        exponential_race(probabilities, |code| q[code])
    }

    fn confidence(&mut self, step: usize, place: usize) -> f32 {
        self.uniform_TN[step][place]
    }

    fn reveal(&mut self, _: usize, _: usize) -> f64 {
        unreachable!("MaskGIT reveals by confidence")
    }
}

#[test]
fn sampling() {
    for folder in cases("sampler") {
        let case_name = name(&folder);
        let case = json(folder.join("case.json"));
        let tensors = Tensors::load(folder.join("case.safetensors"));
        let number = |key: &str| case[key].as_f64().unwrap_or_else(|| panic!("{case_name}: {key}"));
        let (offset, mask_id) = (number("image_token_offset") as i64, number("mask_token_id") as i64);
        let guidance = number("guidance_scale") as f32;

        let (shape, cond) = tensors.f32("cond_logits");
        let [steps, batch, tokens, codes] = shape[..] else { panic!("{case_name}: {shape:?}") };
        let uncond = tensors.has("uncond_logits").then(|| tensors.f32("uncond_logits").1);
        let (_, exponential) = tensors.f32("exp_noise");
        let (_, uniform) = tensors.f32("uniform_noise");
        let (_, drawn) = tensors.i64("raw_draw");
        let (_, mask_len) = tensors.i64("mask_len");
        let (_, temperature) = tensors.f64("temperature");
        let (_, selected) = tensors.f32("selected_probs");
        let (_, masking) = tensors.u8("masking");
        let (_, grids) = tensors.i64("grid_after_step");
        let (_, finals) = tensors.i64("final_ids");
        let starts = rows(tensors.i64("input_ids"));

        let config = SamplerConfig {
            num_steps: steps,
            mask_schedule: case["schedule"].as_str().unwrap().parse().unwrap(),
            confidence_temperature: number("start_temperature"),
            ..SamplerConfig::default()
        };
        let code_of = |id: i64| {
            if id == mask_id { MASKED } else { u32::try_from(id - offset).unwrap() }
        };
        for image in 0..batch {
            let row = &starts[image];
            // The image part stands before the final eoi.
            let start = row[row.len() - 1 - tokens..row.len() - 1].iter().map(|&id| code_of(id)).collect::<Vec<_>>();
            let known = start.clone();
            // [T, B, N, ..] -> the rows of this image.
            let of_step = |values: &[f32], step: usize, size: usize| values[(step * batch + image) * size..][..size].to_vec();
            let draws = Stored {
                exponential_TNK: (0..steps).map(|s| of_step(&exponential, s, tokens * codes)).collect(),
                uniform_TN: (0..steps).map(|s| of_step(&uniform, s, tokens)).collect(),
            };
            let mut state = SamplerState::new(config.clone(), start, codes, draws).unwrap();
            for step in 0..steps {
                let what = format!("{case_name}, image {image}, step {step}");
                let conditional = of_step(&cond, step, tokens * codes);
                let logits = match &uncond {
                    Some(uncond) if guidance > 0.0 => {
                        guide(&conditional, &of_step(uncond, step, tokens * codes), guidance).unwrap()
                    }
                    _ => conditional,
                };
                if step == 0 && tensors.has("guided_probs_step0") {
                    let mut probabilities = Vec::new();
                    let mut all = Vec::new();
                    for row in logits.chunks(codes) {
                        truncated_softmax("test", 0, row, 1.0, None, &mut probabilities).unwrap();
                        all.extend_from_slice(&probabilities);
                    }
                    let (_, expected) = tensors.f32("guided_probs_step0");
                    assert_close(&all, &expected[image * tokens * codes..][..tokens * codes], 2e-5, &what);
                }
                let before = state.grid().to_vec();
                let outcome = state.step(&logits).unwrap().maskgit.unwrap();
                let at = (step * batch + image) * tokens;
                for place in 0..tokens {
                    if before[place] == MASKED {
                        assert_eq!(i64::from(outcome.codes[place]), drawn[at + place], "{what}, place {place}: drawn code");
                    }
                    assert_eq!(outcome.masked[place], masking[at + place] != 0, "{what}, place {place}: masking");
                    // After the last step the reference's grid still has a mask, its result does not.
                    let inner = if outcome.masked[place] { MASKED } else { outcome.codes[place] };
                    assert_eq!(inner, code_of(grids[at + place]), "{what}, place {place}: grid");
                }
                assert_eq!(outcome.num_masked as i64, mask_len[step * batch + image], "{what}: masked count");
                assert!((outcome.temperature - temperature[step]).abs() <= 1e-12, "{what}: temperature");
                for (place, &expected) in selected[at..at + tokens].iter().enumerate() {
                    let actual = outcome.probabilities[place];
                    assert!(actual == expected || (actual - expected).abs() < 2e-5, "{what}, place {place}: {actual} {expected}");
                }
            }
            let result = state.into_codes().unwrap();
            let expected: Vec<u32> = finals[image * tokens..][..tokens].iter().map(|&id| id as u32).collect();
            assert_eq!(result, expected, "{case_name}, image {image}: result");
            for place in (0..tokens).filter(|&place| known[place] != MASKED) {
                assert_eq!(result[place], known[place], "{case_name}: a known token changed");
            }
        }
    }
}

#[test]
fn text_draws() {
    for folder in cases("mmu_generate") {
        let case = json(folder.join("case.json"));
        let tensors = Tensors::load(folder.join("case.safetensors"));
        let (shape, logits) = tensors.f32("last_logits");
        let (_, noise) = tensors.f32("exp_noise");
        let (_, tokens) = tensors.i64("tokens");
        let sampling = TextSampling {
            temperature: case["temperature"].as_f64().unwrap() as f32,
            top_k: case["top_k"].as_u64().map(|k| k as usize),
        };
        assert!(!tokens.is_empty());
        for (step, &expected) in tokens.iter().enumerate() {
            let row = step * shape[1]..(step + 1) * shape[1];
            let noise = &noise[row.clone()];
            let token = next_token(&logits[row], &sampling, step, |p| exponential_race(p, |index| noise[index])).unwrap();
            assert_eq!(token as i64, expected, "{}, step {step}", name(&folder));
        }
    }
}

#[test]
fn extrapolation() {
    let table = json(root().join("preprocess/extrapolation.json"));
    let whole =
        |value: &serde_json::Value| -> Vec<i64> { value.as_array().unwrap().iter().map(|v| v.as_i64().unwrap()).collect() };
    let mut compared = 0;
    for (number, case) in table.as_array().unwrap().iter().enumerate() {
        let count = |key: &str| case[key].as_u64().unwrap() as usize;
        let (side, offset, codebook) = (count("tokens_per_side"), count("offset"), count("codebook_size"));
        let directions: Vec<Direction> =
            case["directions"].as_array().unwrap().iter().map(|d| d.as_str().unwrap().parse().unwrap()).collect();
        let start: Vec<u32> = whole(&case["start_tokens"]).iter().map(|&v| v as u32).collect();
        for image in 0..count("batch") {
            let mut canvas = Canvas::new(side, start.clone()).unwrap();
            let mut calls = 0;
            for (turn, &direction) in directions.iter().enumerate() {
                for window in canvas.extend(direction, offset).unwrap() {
                    let grid = canvas.window(window).unwrap();
                    // The reference cuts its context wrongly for "down" and stops where it crashes.
                    let stored = case["model_input_grids"].get(turn).filter(|_| direction != Direction::Down);
                    if let Some(stored) = stored {
                        let ids: Vec<i64> = grid
                            .iter()
                            .map(|&c| {
                                if c == MASKED {
                                    count("mask_token_id") as i64
                                } else {
                                    i64::from(c) + count("image_token_offset") as i64
                                }
                            })
                            .collect();
                        assert_eq!(ids, whole(&stored[image]), "case {number}, turn {turn}");
                        compared += 1;
                    }
                    let filled: Vec<u32> = grid
                        .iter()
                        .enumerate()
                        .map(|(j, &c)| if c == MASKED { ((7 * j + 13 * calls + 5 * image) % codebook) as u32 } else { c })
                        .collect();
                    canvas.fill(window, &filled).unwrap();
                    calls += 1;
                }
            }
            assert!(!canvas.codes().contains(&MASKED));
            if case["error"].is_null() {
                let (height, width) = canvas.size();
                assert_eq!(whole(&case["canvas_hw"]), [height as i64, width as i64], "case {number}");
                let codes: Vec<i64> = canvas.codes().iter().map(|&c| i64::from(c)).collect();
                assert_eq!(codes, whole(&case["canvas"][image]), "case {number}, image {image}");
            }
        }
    }
    assert!(compared > 0);
}
