//! The text tokenizer of a small model: byte-pair encoding over everything the training says.

use unif2ace_data::{FaceRecord, TextTokenizer};
use unif2ace_diffusion::rng::Key;

use super::data;
use super::texts::{CAPTION_REQUESTS, Texts};
use crate::error::Result;
use crate::recipe::TokenizerRecipe;

/// Trains on captions, questions, answers and paraphrases.
///
/// # Errors
/// When the texts don't yield the vocabulary.
pub fn train(recipe: &TokenizerRecipe, records: &[FaceRecord], seed: u64) -> Result<TextTokenizer> {
    let mut texts: Vec<String> = CAPTION_REQUESTS.iter().map(|&request| request.to_owned()).collect();
    for (index, record) in records.iter().enumerate() {
        texts.extend(record.captions.iter().cloned());
        texts.extend(record.vqa.iter().flat_map(|item| [format!("{}\n", item.question), item.answer.clone()]));
        for number in 0..recipe.num_paraphrases {
            let key = Key::new(seed, index as u64).at_step(number as u32);
            texts.push(Texts { record, key, paraphrase_fraction: 1.0 }.prompt());
        }
    }
    TextTokenizer::train(texts.into_iter(), recipe.vocab_size).map_err(data)
}
