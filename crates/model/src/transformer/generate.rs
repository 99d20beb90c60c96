//! Passes that reuse what does not change: the prompt while an image is denoised, the image while questions are answered.
//! Both give what one pass over the whole row gives. B rows, N image tokens, D width.

use burn::tensor::{Int, Tensor, TensorData};

use super::{Batch, CacheUse, Features, Hidden, Input, KvCache, Positions, Unif2ace};
use crate::error::{Result, input};
use crate::masks::Mask;
use crate::moe::{MoeStats, Task};

/// Prompts of generation, ready to denoise against. Text is causal, so its keys and values never change, and pads are never computed,
/// only counted in the positions.
#[derive(Debug, Clone)]
pub struct PromptCache {
    cache: KvCache,
    lengths: Vec<usize>,
}

impl PromptCache {
    /// Prompts of different lengths as rows of one batch, in this order; a prompt may come several times.
    ///
    /// # Errors
    /// When there is none.
    pub fn stack(prompts: &[&PromptCache]) -> Result<PromptCache> {
        let caches: Vec<_> = prompts.iter().map(|prompt| &prompt.cache).collect();
        let Some(cache) = KvCache::stack(&caches) else {
            return input("stack prompts", "at least one prompt", 0, "read a prompt first");
        };
        let longest = cache.len();
        let lengths = prompts.iter().flat_map(|prompt| prompt.lengths.iter().copied()).collect();
        debug_assert!(prompts.iter().all(|prompt| prompt.cache.len() <= longest));
        Ok(PromptCache { cache, lengths })
    }

    /// Rows; one row serves any batch.
    pub fn num_rows(&self) -> usize {
        self.lengths.len()
    }
}

/// An image and perhaps rows of text behind it that were read, ready for more text. Clones share their memory, so many questions can
/// follow one image.
#[derive(Debug, Clone)]
pub struct Reading {
    cache: KvCache,
    /// Positions of the image's part, which all rows share.
    prefix: usize,
    /// Pads between the image and each row's text; empty before the first text.
    pads: Vec<usize>,
}

impl Reading {
    /// Positions read, pads included.
    pub fn len(&self) -> usize {
        self.cache.len()
    }

    /// Whether nothing was read.
    pub fn is_empty(&self) -> bool {
        self.cache.is_empty()
    }
}

impl Unif2ace {
    fn ids_tensor(&self, operation: &'static str, rows: &[&[u32]]) -> Result<Tensor<2, Int>> {
        let length = rows.first().map_or(0, |row| row.len());
        if length == 0 || rows.iter().any(|row| row.len() != length) {
            let found = format!("{:?}", rows.iter().map(|row| row.len()).collect::<Vec<_>>());
            return input(operation, "rows of one length above 0", found, "pad the rows");
        }
        if let Some(id) = rows.iter().flat_map(|row| row.iter()).find(|&&id| id as usize >= self.config.vocab_size) {
            return input(
                operation,
                format!("ids below {}", self.config.vocab_size),
                id,
                "use the tokenizer and VQ of this model",
            );
        }
        let values: Vec<i64> = rows.iter().flat_map(|row| row.iter().map(|&id| i64::from(id))).collect();
        let device = self.showo.lm_head.weight.val().device().without_autodiff();
        Ok(Tensor::from_data(TensorData::new(values, [rows.len(), length]), &device))
    }

    /// Computes prompts (from [`crate::prompts::Prompter::t2i_head`]) once for all denoising steps, in one pass over the weights: they lie
    /// behind each other in one row, where none sees another.
    ///
    /// # Errors
    /// When there is none, or one is empty, longer than the text budget, or holds ids beyond the vocabulary.
    pub fn read_prompts(&self, heads: &[&[u32]]) -> Result<Vec<PromptCache>> {
        const OPERATION: &str = "read prompts";
        let end = self.config.max_seq_length + 1;
        if let Some(head) = heads.iter().find(|head| head.is_empty() || head.len() > end) {
            return input(OPERATION, format!("1 to {end} tokens a prompt"), head.len(), "build heads with Prompter::t2i_head");
        }
        if heads.is_empty() {
            return input(OPERATION, "at least one prompt", 0, "build heads with Prompter::t2i_head");
        }
        let lengths: Vec<usize> = heads.iter().map(|head| head.len()).collect();
        let ids_BL = self.ids_tensor(OPERATION, &[&heads.concat()])?;
        let batch = Batch {
            mask_BLS: Mask::causal_apart(&lengths).tensor(&ids_BL.device()),
            input: Input::Ids(ids_BL),
            positions: Positions::Rows(vec![lengths.iter().flat_map(|length| (end - length) as u32..end as u32).collect()]),
            task: Task::T2i,
            image_start: None,
            features: Features::default(),
        };
        let mut cache = KvCache::new();
        self.hidden_cached(batch, CacheUse::Append(&mut cache));
        let mut start = 0;
        let part = |length: usize| {
            let positions = start..start + length;
            start = positions.end;
            PromptCache { cache: cache.part(positions), lengths: vec![length] }
        };
        Ok(lengths.into_iter().map(part).collect())
    }

