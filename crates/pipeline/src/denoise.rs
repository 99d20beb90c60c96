//! The network side of generation: prompts read once, then logits at the wanted places of image grids, step after step.

use burn::tensor::{Device, Int, Tensor, TensorData};
use unif2ace_data::TextTokenizer;
use unif2ace_diffusion::MASKED;
use unif2ace_diffusion::sampler::{KeyedDraws, Request, SamplerConfig, SamplerState, guide};
use unif2ace_model::moe::ExpertFeatures;
use unif2ace_model::prompts::Prompter;
use unif2ace_model::transformer::{Features, PromptCache, Unif2ace};

use crate::error::Result;
use crate::pretrained::text_ids;

/// Prompts whose keys and values are cached: text is causal, so they serve every denoising step. With guidance each prompt has an
/// empty twin behind all prompts.
pub struct Denoiser<'a> {
    unified: &'a Unif2ace,
    device: Device,
    prompts: PromptCache,
    num_prompts: usize,
    guidance_scale: f32,
}

/// One grid to denoise: its codes, the places whose logits are wanted, and the masked part.
pub struct GridRequest<'a> {
    /// Codes, [`MASKED`] where unknown.
    pub grid: &'a [u32],
    /// Places, ascending.
    pub wanted: &'a [usize],
    /// Masked part, 0 to 1.
    pub masked_fraction: f32,
}

impl<'a> Denoiser<'a> {
    /// Reads the prompts, all in one pass. Pads are left out and only counted in the positions (as in Show-o). Where a prompt lies among others decides
    /// the last bits of its keys and values, so pictures of different prompts together may differ in theirs from each alone.
    ///
    /// # Errors
    /// When a prompt is longer than the context.
    pub fn new(
        unified: &'a Unif2ace,
        tokenizer: &TextTokenizer,
        device: &Device,
        prompts: &[&str],
        guidance_scale: f32,
    ) -> Result<Self> {
        let config = unified.config();
        let encode = |text: &str| text_ids(tokenizer, text);
        let prompter = Prompter::new(config, &encode)?;
        let empty = (guidance_scale > 0.0).then_some("");
        // A prompt that comes again is read once.
        let mut texts: Vec<&str> = Vec::with_capacity(prompts.len() + 1);
        for &text in prompts.iter().chain(&empty) {
            if !texts.contains(&text) {
                texts.push(text);
            }
        }
        let heads = texts.iter().map(|text| prompter.t2i_head(text)).collect::<std::result::Result<Vec<_>, _>>()?;
        let read = unified.read_prompts(&heads.iter().map(Vec::as_slice).collect::<Vec<_>>())?;
        let twins = prompts.iter().filter_map(|_| empty.as_ref());
        let rows: Vec<&PromptCache> = prompts
            .iter()
            .chain(twins)
            .filter_map(|text| texts.iter().position(|read| read == text))
            .map(|place| &read[place])
            .collect();
        Ok(Self {
            unified,
            device: device.clone(),
            prompts: PromptCache::stack(&rows)?,
            num_prompts: prompts.len(),
            guidance_scale,
        })
    }

    /// Guided logits over the codes at the wanted places of one grid for each prompt, `[wanted * K]` each.
    ///
    /// # Errors
    /// When a grid has another size than the model's.
    pub fn logits(&self, requests: &[GridRequest<'_>]) -> Result<Vec<Vec<f32>>> {
        let (unified, device) = (self.unified, &self.device);
        let config = unified.config();
        let ids = config.special_ids();
        let n = config.num_vq_tokens;
        debug_assert_eq!(requests.len(), self.num_prompts);
        let copies = if self.guidance_scale > 0.0 { 2 } else { 1 };
        let image = |request: &GridRequest<'_>| -> Vec<u32> {
            request.grid.iter().map(|&code| if code == MASKED { ids.mask } else { code + ids.image_offset }).collect()
        };
        let images: Vec<Vec<u32>> = requests.iter().map(image).collect();
        let rows = images.iter().map(Vec::as_slice);
        let rows: Vec<&[u32]> = (0..copies).flat_map(|_| rows.clone()).collect();
        let levels = (0..copies).flat_map(|_| requests.iter().map(|request| request.masked_fraction)).collect();
        let features = Features::Raw(ExpertFeatures { noise_level: Some(levels), ..ExpertFeatures::default() });
        let hidden = tracing::debug_span!("blocks").in_scope(|| unified.denoise(&self.prompts, &rows, features))?;
        let _span = tracing::debug_span!("head").entered();
        let x_RD: Tensor<2> = hidden.x_BLD.reshape([rows.len() * n, config.hidden_size]);
        let logits_of = |row: usize, wanted: &[usize]| -> Vec<f32> {
            let places: Vec<i64> = wanted.iter().map(|&place| (row * n + place) as i64).collect();
            let places = Tensor::<1, Int>::from_data(TensorData::new(places, [wanted.len()]), device);
            let data = unified.image_logits(x_RD.clone().select(0, places)).into_data();
            data.try_to_vec::<f32>().unwrap_or_else(|_| data.iter::<f32>().collect())
        };
        let mut all = Vec::with_capacity(requests.len());
        for (row, request) in requests.iter().enumerate() {
            all.push(match (request.wanted.is_empty(), copies) {
                (true, _) => Vec::new(),
                (false, 1) => logits_of(row, request.wanted),
                (false, _) => {
                    let conditional = logits_of(row, request.wanted);
                    guide(&conditional, &logits_of(requests.len() + row, request.wanted), self.guidance_scale)?
                }
            });
        }
        Ok(all)
    }

    /// Codes of one whole picture for each prompt, all denoised together; picture i uses the random numbers of (seed, `first_image` + i).
    ///
    /// # Errors
    /// When the sampler's settings are off.
    pub fn sample(&self, sampler: &SamplerConfig, seed: u64, first_image: u64) -> Result<Vec<u32>> {
        let config = self.unified.config();
        let start = |image: u64| {
            let draws = KeyedDraws::new(seed, first_image + image);
            SamplerState::new(sampler.clone(), vec![MASKED; config.num_vq_tokens], config.codebook_size, draws)
        };
        let mut states = (0..self.num_prompts as u64).map(start).collect::<std::result::Result<Vec<_>, _>>()?;
        while states.iter().any(|state| !state.is_done()) {
            let requests: Vec<GridRequest<'_>> = states.iter().map(|state| GridRequest::from(state.request())).collect();
            let logits = self.logits(&requests)?;
            drop(requests);
            for (state, logits) in states.iter_mut().zip(&logits).filter(|(state, _)| !state.is_done()) {
                state.step(logits)?;
            }
        }
        let mut codes = Vec::with_capacity(self.num_prompts * config.num_vq_tokens);
        for state in states {
            codes.extend(state.into_codes()?);
        }
        Ok(codes)
    }
}

impl<'a> From<Request<'a>> for GridRequest<'a> {
    fn from(request: Request<'a>) -> Self {
        Self { grid: request.grid, wanted: request.wanted, masked_fraction: request.masked_fraction }
    }
}
