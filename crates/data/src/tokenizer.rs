//! Text tokenizers: training a byte-level BPE, and one wrapper over every `tokenizer.json` (own BPE, Phi's, word-level).
//!
//! Text that a user types is never allowed to name a special token: `<|endoftext|>` in a prompt is a row of plain tokens.

use std::path::Path;

use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, Model, Tokenizer, TokenizerBuilder};
use unif2ace_io::{read_capped, write_atomic};

use crate::error::{DataError, Result};

/// The token that ends a text; the last entry of an own vocabulary.
pub const END_OF_TEXT: &str = "<|endoftext|>";
const MAX_FILE_BYTES: u64 = 64 << 20;

/// A tokenizer from a `tokenizer.json`.
#[derive(Debug, Clone)]
pub struct TextTokenizer {
    inner: Tokenizer,
    special: Vec<(String, u32)>,
    escape: bool,
}

impl TextTokenizer {
    /// Reads a `tokenizer.json`.
    ///
    /// # Errors
    /// When the file can't be read or isn't such a file.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let bytes = read_capped(path, MAX_FILE_BYTES)?;
        let inner = Tokenizer::from_bytes(&bytes)
            .map_err(|error| DataError::TokenizerFile { path: path.to_path_buf(), reason: error.to_string() })?;
        Ok(Self::new(inner))
    }

    fn new(mut inner: Tokenizer) -> Self {
        // Neither padding nor truncation: lengths are the prompt builder's business.
        inner.with_padding(None);
        let _ = inner.with_truncation(None);
        inner.set_encode_special_tokens(true);
        let mut special: Vec<_> = inner
            .get_added_tokens_decoder()
            .into_iter()
            .filter(|(_, token)| token.special)
            .map(|(id, token)| (token.content, id))
            .collect();
        special.sort_by_key(|(_, id)| *id);
        Self { inner, special, escape: true }
    }

    /// The same tokenizer with special tokens recognised inside texts, as the reference does it. Not for text that users type.
    #[must_use]
    pub fn recognising_special_tokens(mut self) -> Self {
        self.inner.set_encode_special_tokens(false);
        self.escape = false;
        self
    }

    /// Trains a byte-level BPE of `vocab_size` entries in all; the last one is [`END_OF_TEXT`]. The same texts give the same file.
    ///
    /// # Errors
    /// When the texts don't yield so many entries.
    pub fn train<S: AsRef<str> + Send>(texts: impl Iterator<Item = S> + Send, vocab_size: usize) -> Result<Self> {
        let reason = |error: tokenizers::Error| DataError::Tokenizer { operation: "train", reason: error.to_string() };
        let mut trainer = BpeTrainer::builder()
            .show_progress(false)
            .vocab_size(vocab_size.saturating_sub(1))
            .min_frequency(2)
            .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
            .build();
        let mut tokenizer = TokenizerBuilder::default()
            .with_model(BPE::default())
            .with_normalizer(None::<tokenizers::NormalizerWrapper>)
            .with_pre_tokenizer(Some(ByteLevel::new(false, true, true)))
            .with_post_processor(None::<tokenizers::PostProcessorWrapper>)
            .with_decoder(Some(ByteLevel::new(false, true, true)))
            .build()
            .map_err(reason)?;
        tokenizer.train(&mut trainer, texts).map_err(reason)?;
        tokenizer.add_special_tokens(&[AddedToken::from(END_OF_TEXT, true)]);
        let found = tokenizer.get_vocab_size(true);
        if found != vocab_size || tokenizer.get_model().get_vocab_size() + 1 != vocab_size {
            return Err(DataError::VocabSize { expected: vocab_size, found });
        }
        let json = tokenizer.to_string(false).map_err(reason)?;
        Ok(Self::new(Tokenizer::from_bytes(json.as_bytes()).map_err(reason)?))
    }

    /// Writes `tokenizer.json`, wholly or not at all.
    ///
    /// # Errors
    /// When the file can't be written.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        // The escaping of special tokens is this wrapper's; it isn't part of the file.
        let json =
            self.inner.to_string(true).map_err(|error| DataError::Tokenizer { operation: "save", reason: error.to_string() })?;
        Ok(write_atomic(path, json.as_bytes())?)
    }

    /// Number of entries, special ones included.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// Id of an entry.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// Text of an entry as it lies in the vocabulary.
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// Id of [`END_OF_TEXT`].
    pub fn end_of_text(&self) -> Option<u32> {
        self.token_id(END_OF_TEXT)
    }

    /// Encodes a user's text; special tokens in it are plain text.
    ///
    /// # Errors
    /// When the library can't encode it.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let ids = self.encode_raw(text)?;
        let named = |(content, id): &(String, u32)| ids.contains(id) && text.contains(content.as_str());
        if !self.escape || !self.special.iter().any(named) {
            return Ok(ids);
        }
        // Vocabularies of whole words hold the special tokens as words: break the word in the text.
        let mut broken = text.to_owned();
        for (content, _) in &self.special {
            if let Some(first) = content.chars().next().filter(|_| content.chars().count() > 1) {
                let (head, tail) = content.split_at(first.len_utf8());
                broken = broken.replace(content.as_str(), &format!("{head} {tail}"));
            }
        }
        // What is left of them is the vocabulary's own word for the unknown.
        self.encode_raw(&broken)
    }

    /// Encodes a text of the program's own, in which special tokens stand for themselves. Not for text that users type.
    ///
    /// # Errors
    /// When the library can't encode it.
    pub fn encode_with_special(&self, text: &str) -> Result<Vec<u32>> {
        if !self.escape {
            return self.encode_raw(text);
        }
        let mut ids = Vec::new();
        let mut rest = text;
        loop {
            let found = self
                .special
                .iter()
                .filter(|(content, _)| !content.is_empty())
                .filter_map(|(content, id)| rest.find(content.as_str()).map(|at| (at, content.len(), *id)));
            // The first one; of two that start together the longer.
            let Some((at, length, id)) = found.min_by_key(|(at, length, _)| (*at, usize::MAX - length)) else { break };
            if at > 0 {
                ids.extend(self.encode_raw(&rest[..at])?);
            }
            ids.push(id);
            rest = &rest[at + length..];
        }
        if !rest.is_empty() {
            ids.extend(self.encode_raw(rest)?);
        }
        Ok(ids)
    }

    fn encode_raw(&self, text: &str) -> Result<Vec<u32>> {
        self.inner
            .encode_fast(text, false)
            .map(|encoding| encoding.get_ids().to_vec())
            .map_err(|error| DataError::Tokenizer { operation: "encode", reason: error.to_string() })
    }

    /// Text of the ids; special entries are left out, as are ids outside the vocabulary.
    ///
    /// # Errors
    /// When the library can't decode them.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        self.inner.decode(ids, true).map_err(|error| DataError::Tokenizer { operation: "decode", reason: error.to_string() })
    }

    /// A decoder that gives the text piece by piece.
    pub fn stream(&self) -> TextStream<'_> {
        TextStream { tokenizer: self, ids: Vec::new(), prefix: 0, printed: 0 }
    }
}

