//! The transformer against Show-o's numbers, without experts and with experts of both levels as upcycling makes them.
//! B batch, L positions, V vocabulary, D width.
#![allow(non_snake_case, clippy::unwrap_used)]

mod transformer_support;

use std::path::{Path, PathBuf};

use burn::tensor::{Device, Int, Tensor};
use serde_json::Value;
use tokenizers::Tokenizer;
use transformer_support::*;
use unif2ace_golden::{Tensors, cases, json, name, shared_file};
use unif2ace_model::config::{ModelConfig, MoeLevel};
use unif2ace_model::losses::{next_token_loss, t2i_loss};
use unif2ace_model::masks::{Marks, Mask, for_mmu, predict_next};
use unif2ace_model::moe::{ExpertFeatures, Task};
use unif2ace_model::prompts::{Prompter, Row, SpecialText};
use unif2ace_model::transformer::{CacheUse, Input, Unif2ace};
use unif2ace_ops::{AdamWParams, adamw_step};

const LEVELS: [MoeLevel; 2] = [MoeLevel::None, MoeLevel::Both];

/// A golden folder with its network.
struct Case {
    folder: PathBuf,
    file: Value,
    batch: Tensors,
    outputs: Tensors,
    model: Unif2ace,
    level: MoeLevel,
    device: Device,
    what: String,
}

/// Rows of one task in the stacked batch.
struct Group {
    first: usize,
    num: usize,
    task: Task,
    image_start: Option<usize>,
}

/// What one pass over the stacked batch gives, row by row.
struct Outputs {
    logits_BLV: Tensor<3>,
    /// Inputs of the blocks, and last the final norm's output.
    hidden_BLD: Vec<Tensor<3>>,
}

impl Case {
    fn open(folder: &Path, level: MoeLevel, gradients: bool) -> Self {
        let device = device(gradients);
        Self {
            file: json(folder.join("config.json")),
            batch: Tensors::load(folder.join("batch.safetensors")),
            outputs: Tensors::load(folder.join("outputs.safetensors")),
            model: network(folder, level, &device),
            what: format!("{} {level:?}", name(folder)),
            folder: folder.to_path_buf(),
            level,
            device,
        }
    }

    fn number(&self, key: &str) -> usize {
        self.file[key].as_u64().unwrap() as usize
    }

    fn groups(&self) -> Vec<Group> {
        let config = self.model.config();
        let (t2i, lm, mmu) = (self.number("batch_size_t2i"), self.number("batch_size_lm"), self.number("batch_size_mmu"));
        let groups = vec![
            Group { first: 0, num: t2i, task: Task::T2i, image_start: Some(config.max_seq_length + 2) },
            Group { first: t2i, num: lm, task: Task::Mmu, image_start: None },
            Group { first: t2i + lm, num: mmu, task: Task::Mmu, image_start: Some(2) },
        ];
        groups.into_iter().filter(|group| group.num > 0).collect()
    }

    fn mask(&self) -> Tensor<3> {
        let mask_B1LS: Tensor<4> = self.batch.tensor("attention_mask", &self.device.clone().without_autodiff());
        mask_B1LS.squeeze_dim(1)
    }

    /// Without experts the whole batch is one pass; with experts every task is its own.
    fn pass(&self, mask_BLS: &Tensor<3>) -> Outputs {
        let ids_BL: Tensor<2, Int> = self.batch.int_tensor("input_ids", &self.device.clone().without_autodiff());
        let [batch, length] = ids_BL.dims();
        let passes = match self.level {
            MoeLevel::None => vec![Group { first: 0, num: batch, task: Task::Mmu, image_start: None }],
            _ => self.groups(),
        };
        let mut parts: Vec<Outputs> = Vec::new();
        for Group { first, num, task, image_start } in passes {
            let rows = |mask_BLS: &Tensor<3>| match mask_BLS.dims()[0] {
                1 => mask_BLS.clone(),
                _ => mask_BLS.clone().narrow(0, first, num),
            };
            let features = match self.level {
                MoeLevel::None => ExpertFeatures::default(),
                _ => features(self.model.config(), task, num, &self.device),
            };
            let batch = whole(Input::Ids(ids_BL.clone().narrow(0, first, num)), rows(mask_BLS), task, image_start, features);
            let mut hidden_BLD = Vec::new();
            let last = self.model.hidden_observed(batch, CacheUse::None, &mut |_, x| hidden_BLD.push(x.clone())).x_BLD;
            hidden_BLD.push(last.clone());
            assert_eq!(last.dims()[..2], [num, length]);
            parts.push(Outputs { logits_BLV: self.model.logits(last), hidden_BLD });
        }
        let join = |part: &dyn Fn(&Outputs) -> Tensor<3>| Tensor::cat(parts.iter().map(part).collect(), 0);
        Outputs {
            logits_BLV: join(&|part| part.logits_BLV.clone()),
            hidden_BLD: (0..parts[0].hidden_BLD.len()).map(|index| join(&|part| part.hidden_BLD[index].clone())).collect(),
        }
    }