    /// As [`Unif2ace::read_prompts`] for one prompt.
    ///
    /// # Errors
    /// As there.
    pub fn read_prompt(&self, head: &[u32]) -> Result<PromptCache> {
        Ok(self.read_prompts(&[head])?.swap_remove(0))
    }

    /// One denoising pass: `images` are N image ids a row, codes with offset or the mask id. `x_BLD` of the result is `[B, N, D]`, the
    /// image tokens alone.
    ///
    /// # Errors
    /// When rows are not N ids, or neither one nor as many prompts as rows were given.
    pub fn denoise(&self, prompt: &PromptCache, images: &[&[u32]], features: Features) -> Result<Hidden> {
        const OPERATION: &str = "denoise";
        let num = self.config.num_vq_tokens;
        if let Some(image) = images.iter().find(|image| image.len() != num) {
            return input(OPERATION, format!("{num} image tokens a row"), image.len(), "use the picture size the model has");
        }
        if prompt.num_rows() != 1 && prompt.num_rows() != images.len() {
            return input(
                OPERATION,
                format!("1 or {} prompts", images.len()),
                prompt.num_rows(),
                "stack one prompt for each row",
            );
        }
        let ids = self.config.special_ids();
        let rows: Vec<Vec<u32>> = images.iter().map(|image| [&[ids.soi], *image, &[ids.eoi]].concat()).collect();
        let ids_BL = self.ids_tensor(OPERATION, &rows.iter().map(Vec::as_slice).collect::<Vec<_>>())?;
        let mask = match prompt.lengths.as_slice() {
            [length] => Mask::open(num + 2, length + num + 2),
            lengths => Mask::after_padded(lengths, num + 2),
        };
        let batch = Batch {
            mask_BLS: mask.tensor(&ids_BL.device()),
            input: Input::Ids(ids_BL),
            positions: Positions::From(self.config.max_seq_length + 1),
            task: Task::T2i,
            image_start: Some(1),
            features,
        };
        self.check(&batch, prompt.cache.len())?;
        let hidden = self.hidden_cached(batch, CacheUse::Read(&prompt.cache));
        Ok(Hidden { x_BLD: hidden.x_BLD.narrow(1, 1, num), stats: hidden.stats })
    }

    /// Reads an image (from [`crate::prompts::Prompter::mmu_prefix`]) once for any number of questions. The sequence-level
    /// experts act here; text behind the image does not meet them.
    ///
    /// # Errors
    /// When the prefix is not N + 3 ids of the vocabulary, or features don't fit.
    pub fn read_image(&self, prefix: &[u32], features: Features) -> Result<(Reading, MoeStats)> {
        const OPERATION: &str = "read an image";
        let length = self.config.num_vq_tokens + 3;
        if prefix.len() != length {
            return input(OPERATION, format!("{length} tokens"), prefix.len(), "build the row with Prompter::mmu_prefix");
        }
        let ids_BL = self.ids_tensor(OPERATION, &[prefix])?;
        let batch = Batch {
            mask_BLS: Mask::open(length, length).tensor(&ids_BL.device()),
            input: Input::Ids(ids_BL),
            positions: Positions::From(0),
            task: Task::Mmu,
            image_start: Some(2),
            features,
        };
        self.check(&batch, 0)?;
        let mut cache = KvCache::new();
        let hidden = self.hidden_cached(batch, CacheUse::Append(&mut cache));
        Ok((Reading { cache, prefix: length, pads: Vec::new() }, hidden.stats))
    }

