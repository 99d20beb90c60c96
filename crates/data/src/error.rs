use std::path::PathBuf;

use unif2ace_image::ImageError;
use unif2ace_io::IoError;

/// Result of an operation on a face set, a text or a tokenizer.
pub type Result<T, E = DataError> = std::result::Result<T, E>;

/// What is wrong with one sample of a shard. The reader skips such a sample and goes on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SampleFault {
    /// A picture without its record, or a record without its picture.
    #[error("expected KEY.json and KEY.webp, {missing} is missing")]
    Incomplete {
        /// The extension that is missing.
        missing: &'static str,
    },
    /// The same member twice.
    #[error("the member {name} occurs twice")]
    Duplicate {
        /// Name of the member.
        name: String,
    },
    /// The record isn't the JSON that was expected.
    #[error("the record can't be read: {reason}")]
    Record {
        /// The JSON reader's message.
        reason: String,
    },
    /// A value that the attribute schema doesn't know.
    #[error("attribute {attribute} has the unknown value {value}")]
    Attribute {
        /// Name of the attribute.
        attribute: String,
        /// The value found.
        value: String,
    },
    /// A member larger than a sample may be.
    #[error("the member {name} holds {found} bytes, at most {cap} are accepted")]
    TooLarge {
        /// Name of the member.
        name: String,
        /// Bytes declared in the archive.
        found: u64,
        /// The cap.
        cap: u64,
    },
    /// The picture can't be decoded.
    #[error("the picture can't be decoded: {reason}")]
    Picture {
        /// The decoder's message.
        reason: String,
    },
    /// The picture that the record names isn't there.
    #[error("the picture {name} can't be read: {reason}")]
    NoPicture {
        /// The name in the record.
        name: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The record's name of its picture fits several pictures.
    #[error("the picture {name} could be any of {candidates}: expected one, so name it with its folder and extension")]
    Ambiguous {
        /// The name in the record.
        name: String,
        /// The pictures that it fits, cut after the first few.
        candidates: String,
    },
    /// A sample without anything that its tasks could use.
    #[error("the record has nothing for the tasks {tasks}")]
    Unusable {
        /// The tasks, as recipes name them.
        tasks: String,
    },
}

/// Errors of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// The disk.
    #[error(transparent)]
    Io(#[from] IoError),
    /// A picture.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// A folder without the files that were looked for.
    #[error("cannot open the face set {}: expected {expected}, found none\nhint: name the folder that holds train/, val/ and test/ with *.tar shards", .path.display())]
    NoShards {
        /// The folder.
        path: PathBuf,
        /// What was looked for.
        expected: String,
    },
    /// A path in which no data of a known form was found.
    #[error("cannot open the data {}: expected {expected}, found none\nhint: give the folder that holds them, or name the `format`", .path.display())]
    NoData {
        /// The folder or file.
        path: PathBuf,
        /// What was looked for.
        expected: String,
    },
    /// Shards that the numbers of the others say must be there.
    #[error("cannot open the data {}: {count} shards are missing: {names}\nhint: fetch them, or number the shards without holes", .path.display())]
    MissingShards {
        /// The folder.
        path: PathBuf,
        /// How many.
        count: usize,
        /// Their names, cut after the first few.
        names: String,
    },
    /// A file of records that isn't of the form that was expected.
    #[error("cannot read the data file {}: {reason}\nhint: docs/data.md shows each form", .path.display())]
    SetFile {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A mixture, a batch or a rank that can't be.
    #[error("cannot load batches: {reason}\nhint: {hint}")]
    Loader {
        /// What is wrong.
        reason: String,
        /// What would be right.
        hint: &'static str,
    },
    /// A split by another name than train, val or test.
    #[error("cannot open the split {given}: expected a folder name without separators, such as train, val or test")]
    SplitName {
        /// The name given.
        given: String,
    },
    /// A shard that stops in the middle or is no tar archive.
    #[error("cannot read the shard {}: {reason} after {samples_read} samples\nhint: the archive is truncated or damaged; fetch it again", .path.display())]
    Shard {
        /// The archive.
        path: PathBuf,
        /// Samples read before the damage.
        samples_read: usize,
        /// The archive reader's message.
        reason: String,
    },
    /// More broken samples than the caller accepts.
    #[error("cannot load {}: {count} broken samples, at most {limit} are accepted; the last one is {key}: {fault}\nhint: check how the set was written, or raise the limit", .path.display())]
    TooManyBroken {
        /// The folder or archive.
        path: PathBuf,
        /// Broken samples up to here.
        count: usize,
        /// The limit.
        limit: usize,
        /// Key of the last one.
        key: String,
        /// Its fault.
        fault: SampleFault,
    },
    /// A picture of another size than the model's.
    #[error(
        "cannot decode the sample {key}: expected {side}x{side} pixels, found {width}x{height}\nhint: this set must hold square pictures of the model's size"
    )]
    PictureSize {
        /// Key of the sample.
        key: String,
        /// Pixels a side that were expected.
        side: usize,
        /// Width found.
        width: usize,
        /// Height found.
        height: usize,
    },
    /// A tokenizer file that can't be used.
    #[error("cannot load the tokenizer {}: {reason}\nhint: expected a tokenizer.json of the `tokenizers` library", .path.display())]
    TokenizerFile {
        /// The file.
        path: PathBuf,
        /// The reader's message.
        reason: String,
    },
    /// A list of labelled prompts that can't be used.
    #[error("cannot read the prompts {}: {reason}\nhint: expected [{{\"prompt\": .., \"attributes\": {{name: value}}}}] with the schema's names", .path.display())]
    Prompts {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// Training, encoding or decoding failed.
    #[error("cannot {operation} with the tokenizer: {reason}")]
    Tokenizer {
        /// The operation in words.
        operation: &'static str,
        /// The library's message.
        reason: String,
    },
    /// The training text is too small or the wanted vocabulary too small or too large.
    #[error(
        "cannot train a tokenizer of {expected} entries: {found} could be made\nhint: give more text, or ask for at least 258 and fewer entries"
    )]
    VocabSize {
        /// Entries asked for.
        expected: usize,
        /// Entries reached.
        found: usize,
    },
}
