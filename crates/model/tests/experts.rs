//! Properties of the two levels of experts.
#![allow(clippy::unwrap_used, non_snake_case)]

mod experts_support;

use std::collections::BTreeSet;

use burn::module::{Module, Param};
use burn::tensor::{Device, Int, Tensor, TensorData};
use experts_support::{Named, change, features, gradients_by_path, noise, parameters, random_tiny, randomised, tiny, values};
use unif2ace_golden::{assert_close, max_abs_diff};
use unif2ace_model::config::{ModelConfig, MoeLevel};
use unif2ace_model::masks::{Marks, Mask, for_mmu, predict_next};
use unif2ace_model::moe::{ExpertFeatures, Resampled, SequenceMoe, Task, TokenMoe};
use unif2ace_model::transformer::{Batch, Features, Hidden, Input, Positions, Unif2ace, init_code_rows_from_bits};

fn tensor<const D: usize>(values: &[f32], shape: [usize; D]) -> Tensor<D> {
    Tensor::from_data(TensorData::new(values.to_vec(), shape), &Device::flex())
}

fn with_experts(routed: usize, chosen: usize) -> ModelConfig {
    let mut config = tiny(MoeLevel::Token);
    config.moe.num_routed_experts = routed;
    config.moe.num_experts_per_tok = chosen;
    config.check().unwrap();
    config
}

#[test]
fn equal_experts_are_one_dense_expert() {
    let device = Device::flex();
    for chosen in [4, 8] {
        let moe = randomised(TokenMoe::new(&with_experts(8, chosen), &device), 1.0);
        let moe = change(moe, |name, shape, mut numbers| {
            if !name.contains("router") {
                let one = numbers.len() / shape[0];
                let first = numbers[..one].to_vec();
                numbers.chunks_mut(one).for_each(|expert| expert.copy_from_slice(&first));
            }
            numbers
        });
        let group = &moe.t2i;
        let x_RD: Tensor<2> = noise("x", [9, 32], &device);
        let first = |t: Tensor<3>| -> Tensor<2> { t.narrow(0, 0, 1).squeeze_dim(0) };
        let bias = |t: Tensor<2>| -> Tensor<1> { t.narrow(0, 0, 1).squeeze_dim(0) };
        let inner = unif2ace_ops::linear(
            x_RD.clone(),
            first(group.fc1_weight.val()),
            Some(bias(group.fc1_bias.val())),
            unif2ace_ops::Activation::GeluNew,
        );
        let dense = unif2ace_ops::linear(
            inner,
            first(group.fc2_weight.val()),
            Some(bias(group.fc2_bias.val())),
            unif2ace_ops::Activation::None,
        );
        let probs = values(burn::tensor::activation::softmax(group.router.forward(x_RD.clone()), 1));
        let kept: Vec<f32> = probs
            .chunks(8)
            .map(|row| {
                let mut row = row.to_vec();
                row.sort_by(|a, b| b.total_cmp(a));
                row[..chosen].iter().sum()
            })
            .collect();
        let expected = values(dense * tensor(&kept, [9, 1]));
        let routed = group.forward(x_RD);
        assert_close(&values(routed.y_RD), &expected, 1e-5, &format!("top {chosen}"));
        assert_eq!(routed.counts.iter().sum::<u32>(), 9 * chosen as u32);
    }
}

#[test]
fn the_order_of_experts_does_not_matter() {
    let device = Device::flex();
    let moe = randomised(TokenMoe::new(&with_experts(8, 4), &device), 1.0);
    let order = [3usize, 7, 0, 5, 1, 6, 2, 4];
    let permuted = change(moe.clone(), |_, shape, numbers| {
        let one = numbers.len() / shape[0];
        order.iter().flat_map(|&expert| numbers[expert * one..][..one].to_vec()).collect()
    });
    let x_RD: Tensor<2> = noise("x", [11, 32], &device);
    let (a, b) = (moe.mmu.forward(x_RD.clone()), permuted.mmu.forward(x_RD));
    assert_close(&values(a.y_RD), &values(b.y_RD), 1e-5, "output");
    assert_close(&values(a.balance_loss), &values(b.balance_loss), 1e-6, "balance");
    assert_eq!(order.map(|expert| a.counts[expert]).to_vec(), b.counts);
}