    /// Reads on behind the image, many tokens or one in each of B rows, and returns the last token's state after the final norm, `[B, D]`.
    /// The first text decides the number of rows, whose lengths may differ (they are padded on the left, and pads are neither seen nor
    /// counted in the positions); what follows must be as long in every row.
    ///
    /// # Errors
    /// When a row is empty, holds ids beyond the vocabulary, or rows don't fit those read before; nothing was read then.
    pub fn read_text(&self, reading: &mut Reading, rows: &[&[u32]]) -> Result<(Tensor<2>, MoeStats)> {
        const OPERATION: &str = "read text";
        let longest = rows.iter().map(|row| row.len()).max().unwrap_or(0);
        if rows.iter().any(|row| row.is_empty()) {
            return input(OPERATION, "at least one token in every row", 0, "leave out rows without text");
        }
        let pads: Vec<usize> = match reading.pads.as_slice() {
            [] => rows.iter().map(|row| longest - row.len()).collect(),
            pads if pads.len() == rows.len() => pads.to_vec(),
            pads => return input(OPERATION, format!("{} rows", pads.len()), rows.len(), "continue all rows together"),
        };
        let pad = self.config.special_ids().pad;
        let padded: Vec<Vec<u32>> = match reading.pads.is_empty() {
            true => rows.iter().map(|row| [vec![pad; longest - row.len()], row.to_vec()].concat()).collect(),
            false => rows.iter().map(|row| row.to_vec()).collect(),
        };
        let ids_BL = self.ids_tensor(OPERATION, &padded.iter().map(Vec::as_slice).collect::<Vec<_>>())?;
        let first = reading.cache.len();
        let position = |place: usize, pad: usize| place.saturating_sub(pad).max(reading.prefix) as u32;
        let batch = Batch {
            mask_BLS: Mask::behind(reading.prefix, &pads, first, longest).tensor(&ids_BL.device()),
            input: Input::Ids(ids_BL),
            positions: Positions::Rows(
                pads.iter().map(|&pad| (first..first + longest).map(|place| position(place, pad)).collect()).collect(),
            ),
            task: Task::Mmu,
            image_start: None,
            features: Features::default(),
        };
        let hidden = self.hidden_cached(batch, CacheUse::Append(&mut reading.cache));
        reading.pads = pads;
        Ok((hidden.x_BLD.narrow(1, longest - 1, 1).squeeze_dim(1), hidden.stats))
    }

    /// Whether the shapes of a pass over new positions after `cached` ones fit together and the network.
    ///
    /// # Errors
    /// Names the part that does not fit.
    pub fn check(&self, batch: &Batch, cached: usize) -> Result<()> {
        const OPERATION: &str = "forward pass";
        const HINT: &str = "build rows, masks and positions together";
        let [rows, length] = match &batch.input {
            Input::Ids(ids_BL) => ids_BL.dims(),
            Input::Embeddings(x_BLD) => {
                let [rows, length, width] = x_BLD.dims();
                if width != self.config.hidden_size {
                    return input(OPERATION, format!("embeddings of width {}", self.config.hidden_size), width, HINT);
                }
                [rows, length]
            }
        };
        let mask = batch.mask_BLS.dims();
        if (mask[0] != 1 && mask[0] != rows) || mask[1..] != [length, cached + length] {
            return input(OPERATION, format!("mask [1 or {rows}, {length}, {}]", cached + length), format!("{mask:?}"), HINT);
        }
        if let Positions::Rows(lists) = &batch.positions
            && ((lists.len() != 1 && lists.len() != rows) || lists.iter().any(|list| list.len() != length))
        {
            return input(OPERATION, format!("1 or {rows} lists of {length} positions"), format!("{} lists", lists.len()), HINT);
        }
        let num = self.config.num_vq_tokens;
        if let Some(start) = batch.image_start
            && start + num > length
        {
            return input(OPERATION, format!("{num} image tokens from place {start} in {length}"), "a shorter row", HINT);
        }
        self.check_features(&batch.features, rows)
    }

    fn check_features(&self, features: &Features, rows: usize) -> Result<()> {
        const OPERATION: &str = "expert features";
        const HINT: &str = "use the encoders that the model was trained with";
        let (num, width) = (self.config.num_vq_tokens, self.config.hidden_size);
        match features {
            Features::Raw(raw) => {
                if let Some(levels) = &raw.noise_level
                    && (levels.len() != rows || levels.iter().any(|level| !(0.0..=1.0).contains(level)))
                {
                    return input(OPERATION, format!("{rows} noise levels between 0 and 1"), format!("{levels:?}"), HINT);
                }
                if let Some(dims) = raw.clip_BPC.as_ref().map(Tensor::dims)
                    && (dims[0] != rows || dims[1] == 0 || dims[2] != self.config.moe.clip_dim)
                {
                    return input(
                        OPERATION,
                        format!("CLIP features [{rows}, P, {}]", self.config.moe.clip_dim),
                        format!("{dims:?}"),
                        HINT,
                    );
                }
                if let Some(dims) = raw.face_BF.as_ref().map(Tensor::dims)
                    && dims != [rows, self.config.moe.face_dim]
                {
                    return input(
                        OPERATION,
                        format!("face features [{rows}, {}]", self.config.moe.face_dim),
                        format!("{dims:?}"),
                        HINT,
                    );
                }
            }
            Features::Resampled(resampled) => {
                for dims in [&resampled.noise, &resampled.clip, &resampled.face].into_iter().flatten().map(Tensor::dims) {
                    if (dims[0] != 1 && dims[0] != rows) || dims[1..] != [num, width] {
                        return input(OPERATION, format!("resampled [1 or {rows}, {num}, {width}]"), format!("{dims:?}"), HINT);
                    }
                }
            }
        }
        Ok(())
    }
}