    /// The three losses and their weighted sum.
    fn losses(&self, logits_BLV: &Tensor<3>) -> [Tensor<1>; 4] {
        let labels_BL: Tensor<2, Int> = self.batch.int_tensor("labels", &self.device.clone().without_autodiff());
        let mut losses = [const { None }; 3];
        for (index, num, first) in [
            (0, self.number("batch_size_t2i"), 0),
            (1, self.number("batch_size_lm"), self.number("batch_size_t2i")),
            (2, self.number("batch_size_mmu"), self.number("batch_size_t2i") + self.number("batch_size_lm")),
        ] {
            if num == 0 {
                losses[index] = Some(Tensor::zeros([1], &self.device));
                continue;
            }
            let (logits, labels) = (logits_BLV.clone().narrow(0, first, num), labels_BL.clone().narrow(0, first, num));
            losses[index] = Some(match index {
                0 => t2i_loss(logits, labels, self.model.config().max_seq_length),
                _ => next_token_loss(logits, labels),
            });
        }
        let [t2i, lm, mmu] = losses.map(Option::unwrap);
        let weight = |key: &str| self.file[key].as_f64().unwrap();
        let total = t2i.clone() * weight("t2i_coeff") + lm.clone() * weight("lm_coeff") + mmu.clone() * weight("mmu_coeff");
        [t2i, lm, mmu, total]
    }

    fn check(&self, stored: &str, actual: Vec<f32>, tolerance: f32) {
        close(&actual, &self.outputs.f32(stored).1, tolerance, &format!("{} {stored}", self.what));
    }
}

fn each(gradients: bool, test: impl Fn(Case)) {
    for folder in cases("transformer") {
        for level in LEVELS {
            test(Case::open(&folder, level, gradients));
        }
    }
}

#[test]
fn states_logits_and_losses_are_show_o_s() {
    each(false, |case| {
        let found = case.pass(&case.mask());
        assert_eq!(found.hidden_BLD.len(), case.model.config().num_hidden_layers + 1);
        for (index, x) in found.hidden_BLD.iter().enumerate() {
            case.check(&format!("hidden_{index}"), values(x.clone()), 2e-5);
        }
        case.check("logits", values(found.logits_BLV.clone()), 2e-5);
        let losses = case.losses(&found.logits_BLV);
        for (name, loss) in ["loss_t2i", "loss_lm", "loss_mmu", "loss_total"].into_iter().zip(losses) {
            case.check(name, values(loss), 1e-5);
        }
        // The code rows of the head alone, and the text rows alone.
        let config = case.model.config();
        let last = found.hidden_BLD.last().unwrap();
        let offset = config.special_ids().image_offset as usize;
        let codes = found.logits_BLV.clone().narrow(2, offset, config.codebook_size);
        close(&values(case.model.image_logits(last.clone())), &values(codes), 1e-5, "image logits");
        let text = found.logits_BLV.narrow(2, 0, config.llm_vocab_size);
        close(&values(case.model.text_logits(last.clone())), &values(text), 1e-5, "text logits");
    });
}

#[test]
fn first_block_is_show_o_s_inside_too() {
    each(false, |case| {
        let hidden_0: Tensor<3> = case.outputs.tensor("hidden_0", &case.device);
        let block = &case.model.showo.model.layers[0];
        let h = block.input_layernorm.forward(hidden_0.clone());
        case.check("layer0_input_layernorm", values(h.clone()), 2e-5);
        let mlp = block.mlp.forward(h);
        case.check("layer0_mlp_out", values(mlp.clone()), 2e-5);
        if case.model.config().num_hidden_layers > 1 {
            let attended = case.pass(&case.mask()).hidden_BLD[1].clone() - mlp - hidden_0;
            case.check("layer0_attn_out", values(attended), 2e-5);
        }
    });
}

