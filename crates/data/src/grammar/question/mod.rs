//! Questions in many wordings, with answers in the manner of the face set.

mod values;
mod yes_no;

use values::*;
use yes_no::*;

use super::paraphrase::Facts;
use super::pick::Pick;
use crate::sample::{FaceRecord, Vqa};
use crate::schema::Schema;

/// Words for the person of one question and its answer.
struct Who {
    /// "the man", "this person", "she".
    subject: String,
    /// "his", "her".
    own: &'static str,
    /// "He", "She": answers always know.
    he: &'static str,
}

struct Ask<'a> {
    facts: Facts<'a>,
    who: Who,
    out: Vec<Vqa>,
}

/// Up to `count` questions about what the picture shows, with answers and short answers as the set writes them. All kinds of
/// questions of the set are covered, in its wording and in others ("Is she wearing glasses?", "What colour is his hair?").
pub fn questions(record: &FaceRecord, seed: u64, count: usize) -> Vec<Vqa> {
    let mut pick = Pick::new(seed ^ 0x7177_6573_7469_6f6e);
    let mut makers: Vec<Maker> = MAKERS.to_vec();
    pick.shuffle(&mut makers);
    let she = record.get("gender") == Some("female");
    let mut out = Vec::new();
    for maker in makers {
        if out.len() >= count {
            break;
        }
        let mut ask = Ask { facts: Facts::new(record), who: who(record, she, &mut pick), out: Vec::new() };
        maker(&mut ask, &mut pick);
        if let Some(vqa) = ask.out.pop() {
            out.push(finish(vqa, &mut pick));
        }
    }
    out
}

fn who(record: &FaceRecord, she: bool, pick: &mut Pick) -> Who {
    let noun = match (record.get("age") == Some("child"), she) {
        (true, true) => "girl",
        (true, false) => "boy",
        (false, true) => "woman",
        (false, false) => "man",
    };
    let (pronoun, own, he) = if she { ("she", "her", "She") } else { ("he", "his", "He") };
    let subject = match pick.below(10) {
        0..=2 => format!("the {noun}"),
        3 => format!("this {noun}"),
        4 => "the person".into(),
        5 => "this person".into(),
        _ => pronoun.into(),
    };
    Who { subject, own, he }
}

/// British or American colours, a question mark forgotten, small letters.
fn finish(mut vqa: Vqa, pick: &mut Pick) -> Vqa {
    if pick.chance(0.5) {
        vqa.question = vqa.question.replace("color", "colour");
    }
    if pick.chance(0.1) {
        vqa.question = vqa.question.replace("gray", "grey");
    }
    match pick.below(20) {
        0 => vqa.question = vqa.question.to_lowercase(),
        1 => vqa.question = vqa.question.trim_end_matches('?').to_owned(),
        2 => vqa.question = vqa.question.to_lowercase().trim_end_matches('?').to_owned(),
        _ => {}
    }
    vqa
}

type Maker = fn(&mut Ask, &mut Pick);

const MAKERS: &[Maker] = &[
    hair_color,
    eye_color,
    skin_tone,
    face_shape,
    nose,
    hairstyle,
    age,
    background,
    clothing,
    clothing_color,
    lipstick_color,
    glasses,
    facial_hair,
    hat,
    emotion,
    action,
    head_turn,
    gaze,
    glasses,
    hat,
    emotion,
    action,
    has_eyewear,
    has_glasses,
    has_sunglasses,
    has_hat,
    has_earrings,
    has_necklace,
    has_lipstick,
    has_shadow,
    has_beard,
    has_moustache,
    is_bald,
    has_bangs,
    has_long_hair,
    has_curly_hair,
    has_hair_color,
    has_eye_color,
    has_skin,
    has_freckles,
    has_wrinkles,
    has_rosy_cheeks,
    is_chubby,
    has_trait,
    has_trait,
    is_gender,
    is_age,
    is_smiling,
    is_winking,
    eyes_closed,
    mouth_open,
    teeth,
    tilted,
    feels,
    feels,
    is_facing,
];

impl Ask<'_> {
    /// Fills `{s}` (the person), `{own}` (his, her) and `{v}`; the first letter becomes a capital.
    fn fill(&self, form: &str, value: &str) -> String {
        let text = form
            .replace("{s}", &self.who.subject)
            .replace("{own}", self.who.own)
            .replace("{He}", self.who.he)
            .replace("{v}", value);
        let mut letters = text.chars();
        letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
    }

    fn push(&mut self, kind: &str, question: String, answer: String, short: &str) {
        self.out.push(Vqa { kind: kind.into(), question, answer, short: short.into() });
    }

    /// A question for a value: wordings, the answers with `{v}`, the value.
    fn open(&mut self, kind: &str, wordings: &[&str], answers: &[&str], value: &str, short: &str, pick: &mut Pick) {
        let question = self.fill(pick.one(wordings), value);
        let answer = self.fill(pick.one(answers), value);
        self.push(kind, question, answer, short);
    }

    /// A yes/no question about `asked`: often just "Yes.", else with the reason.
    fn yes_no(&mut self, kind: &str, question: &str, asked: &str, truth: bool, reason: &str, pick: &mut Pick) {
        // Most faces lack most things: half of the noes are left out, so that yes is as frequent.
        if !truth && pick.chance(0.5) {
            return;
        }
        let short = if truth { "yes" } else { "no" };
        let head = if truth { "Yes" } else { "No" };
        let question = self.fill(question, asked);
        let answer =
            if reason.is_empty() || pick.chance(0.42) { format!("{head}.") } else { format!("{head}, {}.", self.reason(reason)) };
        self.push(kind, question, answer, short);
    }

    fn reason(&self, form: &str) -> String {
        form.replace("{He}", &self.who.he.to_lowercase()).replace("{own}", self.who.own)
    }

    /// The value to ask a yes/no question about: the true one in part of the cases.
    fn asked(&self, attribute: &str, truth: &'static str, chance: f64, skip: &[&str], pick: &mut Pick) -> &'static str {
        let values: Vec<&'static str> = Schema::get()
            .attribute(attribute)
            .map(|known| known.values.iter().copied().filter(|value| *value != truth && !skip.contains(value)).collect())
            .unwrap_or_default();
        if pick.chance(chance) && !skip.contains(&truth) { truth } else { pick.one(&values) }
    }
}
