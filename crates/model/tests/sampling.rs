//! The transformer inside the loops that use it, against Show-o's numbers: image sampling, answers, and the CLIP variant; each in one pass over
//! the whole row and with what does not change computed once.
//! B batch, L positions, V vocabulary, D width, N image tokens, K image codes, T steps.
#![allow(non_snake_case, clippy::unwrap_used)]

mod transformer_support;

use std::path::PathBuf;

use burn::tensor::{Int, Tensor};
use transformer_support::*;
use unif2ace_diffusion::MASKED;
use unif2ace_diffusion::sampler::{Draws, SamplerConfig, SamplerState, exponential_race, guide};
use unif2ace_diffusion::text::{TextSampling, next_token};
use unif2ace_golden::{Tensors, cases, json, name, root};
use unif2ace_model::config::MoeLevel;
use unif2ace_model::losses::next_token_loss;
use unif2ace_model::masks::{Marks, for_mmu, for_mmu_vit, predict_next};
use unif2ace_model::moe::Task;
use unif2ace_model::transformer::{Features, Input, PromptCache, Unif2ace};

const LEVELS: [MoeLevel; 2] = [MoeLevel::None, MoeLevel::Both];
const TOLERANCE: f32 = 2e-5;

/// The folder of the network that a case names, `transformer/a weights; ..`.
fn network_folder(case: &serde_json::Value) -> Option<PathBuf> {
    let folder = case["model"].as_str()?.split([' ', ';']).next()?;
    folder.starts_with("transformer/").then(|| root().join(folder))
}

fn rows((shape, values): (Vec<usize>, Vec<i64>)) -> Vec<Vec<u32>> {
    values.chunks(*shape.last().unwrap()).map(|row| row.iter().map(|&id| id as u32).collect()).collect()
}

/// The random numbers of one image of a case.
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

/// How the network is asked for the logits of all rows.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Way {
    /// Whole rows, the mask as stored.
    Whole,
    /// Prompts computed once.
    Cached,
}

/// Image logits of `images` behind their prompts, `[rows, N, K]`, flat for each row.
fn image_logits(
    model: &Unif2ace,
    way: Way,
    full: &[Vec<u32>],
    images: &[Vec<u32>],
    mask_BLS: &Tensor<3>,
    prompts: &PromptCache,
) -> Vec<Vec<f32>> {
    let device = device(false);
    let config = model.config();
    let num = config.num_vq_tokens;
    let features = features(config, Task::T2i, full.len(), &device);
    let x_BND = match way {
        Way::Whole => {
            let start = full[0].len() - 1 - num;
            let mut full = full.to_vec();
            full.iter_mut().zip(images).for_each(|(row, image)| row[start..start + num].copy_from_slice(image));
            let batch = whole(Input::Ids(ids_tensor(&full, &device)), mask_BLS.clone(), Task::T2i, Some(start), features);
            model.hidden(batch).x_BLD.narrow(1, start, num)
        }
        Way::Cached => {
            let images: Vec<&[u32]> = images.iter().map(Vec::as_slice).collect();
            model.denoise(prompts, &images, Features::Raw(features)).unwrap().x_BLD
        }
    };
    let logits = values(model.image_logits(x_BND));
    logits.chunks(num * config.codebook_size).map(<[f32]>::to_vec).collect()
}

