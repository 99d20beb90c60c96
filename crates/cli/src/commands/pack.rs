//! `unif2ace pack`: weights laid out for the CPU once, so that the next start maps them as they are.

use std::path::{Path, PathBuf};

use burn::tensor::Device;
use clap::Args;
use unif2ace_model::config::ModelConfig;
use unif2ace_model::transformer::Unif2ace;
use unif2ace_ops::WeightFormat;
use unif2ace_weights::{PACKED_FILE, SafetensorsDir, read_model_config, save_packed};

use crate::options::{Dtype, progress_bar};
use crate::outcome::{Outcome, fail, say};

/// What a folder made from another one takes over as it is, where it is there.
const OTHERS: [&str; 7] = [
    "tokenizer.json",
    "generation_config.json",
    "README.md",
    "vq.safetensors",
    "clip.safetensors",
    "face.safetensors",
    // Last, so that a folder with it is whole.
    "config.json",
];

/// Lay out a model's weights for the CPU, in a folder that starts at once and shares its memory among processes.
#[derive(Debug, Args)]
pub struct PackArgs {
    /// Model folder.
    model: PathBuf,
    /// Folder to write.
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,
    /// Number format of the packed weights.
    #[arg(long, value_enum)]
    dtype: Dtype,
    /// No progress bar.
    #[arg(long, short)]
    quiet: bool,
}

/// Packs.
pub fn run(args: &PackArgs) -> Outcome {
    let config_path = args.model.join("config.json");
    if !config_path.is_file() {
        return Err(fail(format!(
            "model {}: expected a folder with a config.json\nhint: give the folder of a model",
            args.model.display()
        )));
    }
    if args.model.join(PACKED_FILE).is_file() {
        return Err(fail(format!(
            "model {}: it is packed already\nhint: pack from the folder with model.safetensors",
            args.model.display()
        )));
    }
    let config: ModelConfig = serde_json::from_value(read_model_config(&args.model)?.into())
        .map_err(|error| fail(format!("{}: {error}", config_path.display())))?;
    config.check().map_err(|error| fail(error.to_string()))?;
    let source = SafetensorsDir::open(args.model.join("model.safetensors"))?;
    unif2ace_io::create_dir_all(&args.output)?;
    if same_folder(&args.model, &args.output) {
        return Err(fail("output: expected another folder than the model's\nhint: for example -o models/base-bf16".to_owned()));
    }
    let device = Device::flex();
    // Refused here, so that making it below can't fail.
    let template = Unif2ace::new(&config, &device).map_err(|error| fail(error.to_string()))?;
    let format: WeightFormat = args.dtype.into();
    let bar = progress_bar(source.names().count() as u64, "tensors", args.quiet);
    let mut last = String::new();
    let path = args.output.join(PACKED_FILE);
    save_packed(|| template.clone(), &source, &path, format, &mut |name| {
        if last != name {
            name.clone_into(&mut last);
            bar.inc(1);
        }
    })?;
    bar.finish_and_clear();
    copy_others(&args.model, &args.output)?;
    let bytes = std::fs::metadata(&path).map_or(0, |file| file.len());
    say(&format!("{}: {:.2} GB of packed weights", args.output.display(), bytes as f64 * 1e-9))
}

/// Copies what of a model folder is not the transformer's weights.
pub(super) fn copy_others(model: &Path, output: &Path) -> Result<(), unif2ace_io::IoError> {
    for name in OTHERS {
        let from = model.join(name);
        if from.is_file() {
            unif2ace_io::write_atomic_with(output.join(name), |file| {
                std::io::copy(&mut std::fs::File::open(&from)?, file).map(drop)
            })?;
        }
    }
    Ok(())
}

pub(super) fn same_folder(a: &Path, b: &Path) -> bool {
    matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b)
}
