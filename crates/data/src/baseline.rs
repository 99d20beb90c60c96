//! The blind baseline: for each question the answer that was most frequent in training.

use std::collections::{BTreeMap, HashMap};

use crate::grammar::asked;
use crate::sample::FaceRecord;

/// Answers without a look at the picture. Questions that ask the same in other words share their answer.
#[derive(Debug, Clone, Default)]
pub struct MajorityBaseline {
    by_question: HashMap<String, String>,
    yes_no: Option<String>,
    other: Option<String>,
}

impl MajorityBaseline {
    /// Counts the short answers of the records' questions. Ties go to the answer that comes first in the alphabet.
    pub fn fit<'a>(records: impl IntoIterator<Item = &'a FaceRecord>) -> Self {
        let mut counts: HashMap<String, BTreeMap<&str, usize>> = HashMap::new();
        let mut overall: [BTreeMap<&str, usize>; 2] = Default::default();
        for vqa in records.into_iter().flat_map(|record| &record.vqa) {
            let short = vqa.short.as_str();
            *counts.entry(key(&vqa.question)).or_default().entry(short).or_default() += 1;
            *overall[usize::from(is_yes_no(short))].entry(short).or_default() += 1;
        }
        let by_question = counts.into_iter().filter_map(|(key, counts)| Some((key, most(&counts)?))).collect();
        Self { by_question, yes_no: most(&overall[1]), other: most(&overall[0]) }
    }

    /// The short answer to a question. One that training never asked gets the most frequent answer of its sort (yes/no, or a
    /// value); `None` only where training had no question at all of that sort.
    pub fn answer(&self, question: &str) -> Option<&str> {
        let known = self.by_question.get(&key(question));
        let sort = || match asked(question) {
            Some(crate::grammar::Asked::Value(_)) => self.other.as_ref(),
            _ => self.yes_no.as_ref(),
        };
        known.or_else(sort).map(String::as_str)
    }
}

fn key(question: &str) -> String {
    asked(question).map_or_else(|| question.trim().to_lowercase(), |asked| asked.key())
}

fn is_yes_no(short: &str) -> bool {
    matches!(short, "yes" | "no")
}

fn most(counts: &BTreeMap<&str, usize>) -> Option<String> {
    // `max_by_key` would take the last of equals.
    counts.iter().rev().max_by_key(|(_, count)| **count).map(|(answer, _)| (*answer).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::Vqa;

    fn record(questions: &[(&str, &str)]) -> FaceRecord {
        let vqa = |(question, short): &(&str, &str)| Vqa {
            kind: "appearance".into(),
            question: (*question).into(),
            answer: String::new(),
            short: (*short).into(),
        };
        FaceRecord { vqa: questions.iter().map(vqa).collect(), ..FaceRecord::default() }
    }

    #[test]
    fn the_most_frequent_answer_wins_over_all_wordings() {
        let train = [
            record(&[("Is the man bald?", "no"), ("What color is her hair?", "red"), ("Is she wearing a hat?", "yes")]),
            record(&[("Is this person bald?", "no"), ("What is the hair color of the man?", "black")]),
            record(&[("Is the woman bald?", "yes"), ("What color is his hair?", "black")]),
        ];
        let baseline = MajorityBaseline::fit(&train);
        assert_eq!(baseline.answer("Is he bald?"), Some("no"));
        assert_eq!(baseline.answer("What colour is the hair of the girl?"), Some("black"));
        assert_eq!(baseline.answer("Does he have a goatee?"), Some("no"), "unknown yes/no question");
        assert_eq!(baseline.answer("What kind of nose does he have?"), Some("black"), "unknown value question");
        assert_eq!(MajorityBaseline::default().answer("Is he bald?"), None);
    }

    #[test]
    fn ties_go_to_the_first_of_the_alphabet() {
        let baseline = MajorityBaseline::fit(&[record(&[("Is he bald?", "yes"), ("Is she bald?", "no")])]);
        assert_eq!(baseline.answer("Is the boy bald?"), Some("no"));
    }
}
