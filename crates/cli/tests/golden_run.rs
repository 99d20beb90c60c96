//! The golden run gives the losses that are stored, to the last bit, at every instruction level and number of threads.
//!
//! A change that is meant to alter numbers records them again: `UNIF2ACE_GOLDEN_RUN=record cargo test --workspace --test golden_run`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)] // a test may end by them

mod common;

use std::collections::BTreeMap;
use std::fs;

use common::root;
use common::tiny_run::TinyRun;
use unif2ace_kernels::cpu::{Level, level};

const NUM_STEPS: usize = 60;

/// Bits of the losses in hexadecimal digits, by precision.
type Golden = BTreeMap<String, Vec<String>>;

/// Losses of the recipe.
fn losses(level: &str, precision: &str, num_threads: &str) -> Vec<f32> {
    let folder = tempfile::tempdir().unwrap();
    let run = TinyRun::new(folder.path(), |recipe| {
        recipe["run"].as_table_mut().unwrap().insert("precision".into(), precision.into());
    });
    run.command(false).env("UNIF2ACE_CPU", level).env("RAYON_NUM_THREADS", num_threads).assert().success();
    let losses: Vec<f32> = run.metrics().iter().filter_map(|line| line["loss"].as_f64()).map(|loss| loss as f32).collect();
    assert_eq!(losses.len(), NUM_STEPS);
    losses
}

/// What the name of stored losses ends with: burn's own sums take the widest registers of the CPU, whatever the level of our kernels, and
/// the width decides their order. `None` for widths that nobody has recorded.
fn registers() -> Option<&'static str> {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") {
            return Some("");
        }
        if is_x86_feature_detected!("avx2") {
            return Some("-256");
        }
    }
    None
}

fn replay(wanted: Level, name: &str) {
    if !cfg!(all(target_arch = "x86_64", target_os = "linux", target_env = "gnu")) {
        println!("skipped: the stored losses are those of x86-64 Linux with the GNU library's exponentials and cosines");
        return;
    }
    if level() < wanted {
        println!("skipped: this machine has no {name}, or UNIF2ACE_CPU masks it");
        return;
    }
    let Some(registers) = registers() else {
        println!("skipped: no losses are stored for CPUs with registers of less than 256 bits");
        return;
    };
    let path = root().join(format!("tests/fixtures/golden_run/{name}{registers}.json"));
    if std::env::var_os("UNIF2ACE_GOLDEN_RUN").is_some_and(|word| word == "record") {
        let bits = |precision| losses(name, precision, "2").iter().map(|loss| format!("{:08x}", loss.to_bits())).collect();
        let golden: Golden = ["f32", "bf16"].map(|precision| (precision.to_owned(), bits(precision))).into();
        fs::write(&path, serde_json::to_string_pretty(&golden).unwrap() + "\n").unwrap();
    }
    let golden: Golden = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    for (precision, num_threads) in [("f32", "1"), ("f32", "3"), ("bf16", "2")] {
        let found = losses(name, precision, num_threads);
        assert_eq!(golden[precision].len(), NUM_STEPS);
        for (step, (found, expected)) in found.iter().zip(&golden[precision]).enumerate() {
            let expected = f32::from_bits(u32::from_str_radix(expected, 16).unwrap());
            assert!(
                found.to_bits() == expected.to_bits(),
                "{name}, {precision}, {num_threads} threads, step {}: expected the loss {expected:?}, found {found:?}",
                step + 1
            );
        }
    }
}

#[test]
fn with_amx() {
    replay(Level::Amx, "amx");
}

#[test]
fn with_avx512() {
    replay(Level::Avx512, "avx512");
}

#[test]
fn with_avx2() {
    replay(Level::Avx2, "avx2");
}

#[test]
fn portable() {
    replay(Level::Portable, "portable");
}