#[test]
fn routing_gates_and_balance_follow_a_case_computed_by_hand() {
    // Two tokens with router probabilities (.5 .3 .2) and (.6 .1 .3), two of three experts; each expert gives only its bias.
    let device = Device::flex();
    let mut config = with_experts(3, 2);
    config.hidden_size = 2;
    config.num_attention_heads = 1;
    let mut moe = TokenMoe::new(&config, &device);
    let logits: Vec<f32> = [0.5f32, 0.6, 0.3, 0.1, 0.2, 0.3].iter().map(|p| p.ln()).collect();
    moe.t2i.router.weight = Param::from_tensor(tensor(&logits, [3, 2]));
    moe.t2i.fc2_bias = Param::from_tensor(tensor(&[1.0, 10.0, 100.0, 0.0, 0.0, 1000.0], [3, 2]));
    let routed = moe.t2i.forward(tensor(&[1.0, 0.0, 0.0, 1.0], [2, 2]));
    assert_eq!(routed.counts, [2, 1, 1]);
    // y = Σ p_i E_i, not renormalised.
    assert_close(&values(routed.y_RD), &[0.5 + 30.0, 5.0, 0.6, 6.0 + 300.0], 1e-4, "output");
    // f = counts * 3 / (2 * 2) = 1.5 .75 .75; P = .55 .2 .25.
    assert_close(&values(routed.balance_loss), &[1.5 * 0.55 + 0.75 * 0.2 + 0.75 * 0.25], 1e-6, "Σ f P");

    // Even routing gives 1.
    moe.t2i.router.weight = Param::from_tensor(Tensor::zeros([3, 2], &device));
    let even = moe.t2i.forward(tensor(&[1.0, 0.0, 0.0, 1.0], [2, 2]));
    assert_close(&values(even.balance_loss), &[1.0], 1e-6, "even probabilities");
}

/// A sequence level whose router prefers experts in the given order.
#[test]
fn pads_count_neither_in_the_balance_nor_in_the_use() {
    let device = Device::flex();
    let moe = randomised(TokenMoe::new(&with_experts(8, 4), &device), 1.0);
    let x_RD: Tensor<2> = noise("x", [9, 32], &device);
    let alone = moe.t2i.forward(x_RD.clone());
    let pads = noise::<2>("pad", [1, 32], &device).repeat_dim(0, 5);
    let real = [vec![false; 5], vec![true; 9]].concat();
    let padded = moe.t2i.forward_counting(Tensor::cat(vec![pads, x_RD], 0), Some(&real));
    assert_eq!(padded.counts, alone.counts);
    assert_close(&values(padded.balance_loss), &values(alone.balance_loss), 1e-6, "balance");
    assert_close(&values(padded.y_RD.narrow(0, 5, 9)), &values(alone.y_RD), 1e-6, "output");
    let none = moe.t2i.forward_counting(noise("x", [2, 32], &device), Some(&[false, false]));
    assert_eq!((values(none.balance_loss), none.counts), (vec![0.0], vec![0; 8]));
}

fn preferring(task: Task, order: [usize; 4]) -> SequenceMoe {
    let moe = randomised(SequenceMoe::new(&tiny(MoeLevel::Sequence), &Device::flex()), 0.05);
    let prefix = if task == Task::T2i { "t2i.router.bias" } else { "mmu.router.bias" };
    change(moe, |name, _, mut numbers| {
        if name == prefix {
            order.iter().enumerate().for_each(|(rank, &expert)| numbers[expert] = -3.0 * rank as f32);
        }
        numbers
    })
}

fn resampled(rows: usize) -> Resampled {
    let device = Device::flex();
    let [noise, clip, face] = ["noise", "clip", "face"].map(|name| Some(noise(name, [rows, 4, 32], &device)));
    Resampled { noise, clip, face }
}

#[test]
fn two_copies_are_the_identity() {
    let x_BND: Tensor<3> = noise("image", [3, 4, 32], &Device::flex());
    for task in [Task::T2i, Task::Mmu] {
        let moe = preferring(task, [0, 1, 2, 3]);
        let (y_BND, counts) = moe.group(task).forward(x_BND.clone(), task, &resampled(3));
        assert_eq!(counts, [3, 3, 0, 0]);
        assert_close(&values(y_BND), &values(x_BND.clone()), 1e-6, "copy + copy");
    }
}

