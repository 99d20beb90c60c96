//! `unif2ace inspect`.

use std::path::{Path, PathBuf};

use clap::Args;
use unif2ace_image::{DecodeLimits, load_rgb};
use unif2ace_pipeline::{Pipeline, PipelineOptions, draw_expert_use, summary, tensors};

use crate::options::{catch_interrupt, check_outputs, interrupted, progress_bar};
use crate::outcome::{Failure, Outcome, fail, say};

/// Show what is in a model folder, or how often its experts fire.
#[derive(Debug, Args)]
pub struct InspectArgs {
    /// Model folder.
    model: PathBuf,
    /// Draw how often each expert fires in each block, over the pictures of a folder.
    #[arg(long, requires = "images")]
    experts: bool,
    /// Folder with pictures for --experts.
    #[arg(long, value_name = "DIR", requires = "experts")]
    images: Option<PathBuf>,
    /// PNG of --experts; the numbers go beside it as JSON.
    #[arg(short, long, value_name = "FILE", default_value = "experts.png")]
    output: PathBuf,
    /// No progress bar.
    #[arg(long, short)]
    quiet: bool,
}

/// Prints or draws.
pub fn run(args: &InspectArgs) -> Outcome {
    if let (true, Some(folder)) = (args.experts, &args.images) {
        return experts(args, folder);
    }
    let sizes = summary(&args.model)?;
    let config = unif2ace_weights::read_model_config(&args.model)?;
    say(&format!("config\n{}\n", serde_json::to_string_pretty(&config)?))?;
    say("tensors")?;
    for line in tensors(&args.model)? {
        say(&line)?;
    }
    let rows = [
        ("transformer", sizes.parameters),
        ("  active, text to image", sizes.active_text_to_image),
        ("  active, understanding", sizes.active_understanding),
        ("image tokenizer", sizes.vq_parameters),
        ("face network", sizes.face_parameters),
        ("CLIP pair", sizes.clip_parameters),
    ];
    say("\nparameters")?;
    for (name, count) in rows {
        say(&format!("{name:<26} {count:>14}"))?;
    }
    Ok(())
}

fn experts(args: &InspectArgs, folder: &Path) -> Outcome {
    check_outputs(&args.output, 1)?;
    let paths = pictures(folder)?;
    let pipeline = Pipeline::from_pretrained(&args.model, &PipelineOptions::default())?;
    catch_interrupt();
    let bar = progress_bar(paths.len() as u64, "pictures", args.quiet);
    let images = paths.iter().map(|path| Ok(load_rgb(path, DecodeLimits::default())?));
    let found = pipeline.expert_use(images, &mut |number| {
        bar.set_position(number as u64);
        !interrupted()
    });
    bar.finish_and_clear();
    let found = match found {
        Err(unif2ace_pipeline::PipelineError::Stopped) => return Err(Failure::Interrupted("interrupted: nothing was written")),
        found => found?,
    };
    draw_expert_use(&found, &args.output)?;
    let numbers = args.output.with_extension("json");
    unif2ace_io::write_atomic(&numbers, serde_json::to_string_pretty(&found)?.as_bytes())?;
    say(&format!("{}\n{}", args.output.display(), numbers.display()))
}

/// Every picture of a folder, in the order of the names; other files are left alone.
fn pictures(folder: &Path) -> Result<Vec<PathBuf>, Failure> {
    let entries = std::fs::read_dir(folder)
        .map_err(|error| fail(format!("folder of pictures {}: {error}\nhint: give a folder", folder.display())))?;
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let extension = path.extension().map(|extension| extension.to_string_lossy().to_lowercase());
        if extension.is_some_and(|extension| matches!(extension.as_str(), "png" | "jpg" | "jpeg" | "webp")) {
            paths.push(path);
        }
    }
    paths.sort();
    if paths.is_empty() {
        return Err(fail(format!(
            "folder of pictures {}: expected PNG, JPEG or WebP files, found none\nhint: give the folder that holds them",
            folder.display()
        )));
    }
    Ok(paths)
}
