//! Rows of tokens for every task (as in Show-o). No I/O: the tokenizer comes from outside as an [`Encode`].
//!
//! M is the text budget (`max_seq_length`), N the number of image tokens. Image tokens are given as ids of the shared vocabulary: code +
//! offset, or the mask id.

mod conversation;
mod text;

pub use conversation::{ConversationRow, FeatureRow, Speaker, Turn, collate};
pub use text::{Encode, SpecialText};

use crate::config::{ModelConfig, SpecialIds};
use crate::error::{ModelError, Result, input};
pub use crate::losses::IGNORED;

/// One row of training: ids and the label of each, [`IGNORED`] where there is none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// Tokens.
    pub ids: Vec<u32>,
    /// What the position holds after denoising (t2i) or what the position before predicts (others).
    pub labels: Vec<i64>,
}

/// Several questions on one image in one row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackedRow {
    /// Tokens: prefix, then one block a question.
    pub ids: Vec<u32>,
    /// Labels of the answers and their ends; the shift happens in the loss.
    pub labels: Vec<i64>,
    /// Length of the prefix, N + 3.
    pub prefix: usize,
    /// Length of each block, for [`crate::masks::packed`].
    pub blocks: Vec<usize>,
}

/// Which pair of marks encloses the picture, and which token names the task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Generation {
    Image,
    Video,
}

/// Builds rows.
pub struct Prompter<'a> {
    encode: &'a dyn Encode,
    special_text: SpecialText,
    cut_prompts: bool,
    ids: SpecialIds,
    llm_vocab_size: usize,
    max_seq_length: usize,
    num_image_tokens: usize,
    question_template: String,
}

impl<'a> Prompter<'a> {
    /// With special tokens in texts escaped, which is right for whatever users write.
    ///
    /// # Errors
    /// When the text budget has no place for the task token and the end of text.
    pub fn new(config: &ModelConfig, encode: &'a dyn Encode) -> Result<Self> {
        if config.max_seq_length < 2 {
            return input(
                "prompts",
                "max_seq_length of at least 2",
                config.max_seq_length,
                "the released models use 128 or more",
            );
        }
        Ok(Self {
            encode,
            special_text: SpecialText::Escape,
            cut_prompts: false,
            ids: config.special_ids(),
            llm_vocab_size: config.llm_vocab_size,
            max_seq_length: config.max_seq_length,
            num_image_tokens: config.num_vq_tokens,
            question_template: config.question_template.clone(),
        })
    }

    /// What to do with the names of special tokens in texts.
    pub fn with_special_text(mut self, special_text: SpecialText) -> Self {
        self.special_text = special_text;
        self
    }

    /// Whether a prompt of generation that is longer than the text budget is cut, as in the reference, or refused (the default). Rows of
    /// training are always cut.
    pub fn with_cut_prompts(mut self, cut_prompts: bool) -> Self {
        self.cut_prompts = cut_prompts;
        self
    }

    /// The ids of the tokens that are no text.
    pub fn special_ids(&self) -> &SpecialIds {
        &self.ids
    }

    fn image(&self, operation: &'static str, image: &[u32]) -> Result<()> {
        if image.len() != self.num_image_tokens {
            return input(
                operation,
                format!("{} image tokens", self.num_image_tokens),
                image.len(),
                "use the picture size the model has",
            );
        }
        if let Some(id) = image.iter().find(|&&id| id < self.ids.image_offset || id > self.ids.mask) {
            let expected = format!("image ids {}..={}", self.ids.image_offset, self.ids.mask);
            return input(operation, expected, id, "add the image offset to the codes");
        }
        Ok(())
    }

    /// `[task] t [eot]`, at most M + 1 tokens; not padded.
    fn head(&self, task: u32, text: &str, cut: bool) -> Result<Vec<u32>> {
        let mut head = vec![task];
        head.extend(self.normalised(text)?);
        head.push(self.ids.eot);
        if head.len() > self.max_seq_length + 1 {
            if !cut {
                // The task token and both ends of the text take three places of the head.
                return Err(ModelError::PromptTooLong { found: head.len() - 3, limit: self.max_seq_length - 2 });
            }
            head.truncate(self.max_seq_length);
            head.push(self.ids.eot);
        }
        Ok(head)
    }

    fn generation(&self, kind: Generation) -> [u32; 3] {
        match kind {
            Generation::Image => [self.ids.t2i, self.ids.soi, self.ids.eoi],
            Generation::Video => [self.ids.t2v, self.ids.sov, self.ids.eov],
        }
    }

    fn generation_ids(&self, kind: Generation, text: &str, image: &[u32], cut: bool) -> Result<Vec<u32>> {
        self.image("generation prompt", image)?;
        let [task, start, end] = self.generation(kind);
        let head = self.head(task, text, cut)?;
        let mut ids = vec![self.ids.pad; self.max_seq_length + 1 - head.len()];
        ids.extend(head);
        ids.push(start);
        ids.extend(image);
        ids.push(end);
        Ok(ids)
    }

