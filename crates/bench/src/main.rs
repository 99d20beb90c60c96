//! What the benchmarks need of this program: a model of procedural weights, one piece of work as every rival does it, and a worker that does
//! it on demand. `benches/compare.py` runs the worker beside the rivals.

#![allow(non_snake_case)] // tensor names carry their shape

mod ablations;
mod accuracy;
mod case;
mod gains;
mod procedural;
mod train_case;
mod train_worker;
mod worker;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};
use tracing::Level;
use tracing_chrome::ChromeLayerBuilder;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::prelude::*;
use unif2ace_ops::AlignedAllocator;
use unif2ace_pipeline::{DeviceName, WeightFormat};

#[global_allocator]
static ALLOCATOR: AlignedAllocator = AlignedAllocator;

/// Benchmarks of UniF²ace.
#[derive(Debug, Parser)]
#[command(name = "unif2ace-bench", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Write a full-size model with procedural weights (7.5 GB in float32, 0.4 GB of it the image tokenizer).
    Procedural {
        /// Folder to write.
        folder: PathBuf,
        /// Phi's tokenizer.json.
        #[arg(long, default_value = "tests/fixtures/golden/prompting/phi_tokenizer/tokenizer.json")]
        tokenizer: PathBuf,
        /// Number of blocks, for a quick try.
        #[arg(long, default_value_t = 24)]
        num_hidden_layers: usize,
    },
    /// Write the work as ids and random numbers: case.json and draws.safetensors.
    Case {
        /// Model folder.
        model: PathBuf,
        /// Folder to write.
        folder: PathBuf,
    },
    /// Measure how far bf16 and int8 are from f32.
    Accuracy {
        /// Model folder, not packed.
        model: PathBuf,
        /// Folder of the face set.
        #[arg(long)]
        faces: PathBuf,
        /// Split.
        #[arg(long, default_value = "test")]
        split: String,
        /// Pictures.
        #[arg(long, default_value_t = 100)]
        num_images: usize,
    },
    /// Train and measure rows of the ablations, and print their table.
    Ablations(ablations::AblationArgs),
    /// Measure what each shortcut of inference gains, and how cost grows with pictures, steps, image tokens and prompt length.
    Gains {
        /// Blocks of the full model's width.
        #[arg(long, default_value_t = 2)]
        num_hidden_layers: usize,
        /// Calls that a median is taken of.
        #[arg(long, default_value_t = 5)]
        rounds: usize,
    },
    /// Load a model, then do the work that each line of standard input names, and print a line of JSON for it.
    Worker {
        /// Model folder.
        model: PathBuf,
        /// Folder of the case.
        case: PathBuf,
        /// Number format of weights.
        #[arg(long, value_enum)]
        dtype: Dtype,
        /// Where to compute: cpu, or a GPU (of a build with its feature) with a model that isn't packed.
        #[arg(long, default_value_t = DeviceName::Cpu)]
        device: DeviceName,
    },
    /// Write a training step as weights and batches, which our trainer and its rival both do.
    TrainCase(train_case::TrainCaseArgs),
    /// Do the training steps of a case that the lines of standard input ask for, and print a line of JSON for each.
    TrainWorker(train_worker::TrainWorkerArgs),
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Dtype {
    F32,
    Bf16,
    Int8,
}

impl From<Dtype> for WeightFormat {
    fn from(dtype: Dtype) -> Self {
        match dtype {
            Dtype::F32 => Self::F32,
            Dtype::Bf16 => Self::Bf16,
            Dtype::Int8 => Self::Int8,
        }
    }
}

/// Any failure; benchmarks have one reader, who gets its text.
type Outcome<T = ()> = Result<T, Box<dyn std::error::Error>>;

/// Does `work` and writes a trace of its spans.
fn profiled(file: Option<&Path>, work: impl FnOnce() -> Outcome) -> Outcome {
    let Some(file) = file else { return work() };
    // The guard writes the rest of the trace when the work is done.
    let (trace, _guard) = ChromeLayerBuilder::new().writer(std::fs::File::create(file)?).include_args(true).build();
    tracing_subscriber::registry().with(trace.with_filter(Targets::new().with_target("unif2ace", Level::DEBUG))).init();
    work()
}

fn main() -> ExitCode {
    unif2ace_ops::keep_freed_memory();
    let command = Cli::parse().command;
    if let Some(found) = unif2ace_ops::unknown_cpu_mask() {
        return finish(Err(format!("{} is '{found}', which is no level's name", unif2ace_ops::CPU_MASK).into()));
    }
    unif2ace_ops::join_pool();
    finish(match command {
        Command::Procedural { folder, tokenizer, num_hidden_layers } => procedural::write(&folder, &tokenizer, num_hidden_layers),
        Command::Case { model, folder } => case::write(&model, &folder),
        Command::Accuracy { model, faces, split, num_images } => accuracy::run(&model, &faces, &split, num_images),
        Command::Gains { num_hidden_layers, rounds } => gains::run(num_hidden_layers, rounds.max(1)),
        Command::Ablations(args) => {
            tracing_subscriber::fmt().with_target(false).with_writer(std::io::stderr).init();
            ablations::run(&args)
        }
        Command::Worker { model, case, dtype, device } => worker::run(&model, &case, dtype.into(), device),
        Command::TrainCase(args) => train_case::write(&args),
        Command::TrainWorker(args) => profiled(args.profile.as_deref(), || train_worker::run(&args)),
    })
}

fn finish(done: Outcome) -> ExitCode {
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            #[allow(clippy::print_stderr)]
            {
                eprintln!("error: {error}");
            }
            ExitCode::FAILURE
        }
    }
}