#[test]
fn without_a_mask_show_o_is_causal() {
    each(false, |case| {
        let length = case.batch.shape("input_ids")[1];
        let found = case.pass(&Mask::causal(length, length).tensor(&case.device));
        case.check("logits_no_mask", values(found.logits_BLV), 2e-5);
    });
}

#[test]
fn every_gradient_is_show_o_s() {
    each(true, |case| {
        let found = case.pass(&case.mask());
        let [.., total] = case.losses(&found.logits_BLV);
        let gradients = gradients_of(&case.model, &total.backward());
        let stored = Tensors::load(case.folder.join("grads.safetensors"));
        assert!(!stored.names().is_empty());
        for stored_name in stored.names() {
            let name = stored_name.strip_prefix("grad.").unwrap();
            let found = gradients.get(name).unwrap_or_else(|| unreachable!("{}: {name} has no gradient", case.what));
            let (_, expected) = stored.f32(&stored_name);
            close(found, &expected, 2e-6, &format!("{} gradient of {name}", case.what));
        }
        let weights = Tensors::load(case.folder.join("weights.safetensors")).names();
        assert_eq!(weights.len(), stored.names().len(), "{}: every tensor has a gradient", case.what);
    });
}

#[test]
fn four_steps_of_adamw_end_where_the_reference_s_do() {
    let mut found_any = false;
    each(true, |mut case| {
        if !case.folder.join("adamw.json").is_file() {
            return;
        }
        let file = json(case.folder.join("adamw.json"));
        let list =
            |key: &str| -> Vec<String> { file[key].as_array().unwrap().iter().map(|v| v.as_str().unwrap().to_owned()).collect() };
        let (decay, no_decay) = (list("decay"), list("no_decay"));
        let number = |value: &Value| value.as_f64().unwrap();
        let [beta1, beta2] = [0, 1].map(|index| number(&file["betas"][index]));
        let start = Tensors::load(case.folder.join("grads.safetensors"));
        let (mut first, mut second) = (Named::new(), Named::new());
        let log = file["log"].as_array().unwrap();
        for (step, entry) in log.iter().enumerate() {
            let found = case.pass(&case.mask());
            let losses = case.losses(&found.logits_BLV);
            for (key, loss) in ["loss_t2i", "loss_lm", "loss_mmu", "loss_total"].into_iter().zip(&losses) {
                let Some(expected) = entry[key].as_f64() else { continue };
                close(&values(loss.clone()), &[expected as f32], 1e-4, &format!("{} {key} before step {step}", case.what));
            }
            let Some(lr) = entry["lr"].as_f64() else { break };
            let gradients = gradients_of(&case.model, &losses[3].backward());
            let updates = step as i32 + 1;
            case.model = map_values(case.model, |name, _, values| {
                let decayed = decay.iter().any(|other| other == name);
                // The reference has no experts.
                if !decayed && !no_decay.iter().any(|other| other == name) {
                    return;
                }
                let hyper = AdamWParams {
                    lr: lr as f32,
                    beta1: beta1 as f32,
                    beta2: beta2 as f32,
                    eps: number(&file["eps"]) as f32,
                    weight_decay: if decayed { number(&file["weight_decay"]) as f32 } else { 0.0 },
                    bias_correction1: (1.0 - beta1.powi(updates)) as f32,
                    bias_correction2: (1.0 - beta2.powi(updates)) as f32,
                };
                let zeros = || vec![0.0; values.len()];
                let m = first.entry(name.to_owned()).or_insert_with(zeros);
                let v = second.entry(name.to_owned()).or_insert_with(zeros);
                adamw_step(values, &gradients[name], m, v, &hyper);
            });
        }
        let end = Tensors::load(case.folder.join("after_4_adamw_steps.safetensors"));
        let found = parameters(&case.model);
        for name in end.names() {
            let (_, gradient) = start.f32(&format!("grad.{name}"));
            let (_, expected) = end.f32(&name);
            // A vanishing gradient's float noise is blown up by Adam to about the learning rate.
            let steady: Vec<usize> = (0..expected.len()).filter(|&index| gradient[index].abs() > 1e-5).collect();
            if steady.is_empty() {
                continue;
            }
            let pick = |values: &[f32]| -> Vec<f32> { steady.iter().map(|&index| values[index]).collect() };
            close(&pick(&found[&name]), &pick(&expected), 2e-4, &format!("{} {name} after four steps", case.what));
        }
    });
    for folder in cases("transformer") {
        found_any |= folder.join("adamw.json").is_file();
    }
    assert!(found_any, "no case has optimiser steps");
}