#[test]
fn every_kind_of_sequence_expert_does_what_it_is_called() {
    let x_BND: Tensor<3> = noise("image", [1, 4, 32], &Device::flex());
    let x = values(x_BND.clone());
    let outside = resampled(1);
    let cases = [
        (Task::T2i, [2, 0, 1, 3], None),
        (Task::T2i, [3, 0, 1, 2], outside.noise.clone()),
        (Task::Mmu, [2, 0, 1, 3], outside.clip.clone()),
        (Task::Mmu, [3, 0, 1, 2], outside.face.clone()),
    ];
    for (task, order, feature) in cases {
        let moe = preferring(task, order);
        let group = moe.group(task);
        let (y_BND, counts) = group.forward(x_BND.clone(), task, &outside);
        assert_eq!((counts[order[0]], counts[0]), (1, 1));
        let pooled: Tensor<2> = x_BND.clone().mean_dim(1).reshape([1, 32]);
        let probs = values(burn::tensor::activation::softmax(group.router.forward(pooled), 1));
        let (special, copy) = (probs[order[0]], probs[0]);
        let mix = values(burn::tensor::activation::softmax(group.mix.val(), 1));
        let row = order[0] - 2;
        let (w, rest) = (mix[2 * row], mix[2 * row + 1]);
        let feature = feature.map_or(vec![0.0; x.len()], values);
        let zero = task == Task::T2i && order[0] == 2;
        let expected: Vec<f32> = x
            .iter()
            .zip(&feature)
            .map(|(x, f)| (copy * x + special * if zero { 0.0 } else { w * x + rest * f }) / (copy + special))
            .collect();
        assert_close(&values(y_BND), &expected, 1e-5, &format!("{task:?} {order:?}"));

        // Without its feature an expert copies; the zero expert needs none.
        let (y_BND, _) = group.forward(x_BND.clone(), task, &Resampled::default());
        let expected = if zero { expected } else { x.clone() };
        assert_close(&values(y_BND), &expected, 1e-5, &format!("{task:?} {order:?} without features"));
    }
}

/// A row of generation or of understanding with an image and text.
fn row(config: &ModelConfig, task: Task, seed: u32) -> (Vec<u32>, usize) {
    let ids = config.special_ids();
    let image: Vec<u32> =
        (0..4).map(|n| if task == Task::T2i && n % 2 == 0 { ids.mask } else { ids.image_offset + (n * 5 + seed) % 16 }).collect();
    match task {
        Task::T2i => ([&[ids.pad, ids.pad, ids.t2i, 29, seed % 29, 3, 29, ids.soi], image.as_slice(), &[ids.eoi]].concat(), 8),
        Task::Mmu => ([&[ids.mmu, ids.soi], image.as_slice(), &[ids.eoi, 29, 5, seed % 29, 7, 29, ids.pad]].concat(), 2),
    }
}

fn mask_of(config: &ModelConfig, rows: &[Vec<u32>], task: Task) -> Mask {
    let ids = config.special_ids();
    let (flat, length) = (rows.concat(), rows[0].len());
    match task {
        Task::T2i => predict_next(&flat, length, Marks::image(&ids), true).unwrap(),
        Task::Mmu => for_mmu(&flat, length, ids.eoi).unwrap(),
    }
}

fn run(model: &Unif2ace, task: Task, seeds: &[u32], features: ExpertFeatures) -> Hidden {
    let config = model.config();
    let rows: Vec<Vec<u32>> = seeds.iter().map(|&seed| row(config, task, seed).0).collect();
    let ids: Vec<i64> = rows.concat().iter().map(|&id| i64::from(id)).collect();
    let batch = Batch {
        input: Input::Ids(Tensor::<2, Int>::from_data(TensorData::new(ids, [rows.len(), rows[0].len()]), &Device::flex())),
        positions: Positions::From(0),
        mask_BLS: mask_of(config, &rows, task).tensor(&Device::flex()),
        task,
        image_start: Some(row(config, task, 0).1),
        features: Features::Raw(features),
    };
    model.check(&batch, 0).unwrap();
    model.hidden(batch)
}

/// A scalar that depends on everything: weighted states and balance.
fn objective(model: &Unif2ace, task: Task) -> (Tensor<1>, [Vec<Vec<u32>>; 2]) {
    let features = features(model.config(), 2, &Device::flex());
    let hidden = run(model, task, &[1, 6], features);
    let logits_BLV = model.logits(hidden.x_BLD);
    let weights = noise("weights", logits_BLV.dims(), &Device::flex());
    let mut loss = (logits_BLV * weights).sum();
    if let Some(balance) = hidden.stats.balance_loss {
        loss = loss + balance * 3.0;
    }
    (loss, [hidden.stats.token_use, hidden.stats.sequence_use])
}

fn gradients(model: &Unif2ace, task: Task) -> Named {
    gradients_by_path(model, objective(model, task).0.backward())
}

