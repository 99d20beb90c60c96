//! The paper's ablations at small scale: each row's recipe trained with several seeds on the frozen parts of a model folder, evaluated, and
//! gathered into one table. A row that is done is not done again, and one that was interrupted goes on.

use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::Value;
use unif2ace_eval::{EvalOptions, evaluate};
use unif2ace_pipeline::{GenerationConfig, Pipeline, PipelineOptions};
use unif2ace_train::{Outcome as TrainOutcome, Recipe, Session};

use crate::Outcome;

/// What a run takes from the model folder: everything but the transformer.
const PARTS: [&str; 6] =
    ["config.json", "generation_config.json", "tokenizer.json", "vq.safetensors", "face.safetensors", "clip.safetensors"];

/// Columns of the table: title and place in an evaluation's JSON.
const COLUMNS: [(&str, &[&str]); 6] = [
    ("generation agreement, %", &["generation", "agreement", "percent"]),
    ("with shuffled captions, %", &["generation", "agreement_with_shuffled_captions", "percent"]),
    ("small Fréchet distance", &["generation", "small_frechet_distance"]),
    ("bound, bits a token", &["likelihood", "bits_per_token"]),
    ("answers, %", &["answers", "all", "exact", "percent"]),
    ("caption precision, %", &["captions", "precision", "percent"]),
];

/// Options of the ablations.
#[derive(Debug, Args)]
pub struct AblationArgs {
    /// Rows, each a recipe of that name [default: all].
    rows: Vec<String>,
    /// Folder of the recipes.
    #[arg(long, default_value = "recipes/ablations")]
    recipes: PathBuf,
    /// Folder of the face set.
    #[arg(long)]
    faces: PathBuf,
    /// Model folder whose tokenizers and encoders are used.
    #[arg(long, default_value = "models/mini")]
    parts: PathBuf,
    /// Folder of runs and results.
    #[arg(long, default_value = "runs/ablations")]
    output: PathBuf,
    /// Seeds of each row, from 1.
    #[arg(long, default_value_t = 2)]
    seeds: u64,
    /// Pictures for answers and captions.
    #[arg(long, default_value_t = 200)]
    num_images: usize,
    /// Captions to generate from.
    #[arg(long, default_value_t = 200)]
    num_generated: usize,
    /// Pictures whose likelihood is bounded.
    #[arg(long, default_value_t = 50)]
    num_scored: usize,
}

/// Trains and measures what is missing, and prints the table.
pub fn run(args: &AblationArgs) -> Outcome {
    let mut rows = args.rows.clone();
    if rows.is_empty() {
        for entry in std::fs::read_dir(&args.recipes)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "toml") {
                rows.extend(path.file_stem().map(|name| name.to_string_lossy().into_owned()));
            }
        }
        rows.sort();
    }
    let mut lines = vec![header()];
    // Seed by seed: what is there after an interruption is a whole table of fewer seeds.
    for seed in 1..=args.seeds {
        for row in &rows {
            result(args, row, seed)?;
        }
    }
    for row in &rows {
        let results = (1..=args.seeds).map(|seed| result(args, row, seed)).collect::<Outcome<Vec<_>>>()?;
        lines.push(line(row, &results));
    }
    #[allow(clippy::print_stdout)]
    {
        println!("{}", lines.join("\n"));
    }
    Ok(())
}

/// The evaluation of one run, which is made if it isn't there.
fn result(args: &AblationArgs, row: &str, seed: u64) -> Outcome<Value> {
    let folder = args.output.join(format!("{row}-{seed}"));
    let path = folder.join("result.json");
    if let Ok(text) = std::fs::read(&path) {
        return Ok(serde_json::from_slice(&text)?);
    }
    let (model, output) = (folder.join("model"), folder.join("run"));
    let mut recipe = Recipe::read(&args.recipes.join(format!("{row}.toml")))?;
    (recipe.run.seed, recipe.run.output, recipe.run.export) = (seed, output.clone(), model.clone());
    recipe.data.path.clone_from(&args.faces);
    // The frozen parts are the same in all rows: pictures are encoded once.
    recipe.data.cache = Some(args.output.join("cache"));
    take_parts(&args.parts, &model)?;
    let resume = output.join("checkpoints").is_dir();
    if unif2ace_train::run(&recipe, Session { resume, ..Session::default() })? != TrainOutcome::Finished {
        return Err(format!("row {row}, seed {seed}: interrupted\nhint: the same command goes on from here").into());
    }
    let pipeline = Pipeline::from_pretrained(&model, &PipelineOptions::default())?;
    let recommended = GenerationConfig::read(&model)?.options();
    let options = EvalOptions {
        faces: args.faces.clone(),
        split: "test".into(),
        num_images: args.num_images,
        num_generated: args.num_generated,
        num_scored: args.num_scored,
        sampler: recommended.sampler_config(),
        guidance_scale: recommended.guidance_scale,
        seed,
        prompts: None,
    };
    let mut report = evaluate(&pipeline, &options, &mut |what| tracing::info!("{row}, seed {seed}: {what}"))?;
    if let (Value::Object(report), Some(optimizer)) = (&mut report, &recipe.optimizer) {
        report.insert("num_steps".into(), optimizer.num_steps.into());
    }
    unif2ace_io::write_atomic(&path, format!("{report:#}\n").as_bytes())?;
    Ok(report)
}

fn take_parts(from: &Path, to: &Path) -> Outcome {
    unif2ace_io::create_dir_all(to)?;
    for name in PARTS {
        if !to.join(name).is_file() {
            // Whole or not at all: an interrupted copy would be taken for a finished one.
            let bytes = std::fs::read(from.join(name)).map_err(|error| format!("{}: {error}", from.join(name).display()))?;
            unif2ace_io::write_atomic(to.join(name), &bytes)?;
        }
    }
    Ok(())
}

fn header() -> String {
    let titles: Vec<&str> = COLUMNS.iter().map(|(title, _)| *title).collect();
    format!("| row | seeds | {} |\n|---|---|{}", titles.join(" | "), "---|".repeat(COLUMNS.len()))
}

/// Means over the seeds, with half the distance between the smallest and the largest.
fn line(row: &str, results: &[Value]) -> String {
    let cell = |place: &[&str]| {
        let found: Vec<f64> = results
            .iter()
            .filter_map(|result| place.iter().try_fold(result, |value, name| value.get(name)).and_then(Value::as_f64))
            .collect();
        if found.is_empty() {
            return "–".to_owned();
        }
        let mean = found.iter().sum::<f64>() / found.len() as f64;
        let (low, high) =
            found.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), &value| (low.min(value), high.max(value)));
        format!("{mean:.2} ± {:.2}", (high - low) / 2.0)
    };
    let cells: Vec<String> = COLUMNS.iter().map(|(_, place)| cell(place)).collect();
    format!("| {row} | {} | {} |", results.len(), cells.join(" | "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_means_and_half_the_range() {
        let result = |agreement: f64| serde_json::json!({ "generation": { "agreement": { "percent": agreement } } });
        let line = line("alpha-0.1", &[result(40.0), result(41.0)]);
        assert!(line.starts_with("| alpha-0.1 | 2 | 40.50 ± 0.50 | – |"), "{line}");
        assert_eq!(line.matches('|').count(), header().lines().next().map_or(0, |line| line.matches('|').count()));
    }
}
