//! `unif2ace lora`: adapters into a model folder's weights, and out of them again.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use unif2ace_weights::{LoraFile, Merge, PACKED_FILE, SafetensorsDir, merge_lora};

use super::import::Stored;
use super::pack::{copy_others, same_folder};
use crate::outcome::{Outcome, fail, say};

/// Merge low-rank adapters into a model's weights, or take them out again.
#[derive(Debug, Args)]
pub struct LoraArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Add the adapters to the weights.
    Merge(Folders),
    /// Subtract adapters that were merged; rounding aside this gives the model before back.
    Unmerge(Folders),
}

#[derive(Debug, Args)]
struct Folders {
    /// Model folder.
    model: PathBuf,
    /// The adapters, as training writes them: lora.safetensors.
    lora: PathBuf,
    /// Folder to write.
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,
    /// Number type of the written weights [default: the model's]. bf16 and f16 round what is merged.
    #[arg(long, value_enum)]
    dtype: Option<Stored>,
}

/// Merges or unmerges.
pub fn run(args: &LoraArgs) -> Outcome {
    let (what, folders) = match &args.what {
        What::Merge(folders) => (Merge::Add, folders),
        What::Unmerge(folders) => (Merge::Remove, folders),
    };
    let Folders { model, lora, output, dtype } = folders;
    if !model.join("config.json").is_file() {
        let shown = model.display();
        return Err(fail(format!("model {shown}: expected a folder with a config.json\nhint: give the folder of a model")));
    }
    if model.join(PACKED_FILE).is_file() {
        let shown = model.display();
        return Err(fail(format!(
            "model {shown}: expected plain weights, found packed ones\nhint: give the folder that was packed, and pack the result"
        )));
    }
    if same_folder(model, output) {
        return Err(fail("output: expected another folder than the model's\nhint: for example -o models/merged"));
    }
    let source = SafetensorsDir::open(model.join("model.safetensors"))?;
    let adapters = LoraFile::open(lora)?;
    merge_lora(&source, &adapters, what, output.join("model.safetensors"), dtype.map(Into::into))?;
    copy_others(model, output)?;
    let done = if what == Merge::Add { "merged into" } else { "taken out of" };
    say(&format!("{}: adapters of rank {} {done} {}", output.display(), adapters.info().rank, model.display()))
}
