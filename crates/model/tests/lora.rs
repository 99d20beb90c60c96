//! Low-rank adapters: new ones change nothing, merged ones compute what they compute beside the weights, only they get gradients.
#![allow(non_snake_case, clippy::unwrap_used, clippy::print_stderr)]

mod transformer_support;

use std::collections::BTreeSet;

use burn::module::Module;
use transformer_support::small::{config, objective, stirred};
use transformer_support::*;
use unif2ace_model::config::MoeLevel;
use unif2ace_model::lora::{add_low_rank, is_adapter};
use unif2ace_model::moe::Task;
use unif2ace_model::transformer::Unif2ace;
use unif2ace_ops::WeightFormat;

const TASKS: [Task; 2] = [Task::T2i, Task::Mmu];

fn base(gradients: bool) -> Unif2ace {
    stirred(Unif2ace::new(&config(MoeLevel::Both), &device(gradients)).unwrap(), 3)
}

/// Adapters everywhere with a B that is not zero.
fn adapted(gradients: bool) -> Unif2ace {
    map_values(base(gradients).with_lora(3, 6.0, |_| true), |name, shape, values| {
        if name.ends_with("lora_B.weight") {
            let noise = unif2ace_golden::procedural(name, shape);
            values.iter_mut().zip(noise).for_each(|(value, noise)| *value = 0.1 * noise);
        }
    })
}

fn outputs(model: &Unif2ace, task: Task) -> Vec<f32> {
    values(objective(model, task, &device(false)).0)
}

#[test]
fn every_matrix_between_the_embedding_and_the_head_can_have_an_adapter() {
    let model = base(false);
    let layers: BTreeSet<String> = model.linear_layers().into_iter().map(|path| format!("{path}.weight")).collect();
    let matrices = parameters(&model).into_keys().filter(|name| {
        let norm = name.contains("norm.weight");
        name.ends_with(".weight") && !norm && !name.contains("embed_tokens")
    });
    assert_eq!(layers, matrices.collect());
    assert_eq!(layers.len(), model.linear_layers().len());
}

#[test]
fn a_new_adapter_changes_nothing_to_the_last_bit() {
    let with = base(false).with_lora(2, 16.0, |_| true);
    assert!(parameters(&with).iter().any(|(name, a)| name.ends_with("lora_A.weight") && a.iter().any(|&value| value != 0.0)));
    for task in TASKS {
        assert_eq!(outputs(&base(false), task), outputs(&with, task), "{task:?}");
    }
}

#[test]
fn merged_adapters_compute_what_they_compute_beside_the_weights() {
    let model = adapted(false);
    let mut merged = model.clone();
    merged.merge_lora();
    assert!(parameters(&merged).keys().all(|name| !is_adapter(name)));
    for task in TASKS {
        let (beside, plain) = (outputs(&model, task), outputs(&base(false), task));
        close(&outputs(&merged, task), &beside, 1e-5, &format!("merged {task:?}"));
        // A packed model has its adapters, too.
        close(&outputs(&model.clone().pack(WeightFormat::F32), task), &beside, 1e-5, &format!("packed {task:?}"));
        assert!(unif2ace_golden::max_abs_diff(&beside, &plain).0 > 1e-2, "the adapters do something");
    }
}

#[test]
fn what_is_added_can_be_taken_away() {
    let (a, b) = (unif2ace_golden::procedural("a", &[2, 5]), unif2ace_golden::procedural("b", &[4, 2]));
    let start = unif2ace_golden::procedural("w", &[4, 5]);
    let mut w = start.clone();
    add_low_rank(&mut w, &a, &b, 2, 0.5);
    let expected = start[7] + 0.5 * (b[2] * a[2] + b[3] * a[7]);
    assert!((w[7] - expected).abs() < 1e-6, "row 1, column 2: {} for {expected}", w[7]);
    add_low_rank(&mut w, &a, &b, 2, -0.5);
    close(&w, &start, 1e-6, "taken away");
}

#[test]
fn only_adapters_have_gradients_and_they_follow_from_those_of_the_merged_weights() {
    let filled = parameters(&adapted(false));
    let model =
        map_values(base(true).no_grad().with_lora(3, 6.0, |_| true), |name, _, values| values.copy_from_slice(&filled[name]));
    let gradients = |model: &Unif2ace| {
        let (weighted, balance, _) = objective(model, Task::Mmu, &device(true));
        gradients_of(model, &(weighted.sum() + balance).backward())
    };
    let found = gradients(&model);
    assert!(found.keys().all(|name| is_adapter(name)), "{:?}", found.keys());
    let mut merged = map_values(base(true).with_lora(3, 6.0, |_| true), |name, _, values| values.copy_from_slice(&filled[name]));
    merged.merge_lora();
    let expected = gradients(&merged);
    let mut num_layers = 0;
    for layer in model.linear_layers() {
        let Some(dw) = expected.get(&format!("{layer}.weight")) else { continue };
        let [a, b] = ["lora_A", "lora_B"].map(|name| &filled[&format!("{layer}.{name}.weight")]);
        let (num_in, num_out) = (a.len() / 3, b.len() / 3);
        // y = .. + 2 B A x: dA = 2 B^T dW, dB = 2 dW A^T.
        let da = |r: usize, i: usize| 2.0 * (0..num_out).map(|o| b[o * 3 + r] * dw[o * num_in + i]).sum::<f32>();
        let db = |o: usize, r: usize| 2.0 * (0..num_in).map(|i| dw[o * num_in + i] * a[r * num_in + i]).sum::<f32>();
        let da: Vec<f32> = (0..3 * num_in).map(|place| da(place / num_in, place % num_in)).collect();
        let db: Vec<f32> = (0..3 * num_out).map(|place| db(place / 3, place % 3)).collect();
        for (name, expected) in [("lora_A", da), ("lora_B", db)] {
            let size = expected.iter().fold(1.0f32, |size, value| size.max(value.abs()));
            close(&found[&format!("{layer}.{name}.weight")], &expected, 1e-4 * size, &format!("{layer}.{name}"));
        }
        num_layers += 1;
    }
    assert!(num_layers > 16, "{num_layers} layers");
}
