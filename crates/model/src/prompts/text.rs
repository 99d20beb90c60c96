//! Text to ids: where special tokens may come from.

use super::Prompter;
use crate::error::{Result, input};

/// A tokenizer without Show-o's special tokens.
pub trait Encode {
    /// Ids of a text, with nothing added before or after.
    fn encode(&self, text: &str) -> Vec<u32>;
}

impl<F: Fn(&str) -> Vec<u32>> Encode for F {
    fn encode(&self, text: &str) -> Vec<u32> {
        self(text)
    }
}

/// What to do with `<|soi|>` and its like inside a text.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum SpecialText {
    /// They are text like any other: no prompt can forge a mark.
    #[default]
    Escape,
    /// They become the special token, as in the reference (for equal numbers only).
    Parse,
}

/// Longest prompt that is tokenised, in ids; the reference's tokenizer has this limit for plain text.
const MODEL_MAX_LENGTH: usize = 2048;

/// The end of text by name; the reference's tokenizers know it.
pub(super) const EOT_NAME: &str = "<|endoftext|>";

impl Prompter<'_> {
    fn special_names(&self) -> [(&'static str, u32); 11] {
        let ids = &self.ids;
        [
            ("[PAD]", ids.pad),
            ("<|soi|>", ids.soi),
            ("<|eoi|>", ids.eoi),
            ("<|sov|>", ids.sov),
            ("<|eov|>", ids.eov),
            ("<|t2i|>", ids.t2i),
            ("<|mmu|>", ids.mmu),
            ("<|t2v|>", ids.t2v),
            ("<|v2v|>", ids.v2v),
            ("<|lvg|>", ids.lvg),
            (EOT_NAME, ids.eot),
        ]
    }

    /// The leftmost name in `text`: its place and the token. No name is a part of another.
    fn next_special(&self, text: &str) -> Option<(usize, &'static str, u32)> {
        let names = self.special_names();
        // One pass, so that a text full of names does not take quadratic time.
        text.match_indices(['<', '[']).find_map(|(place, _)| {
            let (name, id) = names.iter().find(|(name, _)| text[place..].starts_with(name))?;
            Some((place, *name, *id))
        })
    }

    /// Ids of a text, with special tokens escaped or parsed.
    ///
    /// # Errors
    /// When the tokenizer gives ids that the model has no text row for.
    pub fn text(&self, text: &str) -> Result<Vec<u32>> {
        let mut ids = Vec::new();
        let mut rest = text;
        while let Some((place, name, id)) = self.next_special(rest) {
            match self.special_text {
                SpecialText::Parse => {
                    self.plain(&rest[..place], &mut ids)?;
                    ids.push(id);
                    rest = &rest[place + name.len()..];
                }
                // Cut behind the first character, no tokenizer can recognise the name.
                SpecialText::Escape => {
                    self.plain(&rest[..place + 1], &mut ids)?;
                    rest = &rest[place + 1..];
                }
            }
        }
        self.plain(rest, &mut ids)?;
        Ok(ids)
    }

    fn plain(&self, text: &str, ids: &mut Vec<u32>) -> Result<()> {
        if text.is_empty() {
            return Ok(());
        }
        let encoded = self.encode.encode(text);
        if let Some(id) = encoded.iter().find(|&&id| id as usize >= self.llm_vocab_size) {
            let expected = format!("text ids below {}", self.llm_vocab_size);
            return input("tokenise a prompt", expected, id, "use the tokenizer.json that lies beside the model");
        }
        ids.extend(encoded);
        Ok(())
    }

    /// The ids of a text with `[eot]` before them, unless they begin with one.
    pub(super) fn normalised(&self, text: &str) -> Result<Vec<u32>> {
        let mut ids = self.text(text)?;
        ids.truncate(MODEL_MAX_LENGTH);
        if ids.first() != Some(&self.ids.eot) {
            ids.insert(0, self.ids.eot);
        }
        Ok(ids)
    }
}
