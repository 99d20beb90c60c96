//! The network side of generation: prompts read once, then logits at the wanted places of image grids, step after step.

use burn::tensor::{Int, Tensor, TensorData};
use unif2ace_diffusion::MASKED;
use unif2ace_diffusion::sampler::guide;
use unif2ace_model::masks::{Marks, Mask, predict_next};
use unif2ace_model::moe::{ExpertFeatures, Task};
use unif2ace_model::prompts::Prompter;
use unif2ace_model::transformer::{Batch, CacheUse, Features, Input, KvCache, Positions};

use crate::error::Result;
use crate::pretrained::Pipeline;

/// Prompts whose keys and values are cached: text is causal, so they serve every denoising step. With guidance each prompt has an
/// empty twin behind all prompts.
pub struct Denoiser<'a> {
    pipeline: &'a Pipeline,
    cache: KvCache,
    image_mask_BLS: Tensor<3>,
    image_position: usize,
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
    /// Reads the prompts. Pads are left out and only counted in the positions (showo.md §2.1, §2.2).
    ///
    /// # Errors
    /// When a prompt is longer than the context.
    pub fn new(pipeline: &'a Pipeline, prompts: &[&str], guidance_scale: f32) -> Result<Self> {
        let config = pipeline.config();
        let ids = config.special_ids();
        let encode = |text: &str| pipeline.text_ids(text);
        let prompter = Prompter::new(config, &encode)?;
        let guided = guidance_scale > 0.0;
        let mut heads = Vec::with_capacity(2 * prompts.len());
        for text in prompts.iter().copied().chain(prompts.iter().filter(|_| guided).map(|_| "")) {
            heads.push(prompter.t2i_head(text)?);
        }
        let lengths: Vec<usize> = heads.iter().map(Vec::len).collect();
        let longest = lengths.iter().copied().max().unwrap_or(0);
        let rows: Vec<u32> = heads
            .iter()
            .flat_map(|head| std::iter::repeat_n(ids.pad, longest - head.len()).chain(head.iter().copied()))
            .collect();
        let first = config.max_seq_length + 1 - longest;
        // The builder of the mask wants the marks of an image behind each row.
        let marked: Vec<u32> = rows.chunks(longest).flat_map(|row| row.iter().copied().chain([ids.soi, ids.eoi])).collect();
        let mask = predict_next(&marked, longest + 2, Marks::image(&ids), true)?;
        let mut cache = KvCache::new();
        pipeline.unified.hidden_cached(
            Batch {
                input: Input::Ids(pipeline.id_rows(&rows, heads.len())),
                positions: Positions::From(first),
                mask_BLS: mask.tensor(&pipeline.device).narrow(1, 0, longest).narrow(2, 0, longest),
                task: Task::T2i,
                image_start: None,
                features: Features::Raw(ExpertFeatures::default()),
            },
            CacheUse::Append(&mut cache),
        );
        Ok(Self {
            pipeline,
            cache,
            image_mask_BLS: Mask::after_padded(&lengths, config.num_vq_tokens + 2).tensor(&pipeline.device),
            image_position: first + longest,
            num_prompts: prompts.len(),
            guidance_scale,
        })
    }

    /// Guided logits over the codes at the wanted places of one grid for each prompt, `[wanted * K]` each.
    ///
    /// # Errors
    /// When a grid has another size than the model's.
    pub fn logits(&self, requests: &[GridRequest<'_>]) -> Result<Vec<Vec<f32>>> {
        let pipeline = self.pipeline;
        let config = pipeline.config();
        let ids = config.special_ids();
        let n = config.num_vq_tokens;
        debug_assert_eq!(requests.len(), self.num_prompts);
        let copies = if self.guidance_scale > 0.0 { 2 } else { 1 };
        let mut rows = Vec::with_capacity(copies * requests.len() * (n + 2));
        let mut levels = Vec::with_capacity(copies * requests.len());
        for _ in 0..copies {
            for request in requests {
                rows.push(ids.soi);
                rows.extend(request.grid.iter().map(|&code| if code == MASKED { ids.mask } else { code + ids.image_offset }));
                rows.push(ids.eoi);
                levels.push(request.masked_fraction);
            }
        }
        let hidden = pipeline.unified.hidden_cached(
            Batch {
                input: Input::Ids(pipeline.id_rows(&rows, copies * requests.len())),
                positions: Positions::From(self.image_position),
                mask_BLS: self.image_mask_BLS.clone(),
                task: Task::T2i,
                image_start: Some(1),
                features: Features::Raw(ExpertFeatures { noise_level: Some(levels), ..ExpertFeatures::default() }),
            },
            CacheUse::Read(&self.cache),
        );
        let width = config.hidden_size;
        let x_RD: Tensor<2> = hidden.x_BLD.narrow(1, 1, n).reshape([copies * requests.len() * n, width]);
        let logits_of = |row: usize, wanted: &[usize]| -> Vec<f32> {
            let places: Vec<i64> = wanted.iter().map(|&place| (row * n + place) as i64).collect();
            let places = Tensor::<1, Int>::from_data(TensorData::new(places, [wanted.len()]), &pipeline.device);
            pipeline.unified.image_logits(x_RD.clone().select(0, places)).into_data().iter::<f32>().collect()
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
}
