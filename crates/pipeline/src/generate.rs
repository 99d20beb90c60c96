//! Pictures from text, and new parts in a given picture.

use tracing::debug_span;
use unif2ace_diffusion::MASKED;
use unif2ace_diffusion::sampler::{KeyedDraws, Sampler, SamplerConfig, SamplerState};
use unif2ace_image::{Pixels, RgbImage, TokenMask, postprocess};

use crate::denoise::{Denoiser, GridRequest};
use crate::error::{PipelineError, Result};
use crate::pretrained::Pipeline;

/// Pictures that are denoised together: the gain is with the second, memory grows with each.
const TOGETHER: usize = 4;

/// Settings of generation.
#[derive(Debug, Clone)]
pub struct GenerateOptions {
    /// What to show.
    pub prompt: String,
    /// Seed; with the number of the image it decides every random number.
    pub seed: u64,
    /// Pictures.
    pub num_images: usize,
    /// Denoising steps.
    pub num_inference_steps: usize,
    /// 0 for none; logits are `(1 + g) conditional - g unconditional`.
    pub guidance_scale: f32,
    /// MaskGIT: noise on the confidence. Euler and Tweedie: temperature of the codes.
    pub temperature: f32,
    /// Draws from so many of the most probable codes of a place; all where absent, as the reference.
    pub top_k: Option<usize>,
    /// Which rule turns logits into codes.
    pub sampler: Sampler,
    /// Decode the picture after every step too (for [`Progress::image`]).
    pub decode_steps: bool,
}

impl Default for GenerateOptions {
    fn default() -> Self {
        Self {
            prompt: String::new(),
            seed: 0,
            num_images: 1,
            num_inference_steps: 12,
            guidance_scale: 2.0,
            temperature: 1.0,
            top_k: None,
            sampler: Sampler::Maskgit,
            decode_steps: false,
        }
    }
}

/// Settings of editing: what is repainted and how.
#[derive(Debug, Clone)]
pub struct EditOptions {
    /// How the new part is made; `num_images` variants.
    pub generate: GenerateOptions,
    /// Which tokens are repainted, on the model's token grid.
    pub repaint: TokenMask,
}

/// What has been done of one picture.
pub struct Progress<'a> {
    /// Which picture.
    pub image_index: usize,
    /// Step that was done, from 1.
    pub step: usize,
    /// Steps in all.
    pub num_steps: usize,
    /// The picture so far, where [`GenerateOptions::decode_steps`] is set; places that are still masked are drawn as code 0.
    pub image: Option<&'a RgbImage>,
}

impl GenerateOptions {
    /// Checks all settings, so that nobody waits for a model to load only to be told of a typing error.
    ///
    /// # Errors
    /// Names the setting that is out of range.
    pub fn check(&self) -> Result<()> {
        if self.prompt.trim().is_empty() {
            return Err(PipelineError::Input {
                what: "prompt",
                expected: "a description of a face".into(),
                found: "nothing".into(),
                hint: "for example \"a smiling old man with a grey beard\"",
            });
        }
        if !(1..=1024).contains(&self.num_images) {
            return Err(PipelineError::Input {
                what: "number of images",
                expected: "1 to 1024".into(),
                found: self.num_images.to_string(),
                hint: "run the command again with another seed for more",
            });
        }
        if !self.guidance_scale.is_finite() || self.guidance_scale < 0.0 {
            return Err(PipelineError::Input {
                what: "guidance scale",
                expected: "0 or more".into(),
                found: self.guidance_scale.to_string(),
                hint: "0 turns guidance off; 1 to 5 follow the prompt more and more closely",
            });
        }
        Ok(self.sampler_config().validate()?)
    }

    /// The settings of the sampler among these.
    pub fn sampler_config(&self) -> SamplerConfig {
        let mut config = SamplerConfig {
            sampler: self.sampler,
            num_steps: self.num_inference_steps,
            top_k: self.top_k,
            ..SamplerConfig::default()
        };
        match self.sampler {
            Sampler::Maskgit => config.confidence_temperature = f64::from(self.temperature),
            Sampler::Euler | Sampler::Tweedie => config.code_temperature = self.temperature,
        }
        config
    }
}

