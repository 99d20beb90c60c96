//! `unif2ace import`: released checkpoints become model folders.

use std::path::PathBuf;

use burn::tensor::Device;
use clap::{Args, Subcommand, ValueEnum};
use unif2ace_model::config::MoeLevel;
use unif2ace_weights::FloatType;
use unif2ace_weights::import::{ImportOptions, ImportReport, magvitv2, show_o};

use crate::outcome::{Outcome, say};

/// Take over released weights.
#[derive(Debug, Args)]
pub struct ImportArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Show-o's transformer; experts are added so that the result computes exactly what Show-o computes.
    ShowO {
        #[command(flatten)]
        folders: Folders,
        /// Experts to add.
        #[arg(long, value_enum, default_value_t = Experts::Both)]
        moe: Experts,
        /// Seed of the new experts' random weights.
        #[arg(long, default_value_t = 0)]
        seed: u64,
    },
    /// The image tokenizer MAGVIT-v2.
    #[command(name = "magvitv2")]
    Magvitv2 {
        #[command(flatten)]
        folders: Folders,
    },
}

#[derive(Debug, Args)]
struct Folders {
    /// Folder in the Hugging Face layout, or a safetensors file.
    source: PathBuf,
    /// Model folder to write; a folder that exists keeps its other parts.
    #[arg(short, long, value_name = "DIR", default_value = "models/base")]
    output: PathBuf,
    /// Number type of the written weights.
    #[arg(long, value_enum, default_value_t = Stored::Bf16)]
    dtype: Stored,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Experts {
    None,
    Token,
    Sequence,
    Both,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Stored {
    F32,
    F16,
    Bf16,
}

impl Folders {
    fn options(&self) -> ImportOptions {
        let float = match self.dtype {
            Stored::F32 => FloatType::F32,
            Stored::F16 => FloatType::F16,
            Stored::Bf16 => FloatType::Bf16,
        };
        ImportOptions { float, ..ImportOptions::new(Device::flex()) }
    }
}

/// Imports.
pub fn run(args: &ImportArgs) -> Outcome {
    let (report, output) = match &args.what {
        What::ShowO { folders, moe, seed } => {
            let level = match moe {
                Experts::None => MoeLevel::None,
                Experts::Token => MoeLevel::Token,
                Experts::Sequence => MoeLevel::Sequence,
                Experts::Both => MoeLevel::Both,
            };
            let options = ImportOptions { level, seed: *seed, ..folders.options() };
            (show_o(&folders.source, &folders.output, &options)?, &folders.output)
        }
        What::Magvitv2 { folders } => (magvitv2(&folders.source, &folders.output, &folders.options())?, &folders.output),
    };
    let ImportReport { num_imported, num_added, num_values, dropped } = report;
    say(&format!(
        "{}: {num_imported} tensors taken over, {num_added} added for the experts, {num_values} values; {} left out because they follow from the configuration",
        output.display(),
        dropped.len()
    ))
}