#[test]
fn gradients_agree_with_finite_differences() {
    let device = Device::flex().autodiff();
    let model = random_tiny(MoeLevel::Both, &device);
    // Several routers, so that at least one image takes each of the experts that have parameters.
    let mut checked = BTreeSet::new();
    for shift in 0..3 {
        let model = change(model.clone(), |name, _, mut numbers| {
            if name.ends_with("router.bias") {
                numbers.iter_mut().enumerate().for_each(|(expert, v)| *v = if (expert + shift) % 4 < 2 { 2.0 } else { 0.0 });
            }
            numbers
        });
        for task in [Task::T2i, Task::Mmu] {
            let analytic = gradients(&model, task);
            for (name, gradient) in &analytic {
                let norm = gradient.iter().map(|g| f64::from(*g).powi(2)).sum::<f64>().sqrt();
                if norm < 1e-2 {
                    continue;
                }
                // Along the gradient itself the slope is its norm.
                let step = 2e-3;
                let at = |sign: f64| {
                    let moved = change(model.clone(), |path, _, mut numbers| {
                        if path == name {
                            numbers.iter_mut().zip(gradient).for_each(|(v, g)| *v += (sign * step * f64::from(*g) / norm) as f32);
                        }
                        numbers
                    });
                    objective(&moved, task)
                };
                let ((up, used_up), (down, used_down)) = (at(1.0), at(-1.0));
                if used_up != used_down {
                    continue; // another routing: the function jumps there
                }
                let slope = f64::from(values(up)[0] - values(down)[0]) / (2.0 * step);
                let error = (slope - norm).abs() / norm;
                assert!(error < 0.03 || (slope - norm).abs() < 0.02, "{task:?} {name}: slope {slope}, gradient {norm}");
                checked.insert(name.clone());
            }
        }
    }
    let parts = [
        "moe.t2i.router.weight",
        "moe.t2i.fc1_weight",
        "moe.t2i.fc1_bias",
        "moe.t2i.fc2_weight",
        "moe.t2i.fc2_bias",
        "moe.mmu.router.weight",
        "moe.mmu.fc2_weight",
        "sequence.scale",
        "sequence.norm.weight",
        "sequence.t2i.router.weight",
        "sequence.t2i.mix",
        "sequence.mmu.router.weight",
        "sequence.mmu.mix",
        "resamplers.noise_fc1.weight",
        "resamplers.noise_fc2.weight",
        "resamplers.noise.queries",
        "resamplers.clip.queries",
        "resamplers.clip.v_proj.weight",
        "resamplers.face_tokens.weight",
        "resamplers.face.k_proj.weight",
        "mlp.fc1.weight",
        "q_layernorm.weight",
        "embed_tokens.weight",
    ];
    for part in parts {
        assert!(checked.iter().any(|name| name.contains(part)), "{part} was never checked: {checked:?}");
    }
}

#[test]
fn the_groups_share_no_gradients() {
    let device = Device::flex().autodiff();
    let model = random_tiny(MoeLevel::Both, &device);
    for (task, others) in [
        (Task::T2i, ["mmu.", "resamplers.clip", "resamplers.face"]),
        (Task::Mmu, ["t2i.", "resamplers.noise", "resamplers.noise_"]),
    ] {
        let found = gradients(&model, task);
        assert!(!found.is_empty());
        for (name, gradient) in &found {
            let foreign = others.iter().any(|other| name.contains(other));
            assert!(!foreign || gradient.iter().all(|&g| g == 0.0), "{task:?} gives a gradient to {name}");
        }
        let own = if task == Task::T2i { "moe.t2i.router.weight" } else { "moe.mmu.router.weight" };
        assert!(
            found.iter().any(|(name, g)| name.contains(own) && g.iter().any(|&g| g != 0.0)),
            "gradients flow through the gates"
        );
    }
}

#[test]
fn each_level_can_be_switched_off() {
    for level in [MoeLevel::None, MoeLevel::Token, MoeLevel::Sequence, MoeLevel::Both] {
        let config = tiny(level);
        let model = Unif2ace::new(&config, &Device::flex()).unwrap();
        let names = parameters(&model);
        assert_eq!(names.keys().any(|name| name.contains(".moe.")), level.token());
        assert_eq!(names.keys().any(|name| name.contains(".sequence.") || name.starts_with("resamplers")), level.sequence());
        for task in [Task::T2i, Task::Mmu] {
            assert_eq!(config.num_parameters(task).0, model.num_params(), "{level:?}");
            let hidden = run(&model, task, &[3], ExpertFeatures::default());
            assert_eq!(hidden.stats.token_use.len(), if level.token() { 2 } else { 0 });
            assert_eq!(hidden.stats.sequence_use.len(), if level.sequence() { 2 } else { 0 });
        }
    }
    let mini = ModelConfig::mini();
    let built = Unif2ace::new(&mini, &Device::flex()).unwrap().num_params();
    assert_eq!(mini.num_parameters(Task::T2i).0, built);
}

