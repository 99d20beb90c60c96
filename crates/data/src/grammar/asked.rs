//! What a question asks: the value of attributes, or whether statements hold.
//!
//! The rule: a question with "what", "which", "where", "how" or "describe", or one that offers alternatives with "or", asks for a
//! value; its first topic word decides of what. Any other question asks whether something holds: who is asked about and the
//! auxiliary are taken away, and what is left is read as a statement ("Does she wear round glasses?" is "round glasses").

use super::claims::{Claim, caption_claims, statements};
use super::words::words;
use crate::sample::FaceRecord;
use crate::schema::{Attribute, Schema};

/// What a question asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Asked {
    /// For the value of these attributes, said in this order ("black round", "red").
    Value(&'static [&'static str]),
    /// Whether statements hold: one of them if `any`, else all.
    Holds {
        /// The statements.
        claims: Vec<Claim>,
        /// Whether one of them is enough.
        any: bool,
    },
}

/// Topic words in order of precedence, where a colour is asked for.
#[rustfmt::skip]
const COLORS: &[(&[&str], &[&str])] = &[
    (&["lipstick", "lips"], &["lipstick"]),
    (&["eye shadow", "eye makeup", "eyelids"], &["eye_shadow"]),
    (&["background", "backdrop", "wall", "behind"], &["background"]),
    (&["hat", "cap", "beanie", "fedora", "headband", "headwear"], &["hat_color"]),
    (&["glasses", "sunglasses", "frames", "spectacles", "eyeglasses"], &["glasses_color"]),
    (&["earrings", "earring"], &["earring_color"]),
    (&["tie", "necktie"], &["tie_color"]),
    (&["eyes", "eye"], &["eye_color"]),
    (&["hair", "beard", "moustache", "locks"], &["hair_color"]),
    (&["skin", "complexion"], &["skin_tone"]),
    (&[
        "t shirt", "shirt", "sweater", "turtleneck", "v neck", "jacket", "overalls", "blouse", "suit", "clothes", "clothing", "top",
        "wearing", "wear", "outfit", "jumper", "dressed",
    ], &["clothing_color"]),
];

/// Topic words in order of precedence, for any other value.
#[rustfmt::skip]
const VALUES: &[(&[&str], &[&str])] = &[
    (&["how old", "age", "young adult"], &["age"]),
    (&["man or", "woman or", "male or", "female or", "gender"], &["gender"]),
    (&["face shape", "shape of", "shape", "shaped"], &["face_shape"]),
    (&["skin", "complexion"], &["skin_tone"]),
    (&["facial hair", "beard", "moustache"], &["facial_hair"]),
    (&["nose"], &["nose"]),
    (&["eyebrows", "brows"], &["eyebrows"]),
    (&["earrings"], &["earring_color", "earrings"]),
    (&["necklace", "neck"], &["necklace"]),
    (&["glasses", "eyeglasses", "spectacles", "eyewear", "frames"], &["glasses_color", "glasses"]),
    (&["headwear", "hat", "headgear", "on the head", "on top of the head"], &["hat_color", "hat"]),
    (&["hair", "hairstyle", "haircut", "hairdo"], &["hairstyle"]),
    (&["facing", "face turned", "head turned", "turned", "face pointing", "face point"], &["head_turn"]),
    (&["tilted", "tilting"], &["head_tilt"]),
    (&["where looking", "way looking", "direction looking", "eyes looking", "looking", "gaze", "eyes pointing", "look at"], &["gaze"]),
    (&["emotion", "emotions", "feel", "feeling", "feels", "mood", "expression", "emotional"], &["emotion"]),
    (&["doing", "action", "performing", "up to", "does do"], &["action"]),
    (&["background", "backdrop", "behind"], &["background"]),
    (&["wear", "wearing", "wears", "clothes", "clothing", "dressed", "outfit", "garment", "have on"], &["clothing_color", "clothing"]),
    (&["lips"], &["lips"]),
    (&["eyes"], &["eye_color"]),
];

const ASKING: [&str; 6] = ["what", "which", "where", "how", "describe", "whats"];
const AUXILIARY: [&str; 17] = [
    "is", "are", "does", "do", "has", "have", "can", "could", "would", "did", "you", "see", "there", "say", "got", "any", "spot",
];
const PEOPLE: [&str; 13] =
    ["person", "man", "woman", "boy", "girl", "child", "kid", "guy", "lady", "gentleman", "individual", "one", "face"];

