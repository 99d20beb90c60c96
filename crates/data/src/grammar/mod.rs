//! Words about faces: writing them from attributes, and reading attributes from them.
//!
//! - [`paraphrase`]: a caption in own words from the attributes that a picture shows;
//! - [`caption_claims`]: which attributes a text states (the measure of captions and of generated pictures);
//! - [`parse_answer`]: the short answer that an answer in words amounts to.
//!
//! Everything is exact: no model, no guessing, the same output for the same input.

mod answer;
mod claims;
mod lexicon;
mod paraphrase;
mod phrases;
mod pick;
mod words;

pub use answer::{QuestionKind, parse_answer};
pub use claims::{Claim, caption_claims};
pub use paraphrase::{Paraphrase, paraphrase};
