//! Options that several commands share.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use unif2ace_diffusion::sampler::Sampler;
use unif2ace_pipeline::{DeviceName, GenerateOptions, GenerationConfig, Pipeline, PipelineError, PipelineOptions, WeightFormat};

use crate::outcome::Failure;

/// Number format of weights and matrix products.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Dtype {
    /// 32-bit floats.
    F32,
    /// Factors rounded to bfloat16, sums in 32-bit floats: faster on CPUs that have the instruction.
    Bf16,
    /// The transformer's weights and rows rounded to 8 bits with shared scales, the rest as bf16: least memory.
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

/// Which model, and where it runs.
#[derive(Debug, Args)]
pub struct ModelArgs {
    /// Model folder.
    #[arg(long, value_name = "PATH", default_value_os_t = default_model(), help_heading = "Model")]
    pub model: PathBuf,
    /// Where to compute: auto, cpu, and vulkan or cuda in builds with them.
    #[arg(long, default_value = "auto", help_heading = "Model")]
    pub device: DeviceName,
    /// Number format of weights and matrix products [default: what the model was packed as, or f32].
    #[arg(long, value_enum, help_heading = "Model")]
    pub dtype: Option<Dtype>,
    /// Low-rank adapters to merge into the model's weights while they are read.
    #[arg(long, value_name = "FILE", help_heading = "Model")]
    pub lora: Option<PathBuf>,
}

/// The shipped model: beside the current folder, or where this program was built.
fn default_model() -> PathBuf {
    const NAME: &str = "models/mini";
    if Path::new(NAME).is_dir() {
        return NAME.into();
    }
    let built = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(NAME);
    if built.is_dir() { built } else { NAME.into() }
}

impl ModelArgs {
    /// Loads the model.
    pub fn load(&self) -> Result<Pipeline, PipelineError> {
        let options = PipelineOptions { device: self.device, weights: self.dtype.map(Into::into), lora: self.lora.clone() };
        Pipeline::from_pretrained(&self.model, &options)
    }
}

/// How codes are drawn.
#[derive(Debug, Args)]
pub struct DenoisingArgs {
    /// Seed; the same seed gives the same bytes.
    #[arg(long, default_value_t = 0, help_heading = "Sampling")]
    pub seed: u64,
    /// Denoising steps.
    #[arg(long, default_value_t = 12, help_heading = "Sampling")]
    pub num_inference_steps: usize,
    /// How closely the prompt is followed; 0 for no guidance [default: what the model recommends, or 2].
    #[arg(long, allow_negative_numbers = true, help_heading = "Sampling")]
    pub guidance_scale: Option<f32>,
    /// Randomness: of the order in which tokens are kept (maskgit), or of the tokens (euler, tweedie).
    #[arg(long, default_value_t = 1.0, allow_negative_numbers = true, help_heading = "Sampling")]
    pub temperature: f32,
    /// Draw each image token from so many of the most probable ones only; 0 for all [default: what the model recommends, or all].
    #[arg(long, value_name = "K", help_heading = "Sampling")]
    pub top_k: Option<usize>,
    /// maskgit, euler or tweedie.
    #[arg(long, default_value = "maskgit", help_heading = "Sampling")]
    pub sampler: Sampler,
}

/// How pictures are made.
#[derive(Debug, Args)]
pub struct SamplingArgs {
    #[command(flatten)]
    pub denoising: DenoisingArgs,
    /// Pictures to make, each with random numbers of its own.
    #[arg(long, default_value_t = 1, help_heading = "Sampling")]
    pub num_images: usize,
    /// Write the picture after each step here, with an animation of all steps.
    #[arg(long, value_name = "DIR", help_heading = "Output")]
    pub save_steps: Option<PathBuf>,
    /// Leave the prompt out of the picture's metadata.
    #[arg(long, help_heading = "Output")]
    pub private: bool,
    /// No progress bar.
    #[arg(long, short, help_heading = "Output")]
    pub quiet: bool,
}

