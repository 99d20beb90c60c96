//! What is said about a picture at one step of training: prompts, questions, captions; drawn by a key.

use unif2ace_data::FaceRecord;
use unif2ace_data::grammar::{paraphrase, questions};
use unif2ace_diffusion::rng::{Key, Stream};
use unif2ace_pipeline::CAPTION_REQUEST;

/// Ways to ask for a caption.
pub const CAPTION_REQUESTS: [&str; 6] = [
    CAPTION_REQUEST,
    "Describe the person.",
    "What does this picture show?",
    "Write a caption for this portrait.",
    "Describe the image in detail.",
    "Who is in the picture?",
];

// Places of the draws within a row's key.
const OWN: u32 = 0;
const CAPTION: u32 = 1;
const REQUEST: u32 = 2;
const SEED: u32 = 3;
const CAPTIONED: u32 = 4;

/// The texts of one picture.
pub struct Texts<'a> {
    /// What is known about it.
    pub record: &'a FaceRecord,
    /// Decides what is drawn.
    pub key: Key,
    /// Part of the texts that are own paraphrases.
    pub paraphrase_fraction: f64,
}

impl Texts<'_> {
    fn draw(&self, place: u32, bound: usize) -> usize {
        self.key.below(Stream::Text, place, 0, bound.max(1))
    }

    fn caption(&self) -> String {
        let captions = &self.record.captions;
        captions.get(self.draw(CAPTION, captions.len())).cloned().unwrap_or_default()
    }

    /// A prompt for generation: one of the set's captions or, where the set states attributes, a paraphrase.
    pub fn prompt(&self) -> String {
        if !self.record.attributes.is_empty() && self.key.uniform_f64(Stream::Text, OWN, 0) < self.paraphrase_fraction {
            let seed = u64::from(self.key.word(Stream::Text, SEED, 0));
            let text = paraphrase(self.record, seed).text;
            if !text.is_empty() {
                return text;
            }
        }
        self.caption()
    }

    /// `num_questions` questions (the set's own and, half as often as prompts, questions in other words; fewer where the set has no more)
    /// and, in `caption_fraction` of the draws, a request for a caption at the end, each with its answer; and whether the caption is there.
    /// Without attributes there are no questions in other words, without captions no request, and without questions always one.
    pub fn turns(&self, num_questions: usize, caption_fraction: f64) -> (Vec<(String, String)>, bool) {
        let num_own = (0..num_questions as u32)
            .filter(|&slot| self.key.uniform_f64(Stream::Text, OWN, 1 + slot) < 0.5 * self.paraphrase_fraction)
            .count();
        let seed = u64::from(self.key.word(Stream::Text, SEED, 1));
        let num_own = if self.record.attributes.is_empty() { 0 } else { num_own };
        let mut items = questions(self.record, seed, num_own);
        let order = self.key.permutation(Stream::Text, self.record.vqa.len());
        let missing = num_questions.saturating_sub(items.len());
        items.extend(order.into_iter().take(missing).map(|index| self.record.vqa[index].clone()));
        let mut turns: Vec<(String, String)> = items.into_iter().map(|item| (item.question, item.answer)).collect();
        let drawn = turns.is_empty() || self.key.uniform_f64(Stream::Text, CAPTIONED, 0) < caption_fraction;
        let captioned = drawn && !self.record.captions.is_empty();
        if captioned {
            let request = CAPTION_REQUESTS[self.draw(REQUEST, CAPTION_REQUESTS.len())];
            turns.push((request.to_owned(), self.caption()));
        }
        (turns, captioned)
    }
}