/// Decodes ids one at a time. Pieces come as soon as they are whole characters; together they equal [`TextTokenizer::decode`].
#[derive(Debug, Clone)]
pub struct TextStream<'a> {
    tokenizer: &'a TextTokenizer,
    ids: Vec<u32>,
    /// Start of the ids that are decoded again: some decoders look at the neighbour before.
    prefix: usize,
    printed: usize,
}

impl TextStream<'_> {
    /// Adds an id; gives the text that it completes, or `None` while a character is incomplete.
    ///
    /// # Errors
    /// When the library can't decode the ids.
    pub fn push(&mut self, id: u32) -> Result<Option<String>> {
        self.ids.push(id);
        self.advance(false)
    }

    /// Gives what is left, with replacement characters for incomplete ones.
    ///
    /// # Errors
    /// When the library can't decode the ids.
    pub fn finish(&mut self) -> Result<Option<String>> {
        self.advance(true)
    }

    fn advance(&mut self, last: bool) -> Result<Option<String>> {
        let before = self.tokenizer.decode(&self.ids[self.prefix..self.printed])?;
        let now = self.tokenizer.decode(&self.ids[self.prefix..])?;
        if now.len() <= before.len() || (!last && now.ends_with('\u{fffd}')) {
            return Ok(None);
        }
        let piece = now.get(before.len()..).unwrap_or_default().to_owned();
        self.prefix = self.printed;
        self.printed = self.ids.len();
        Ok(Some(piece))
    }
}