impl DenoisingArgs {
    /// As options of the pipeline, with what the model recommends where nothing was asked for.
    pub fn options(&self, prompt: &str, model: &ModelArgs) -> Result<GenerateOptions, PipelineError> {
        let recommended = GenerationConfig::read(&model.model)?.options();
        Ok(GenerateOptions {
            prompt: prompt.to_owned(),
            seed: self.seed,
            num_inference_steps: self.num_inference_steps,
            guidance_scale: self.guidance_scale.unwrap_or(recommended.guidance_scale),
            temperature: self.temperature,
            top_k: match self.top_k {
                None => recommended.top_k,
                Some(0) => None,
                some => some,
            },
            sampler: self.sampler,
            ..recommended
        })
    }
}

impl SamplingArgs {
    /// As options of the pipeline.
    pub fn options(&self, prompt: &str, model: &ModelArgs) -> Result<GenerateOptions, PipelineError> {
        let options = self.denoising.options(prompt, model)?;
        Ok(GenerateOptions { num_images: self.num_images, decode_steps: self.save_steps.is_some(), ..options })
    }

    /// A bar over all steps of all pictures; hidden where standard error is no terminal.
    pub fn progress_bar(&self, runs_per_image: usize) -> ProgressBar {
        progress_bar((self.num_images * runs_per_image * self.denoising.num_inference_steps) as u64, "steps", self.quiet)
    }
}

/// A bar with a count and an estimate of the rest.
pub fn progress_bar(length: u64, unit: &str, quiet: bool) -> ProgressBar {
    if quiet {
        return ProgressBar::hidden();
    }
    let template = format!("{{bar:32}} {{pos}}/{{len}} {unit} {{elapsed}} (eta {{eta}}) {{msg}}");
    ProgressBar::new(length).with_style(ProgressStyle::with_template(&template).unwrap_or_else(|_| ProgressStyle::default_bar()))
}

/// Where picture `index` of several goes: `face.png` becomes `face-01.png`, `face-02.png` and so on.
pub fn numbered(path: &Path, index: usize, num_images: usize) -> PathBuf {
    if num_images == 1 {
        return path.to_path_buf();
    }
    let digits = num_images.to_string().len().max(2);
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let extension = path.extension().map(|extension| format!(".{}", extension.to_string_lossy())).unwrap_or_default();
    path.with_file_name(format!("{stem}-{:0digits$}{extension}", index + 1))
}

/// Checks before long work that every picture can be written, and that its name says PNG.
pub fn check_outputs(path: &Path, num_images: usize) -> Result<(), Failure> {
    let extension = path.extension().map(|extension| extension.to_string_lossy().to_lowercase());
    if extension.as_deref() != Some("png") {
        return Err(crate::outcome::fail(format!(
            "output {}: expected a name that ends in .png\nhint: pictures are written as PNG; for example -o face.png",
            path.display()
        )));
    }
    unif2ace_io::ensure_writable(numbered(path, 0, num_images.max(1)))?;
    Ok(())
}

static ASKED_TO_STOP: AtomicBool = AtomicBool::new(false);

/// The first Ctrl-C asks the work to stop, the second ends the process.
pub fn catch_interrupt() {
    let handler = || {
        if ASKED_TO_STOP.swap(true, Ordering::SeqCst) {
            std::process::exit(i32::from(crate::outcome::INTERRUPTED));
        }
    };
    if let Err(error) = ctrlc::set_handler(handler) {
        tracing::debug!("no Ctrl-C handler: {error}");
    }
}

/// Whether Ctrl-C was pressed.
pub fn interrupted() -> bool {
    ASKED_TO_STOP.load(Ordering::SeqCst)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::numbered;

    #[test]
    fn one_picture_keeps_its_name_and_several_are_numbered() {
        assert_eq!(numbered(Path::new("a/face.png"), 0, 1), Path::new("a/face.png"));
        assert_eq!(numbered(Path::new("a/face.png"), 1, 3), Path::new("a/face-02.png"));
        assert_eq!(numbered(Path::new("face.v2.png"), 99, 100), Path::new("face.v2-100.png"));
    }
}
