//! Prompts in users' own words with what each asks for: the file `eval/prompts40.json`.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use unif2ace_io::read_capped;

use crate::error::{DataError, Result};
use crate::grammar::Claim;

const MAX_FILE_BYTES: u64 = 4 << 20;

/// A prompt with what it asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LabelledPrompt {
    /// The text.
    pub text: String,
    /// What a person reads in it.
    pub claims: Vec<Claim>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    prompt: String,
    attributes: BTreeMap<String, Values>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Values {
    One(String),
    Several(Vec<String>),
}

impl Values {
    fn claim(&self, attribute: &str) -> Option<Claim> {
        match self {
            Self::One(value) => Claim::labelled(attribute, value),
            Self::Several(values) => Claim::one_of(attribute, &values.iter().map(String::as_str).collect::<Vec<_>>()),
        }
    }
}

/// Reads a list `[{"prompt": .., "attributes": {name: values}}]`; values are a list, or a text as [`Claim::labelled`] reads it.
///
/// # Errors
/// When the file can't be read, is no such list, or names an attribute or value that the schema doesn't have.
pub fn load_prompts(path: impl AsRef<Path>) -> Result<Vec<LabelledPrompt>> {
    let path = path.as_ref();
    let fault = |reason: String| DataError::Prompts { path: path.to_path_buf(), reason };
    let entries: Vec<Entry> =
        serde_json::from_slice(&read_capped(path, MAX_FILE_BYTES)?).map_err(|error| fault(error.to_string()))?;
    entries
        .into_iter()
        .map(|entry| {
            let claims = entry.attributes.iter().map(|(name, values)| {
                values.claim(name).ok_or_else(|| {
                    fault(format!("the prompt \"{}\" has the unknown attribute or value {name}: {values:?}", entry.prompt))
                })
            });
            let mut claims = claims.collect::<Result<Vec<_>>>()?;
            claims.sort_by_key(|claim| claim.head);
            Ok(LabelledPrompt { text: entry.prompt.clone(), claims })
        })
        .collect()
}
