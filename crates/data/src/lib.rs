//! Faces and the words about them.
//!
//! - [`FaceSet`], [`load_split`], [`decode_rgb`]: WebDataset shards of pictures with records.
//! - [`DataSet`]: a split of a set of any [`Format`]; [`Stream`] and [`Loader`]: mixtures of them in batches, from any position.
//! - [`ImageCache`]: what networks say of pictures, kept on disk.
//! - [`Schema`]: the attributes, their values, and which of them a picture can settle.
//! - [`grammar`]: paraphrases, questions, and what a text states.
//! - [`MajorityBaseline`]: answers without a look at the picture.
//! - [`load_prompts`]: prompts in users' own words.
//! - [`TextTokenizer`]: training and use of the text vocabulary.

mod baseline;
mod broken;
mod cache;
mod error;
pub mod grammar;
mod loader;
mod mixture;
mod pictures;
mod prompts;
mod sample;
mod schema;
mod sources;
mod tokenizer;
mod webdataset;

pub use baseline::MajorityBaseline;
pub use broken::Broken;
pub use cache::{ImageCache, ImageHash};
pub use error::{DataError, Result, SampleFault};
pub use loader::{Loader, LoaderOptions, Prepare};
pub use mixture::{Drawn, MixtureEntry, Permute, Stream, TaskName, load_all};
pub use pictures::square_rgb;
pub use prompts::{LabelledPrompt, load_prompts};
pub use sample::{AttributeValue, FaceRecord, Sample, Vqa};
pub use schema::{Attribute, Head, Kind, Schema};
pub use sources::{DataSet, Format};
pub use tokenizer::{END_OF_TEXT, TextStream, TextTokenizer};
pub use webdataset::{FaceSet, Item, Items, MaxBroken, ShardReader, Split, decode_rgb, load_split};
