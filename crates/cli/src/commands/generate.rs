//! `unif2ace generate`, and what `edit` shares with it: progress, pictures of the steps, writing the results.

use std::path::{Path, PathBuf};

use clap::Args;
use unif2ace_image::{Provenance, RgbImage, save_gif, save_png};
use unif2ace_pipeline::{GenerateOptions, Pipeline, PipelineError, Progress};

use crate::options::{ModelArgs, SamplingArgs, catch_interrupt, check_outputs, interrupted, numbered};
use crate::outcome::{Failure, Outcome, say};

/// Time that the animation shows each step.
const STEP_DELAY_MS: u32 = 250;

/// Generate a face from a text.
#[derive(Debug, Args)]
pub struct GenerateArgs {
    /// What to show, for example "an old man with a grey beard and round glasses".
    prompt: String,
    /// PNG to write; several pictures get numbers.
    #[arg(short, long, value_name = "FILE", default_value = "face.png", help_heading = "Output")]
    output: PathBuf,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    model: ModelArgs,
}

/// Generates and writes.
pub fn run(args: &GenerateArgs) -> Outcome {
    let options = args.sampling.options(&args.prompt, &args.model)?;
    options.check()?;
    check_outputs(&args.output, options.num_images)?;
    let pipeline = args.model.load()?;
    make(&pipeline, &args.sampling, &options, &args.output, 1, |progress| pipeline.generate(&options, progress))
}

/// Runs `work`, which samples `runs_per_image` times for each picture, with a progress bar and writes its pictures, and those of the steps, where they were asked for.
pub fn make(
    pipeline: &Pipeline,
    sampling: &SamplingArgs,
    options: &GenerateOptions,
    output: &Path,
    runs_per_image: usize,
    work: impl FnOnce(&mut dyn FnMut(&Progress<'_>) -> bool) -> Result<Vec<RgbImage>, PipelineError>,
) -> Outcome {
    catch_interrupt();
    if let Some(folder) = &sampling.save_steps {
        unif2ace_io::create_dir_all(folder)?;
    }
    let bar = sampling.progress_bar(runs_per_image);
    let mut steps: Vec<Vec<RgbImage>> = vec![Vec::new(); sampling.num_images];
    let images = work(&mut |progress| {
        bar.inc(1);
        if let Some(image) = progress.image {
            steps[progress.image_index].push(image.clone());
        }
        !interrupted()
    });
    bar.finish_and_clear();
    let images = match images {
        Err(PipelineError::Stopped) => return Err(Failure::Interrupted("interrupted: nothing was written")),
        images => images?,
    };
    if let Some(folder) = &sampling.save_steps {
        for (index, frames) in steps.iter().enumerate() {
            for (step, frame) in frames.iter().enumerate() {
                let path = folder.join(format!("image-{:02}-step-{:02}.png", index + 1, step + 1));
                save_png(path, frame, Some(&provenance(pipeline, sampling, options, index)))?;
            }
            save_gif(folder.join(format!("image-{:02}.gif", index + 1)), frames, STEP_DELAY_MS)?;
        }
    }
    for (index, image) in images.iter().enumerate() {
        let path = numbered(output, index, images.len());
        save_png(&path, image, Some(&provenance(pipeline, sampling, options, index)))?;
        say(&path.display().to_string())?;
    }
    Ok(())
}

fn provenance(pipeline: &Pipeline, sampling: &SamplingArgs, options: &GenerateOptions, index: usize) -> Provenance {
    let settings = [
        ("Image index", index.to_string()),
        ("Sampler", options.sampler.to_string()),
        ("Inference steps", options.num_inference_steps.to_string()),
        ("Guidance scale", options.guidance_scale.to_string()),
        ("Temperature", options.temperature.to_string()),
        ("Top k", options.top_k.map_or_else(|| "all".into(), |k| k.to_string())),
    ];
    Provenance {
        software: concat!("unif2ace ", env!("CARGO_PKG_VERSION")).into(),
        model: pipeline.name.clone(),
        prompt: (!sampling.private).then(|| options.prompt.clone()),
        seed: Some(options.seed),
        settings: settings.map(|(keyword, text)| (keyword.to_owned(), text)).into(),
    }
}
