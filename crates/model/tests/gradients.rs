//! Gradients of the whole network, experts at work, against finite differences along random directions: a missing element shows, which it
//! would not along the computed gradient itself.
#![allow(non_snake_case, clippy::unwrap_used, clippy::print_stderr)]

mod transformer_support;

use std::collections::BTreeSet;

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use transformer_support::small::{config, objective, stirred};
use transformer_support::*;
use unif2ace_golden::procedural;
use unif2ace_model::config::MoeLevel;
use unif2ace_model::moe::Task;
use unif2ace_model::transformer::{Recompute, Unif2ace};

fn value(model: &Unif2ace, task: Task, device: &Device) -> (f64, [Vec<Vec<u32>>; 2]) {
    let (weighted, balance, used) = objective(model, task, device);
    (values(weighted).into_iter().chain(values(balance)).map(f64::from).sum(), used)
}

#[test]
fn gradients_agree_with_finite_differences_in_random_directions() {
    let (plain, tracked) = (device(false), device(true));
    let start = Unif2ace::new(&config(MoeLevel::Both), &tracked).unwrap();
    let mut checked = BTreeSet::new();
    let mut worst = (0.0f64, String::new());
    for (task, favoured) in [(Task::T2i, 2), (Task::T2i, 3), (Task::Mmu, 2), (Task::Mmu, 3)] {
        let model = stirred(start.clone(), favoured);
        let (weighted, balance, used) = objective(&model, task, &tracked);
        assert!(used[1].iter().all(|block| block[favoured] == 2), "expert {favoured} is at work: {used:?}");
        let gradients = gradients_of(&model, &(weighted.sum() + balance).backward());
        for (name, gradient) in &gradients {
            let norm = gradient.iter().map(|&g| f64::from(g).powi(2)).sum::<f64>().sqrt();
            if norm < 1e-2 {
                continue;
            }
            for draw in 0..2 {
                let signs: Vec<f32> =
                    procedural(&format!("{name} {draw}"), &[gradient.len(), 3]).chunks(3).map(|v| v[0].signum()).collect();
                let expected: f64 = gradient.iter().zip(&signs).map(|(&g, &s)| f64::from(g) * f64::from(s)).sum();
                // Smaller steps where the routing would change, for the function jumps there.
                let slope = [1e-3, 5e-4, 2.5e-4].into_iter().find_map(|step: f32| {
                    let at = |sign: f32| {
                        let moved = map_values(model.clone(), |path, _, values| {
                            if path == name {
                                values.iter_mut().zip(&signs).for_each(|(value, s)| *value += sign * step * s);
                            }
                        });
                        value(&moved, task, &plain)
                    };
                    let ((up, used_up), (down, used_down)) = (at(1.0), at(-1.0));
                    (used_up == used && used_down == used).then(|| (up - down) / (2.0 * f64::from(step)))
                });
                let Some(slope) = slope else { continue };
                let error = (slope - expected).abs() / (norm + 1.0);
                if error > worst.0 {
                    worst = (error, format!("{task:?} {name}"));
                }
                assert!(error < 0.01, "{task:?} {name}: slope {slope}, gradient {expected}, norm {norm}");
                checked.insert(name.clone());
            }
        }
    }
    eprintln!("largest error relative to 1 + norm: {worst:?}; {} parameters", checked.len());
    let all = parameters(&start);
    // A key's bias beyond the rotary dims moves all scores of a query alike; a projector is not there.
    let missing: Vec<&String> = all.keys().filter(|name| !checked.contains(*name) && !name.ends_with("k_proj.bias")).collect();
    assert!(missing.is_empty(), "never checked: {missing:?}");
}

/// Loss and gradients of a model, `of` the network's two outputs; bit for bit.
fn bits(model: &Unif2ace, task: Task, of: fn(Tensor<1>, Tensor<1>) -> Tensor<1>) -> (Vec<u32>, Vec<(String, Vec<u32>)>) {
    let (weighted, balance, _) = objective(model, task, &device(true));
    let loss = of(weighted.sum(), balance);
    let to_bits = |values: Vec<f32>| values.into_iter().map(f32::to_bits).collect::<Vec<_>>();
    let gradients = gradients_of(model, &loss.backward());
    (to_bits(values(loss)), gradients.into_iter().map(|(name, values)| (name, to_bits(values))).collect())
}

#[test]
fn blocks_that_run_again_give_the_same_loss_and_gradients_to_the_last_bit() {
    for level in [MoeLevel::None, MoeLevel::Token, MoeLevel::Sequence, MoeLevel::Both] {
        let start = Unif2ace::new(&config(level), &device(true)).unwrap();
        for (task, favoured) in [(Task::T2i, 3), (Task::Mmu, 2), (Task::Mmu, 3)] {
            let model = stirred(start.clone(), favoured);
            let expected = bits(&model, task, |x, balance| x + balance);
            assert!(expected.1.len() > 20);
            for recompute in [Recompute::Blocks, Recompute::First(1)] {
                let found = bits(&model.clone().with_recompute(recompute), task, |x, balance| x + balance);
                assert_eq!(found.0, expected.0, "{level:?} {task:?} {recompute:?}");
                for ((name, expected), (same, found)) in expected.1.iter().zip(&found.1) {
                    assert_eq!((name, found == expected), (same, true), "{level:?} {task:?} {recompute:?}");
                }
                assert_eq!(found.1.len(), expected.1.len());
            }
        }
    }
}

#[test]
fn a_loss_on_one_output_and_frozen_parts_are_right_with_blocks_that_run_again() {
    let mut model = stirred(Unif2ace::new(&config(MoeLevel::Both), &device(true)).unwrap(), 2);
    let both = |model: &Unif2ace, of: fn(Tensor<1>, Tensor<1>) -> Tensor<1>| {
        let expected = bits(model, Task::Mmu, of);
        assert_eq!(bits(&model.clone().with_recompute(Recompute::Blocks), Task::Mmu, of), expected);
        expected.1
    };
    both(&model, |_, balance| balance);
    both(&model, |x, _| x);
    // Nothing below the first block needs a gradient, and half of the block doesn't.
    model.showo.model.embed_tokens = model.showo.model.embed_tokens.no_grad();
    model.resamplers = model.resamplers.no_grad();
    model.showo.model.layers[0].self_attn = model.showo.model.layers[0].self_attn.clone().no_grad();
    let gradients = both(&model, |x, balance| x + balance);
    let has = |part: &str| gradients.iter().any(|(name, _)| name.contains(part));
    assert!(!has("embed_tokens") && !has("layers.0.self_attn") && has("layers.0.mlp") && has("layers.1.self_attn"));
}