impl Pipeline {
    /// Makes `num_images` pictures. `progress` is told after every step of every picture and stops the work by returning false.
    ///
    /// Picture i depends on (seed, i) alone: not on how many are made, nor on the number of threads.
    ///
    /// # Errors
    /// When a setting is out of range, the prompt is empty or longer than the context, or `progress` says stop.
    pub fn generate(&self, options: &GenerateOptions, progress: &mut dyn FnMut(&Progress<'_>) -> bool) -> Result<Vec<RgbImage>> {
        self.fill(&vec![MASKED; self.config().num_vq_tokens], options, progress)
    }

    /// Repaints a part of a picture. The picture is resized and cropped to the model's size, and all of it passes through the image
    /// tokenizer, so kept parts change slightly too.
    ///
    /// # Errors
    /// As [`Pipeline::generate`], and when the mask isn't on the model's grid or repaints nothing.
    pub fn edit(
        &self,
        image: &RgbImage,
        options: &EditOptions,
        progress: &mut dyn FnMut(&Progress<'_>) -> bool,
    ) -> Result<Vec<RgbImage>> {
        let _awake = self.keep_awake();
        let mask = &options.repaint;
        let mut grid = self.encode(self.pixels(image)?)?;
        if mask.repaint.len() != grid.len() || mask.num_repainted() == 0 {
            return Err(PipelineError::Input {
                what: "edit mask",
                expected: format!("a part of {} tokens to repaint", grid.len()),
                found: format!("{} of {} tokens", mask.num_repainted(), mask.repaint.len()),
                hint: "paint the part to change white; a part smaller than a token (16 pixels of 128) may vanish",
            });
        }
        for (code, &repaint) in grid.iter_mut().zip(&mask.repaint) {
            if repaint {
                *code = MASKED;
            }
        }
        self.fill(&grid, &options.generate, progress)
    }

    fn fill(
        &self,
        start: &[u32],
        options: &GenerateOptions,
        progress: &mut dyn FnMut(&Progress<'_>) -> bool,
    ) -> Result<Vec<RgbImage>> {
        let _awake = self.keep_awake();
        // A picture's numbers depend neither on its company nor on how many threads there are, so several share each pass.
        let mut images = Vec::with_capacity(options.num_images);
        while images.len() < options.num_images {
            let (first, count) = (images.len(), TOGETHER.min(options.num_images - images.len()));
            let denoiser = self.denoiser(&vec![options.prompt.as_str(); count], options.guidance_scale)?;
            for codes in self.denoise(&denoiser, &vec![start; count], options, first, progress)? {
                images.push(self.picture(&codes)?);
            }
        }
        Ok(images)
    }

    /// Codes of pictures from grids with masked places, one for each prompt of the denoiser; the first is number `first_image`.
    pub(crate) fn denoise(
        &self,
        denoiser: &Denoiser<'_>,
        starts: &[&[u32]],
        options: &GenerateOptions,
        first_image: usize,
        progress: &mut dyn FnMut(&Progress<'_>) -> bool,
    ) -> Result<Vec<Vec<u32>>> {
        options.check()?;
        let config = options.sampler_config();
        let num_steps = config.num_steps;
        let state = |(index, start): (usize, &&[u32])| {
            let draws = KeyedDraws::new(options.seed, (first_image + index) as u64);
            SamplerState::new(config.clone(), start.to_vec(), self.config().codebook_size, draws)
        };
        let mut states = starts.iter().enumerate().map(state).collect::<std::result::Result<Vec<_>, _>>()?;
        let mut step = 0;
        while states.iter().any(|state| !state.is_done()) {
            step += 1;
            let _step = debug_span!("step", step).entered();
            let requests: Vec<GridRequest<'_>> = states.iter().map(|state| GridRequest::from(state.request())).collect();
            let logits = denoiser.logits(&requests)?;
            drop(requests);
            for (index, (state, logits)) in states.iter_mut().zip(&logits).enumerate().filter(|(_, (state, _))| !state.is_done())
            {
                let outcome = debug_span!("sampler").in_scope(|| state.step(logits))?;
                let so_far = match options.decode_steps {
                    false => None,
                    true => {
                        // MaskGIT guesses every place at every step; the others show code 0 where nothing is known.
                        let codes = outcome.maskgit.map_or_else(|| state.grid().to_vec(), |maskgit| maskgit.codes);
                        let shown: Vec<u32> = codes.into_iter().map(|code| if code == MASKED { 0 } else { code }).collect();
                        Some(self.picture(&shown)?)
                    }
                };
                if !progress(&Progress { image_index: first_image + index, step, num_steps, image: so_far.as_ref() }) {
                    return Err(PipelineError::Stopped);
                }
            }
        }
        Ok(states.into_iter().map(SamplerState::into_codes).collect::<std::result::Result<_, _>>()?)
    }

    /// One picture of its codes.
    ///
    /// # Errors
    /// When the codes aren't those of one picture.
    pub fn picture(&self, codes: &[u32]) -> Result<RgbImage> {
        let side = self.resolution();
        let data = self.decode(codes)?.into_data().iter::<f32>().collect();
        Ok(postprocess(&Pixels { height: side, width: side, data })?)
    }
}
