//! What a row of a table or an object of a JSON file says of a picture, by the names that published sets use.

use serde_json::{Map, Value};

use crate::sample::{FaceRecord, Vqa};

const IMAGE: [&str; 8] = ["image", "image_name", "image_path", "image_id", "img", "file_name", "filename", "id"];
const CAPTION: [&str; 6] = ["caption", "captions", "text", "texts", "description", "prompt"];
const PAIRS: [&str; 5] = ["vqa", "vqas", "qa", "qas", "qa_pairs"];
const CONVERSATION: [&str; 2] = ["conversations", "messages"];
const QUESTION: [&str; 2] = ["question", "questions"];
const ANSWER: [&str; 2] = ["answer", "answers"];
const KIND: [&str; 3] = ["type", "kind", "category"];

/// Name of the picture.
pub(super) fn image_name(row: &Map<String, Value>) -> Option<String> {
    first(row, &IMAGE).and_then(|value| match value {
        Value::String(name) if !name.is_empty() => Some(name.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    })
}

/// Captions and questions of a row.
pub(super) fn record(row: &Map<String, Value>) -> FaceRecord {
    let mut record = FaceRecord::default();
    for name in CAPTION {
        record.captions.extend(row.get(name).map(texts).unwrap_or_default());
    }
    for pairs in PAIRS.iter().filter_map(|name| row.get(*name)) {
        questions(pairs, &mut record.vqa);
    }
    parallel(row, &mut record.vqa);
    for turns in CONVERSATION.iter().filter_map(|name| row.get(*name)?.as_array()) {
        conversation(turns, &mut record);
    }
    record
}

fn first<'a>(row: &'a Map<String, Value>, names: &[&str]) -> Option<&'a Value> {
    names.iter().find_map(|name| row.get(*name).filter(|value| !value.is_null()))
}

/// A text, or the texts of a list.
fn texts(value: &Value) -> Vec<String> {
    match value {
        Value::String(text) if !text.trim().is_empty() => vec![text.trim().to_owned()],
        Value::Array(items) => items.iter().flat_map(texts).collect(),
        _ => Vec::new(),
    }
}

/// Pairs as a list of objects, as a list of lists `[type, question, answer, short]`, or as one object of parallel lists.
fn questions(pairs: &Value, out: &mut Vec<Vqa>) {
    match pairs {
        Value::Array(items) => {
            for item in items {
                match item {
                    Value::Object(pair) => parallel(pair, out),
                    Value::Array(_) => out.extend(serde_json::from_value::<Vqa>(item.clone())),
                    _ => {}
                }
            }
        }
        Value::Object(lists) => parallel(lists, out),
        _ => {}
    }
}

/// `question` and `answer`: two texts, or two lists of the same length.
fn parallel(row: &Map<String, Value>, out: &mut Vec<Vqa>) {
    let column = |names: &[&str]| first(row, names).map(texts).unwrap_or_default();
    let (asked, answers, kinds, shorts) = (column(&QUESTION), column(&ANSWER), column(&KIND), column(&["short"]));
    if asked.len() != answers.len() && asked.len() != 1 {
        return;
    }
    for (index, (question, answer)) in asked.into_iter().zip(answers).enumerate() {
        let short = shorts.get(index).cloned().unwrap_or_else(|| bare(&answer));
        out.push(Vqa { kind: kinds.get(index).cloned().unwrap_or_default(), question, answer, short });
    }
}

/// Pairs of what a person asks and a model answers. Requests to describe the picture are captions.
fn conversation(turns: &[Value], record: &mut FaceRecord) {
    let turn = |turn: &Value| {
        let turn = turn.as_object()?;
        let who = first(turn, &["from", "role"])?.as_str()?.to_owned();
        let text = without_image_token(first(turn, &["value", "content"])?.as_str()?);
        Some((who, text))
    };
    let turns: Vec<(String, String)> = turns.iter().filter_map(turn).collect();
    for pair in turns.windows(2) {
        let [(asker, question), (answerer, answer)] = pair else { continue };
        if !matches!(asker.as_str(), "human" | "user") || !matches!(answerer.as_str(), "gpt" | "assistant") || answer.is_empty() {
            continue;
        }
        if question.is_empty() || asks_for_caption(question) {
            record.captions.push(answer.clone());
        } else {
            let (question, answer) = (question.clone(), answer.clone());
            record.vqa.push(Vqa { kind: String::new(), short: bare(&answer), question, answer });
        }
    }
}

