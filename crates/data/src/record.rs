//! What is known about one portrait.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// A question about a portrait. In JSON a list `[kind, question, answer, short]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "[String; 4]", into = "[String; 4]")]
pub struct VqaItem {
    /// appearance, action or emotion.
    pub kind: String,
    /// As asked.
    pub question: String,
    /// A full sentence.
    pub answer: String,
    /// yes, no or the bare value.
    pub short: String,
}

impl From<[String; 4]> for VqaItem {
    fn from([kind, question, answer, short]: [String; 4]) -> Self {
        Self { kind, question, answer, short }
    }
}

impl From<VqaItem> for [String; 4] {
    fn from(item: VqaItem) -> Self {
        [item.kind, item.question, item.answer, item.short]
    }
}

/// The JSON beside a portrait.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FaceRecord {
    /// Attribute name to value; a missing name means "none".
    pub attributes: BTreeMap<String, serde_json::Value>,
    /// Parts that are really visible.
    pub visible: Vec<String>,
    /// Captions.
    pub captions: Vec<String>,
    /// Questions with answers.
    pub vqa: Vec<VqaItem>,
    /// The attribute combination that training never shows; only in the test split.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heldout: Option<String>,
}
