//! One sample of a face set: the picture as stored, and its record.

use std::collections::BTreeMap;

use serde::de::{self, SeqAccess, Visitor};
use serde::ser::SerializeSeq;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Value of an attribute in a record: text or a flag.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(untagged)]
pub enum AttributeValue {
    /// A flag; absent flags are false.
    Flag(bool),
    /// One of the schema's values.
    Text(String),
}

impl AttributeValue {
    /// The value as the schema spells it: `true` and `false` for flags.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Flag(true) => "true",
            Self::Flag(false) => "false",
            Self::Text(text) => text,
        }
    }
}

/// A question about the picture with its answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vqa {
    /// `appearance`, `action` or `emotion`; empty where the set doesn't say.
    pub kind: String,
    /// The question.
    pub question: String,
    /// The answer in words.
    pub answer: String,
    /// yes, no or the bare value, for exact-match scoring; empty where the set has none.
    pub short: String,
}

// In the files a question is a list of four strings.
impl<'de> Deserialize<'de> for Vqa {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Four;
        impl<'de> Visitor<'de> for Four {
            type Value = Vqa;
            fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
                f.write_str("a list [type, question, answer, short]")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Vqa, A::Error> {
                let mut next =
                    |index: usize| seq.next_element::<String>()?.ok_or_else(|| de::Error::invalid_length(index, &"four strings"));
                let vqa = Vqa { kind: next(0)?, question: next(1)?, answer: next(2)?, short: next(3)? };
                match seq.next_element::<de::IgnoredAny>()? {
                    None => Ok(vqa),
                    Some(_) => Err(de::Error::invalid_length(5, &"four strings")),
                }
            }
        }
        deserializer.deserialize_seq(Four)
    }
}

impl Serialize for Vqa {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut seq = serializer.serialize_seq(Some(4))?;
        for text in [&self.kind, &self.question, &self.answer, &self.short] {
            seq.serialize_element(text)?;
        }
        seq.end()
    }
}

/// What is known about one picture.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FaceRecord {
    /// Attribute name to value; a missing key means "none" or false. Empty where a set states no attributes at all.
    #[serde(default)]
    pub attributes: BTreeMap<String, AttributeValue>,
    /// Parts that were found visible (`hair`, `eye_color`, `earrings` ...).
    #[serde(default)]
    pub visible: Vec<String>,
    /// Captions, each of which states some of the attributes.
    #[serde(default)]
    pub captions: Vec<String>,
    /// Questions with answers.
    #[serde(default)]
    pub vqa: Vec<Vqa>,
    /// Name of the attribute combination that never occurs in training (test split only).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heldout: Option<String>,
}

impl FaceRecord {
    /// The attribute as text (`true` for a set flag), or `None` where the key is missing.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.attributes.get(name).map(AttributeValue::as_str)
    }

    /// Whether the flag is set.
    pub fn flag(&self, name: &str) -> bool {
        self.get(name) == Some("true")
    }

    /// Whether the part was found visible.
    pub fn sees(&self, part: &str) -> bool {
        self.visible.iter().any(|seen| seen == part)
    }
}

/// One picture with its record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    /// Name of the sample in its set; of a line of text its file's name and its number from 1, as `train.txt:3`.
    pub key: String,
    /// The picture as stored (WebP, PNG or JPEG); empty for text only, which is the record's one caption.
    pub image_bytes: Vec<u8>,
    /// Attributes, captions, questions.
    pub record: FaceRecord,
}