#[test]
fn sampling_with_the_network_is_show_o_s() {
    let mut num_cases = 0;
    for folder in cases("sampler") {
        let case = json(folder.join("case.json"));
        let Some(network_at) = network_folder(&case) else { continue };
        num_cases += 1;
        let tensors = Tensors::load(folder.join("case.safetensors"));
        let (shape, cond_logits) = tensors.f32("cond_logits");
        let [steps, batch, num, codes] = shape[..] else { unreachable!("{shape:?}") };
        let guidance = case["guidance_scale"].as_f64().unwrap() as f32;
        let uncond_logits = tensors.has("uncond_logits").then(|| tensors.f32("uncond_logits").1);
        let (_, exponential) = tensors.f32("exp_noise");
        let (_, uniform) = tensors.f32("uniform_noise");
        let finals = rows(tensors.i64("final_ids"));
        let mut full = rows(tensors.i64("input_ids"));
        if tensors.has("uncond_input_ids") {
            full.extend(rows(tensors.i64("uncond_input_ids")));
        }
        let mask_BLS: Tensor<3> = tensors.tensor::<4>("attention_mask", &device(false)).squeeze_dim(1);
        let length = full[0].len();

        for (level, way) in LEVELS.into_iter().flat_map(|level| [(level, Way::Whole), (level, Way::Cached)]) {
            let what = format!("{} {level:?} {way:?}", name(&folder));
            let model = network(&network_at, level, &device(false));
            let config = model.config();
            let ids = config.special_ids();
            let flat: Vec<u32> = full.concat();
            let built = predict_next(&flat, length, Marks::image(&ids), true).unwrap();
            assert_eq!(built.additive(), values(mask_BLS.clone()), "{what}: mask");
            let heads: Vec<PromptCache> = full
                .iter()
                .map(|row| {
                    let head: Vec<u32> = row[..length - num - 2].iter().copied().filter(|&id| id != ids.pad).collect();
                    model.read_prompt(&head).unwrap()
                })
                .collect();
            let prompts = PromptCache::stack(&heads.iter().collect::<Vec<_>>()).unwrap();

            let sampler = SamplerConfig {
                num_steps: steps,
                mask_schedule: case["schedule"].as_str().unwrap().parse().unwrap(),
                confidence_temperature: case["start_temperature"].as_f64().unwrap(),
                ..SamplerConfig::default()
            };
            let of =
                |values: &[f32], step: usize, image: usize, size: usize| values[(step * batch + image) * size..][..size].to_vec();
            let mut states: Vec<SamplerState<Stored>> = (0..batch)
                .map(|image| {
                    let start = full[image][length - 1 - num..length - 1].iter();
                    let grid = start.map(|&id| if id == ids.mask { MASKED } else { id - ids.image_offset }).collect();
                    let draws = Stored {
                        exponential_TNK: (0..steps).map(|step| of(&exponential, step, image, num * codes)).collect(),
                        uniform_TN: (0..steps).map(|step| of(&uniform, step, image, num)).collect(),
                    };
                    SamplerState::new(sampler.clone(), grid, codes, draws).unwrap()
                })
                .collect();
            for step in 0..steps {
                let grid = |state: &SamplerState<Stored>| -> Vec<u32> {
                    state.grid().iter().map(|&code| if code == MASKED { ids.mask } else { code + ids.image_offset }).collect()
                };
                // Unconditional rows follow in the same order with the same images.
                let images: Vec<Vec<u32>> = (0..full.len()).map(|row| grid(&states[row % batch])).collect();
                let logits = image_logits(&model, way, &full, &images, &mask_BLS, &prompts);
                for (image, state) in states.iter_mut().enumerate() {
                    let what = format!("{what} image {image} step {step}");
                    close(&logits[image], &of(&cond_logits, step, image, num * codes), TOLERANCE, &format!("{what} logits"));
                    let guided = match &uncond_logits {
                        Some(uncond) => {
                            let expected = of(uncond, step, image, num * codes);
                            close(&logits[batch + image], &expected, TOLERANCE, &format!("{what} unconditional logits"));
                            guide(&logits[image], &logits[batch + image], guidance).unwrap()
                        }
                        None => logits[image].clone(),
                    };
                    state.step(&guided).unwrap();
                }
            }
            for (image, state) in states.into_iter().enumerate() {
                assert_eq!(state.into_codes().unwrap(), finals[image], "{what} image {image}");
            }
        }
    }
    assert!(num_cases > 0, "no sampler case has a network");
}

