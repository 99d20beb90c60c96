//! The hand-written prompts, and the errors of their reader.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test may end by them

use std::collections::HashSet;
use std::path::PathBuf;

use unif2ace_data::grammar::caption_claims;
use unif2ace_data::{DataError, load_prompts};

fn file() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../eval/prompts40.json")
}

#[test]
fn forty_prompts_each_with_known_attributes() {
    let prompts = load_prompts(file()).unwrap();
    assert_eq!(prompts.len(), 40);
    let texts: HashSet<&str> = prompts.iter().map(|prompt| prompt.text.as_str()).collect();
    assert_eq!(texts.len(), 40);
    assert!(prompts.iter().all(|prompt| prompt.claims.len() >= 2));
    let attributes: HashSet<&str> = prompts.iter().flat_map(|prompt| &prompt.claims).map(|claim| claim.attribute).collect();
    assert!(attributes.len() >= 25, "{}", attributes.len());
}

/// Of the prompts' 195 attributes the reader found 169 before it had seen them, and none otherwise than a person. Words that it
/// missed went into the reader since, but not into the paraphrases, which are training text: the prompts stay unseen there.
#[test]
fn the_reader_of_captions_seldom_contradicts_a_person() {
    let (mut same, mut otherwise) = (0, 0);
    for prompt in load_prompts(file()).unwrap() {
        let claims = caption_claims(&prompt.text);
        for label in &prompt.claims {
            if let Some(claim) = claims.iter().find(|claim| claim.head == label.head) {
                if claim.accepted.iter().any(|&value| label.accepts(value)) { same += 1 } else { otherwise += 1 }
            }
        }
    }
    assert!(same >= 185 && otherwise <= 2, "{same} the same, {otherwise} otherwise");
}

#[test]
fn unknown_names_and_broken_files_are_errors() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("prompts.json");
    for text in [
        r#"[{"prompt":"x","attributes":{"hair_colour":"red"}}]"#,
        r#"[{"prompt":"x","attributes":{"hair_color":"tartan"}}]"#,
        r#"[{"prompt":"x","attributes":{"lighting":"soft"}}]"#,
        r#"[{"prompt":"x","attribute":{}}]"#,
        "[",
    ] {
        std::fs::write(&path, text).unwrap();
        assert!(matches!(load_prompts(&path), Err(DataError::Prompts { .. })), "{text}");
    }
    assert!(matches!(load_prompts(folder.path().join("none")), Err(DataError::Io(_))));
}
