//! Conversations for instruction tuning (LLaVA records, as in Show-o's instruction tuning).

use super::text::EOT_NAME;
use super::{IGNORED, Prompter, Row, SpecialText};
use crate::error::{Result, input};

/// The prompt before a conversation in the CLIP variant; the reference's tokenizer makes 28 tokens of it.
pub const SYSTEM_PROMPT: &str = "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, and polite answers to the user's questions.";

/// Tokens of [`SYSTEM_PROMPT`] that the reference reserves even where it doesn't use them.
const NUM_SYSTEM_TOKENS: usize = 28;
const MODEL_MAX_LENGTH: usize = 2048;
const ANSWER_MARK: &str = " ASSISTANT: ";

/// Who says something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Speaker {
    /// Asks.
    Human,
    /// Answers.
    Assistant,
}

/// One turn of a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Turn<'a> {
    /// Who.
    pub speaker: Speaker,
    /// What; `<image>` in it is dropped.
    pub text: &'a str,
}

/// Ids and labels of a conversation without its image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConversationRow {
    /// Ids and labels.
    pub row: Row,
    /// Whether the reference's way of counting lost track, so that nothing is labelled.
    pub mismatch: bool,
}

/// A sequence around projected features (§2.8).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FeatureRow {
    /// Ids before the features.
    pub before: Vec<u32>,
    /// Ids after the features.
    pub after: Vec<u32>,
    /// Labels of the whole sequence, features included.
    pub labels: Vec<i64>,
}

