//! `unif2ace import`: released checkpoints become model folders.

use std::path::{Path, PathBuf};

use burn::tensor::Device;
use clap::{Args, Subcommand, ValueEnum};
use unif2ace_data::TextTokenizer;
use unif2ace_model::config::MoeLevel;
use unif2ace_weights::FloatType;
use unif2ace_weights::import::{ImportOptions, ImportReport, magvitv2, show_o};

use crate::outcome::{Failure, Outcome, remark, say};

const MAX_TOKENIZER_BYTES: u64 = 64 << 20;

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
        /// Phi-1.5's tokenizer.json; without it, the one in the checkpoint's folder.
        #[arg(long, value_name = "FILE")]
        tokenizer: Option<PathBuf>,
    },
    /// The image tokenizer MAGVIT-v2.
    #[command(name = "magvitv2")]
    Magvitv2 {
        #[command(flatten)]
        folders: Folders,
        /// Pixels a side of the pictures: 256, or 512 for the 512-pixel Show-o.
        #[arg(long, default_value_t = 256)]
        resolution: usize,
    },
}

#[derive(Debug, Args)]
struct Folders {
    /// Folder in the Hugging Face layout, or a safetensors file.
    source: PathBuf,
    /// Model folder to write; a folder that exists keeps its other parts.
    #[arg(short, long, value_name = "DIR", default_value = "models/base")]
    output: PathBuf,
    /// Number type of the written weights; without it the checkpoint's own, which keeps every bit.
    #[arg(long, value_enum)]
    dtype: Option<Stored>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Experts {
    None,
    Token,
    Sequence,
    Both,
}

/// Number type of written weights.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Stored {
    F32,
    F16,
    Bf16,
}

impl From<Stored> for FloatType {
    fn from(stored: Stored) -> Self {
        match stored {
            Stored::F32 => Self::F32,
            Stored::F16 => Self::F16,
            Stored::Bf16 => Self::Bf16,
        }
    }
}

impl Folders {
    fn options(&self) -> ImportOptions {
        ImportOptions { float: self.dtype.map(Into::into), ..ImportOptions::new(Device::flex()) }
    }
}

/// Imports.
pub fn run(args: &ImportArgs) -> Outcome {
    let (report, output) = match &args.what {
        What::ShowO { folders, moe, seed, tokenizer } => {
            let level = match moe {
                Experts::None => MoeLevel::None,
                Experts::Token => MoeLevel::Token,
                Experts::Sequence => MoeLevel::Sequence,
                Experts::Both => MoeLevel::Both,
            };
            let options = ImportOptions { level, seed: *seed, ..folders.options() };
            let tokenizer = read_tokenizer(&folders.source, tokenizer.as_deref())?;
            let report = show_o(&folders.source, &folders.output, &options)?;
            match tokenizer {
                Some(bytes) => unif2ace_io::write_atomic(folders.output.join("tokenizer.json"), &bytes)?,
                None => remark(&format!(
                    "hint: {} still needs the tokenizer.json of microsoft/phi-1_5 on the Hugging Face hub; give it with --tokenizer or copy it there",
                    folders.output.display()
                )),
            }
            (report, &folders.output)
        }
        What::Magvitv2 { folders, resolution } => {
            let options = ImportOptions { resolution: Some(*resolution), ..folders.options() };
            (magvitv2(&folders.source, &folders.output, &options)?, &folders.output)
        }
    };
    let ImportReport { num_imported, num_added, num_values, dropped } = report;
    say(&format!(
        "{}: {num_imported} tensors taken over, {num_added} added for the experts, {num_values} values; {} left out because they follow from the configuration",
        output.display(),
        dropped.len()
    ))
}

/// The bytes of a tokenizer that can be read: the given one, or the one beside the checkpoint.
fn read_tokenizer(source: &Path, given: Option<&Path>) -> Result<Option<Vec<u8>>, Failure> {
    let beside = source.join("tokenizer.json");
    let Some(path) = given.or_else(|| beside.is_file().then_some(&beside)) else { return Ok(None) };
    TextTokenizer::from_file(path)?;
    Ok(Some(unif2ace_io::read_capped(path, MAX_TOKENIZER_BYTES)?))
}
