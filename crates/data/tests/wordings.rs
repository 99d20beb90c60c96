//! The same thing in other words: questions and answers.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test may end by them

mod common;

use unif2ace_data::grammar::{Asked, asked, parse_answer, parse_caption};
use unif2ace_data::{MajorityBaseline, Schema};

#[test]
fn only_exact_statements_count_as_values() {
    let schema = Schema::get();
    let read = parse_caption("a woman with a beanie and glasses");
    let named: Vec<_> = read
        .iter()
        .map(|&(head, value)| {
            let attribute = schema.head(head).unwrap();
            (attribute.name, attribute.values[value as usize])
        })
        .collect();
    assert_eq!(named, [("gender", "female"), ("hat", "beanie")]);
}

#[test]
fn records_answer_the_sets_questions_as_the_set_does() {
    for sample in common::samples() {
        for vqa in &sample.record.vqa {
            let truth = asked(&vqa.question).and_then(|asked| asked.answer(&sample.record));
            assert_eq!(truth.as_deref(), Some(vqa.short.as_str()), "{}", vqa.question);
        }
    }
}

#[test]
fn the_same_question_in_other_words_asks_the_same() {
    let same = |first: &str, others: &[&str]| {
        let what = asked(first);
        assert!(what.is_some(), "{first}");
        for other in others {
            assert_eq!(asked(other), what, "{first} / {other}");
        }
    };
    same(
        "What color is her hair?",
        &[
            "what colour is the woman's hair",
            "Which hair color does he have?",
            "Hair colour?",
            "Can you tell me what colour his hair is?",
        ],
    );
    same("Is the person wearing sunglasses?", &["Does she wear shades?", "Is he wearing dark glasses", "Any sunglasses?"]);
    same("Is the man smiling?", &["is he smiling?", "Is this person smiling?", "Does she smile?"]);
    same("Does the person have long hair?", &["Is her hair long?", "Has he got long hair?"]);
    same("Where is the man looking?", &["Which way are her eyes looking?", "In which direction is she looking?"]);
    same("What is the person doing?", &["What action is he performing?"]);
    same("How does the man feel?", &["What emotion does her face show?", "What is his mood?"]);
    assert!(matches!(asked("What kind of hat?"), Some(Asked::Value(["hat_color", "hat"]))));
    assert_eq!(asked("How far is the moon?"), None);
}

#[test]
fn answers_in_other_words_are_understood() {
    let cases = [
        ("What color is her hair?", "It's golden.", Some("blond")),
        ("What colour are his eyes?", "grey", Some("gray")),
        ("How does he feel?", "She seems furious.", Some("angry")),
        ("Is she wearing a hat?", "Yes.", Some("yes")),
        ("Is her hair black?", "She has red hair.", Some("no")),
        ("Is her hair black?", "The hair is jet-black.", Some("yes")),
        ("Does he have a beard?", "He is clean-shaven.", Some("no")),
        ("Is he happy?", "The background is blue.", None),
        ("What kind of nose does she have?", "I don't know.", None),
    ];
    for (question, answer, short) in cases {
        assert_eq!(parse_answer(question, answer).as_deref(), short, "{question} {answer}");
    }
}

#[test]
fn the_baseline_answers_every_question_of_the_sample() {
    let samples = common::samples();
    let baseline = MajorityBaseline::fit(samples.iter().map(|sample| &sample.record));
    assert!(samples.iter().flat_map(|sample| &sample.record.vqa).all(|vqa| baseline.answer(&vqa.question).is_some()));
}