/// Prompts and masks make the stored batch from its texts and image tokens.
#[test]
fn batches_follow_from_texts() {
    let tokenizer = Tokenizer::from_file(shared_file("prompting/tiny_tokenizer/tokenizer.json")).unwrap();
    let encode = |text: &str| tokenizer.encode(text, false).unwrap().get_ids().to_vec();
    for folder in cases("transformer") {
        let file = json(folder.join("config.json"));
        let batch = Tensors::load(folder.join("batch.safetensors"));
        let config: ModelConfig = config_of(&file, MoeLevel::None);
        let ids = config.special_ids();
        let prompter = Prompter::new(&config, &encode).unwrap().with_special_text(SpecialText::Parse);
        let texts =
            |key: &str| -> Vec<String> { file[key].as_array().unwrap().iter().map(|t| t.as_str().unwrap().to_owned()).collect() };
        let (shape, stored_ids) = batch.i64("input_ids");
        let length = shape[1];
        let images = |key: &str| -> Vec<Vec<u32>> {
            let (shape, values) = batch.i64(key);
            values.chunks(shape[1]).map(|row| row.iter().map(|&id| id as u32).collect()).collect()
        };
        let dropped: Vec<bool> =
            batch.f32("u_cond_dropout").1.iter().map(|&u| u < file["cond_dropout_prob"].as_f64().unwrap() as f32).collect();
        let (clean, masked) = (images("t2i_image_tokens"), images("t2i_masked_tokens"));
        let mut rows: Vec<Row> = Vec::new();
        for (index, text) in texts("captions").iter().enumerate() {
            let labels = clean[index]
                .iter()
                .zip(&masked[index])
                .map(|(&token, &seen)| if seen == ids.mask { i64::from(token) } else { -100 });
            rows.push(prompter.t2i(text, dropped[index], &masked[index], &labels.collect::<Vec<_>>()).unwrap());
        }
        rows.extend(texts("lm_texts").iter().map(|text| prompter.lm(text, length).unwrap()));
        rows.extend(
            texts("mmu_texts").iter().zip(images("mmu_image_tokens")).map(|(text, image)| prompter.mmu(text, &image).unwrap()),
        );
        let flat: Vec<i64> = rows.iter().flat_map(|row| row.ids.iter().map(|&id| i64::from(id))).collect();
        assert_eq!(flat, stored_ids, "{}", name(&folder));
        let labels: Vec<i64> = rows.iter().flat_map(|row| row.labels.clone()).collect();
        assert_eq!(labels, batch.i64("labels").1, "{}", name(&folder));

        let marks = Marks::image(&ids);
        let number = |key: &str| file[key].as_u64().unwrap() as usize;
        let end = number("batch_size_t2i") + number("batch_size_lm");
        let ids_of = |rows: &[Row]| -> Vec<u32> { rows.iter().flat_map(|row| row.ids.clone()).collect() };
        let mut visible =
            predict_next(&ids_of(&rows[..number("batch_size_t2i")]), length, marks, true).unwrap().visible().to_vec();
        visible.extend(predict_next(&ids_of(&rows[number("batch_size_t2i")..end]), length, marks, false).unwrap().visible());
        visible.extend(for_mmu(&ids_of(&rows[end..]), length, ids.eoi).unwrap().visible());
        let visible: Vec<u8> = visible.into_iter().map(u8::from).collect();
        assert_eq!(visible, batch.u8("attention_visible").1, "{}", name(&folder));
    }
}

#[test]
fn empty_groups_have_loss_zero() {
    let device = device(false);
    let logits_BLV = Tensor::<3>::ones([2, 5, 7], &device);
    let ignored = Tensor::<2, Int>::full([2, 5], -100, &device);
    assert_eq!(values(t2i_loss(logits_BLV.clone(), ignored.clone(), 2)), [0.0]);
    assert_eq!(values(next_token_loss(logits_BLV, ignored)), [0.0]);
    let (logits_BLV, labels_BL) = (Tensor::<3>::zeros([0, 5, 7], &device), Tensor::<2, Int>::zeros([0, 5], &device));
    assert_eq!(values(t2i_loss(logits_BLV.clone(), labels_BL.clone(), 2)), [0.0]);
    assert_eq!(values(next_token_loss(logits_BLV, labels_BL)), [0.0]);
}