#[test]
fn answers_are_show_o_s() {
    for folder in cases("mmu_generate") {
        let case = json(folder.join("case.json"));
        let network_at = network_folder(&case).unwrap();
        let tensors = Tensors::load(folder.join("case.safetensors"));
        let prompt = rows(tensors.i64("input_ids")).remove(0);
        let expected: Vec<u32> = tensors.i64("tokens").1.iter().map(|&id| id as u32).collect();
        let (shape, last_logits) = tensors.f32("last_logits");
        let (_, exponential) = tensors.f32("exp_noise");
        let sampling = TextSampling {
            temperature: case["temperature"].as_f64().unwrap() as f32,
            top_k: case["top_k"].as_u64().map(|k| k as usize),
        };
        let end = case["eot_token"].as_u64().map(|id| id as u32);
        let budget = case["max_new_tokens"].as_u64().unwrap() as usize;
        for (level, way) in LEVELS.into_iter().flat_map(|level| [(level, Way::Whole), (level, Way::Cached)]) {
            let what = format!("{} {level:?} {way:?}", name(&folder));
            let device = device(false);
            let model = network(&network_at, level, &device);
            let config = model.config();
            let ids = config.special_ids();
            let visible: Vec<u8> = for_mmu(&prompt, prompt.len(), ids.eoi).unwrap().visible().iter().map(|&v| v.into()).collect();
            assert_eq!(visible, tensors.u8("attention_visible").1, "{what}: mask");
            let prefix = config.num_vq_tokens + 3;
            let features = || features(config, Task::Mmu, 1, &device);
            let (mut reading, _) = model.read_image(&prompt[..prefix], Features::Raw(features())).unwrap();
            let mut read = prefix;
            let mut row = prompt.clone();
            for step in 0..budget {
                let last_1D: Tensor<2> = match way {
                    Way::Whole => {
                        let mask_BLS = for_mmu(&row, row.len(), ids.eoi).unwrap().tensor(&device);
                        let input = Input::Ids(ids_tensor(std::slice::from_ref(&row), &device));
                        let hidden = model.hidden(whole(input, mask_BLS, Task::Mmu, Some(2), features()));
                        hidden.x_BLD.narrow(1, row.len() - 1, 1).squeeze_dim(1)
                    }
                    Way::Cached => model.read_text(&mut reading, &[&row[read..]]).unwrap().0,
                };
                read = row.len();
                let logits = values(model.logits(last_1D));
                let place = step * shape[1]..(step + 1) * shape[1];
                close(&logits, &last_logits[place.clone()], TOLERANCE, &format!("{what} step {step}"));
                let noise = &exponential[place];
                let token = next_token(&logits, &sampling, step, |p| exponential_race(p, |index| noise[index])).unwrap() as u32;
                row.push(token);
                if Some(token) == end {
                    break;
                }
            }
            assert_eq!(row[prompt.len()..], expected, "{what}");
        }
    }
}

#[test]
fn the_clip_variant_is_show_o_s() {
    for (folder, level) in cases("transformer_clip").into_iter().flat_map(|folder| LEVELS.map(|level| (folder.clone(), level))) {
        let what = format!("{} {level:?}", name(&folder));
        let file = json(folder.join("config.json"));
        let number = |key: &str| file[key].as_u64().unwrap() as usize;
        let (system, num) = (number("system_prompt_len"), number("num_clip_tokens"));
        let tensors = Tensors::load(folder.join("case.safetensors"));
        let device = device(false);
        let model = network(&folder, level, &device);
        let projected = model.project(tensors.tensor("clip_features", &device)).unwrap();
        close(&values(projected.clone()), &tensors.f32("projected").1, TOLERANCE, &format!("{what} projected"));
        let ids_BL: Tensor<2, Int> = tensors.int_tensor("input_ids_without_image", &device);
        let length = ids_BL.dims()[1];
        let embedded = model.embed(ids_BL);
        let start = 2 + system;
        let input =
            Tensor::cat(vec![embedded.clone().narrow(1, 0, start), projected, embedded.narrow(1, start, length - start)], 1);
        close(&values(input.clone()), &tensors.f32("input_embeddings").1, TOLERANCE, &format!("{what} input"));
        let length = length + num;
        let mask = for_mmu_vit(length, system, num).unwrap();
        let visible: Vec<u8> = mask.visible().iter().map(|&v| v.into()).collect();
        assert_eq!(visible, tensors.u8("attention_visible").1, "{what}: mask");
        let batch = whole(Input::Embeddings(input), mask.tensor(&device), Task::Mmu, None, Default::default());
        let logits_BLV = model.logits(model.hidden(batch).x_BLD);
        let [rows, _, vocab] = logits_BLV.dims();
        let text = number("text_len") + 1;
        let part = values(logits_BLV.clone().narrow(1, length - text, text));
        close(&part, &tensors.f32("logits_text_part").1, TOLERANCE, &format!("{what} text logits"));
        let soi = values(logits_BLV.clone().narrow(1, start - 1, 1).reshape([rows, vocab]));
        close(&soi, &tensors.f32("logits_soi").1, TOLERANCE, &format!("{what} logits before the features"));
        let loss = next_token_loss(logits_BLV, tensors.int_tensor("labels", &device));
        close(&values(loss), &[tensors.scalar("loss_mmu")], 1e-5, &format!("{what} loss"));
    }
}