impl Prompter<'_> {
    /// A conversation as text tokens, `USER: q ASSISTANT: a<|endoftext|>..`; answers and their ends are labelled.
    ///
    /// With [`SpecialText::Parse`] it counts as the reference does, which labels nothing when " ASSISTANT: " occurs inside a turn.
    ///
    /// # Errors
    /// When turns don't alternate, beginning with a human (an assistant's first turn is dropped).
    pub fn conversation(&self, turns: &[Turn<'_>]) -> Result<ConversationRow> {
        let turns = match turns.first() {
            Some(Turn { speaker: Speaker::Assistant, .. }) => &turns[1..],
            _ => turns,
        };
        let mut rounds: Vec<(String, Option<String>)> = Vec::new();
        for (index, turn) in turns.iter().enumerate() {
            let text = if turn.text.contains("<image>") {
                turn.text.replace("<image>", "").trim().to_owned()
            } else {
                turn.text.to_owned()
            };
            match (turn.speaker, rounds.last_mut()) {
                (Speaker::Human, last) if last.as_ref().is_none_or(|(_, answer)| answer.is_some()) => rounds.push((text, None)),
                (Speaker::Assistant, Some((_, answer @ None))) => *answer = Some(text),
                _ => {
                    return input(
                        "conversation",
                        "turns that alternate",
                        format!("two turns of one speaker at {index}"),
                        "merge them",
                    );
                }
            }
        }
        match self.special_text {
            SpecialText::Parse => self.counted(&rounds),
            SpecialText::Escape => self.structured(&rounds),
        }
    }

    fn structured(&self, rounds: &[(String, Option<String>)]) -> Result<ConversationRow> {
        let mut row = Row { ids: Vec::new(), labels: Vec::new() };
        for (question, answer) in rounds {
            let opening = if question.is_empty() { "USER:".into() } else { format!("USER: {question}") };
            let Some(answer) = answer else {
                let ids = self.text(&opening)?;
                row.labels.extend(ids.iter().map(|_| IGNORED));
                row.ids.extend(ids);
                continue;
            };
            // The space before the answer belongs to its first token.
            let silent = self.text(&format!("{opening}{ANSWER_MARK}"))?.len().saturating_sub(1);
            let mut ids = self.text(&format!("{opening}{ANSWER_MARK}{answer}"))?;
            ids.push(self.ids.eot);
            row.labels.extend(ids.iter().enumerate().map(|(place, &id)| if place < silent { IGNORED } else { i64::from(id) }));
            row.ids.extend(ids);
        }
        Ok(ConversationRow { row, mismatch: false })
    }

    fn counted(&self, rounds: &[(String, Option<String>)]) -> Result<ConversationRow> {
        let mut text = String::new();
        for (question, answer) in rounds {
            text += &if question.is_empty() { "USER:".into() } else { format!("USER: {question} ") };
            match answer.as_deref() {
                Some("") => text += "ASSISTANT:",
                Some(answer) => text += &format!("ASSISTANT: {answer}{EOT_NAME}"),
                None => {}
            }
        }
        let text = text.trim();
        let ids = self.text(text)?;
        let mut labels: Vec<i64> = ids.iter().map(|&id| i64::from(id)).collect();
        let mut at = 0;
        for round in text.split(EOT_NAME) {
            let parts: Vec<&str> = round.split(ANSWER_MARK).collect();
            if round.is_empty() || parts.len() != 2 {
                break;
            }
            let silent = self.text(&format!("{}{ANSWER_MARK}", parts[0]))?.len().saturating_sub(1);
            let end = labels.len().min(at + silent);
            labels[at.min(end)..end].fill(IGNORED);
            at += self.text(round)?.len() + 1;
        }
        let end = at.min(labels.len());
        labels[end..].fill(IGNORED);
        let num_tokens = ids.iter().filter(|&&id| id != self.ids.pad).count();
        let mismatch = at < MODEL_MAX_LENGTH && at != num_tokens;
        if mismatch {
            labels.fill(IGNORED);
        }
        Ok(ConversationRow { row: Row { ids, labels }, mismatch })
    }

    /// The caption of a record alone, all of it labelled: `caption "\n" [eot]` (pre-training of the projector).
    ///
    /// # Errors
    /// When the tokenizer does not belong to the model.
    pub fn plain_caption(&self, caption: &str) -> Result<Row> {
        let mut ids = self.text(&format!("{caption}\n"))?;
        ids.push(self.ids.eot);
        Ok(Row { labels: ids.iter().map(|&id| i64::from(id)).collect(), ids })
    }

    /// A conversation behind its image (§2.7): `[mmu] [soi] image [eoi] text`.
    ///
    /// # Errors
    /// When image tokens are not N or no image ids.
    pub fn with_image(&self, image: &[u32], text: Row) -> Result<Row> {
        self.after_image(image, text)
    }

    /// `[mmu] (system prompt) [soi] features [eoi] text` (§2.8); labels up to and including the end mark are ignored.
    ///
    /// # Errors
    /// When the tokenizer does not belong to the model.
    pub fn with_features(&self, num_features: usize, system_prompt: bool, text: Row) -> Result<FeatureRow> {
        let mut before = vec![self.ids.mmu];
        if system_prompt {
            before.extend(self.text(SYSTEM_PROMPT)?);
        }
        before.push(self.ids.soi);
        let mut labels = vec![IGNORED; before.len() + num_features + 1];
        labels.extend(&text.labels);
        let mut after = vec![self.ids.eoi];
        after.extend(text.ids);
        Ok(FeatureRow { before, after, labels })
    }

    /// The question of the CLIP variant at inference: `USER: q ASSISTANT:`, no start of text.
    ///
    /// # Errors
    /// When the tokenizer does not belong to the model.
    pub fn feature_question_ids(&self, question: &str) -> Result<Vec<u32>> {
        self.text(&format!("USER: {question} ASSISTANT:"))
    }

    /// The system prompt of the CLIP variant in ids.
    ///
    /// # Errors
    /// When the tokenizer does not belong to the model.
    pub fn system_prompt_ids(&self) -> Result<Vec<u32>> {
        self.text(SYSTEM_PROMPT)
    }
}

/// Pads and cuts rows to one length, as the reference does: `min(max_length, 2048) - 28`.
///
/// # Errors
/// When `max_length` leaves no place.
pub fn collate(rows: &[Row], max_length: usize, pad: u32) -> Result<Vec<Row>> {
    if max_length <= NUM_SYSTEM_TOKENS {
        return input("collate conversations", "max_length above 28", max_length, "28 places are reserved for the system prompt");
    }
    let length = max_length.min(MODEL_MAX_LENGTH) - NUM_SYSTEM_TOKENS;
    let fitted = rows.iter().map(|row| {
        let mut row = row.clone();
        row.ids.resize(length, pad);
        row.labels.resize(length, IGNORED);
        row
    });
    Ok(fitted.collect())
}