    fn generation_row(&self, kind: Generation, text: &str, dropped: bool, image: &[u32], image_labels: &[i64]) -> Result<Row> {
        if image_labels.len() != image.len() {
            return input(
                "generation prompt",
                format!("{} image labels", image.len()),
                image_labels.len(),
                "label every image token",
            );
        }
        let ids = self.generation_ids(kind, if dropped { "" } else { text }, image, true)?;
        let mut labels: Vec<i64> = ids.iter().map(|&id| if id == self.ids.pad { IGNORED } else { i64::from(id) }).collect();
        labels[self.max_seq_length + 2..][..image.len()].copy_from_slice(image_labels);
        Ok(Row { ids, labels })
    }

    /// The prompt of generation without pads: `[t2i] t [eot]`, at most M + 1 tokens. Its last token stands at position M.
    ///
    /// # Errors
    /// When the text is too long (see [`Prompter::with_cut_prompts`]) or the tokenizer does not belong to the model.
    pub fn t2i_head(&self, text: &str) -> Result<Vec<u32>> {
        self.head(self.ids.t2i, text, self.cut_prompts)
    }

    /// Training of generation (§2.1); `dropped` replaces the text by the empty one, for guidance.
    ///
    /// # Errors
    /// When image tokens or labels are not N or no image ids.
    pub fn t2i(&self, text: &str, dropped: bool, image: &[u32], image_labels: &[i64]) -> Result<Row> {
        self.generation_row(Generation::Image, text, dropped, image, image_labels)
    }

    /// Generation (§2.2): `pads [t2i] t [eot] [soi] image [eoi]`. The unconditional prompt has an empty text.
    ///
    /// # Errors
    /// As [`Prompter::t2i`], and [`ModelError::PromptTooLong`] unless prompts are cut.
    pub fn t2i_gen(&self, text: &str, image: &[u32]) -> Result<Vec<u32>> {
        self.generation_ids(Generation::Image, text, image, self.cut_prompts)
    }

    /// As [`Prompter::t2i`] with the tokens of video.
    ///
    /// # Errors
    /// As [`Prompter::t2i`].
    pub fn t2v(&self, text: &str, dropped: bool, image: &[u32], image_labels: &[i64]) -> Result<Row> {
        self.generation_row(Generation::Video, text, dropped, image, image_labels)
    }

    /// As [`Prompter::t2i_gen`] with the tokens of video.
    ///
    /// # Errors
    /// As [`Prompter::t2i`], and [`ModelError::PromptTooLong`] unless prompts are cut.
    pub fn t2v_gen(&self, text: &str, image: &[u32]) -> Result<Vec<u32>> {
        self.generation_ids(Generation::Video, text, image, self.cut_prompts)
    }

    /// Language-vision generation: in the reference the same rows as [`Prompter::t2i`].
    ///
    /// # Errors
    /// As [`Prompter::t2i`].
    pub fn lvg(&self, text: &str, dropped: bool, image: &[u32], image_labels: &[i64]) -> Result<Row> {
        self.t2i(text, dropped, image, image_labels)
    }

    /// As [`Prompter::t2i_gen`].
    ///
    /// # Errors
    /// As [`Prompter::t2i`], and [`ModelError::PromptTooLong`] unless prompts are cut.
    pub fn lvg_gen(&self, text: &str, image: &[u32]) -> Result<Vec<u32>> {
        self.t2i_gen(text, image)
    }

    fn padded(&self, mut ids: Vec<u32>, length: usize) -> Row {
        let mut labels: Vec<i64> = ids.iter().map(|&id| if id == self.ids.pad { IGNORED } else { i64::from(id) }).collect();
        ids.resize(length, self.ids.pad);
        labels.resize(length, IGNORED);
        Row { ids, labels }
    }

    /// Plain text (§2.3) of `length` tokens: `t [eot] pads`, or cut without an end.
    ///
    /// # Errors
    /// When the tokenizer does not belong to the model.
    pub fn lm(&self, text: &str, length: usize) -> Result<Row> {
        let mut ids = self.normalised(text)?;
        ids.push(self.ids.eot);
        ids.truncate(length);
        Ok(self.padded(ids, length))
    }

