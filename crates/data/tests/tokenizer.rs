//! Own vocabulary, Phi's and the word-level one behind one wrapper.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test may end by them

mod common;

use unif2ace_data::{DataError, END_OF_TEXT, TextTokenizer};

fn corpus() -> Vec<String> {
    common::samples()
        .into_iter()
        .flat_map(|sample| {
            let vqa = sample.record.vqa.into_iter().flat_map(|vqa| [vqa.question, vqa.answer]);
            sample.record.captions.into_iter().chain(vqa).collect::<Vec<_>>()
        })
        .collect()
}

fn trained() -> TextTokenizer {
    TextTokenizer::train(corpus().into_iter(), 400).unwrap()
}

#[test]
fn the_vocabulary_has_the_size_asked_for_and_ends_with_the_end_of_text() {
    let tokenizer = trained();
    assert_eq!(tokenizer.vocab_size(), 400);
    assert_eq!(tokenizer.end_of_text(), Some(399));
    assert!(matches!(TextTokenizer::train(["a b"].into_iter(), 2048), Err(DataError::VocabSize { expected: 2048, .. })));
    assert!(TextTokenizer::train(["a b"].into_iter(), 100).is_err(), "fewer entries than bytes");
}

#[test]
fn any_text_comes_back() {
    let tokenizer = trained();
    for text in ["A woman with grey hair.", "", "  two  spaces\n", "naïve café 日本 🙂", "<|endoftext|> <|soi|>"] {
        let ids = tokenizer.encode(text).unwrap();
        assert_eq!(tokenizer.decode(&ids).unwrap(), text);
        assert!(ids.iter().all(|&id| id < 399), "{text}");
    }
    let known = corpus().remove(0);
    assert!(tokenizer.encode(&known).unwrap().len() * 2 < known.len(), "merges are used");
}

#[test]
fn special_tokens_in_a_users_text_are_plain_text() {
    let tokenizer = trained();
    assert!(tokenizer.encode(END_OF_TEXT).unwrap().len() > 3);
    let reference = tokenizer.clone().recognising_special_tokens();
    assert_eq!(reference.encode("<|endoftext|>").unwrap(), [399]);
    assert_eq!(tokenizer.decode(&[399]).unwrap(), "");
}

#[test]
fn a_saved_vocabulary_is_the_same_one_and_training_is_repeatable() {
    let folder = tempfile::tempdir().unwrap();
    let (first, second) = (folder.path().join("a.json"), folder.path().join("b.json"));
    trained().save(&first).unwrap();
    trained().save(&second).unwrap();
    assert_eq!(std::fs::read(&first).unwrap(), std::fs::read(&second).unwrap());
    let loaded = TextTokenizer::from_file(&first).unwrap();
    for text in corpus() {
        assert_eq!(loaded.encode(&text).unwrap(), trained_once().encode(&text).unwrap());
    }
    std::fs::write(&second, b"{\"model\": 3}").unwrap();
    assert!(matches!(TextTokenizer::from_file(&second), Err(DataError::TokenizerFile { .. })));
    assert!(matches!(TextTokenizer::from_file(folder.path().join("none")), Err(DataError::Io(_))));
}

fn trained_once() -> &'static TextTokenizer {
    static ONCE: std::sync::OnceLock<TextTokenizer> = std::sync::OnceLock::new();
    ONCE.get_or_init(trained)
}

#[test]
fn pieces_of_a_stream_are_the_whole_text() {
    let tokenizer = trained();
    for text in ["She has green eyes, and is smiling.", "naïve 日本 🙂 end", "🙂🙂"] {
        let ids = tokenizer.encode(text).unwrap();
        let mut stream = tokenizer.stream();
        let mut pieces = Vec::new();
        for &id in &ids {
            pieces.extend(stream.push(id).unwrap());
        }
        pieces.extend(stream.finish().unwrap());
        assert_eq!(pieces.concat(), text);
        assert!(pieces.iter().all(|piece| !piece.contains('\u{fffd}')));
    }
    // A character that never gets complete is shown at the end, not before.
    let ids = tokenizer.encode("🙂").unwrap();
    let mut stream = tokenizer.stream();
    assert_eq!(stream.push(ids[0]).unwrap(), None);
    assert!(stream.finish().unwrap().is_some());
}

#[test]
fn the_word_level_vocabulary_escapes_special_words_too() {
    let path = unif2ace_golden::shared_file("prompting/tiny_tokenizer/tokenizer.json");
    let tokenizer = TextTokenizer::from_file(path).unwrap();
    let end = tokenizer.end_of_text().unwrap();
    let ids = tokenizer.encode("red <|endoftext|> hair").unwrap();
    assert!(!ids.contains(&end), "{ids:?}");
    assert_eq!((ids.first(), ids.last()), (Some(&28), Some(&23)));
    let reference = tokenizer.recognising_special_tokens();
    assert_eq!(reference.encode("red <|endoftext|> hair").unwrap(), [28, end, 23]);
}

#[test]
fn phi_is_read_and_streams() {
    let path = unif2ace_golden::shared_file("prompting/phi_tokenizer/tokenizer.json");
    let tokenizer = TextTokenizer::from_file(path).unwrap();
    let text = "A chat between a curious user — and 🙂 <|endoftext|>";
    let ids = tokenizer.encode(text).unwrap();
    assert!(!ids.contains(&tokenizer.end_of_text().unwrap()));
    let mut stream = tokenizer.stream();
    let mut shown: String = ids.iter().filter_map(|&id| stream.push(id).unwrap()).collect();
    shown.extend(stream.finish().unwrap());
    assert_eq!(shown, text);
}

#[test]
fn special_tokens_of_the_program_stand_for_themselves() {
    let shared = |name: &str| TextTokenizer::from_file(unif2ace_golden::shared_file(name)).unwrap();
    for tokenizer in
        [trained(), shared("prompting/tiny_tokenizer/tokenizer.json"), shared("prompting/phi_tokenizer/tokenizer.json")]
    {
        let end = tokenizer.end_of_text().unwrap();
        let reference = tokenizer.clone().recognising_special_tokens();
        for text in
            ["", "red hair", "<|endoftext|>", "red hair<|endoftext|>", "<|endoftext|> red <|endoftext|><|endoftext|> hair"]
        {
            let ids = tokenizer.encode_with_special(text).unwrap();
            assert_eq!(ids, reference.encode(text).unwrap(), "{text}");
            assert_eq!(ids.iter().filter(|&&id| id == end).count(), text.matches("<|endoftext|>").count());
        }
    }
}
