//! Peak memory and time of training steps with and without recomputation of blocks, and in several passes: one process for each line, since
//! the peak is the process's. `cargo run -p unif2ace-train --example recompute_memory -- [BLOCKS WIDTH ROWS STEPS]`
#![allow(non_snake_case, clippy::print_stdout, clippy::unwrap_used, clippy::expect_used)] // a measurement

use std::process::Command;
use std::time::Instant;

use burn::tensor::{Device, Int, Tensor, TensorData};
use unif2ace_model::config::{ModelConfig, MoeConfig};
use unif2ace_model::masks::{Marks, predict_next};
use unif2ace_model::moe::{ExpertFeatures, Task};
use unif2ace_model::transformer::{Batch, Features, Input, Positions, Unif2ace};
use unif2ace_ops::AlignedAllocator;
use unif2ace_train::optim::collect_gradients;
use unif2ace_train::params::initialize;

#[global_allocator]
static ALLOCATOR: AlignedAllocator = AlignedAllocator;

const NUM_TOKENS: usize = 256;
const NUM_TEXT: usize = 128;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [mode, passes, numbers @ ..] = &arguments[..]
        && mode.starts_with("recompute=")
    {
        return measure(&mode["recompute=".len()..], passes.parse().unwrap(), numbers);
    }
    let blocks: usize = arguments.first().map_or(12, |blocks| blocks.parse().expect("a number of blocks"));
    println!("{:<10} {:>6} {:>12} {:>14} {:>12}", "recompute", "passes", "before, MB", "peak more, MB", "s a step");
    for (mode, passes) in [("none", 1), ("half", 1), ("blocks", 1), ("none", 4), ("blocks", 4)] {
        let mode = if mode == "half" { (blocks / 2).to_string() } else { mode.to_owned() };
        let mut child = Command::new(std::env::current_exe().unwrap());
        let output = child.args([format!("recompute={mode}"), passes.to_string()]).args(&arguments).output().unwrap();
        print!("{}", String::from_utf8_lossy(&output.stdout));
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

/// Runs the steps and prints a line.
fn measure(mode: &str, passes: usize, numbers: &[String]) {
    let number = |place: usize, default: usize| numbers.get(place).map_or(default, |number| number.parse().unwrap());
    let [blocks, width, rows, steps] = [number(0, 12), number(1, 256), number(2, 8), number(3, 2)];
    let config = ModelConfig {
        hidden_size: width,
        num_hidden_layers: blocks,
        num_attention_heads: (width / 64).max(1),
        intermediate_size: 4 * width,
        num_vq_tokens: NUM_TOKENS,
        max_seq_length: NUM_TEXT,
        moe: MoeConfig { routed_intermediate_size: width / 4, ..ModelConfig::mini().moe },
        ..ModelConfig::mini()
    };
    let json = if mode.parse::<usize>().is_ok() { mode.to_owned() } else { format!("{mode:?}") };
    let device = Device::flex().autodiff();
    unif2ace_ops::keep_freed_memory();
    let model = Unif2ace::new(&config, &device).unwrap().with_recompute(serde_json::from_str(&json).unwrap());
    initialize(&model);
    let before = memory("VmRSS:");
    let begun = Instant::now();
    for _ in 0..steps {
        for _ in 0..passes {
            let loss = loss(&model, rows / passes, &device);
            drop(collect_gradients(&model, loss.backward()));
        }
    }
    let seconds = begun.elapsed().as_secs_f64() / steps as f64;
    let more = memory("VmHWM:") - before;
    println!("{mode:<10} {passes:>6} {before:>12.0} {more:>14.0} {seconds:>12.2}");
}

/// Cross-entropy of all image tokens and the balance loss, of rows of a full prompt and an image.
fn loss(model: &Unif2ace, rows: usize, device: &Device) -> Tensor<1> {
    let config = model.config();
    let ids = config.special_ids();
    let code = |place: usize| ids.image_offset + (place * 7 % config.codebook_size) as u32;
    let row = |row: usize| {
        let text = (0..NUM_TEXT).map(move |place| ((place * 13 + row) % 1500) as u32);
        let image = (0..NUM_TOKENS).map(|place| if place % 2 == 0 { ids.mask } else { code(place) });
        [ids.t2i].into_iter().chain(text).chain([ids.soi]).chain(image).chain([ids.eoi]).collect::<Vec<u32>>()
    };
    let flat: Vec<u32> = (0..rows).flat_map(row).collect();
    let length = flat.len() / rows;
    let mask = predict_next(&flat, length, Marks::image(&ids), true).unwrap();
    let plain = device.clone().inner();
    let values: Vec<i64> = flat.iter().map(|&id| i64::from(id)).collect();
    let start = NUM_TEXT + 2;
    let hidden = model.hidden(Batch {
        input: Input::Ids(Tensor::<2, Int>::from_data(TensorData::new(values, [rows, length]), &plain)),
        positions: Positions::From(0),
        mask_BLS: mask.tensor(&plain),
        task: Task::T2i,
        image_start: Some(start),
        features: Features::Raw(ExpertFeatures { noise_level: Some(vec![0.5; rows]), ..ExpertFeatures::default() }),
    });
    let image_RD = hidden.x_BLD.narrow(1, start, NUM_TOKENS).reshape([rows * NUM_TOKENS, config.hidden_size]);
    let targets: Vec<i64> = (0..rows * NUM_TOKENS).map(|place| (place * 7 % config.codebook_size) as i64).collect();
    let targets_R = Tensor::<1, Int>::from_data(TensorData::new(targets, [rows * NUM_TOKENS]), &plain);
    let cross_entropy = unif2ace_ops::cross_entropy(model.image_logits(image_RD), targets_R).mean();
    match hidden.stats.balance_loss {
        Some(balance) => cross_entropy + balance.mul_scalar(0.01),
        None => cross_entropy,
    }
}

/// A line of the process's status, in MB.
fn memory(name: &str) -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("needs Linux's /proc");
    let line = status.lines().find(|line| line.starts_with(name)).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|kilobytes| kilobytes.parse::<f64>().ok()).unwrap_or(f64::NAN) / 1024.0
}