    /// Both lists of §2.5: the first `texts` become t2i rows, one for each of `images` (with labels and whether the text is dropped), the
    /// rest text rows of `length`.
    ///
    /// # Errors
    /// As [`Prompter::t2i`], and when there are fewer texts than images.
    pub fn t2i_plus_lm(&self, texts: &[&str], images: &[(&[u32], &[i64], bool)], length: usize) -> Result<(Vec<Row>, Vec<Row>)> {
        if texts.len() < images.len() {
            return input(
                "generation and text prompts",
                format!("at least {} texts", images.len()),
                texts.len(),
                "one text an image",
            );
        }
        let (captions, plain) = texts.split_at(images.len());
        let pairs = captions.iter().zip(images);
        let generated = pairs.map(|(text, (image, labels, dropped))| self.t2i(text, *dropped, image, labels));
        Ok((generated.collect::<Result<_>>()?, plain.iter().map(|text| self.lm(text, length)).collect::<Result<_>>()?))
    }

    /// `[mmu] [soi] image [eoi]`: the part of understanding that does not depend on the text.
    ///
    /// # Errors
    /// When image tokens are not N or no image ids.
    pub fn mmu_prefix(&self, image: &[u32]) -> Result<Vec<u32>> {
        self.image("understanding prompt", image)?;
        let mut ids = vec![self.ids.mmu, self.ids.soi];
        ids.extend(image);
        ids.push(self.ids.eoi);
        Ok(ids)
    }

    /// The prefix without labels, then `row`.
    fn after_image(&self, image: &[u32], row: Row) -> Result<Row> {
        let mut ids = self.mmu_prefix(image)?;
        let mut labels = vec![IGNORED; ids.len()];
        ids.extend(row.ids);
        labels.extend(row.labels);
        Ok(Row { ids, labels })
    }

    /// Training of captioning (§2.4); the whole text is labelled.
    ///
    /// # Errors
    /// As [`Prompter::mmu_prefix`].
    pub fn mmu(&self, text: &str, image: &[u32]) -> Result<Row> {
        let mut ids = self.normalised(text)?;
        ids.push(self.ids.eot);
        if ids.len() > self.max_seq_length {
            ids.truncate(self.max_seq_length - 1);
            ids.push(self.ids.eot);
        }
        self.after_image(image, self.padded(ids, self.max_seq_length))
    }

    /// The question in its template, as text.
    pub fn question(&self, question: &str) -> String {
        self.question_template.replace("{question}", question)
    }

    /// `[eot] t` of a question in its template: what follows the image at inference (§2.6).
    ///
    /// # Errors
    /// When the tokenizer does not belong to the model.
    pub fn question_ids(&self, question: &str) -> Result<Vec<u32>> {
        let mut ids = vec![self.ids.eot];
        ids.extend(self.text(&self.question(question))?);
        Ok(ids)
    }

    /// A question about an image (§2.6): `[mmu] [soi] image [eoi] [eot] t`.
    ///
    /// # Errors
    /// As [`Prompter::mmu_prefix`].
    pub fn mmu_inference(&self, question: &str, image: &[u32]) -> Result<Vec<u32>> {
        let mut ids = self.mmu_prefix(image)?;
        ids.extend(self.question_ids(question)?);
        Ok(ids)
    }

    /// An answer as it follows its question: with a space before it where the template ends without white space, then `[eot]`.
    ///
    /// # Errors
    /// When the tokenizer does not belong to the model.
    pub fn answer_ids(&self, answer: &str) -> Result<Vec<u32>> {
        let joined = if self.question_template.ends_with(char::is_whitespace) { answer.into() } else { format!(" {answer}") };
        let mut ids = self.text(&joined)?;
        ids.push(self.ids.eot);
        Ok(ids)
    }

    /// Several questions with answers on one image, for [`crate::masks::packed`]: each block is exactly what inference makes of the question,
    /// then the answer, which alone is labelled. Of a block of more than `max_turn_tokens` the rest is cut, before the `[eot]` that ends it.
    ///
    /// # Errors
    /// As [`Prompter::mmu_prefix`], and when there is no room for an end.
    pub fn mmu_packed(&self, image: &[u32], turns: &[(&str, &str)], max_turn_tokens: usize) -> Result<PackedRow> {
        if max_turn_tokens == 0 {
            return input("packed questions", "room for at least 1 token a turn", 0, "set `max_turn_tokens` higher");
        }
        let mut ids = self.mmu_prefix(image)?;
        let prefix = ids.len();
        let mut labels = vec![IGNORED; prefix];
        let mut blocks = Vec::with_capacity(turns.len());
        for (question, answer) in turns {
            let mut block = self.question_ids(question)?;
            let asked = block.len().min(max_turn_tokens - 1);
            block.extend(self.answer_ids(answer)?);
            if block.len() > max_turn_tokens {
                block.truncate(max_turn_tokens - 1);
                block.push(self.ids.eot);
            }
            blocks.push(block.len());
            labels.resize(labels.len() + asked, IGNORED);
            labels.extend(block[asked..].iter().map(|&id| i64::from(id)));
            ids.extend(block);
        }
        Ok(PackedRow { ids, labels, prefix, blocks })
    }
}
