//! Questions about a picture, and captions: the picture is read once into the cache, each question is a row behind it.

use burn::tensor::Tensor;
use unif2ace_data::TextStream;
use unif2ace_diffusion::rng::Key;
use unif2ace_diffusion::text::{TextSampling, next_token_keyed};
use unif2ace_image::RgbImage;
use unif2ace_model::prompts::Prompter;
use unif2ace_model::transformer::{Features, Reading};

use crate::error::{PipelineError, Result};
use crate::pretrained::Pipeline;

/// The request that `caption` makes; the small model is trained with it.
pub const CAPTION_REQUEST: &str = "Describe this face.";

/// How text is chosen.
#[derive(Debug, Clone, Copy)]
pub struct AnswerOptions {
    /// Longest answer.
    pub max_new_tokens: usize,
    /// 0 takes the most probable token.
    pub temperature: f32,
    /// Draws from the so many most probable tokens only.
    pub top_k: Option<usize>,
    /// Seed of the draws.
    pub seed: u64,
}

impl Default for AnswerOptions {
    fn default() -> Self {
        Self { max_new_tokens: 128, temperature: 0.0, top_k: None, seed: 0 }
    }
}

/// A picture that has been read: keys and values of `[mmu] [soi] image [eoi]`, and its codes.
pub struct PictureContext {
    reading: Reading,
    /// Codes of the picture.
    pub codes: Vec<u32>,
}

impl Pipeline {
    /// Reads a picture for any number of questions.
    ///
    /// # Errors
    /// When the picture can't be resized.
    pub fn read_picture(&self, image: &RgbImage) -> Result<PictureContext> {
        self.read_pixels(self.pixels(image)?)
    }

    /// As [`Pipeline::read_picture`] for pixels `[1, side, side, 3]` in -1..1.
    ///
    /// # Errors
    /// When the pixels have another size than the model's.
    pub fn read_pixels(&self, pixels_BHWC: Tensor<4>) -> Result<PictureContext> {
        let _awake = self.keep_awake();
        let ids = self.config().special_ids();
        let codes = self.encode(pixels_BHWC.clone())?;
        let features = tracing::debug_span!("encoders").in_scope(|| self.features(pixels_BHWC))?;
        let encode = |text: &str| self.text_ids(text);
        let image: Vec<u32> = codes.iter().map(|&code| code + ids.image_offset).collect();
        let prefix = Prompter::new(self.config(), &encode)?.mmu_prefix(&image)?;
        let _span = tracing::debug_span!("read image").entered();
        let (reading, _) = self.unified.read_image(&prefix, Features::Raw(features))?;
        Ok(PictureContext { reading, codes })
    }

    /// Answers a question about a picture; `print` gets the text as it comes and stops the work by returning false.
    ///
    /// # Errors
    /// When the question is empty or `print` says stop.
    pub fn ask(
        &self,
        image: &RgbImage,
        question: &str,
        options: &AnswerOptions,
        print: &mut dyn FnMut(&str) -> bool,
    ) -> Result<String> {
        if question.trim().is_empty() {
            return Err(PipelineError::empty_question());
        }
        let picture = self.read_picture(image)?;
        let mut stream: TextStream<'_> = self.tokenizer.stream();
        let mut text = String::new();
        let mut stopped = false;
        let mut failed = None;
        self.answer_rows(&picture, &[question], options, &mut |ids| {
            let Some(id) = ids[0] else { return true };
            match stream.push(id) {
                Ok(Some(piece)) => {
                    text.push_str(&piece);
                    stopped = !print(&piece);
                }
                Ok(None) => {}
                Err(error) => failed = Some(error),
            }
            !stopped && failed.is_none()
        })?;
        if let Some(error) = failed {
            return Err(error.into());
        }
        if let Some(rest) = stream.finish()? {
            print(&rest);
            text.push_str(&rest);
        }
        if stopped { Err(PipelineError::Stopped) } else { Ok(text) }
    }

    /// Describes the face.
    ///
    /// # Errors
    /// As [`Pipeline::ask`].
    pub fn caption(&self, image: &RgbImage, options: &AnswerOptions, print: &mut dyn FnMut(&str) -> bool) -> Result<String> {
        self.ask(image, CAPTION_REQUEST, options, print)
    }

    /// Answers to several questions on one picture, all at once.
    ///
    /// # Errors
    /// When the questions don't fit the tokenizer.
    pub fn answers(&self, picture: &PictureContext, questions: &[&str], options: &AnswerOptions) -> Result<Vec<String>> {
        let mut ids: Vec<Vec<u32>> = vec![Vec::new(); questions.len()];
        self.answer_rows(picture, questions, options, &mut |new| {
            for (row, id) in ids.iter_mut().zip(new) {
                row.extend(id);
            }
            true
        })?;
        ids.iter().map(|ids| Ok(self.tokenizer.decode(ids)?)).collect()
    }

    /// The caption of a read picture.
    ///
    /// # Errors
    /// As [`Pipeline::answers`].
    pub fn caption_of(&self, picture: &PictureContext, options: &AnswerOptions) -> Result<String> {
        Ok(self.answers(picture, &[CAPTION_REQUEST], options)?.pop().unwrap_or_default())
    }

    /// Decodes all questions together; `each` gets the new token of every row that isn't at its end, and stops by returning false.
    fn answer_rows(
        &self,
        picture: &PictureContext,
        questions: &[&str],
        options: &AnswerOptions,
        each: &mut dyn FnMut(&[Option<u32>]) -> bool,
    ) -> Result<()> {
        if questions.is_empty() {
            return Ok(());
        }
        let _awake = self.keep_awake();
        let ids = self.config().special_ids();
        let encode = |text: &str| self.text_ids(text);
        let prompter = Prompter::new(self.config(), &encode)?;
        let sampling = TextSampling { temperature: options.temperature, top_k: options.top_k };
        let mut rows = Vec::with_capacity(questions.len());
        for question in questions {
            let row = prompter.question_ids(question)?;
            if row.len() > self.config().max_seq_length {
                return Err(PipelineError::Input {
                    what: "question",
                    expected: format!("at most {} tokens", self.config().max_seq_length),
                    found: format!("{} tokens", row.len()),
                    hint: "shorten the question",
                });
            }
            rows.push(row);
        }
        let mut reading = picture.reading.clone();
        let mut done = vec![false; questions.len()];
        for place in 0..options.max_new_tokens {
            let _token = tracing::debug_span!("token", place).entered();
            let (last_BD, _) = self.unified.read_text(&mut reading, &rows.iter().map(Vec::as_slice).collect::<Vec<_>>())?;
            // Only text can be said: an image code or a mark would be no answer.
            let logits: Vec<f32> = self.unified.text_logits(last_BD).into_data().iter::<f32>().collect();
            let mut next = Vec::with_capacity(questions.len());
            for (row, logits) in logits.chunks_exact(self.config().llm_vocab_size).enumerate() {
                next.push(next_token_keyed(logits, &sampling, place, Key::new(options.seed, row as u64))? as u32);
            }
            let said: Vec<Option<u32>> = next
                .iter()
                .zip(&mut done)
                .map(|(&id, done)| {
                    *done |= id == ids.eot;
                    (!*done).then_some(id)
                })
                .collect();
            if done.iter().all(|&done| done) || !each(&said) {
                break;
            }
            rows = next.into_iter().map(|id| vec![id]).collect();
        }
        Ok(())
    }
}
