//! Words about faces: writing them from attributes, and reading attributes from them.
//!
//! - [`paraphrase`]: a caption in own words from the attributes that a picture shows;
//! - [`questions`]: questions with answers in the manner of the face set;
//! - [`caption_claims`]: which attributes a text states (the measure of captions and of generated pictures);
//! - [`asked`]: what a question asks, and what a record answers to it;
//! - [`parse_answer`]: the short answer that an answer in words amounts to.
//!
//! Everything is exact: no model, no guessing, the same output for the same input.

mod answer;
mod asked;
mod claims;
mod lexicon;
mod paraphrase;
mod phrases;
mod pick;
mod question;
mod words;

pub use answer::{QuestionKind, parse_answer};
pub use asked::{Asked, asked};
pub use claims::{Claim, caption_claims, parse_caption};
pub use paraphrase::{Paraphrase, paraphrase};
pub use question::questions;