/// LLaVA marks the picture's place by `<image>`; here it always stands before the text.
fn without_image_token(text: &str) -> String {
    text.replace("<image>", "").trim().to_owned()
}

/// Whether a turn asks for the picture as a whole, as the prompts of LLaVA's first stage do ("Render a clear and concise summary of the
/// photo."), not for a part of it.
fn asks_for_caption(question: &str) -> bool {
    const WHAT: [&str; 9] = [
        "describe",
        "description",
        "summar",
        "caption",
        "explanation",
        "interpretation",
        "account",
        "narrative",
        "what is in the",
    ];
    const OF: [&str; 5] = ["image", "picture", "photo", "portrait", "this face"];
    let question = question.to_lowercase();
    let has = |words: &[&str]| words.iter().any(|word| question.contains(word));
    question.split_whitespace().count() <= 16 && has(&WHAT) && (has(&OF) || question.contains("caption"))
}

/// The short form for exact-match scoring: an answer of at most two words without its full stop, or its leading yes or no.
fn bare(answer: &str) -> String {
    let answer = answer.trim().trim_end_matches('.').to_lowercase();
    match answer.split([' ', ',']).next() {
        Some(word @ ("yes" | "no")) => word.to_owned(),
        _ if answer.split_whitespace().count() <= 2 => answer,
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: serde_json::Value) -> FaceRecord {
        record(json.as_object().unwrap())
    }

    #[test]
    fn columns_of_many_names_say_the_same() {
        let vqa = |kind: &str, short: &str| {
            vec![Vqa { kind: kind.into(), question: "Hat?".into(), answer: "No hat at all.".into(), short: short.into() }]
        };
        let forms = [
            (serde_json::json!({"caption": "A face.", "question": "Hat?", "answer": "No hat at all."}), vqa("", "no")),
            (serde_json::json!({"text": ["A face."], "qa": [{"question": "Hat?", "answer": "No hat at all."}]}), vqa("", "no")),
            (
                serde_json::json!({"captions": ["A face."], "vqa": [["action", "Hat?", "No hat at all.", "none"]]}),
                vqa("action", "none"),
            ),
            (
                serde_json::json!({"prompt": "A face.", "vqas": {"question": ["Hat?"], "answer": ["No hat at all."], "type": ["x"]}}),
                vqa("x", "no"),
            ),
        ];
        for (row, vqa) in forms {
            let record = read(row.clone());
            assert_eq!((record.captions, record.vqa), (vec!["A face.".to_owned()], vqa), "{row}");
        }
        let uneven = read(serde_json::json!({"questions": ["a", "b"], "answers": ["c"], "caption": "  "}));
        assert_eq!(uneven, FaceRecord::default());
    }

    #[test]
    fn conversations_are_captions_and_questions() {
        let record = read(serde_json::json!({"conversations": [
            {"from": "human", "value": "<image>\nRender a clear and concise summary of the photo."},
            {"from": "gpt", "value": "a man in a hat"},
            {"from": "human", "value": "What colour is the hat?"},
            {"from": "gpt", "value": "Dark red."},
            {"from": "human", "value": "And the coat?"},
        ]}));
        assert_eq!(record.captions, ["a man in a hat"]);
        assert_eq!(record.vqa.len(), 1);
        assert_eq!((record.vqa[0].question.as_str(), record.vqa[0].short.as_str()), ("What colour is the hat?", "dark red"));
    }

    #[test]
    fn requests_for_captions_are_told_from_questions() {
        for caption in [
            "Describe the image concisely.",
            "Write a caption for this portrait.",
            "Present a compact description of the photo's key features.",
        ] {
            assert!(asks_for_caption(caption), "{caption}");
        }
        for question in ["What is she wearing?", "Describe her hair.", "Is this picture old?"] {
            assert!(!asks_for_caption(question), "{question}");
        }
    }
}
