//! Faces and the words about them.
//!
//! - [`FaceSet`], [`load_split`], [`decode_rgb`]: WebDataset shards of pictures with records.
//! - [`Schema`]: the attributes, their values, and which of them a picture can settle.
//! - [`grammar`]: paraphrases, questions, and what a text states.
//! - [`MajorityBaseline`]: answers without a look at the picture.
//! - [`load_prompts`]: prompts in users' own words.
//! - [`TextTokenizer`]: training and use of the text vocabulary.

mod baseline;
mod error;
pub mod grammar;
mod prompts;
mod sample;
mod schema;
mod tokenizer;
mod webdataset;

pub use baseline::MajorityBaseline;
pub use error::{DataError, Result, SampleFault};
pub use prompts::{LabelledPrompt, load_prompts};
pub use sample::{AttributeValue, FaceRecord, Sample, Vqa};
pub use schema::{Attribute, Head, Kind, Schema};
pub use tokenizer::{END_OF_TEXT, TextStream, TextTokenizer};
pub use webdataset::{FaceSet, Item, Items, MaxBroken, ShardReader, Split, decode_rgb, load_split};