#[test]
fn routing_is_counted_for_every_block() {
    let model = random_tiny(MoeLevel::Both, &Device::flex());
    for task in [Task::T2i, Task::Mmu] {
        let stats = run(&model, task, &[1, 2, 3], features(model.config(), 3, &Device::flex())).stats;
        let pad = model.config().special_ids().pad;
        let num_real = row(model.config(), task, 0).0.into_iter().filter(|&id| id != pad).count() as u32;
        assert_eq!(
            stats.token_use.iter().map(|block| (block.len(), block.iter().sum())).collect::<Vec<_>>(),
            [(8, 3 * num_real * 4); 2]
        );
        assert_eq!(stats.sequence_use.iter().map(|block| (block.len(), block.iter().sum())).collect::<Vec<_>>(), [(4, 6); 2]);
    }
}

#[test]
fn rows_of_a_batch_do_not_disturb_each_other() {
    let model = random_tiny(MoeLevel::Both, &Device::flex());
    let device = Device::flex();
    for task in [Task::T2i, Task::Mmu] {
        let all = features(model.config(), 3, &device);
        let together = values(run(&model, task, &[1, 2, 3], all.clone()).x_BLD);
        let part = together.len() / 3;
        for index in 0..3 {
            let own = ExpertFeatures {
                noise_level: all.noise_level.as_ref().map(|levels| vec![levels[index]]),
                clip_BPC: all.clip_BPC.clone().map(|clip| clip.narrow(0, index, 1)),
                face_BF: all.face_BF.clone().map(|face| face.narrow(0, index, 1)),
            };
            let alone = values(run(&model, task, &[index as u32 + 1], own).x_BLD);
            assert_close(&alone, &together[index * part..][..part], 1e-4, &format!("{task:?} row {index}"));
        }
    }
}

#[test]
fn the_sequence_level_touches_the_image_alone() {
    let device = Device::flex();
    let moe = preferring(Task::Mmu, [3, 2, 0, 1]);
    let x_BLD: Tensor<3> = noise("row", [2, 9, 32], &device);
    let (y_BLD, _) = moe.forward(x_BLD.clone(), 2, 4, Task::Mmu, &resampled(2));
    for (start, num) in [(0, 2), (6, 3)] {
        assert_eq!(values(y_BLD.clone().narrow(1, start, num)), values(x_BLD.clone().narrow(1, start, num)));
    }
    let moved = max_abs_diff(&values(y_BLD.narrow(1, 2, 4)), &values(x_BLD.narrow(1, 2, 4))).0;
    assert!(moved > 1e-2, "{moved}");
}

#[test]
fn code_rows_that_look_alike_start_alike() {
    let config = ModelConfig { vocab_size: 30 + 10 + 64 + 1, codebook_size: 64, hidden_size: 256, ..tiny(MoeLevel::None) };
    let before = Unif2ace::new(&config, &Device::flex()).unwrap();
    let after = init_code_rows_from_bits(before.clone(), 5);
    let again = init_code_rows_from_bits(before.clone(), 5);
    assert_eq!(parameters(&after), parameters(&again));
    let (before, after) = (parameters(&before), parameters(&after));
    for name in ["showo.model.embed_tokens.weight", "showo.lm_head.weight"] {
        let row = |code: usize| &after[name][(40 + code) * 256..][..256];
        let distance = |a: usize, b: usize| row(a).iter().zip(row(b)).map(|(a, b)| (a - b).powi(2)).sum::<f32>();
        assert!(distance(0b010101, 0b010100) * 3.0 < distance(0b010101, 0b101010), "{name}");
        let all: Vec<f32> = (0..64).flat_map(|code| row(code).to_vec()).collect();
        let std = (all.iter().map(|v| v * v).sum::<f32>() / all.len() as f32).sqrt();
        assert!((0.016..0.025).contains(&std), "{name}: {std}");
        assert_eq!(before[name][..40 * 256], after[name][..40 * 256], "text rows stay");
        assert_eq!(before[name][104 * 256..], after[name][104 * 256..], "the mask row stays");
    }
    let untouched = |name: &&String| !name.contains("embed_tokens") && *name != "showo.lm_head.weight";
    assert!(before.keys().filter(untouched).all(|name| before[name] == after[name]));
}