/// What the question asks; `None` for questions about something else.
pub fn asked(question: &str) -> Option<Asked> {
    let all: Vec<String> = words(question)
        .into_iter()
        .filter(|word| word != ".")
        .map(|word| if matches!(word.as_str(), "his" | "her" | "their") { "the".into() } else { word })
        .collect();
    let text = format!(" {} ", all.join(" "));
    let has = |phrase: &str| text.contains(&format!(" {phrase} "));
    let eyewear = has("eyewear") || has("glasses or sunglasses") || has("sunglasses or glasses");
    let moustache = has("beard or moustache") || has("moustache or beard");
    let asks = all.iter().any(|word| ASKING.contains(&word.as_str())) || (has("or") && !eyewear && !moustache);
    let value = || {
        let table = if has("color") || has("shade") { COLORS } else { VALUES };
        table.iter().find(|(topics, _)| topics.iter().any(|topic| has(topic))).map(|(_, of)| Asked::Value(of))
    };
    if asks {
        return value();
    }
    if eyewear {
        return Some(Asked::Holds { claims: statements("glasses=!none;sunglasses=true").collect(), any: true });
    }
    let claims = body_claims(&without_subject(&all)).into_iter().map(widened(&has)).collect::<Vec<_>>();
    let teeth = has("teeth") && !claims.iter().any(|claim| claim.attribute == "action");
    if teeth {
        return Some(Asked::Holds { claims: statements("teeth_showing=true").collect(), any: false });
    }
    // "Hair colour?" has neither a verb nor a statement.
    if claims.is_empty() { value() } else { Some(Asked::Holds { claims, any: false }) }
}

/// In questions some words take in more than in captions: a goatee is a beard, a beard goes with a moustache, who laughs smiles, a headband is no hat.
fn widened(has: &impl Fn(&str) -> bool) -> impl Fn(Claim) -> Claim {
    let beard = has("beard");
    let hat = has("hat") && !has("sun hat");
    let moustache = has("moustache");
    move |claim| {
        let says = match (claim.attribute, claim.values().as_slice()) {
            ("facial_hair", ["short beard", "full beard"]) if beard => "facial_hair=goatee/short beard/full beard",
            ("facial_hair", ["moustache"]) if moustache => "facial_hair=moustache/short beard/full beard",
            ("action", ["smiling", "smiling with teeth"]) => "action=smiling/smiling with teeth/laughing",
            ("hat", _) if hat && claim.accepted.len() > 1 => "hat=beanie/baseball cap/fedora/sun hat",
            _ => return claim,
        };
        statements(says).next().unwrap_or(claim)
    }
}

/// The words behind the auxiliary and the person that is asked about.
fn without_subject(all: &[String]) -> Vec<&str> {
    let mut rest: Vec<&str> = all.iter().map(String::as_str).collect();
    let skip = rest.iter().take_while(|word| AUXILIARY.contains(word)).count();
    rest.drain(..skip);
    match rest.as_slice() {
        ["he" | "she" | "they" | "it", ..] => drop(rest.drain(..1)),
        ["the" | "this" | "that", person, _, ..] if PEOPLE[..12].contains(person) => drop(rest.drain(..2)),
        ["this" | "that", ..] => drop(rest.drain(..1)),
        _ => {}
    }
    // "Has he got a beard?"
    let skip = rest.iter().take_while(|word| matches!(**word, "got" | "have" | "look" | "looks")).count();
    rest.drain(..skip);
    rest
}

fn body_claims(body: &[&str]) -> Vec<Claim> {
    let claims = caption_claims(&body.join(" "));
    if !claims.is_empty() {
        return claims;
    }
    // "Is her hair long": the verb stands in front.
    (1..body.len())
        .map(|at| caption_claims(&[&body[..at], &["is"], &body[at..]].concat().join(" ")))
        .find(|claims| !claims.is_empty())
        .unwrap_or_default()
}

impl Asked {
    /// The short answer that a record gives: "yes", "no" or the values. `None` where the record is silent.
    pub fn answer(&self, record: &FaceRecord) -> Option<String> {
        let value = |attribute: &Attribute| attribute.of(record).map(|value| attribute.values[value as usize]);
        match self {
            Self::Value(names) => {
                let attributes = names.iter().map(|name| Schema::get().attribute(name));
                let values: Option<Vec<&str>> = attributes.map(|attribute| attribute.and_then(value)).collect();
                let values: Vec<&str> = values?;
                // "none none" is "none".
                Some(if values.contains(&"none") { "none".into() } else { values.join(" ") })
            }
            Self::Holds { claims, any } => {
                let holds = |claim: &Claim| {
                    let attribute = Schema::get().head(claim.head);
                    attribute.and_then(|attribute| attribute.of(record)).is_some_and(|value| claim.accepts(value))
                };
                let yes = if *any { claims.iter().any(holds) } else { claims.iter().all(holds) };
                Some(if yes { "yes" } else { "no" }.into())
            }
        }
    }

    /// A text that is the same for questions that ask the same.
    pub fn key(&self) -> String {
        match self {
            Self::Value(names) => names.join(" "),
            Self::Holds { claims, any } => {
                let each: Vec<String> =
                    claims.iter().map(|claim| format!("{}={}", claim.attribute, claim.values().join("/"))).collect();
                each.join(if *any { " or " } else { " and " })
            }
        }
    }
}
