//! The short answer that an answer in words amounts to.
//!
//! Rules: to a yes/no question an answer that begins with yes or no is that; another one is read as a statement, which holds or
//! contradicts what was asked. To any other question the question's subject decides what is looked for in the answer:
//! the first word that is a value for it. A hairstyle may also follow from length and curls ("long wavy red hair" is
//! `long loose`; "short curly" is `short curls`; "very short" a `buzz cut`; "short" by itself is a `side part`, of a woman or girl a
//! `pixie cut`). Glasses, hats and clothes give colour and kind. Nothing found gives `None`, which counts as wrong.

use super::asked::{Asked, asked};
use super::claims::{Claim, caption_claims, roles, statements};
use super::lexicon::{Role, Topic, adjective};
use super::words::words;

/// What a question asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum QuestionKind {
    /// Is, are, does, can.
    YesNo,
    /// Colour of the hair.
    HairColor,
    /// Colour of the eyes.
    EyeColor,
    /// Colour of the lipstick.
    LipstickColor,
    /// Colour of a garment.
    ClothingColor,
    /// The background.
    Background,
    /// Skin tone.
    SkinTone,
    /// Shape of the face.
    FaceShape,
    /// Kind of nose.
    Nose,
    /// Hairstyle.
    Hairstyle,
    /// Kind of facial hair.
    FacialHair,
    /// Glasses: colour and shape.
    Glasses,
    /// Hat: colour and kind.
    Hat,
    /// Garment: colour and kind.
    Clothing,
    /// Age group.
    Age,
    /// Emotion.
    Emotion,
    /// What the face does.
    Action,
    /// Where the face points.
    HeadTurn,
    /// Where the eyes look.
    Gaze,
}

impl QuestionKind {
    /// The kind of a question; `None` where no rule fits.
    pub fn of(question: &str) -> Option<Self> {
        let words = words(question);
        let has = |any: &[&str]| words.iter().any(|word| any.contains(&word.as_str()));
        let first = words.first().map_or("", String::as_str);
        // "Is the man a child, a young adult, middle-aged or a senior?" offers values to choose from.
        let choice = has(&["or"]) && words.iter().filter(|word| *word == ",").count() > 0;
        if matches!(first, "is" | "are" | "does" | "do" | "has" | "can" | "was" | "did") && !choice {
            return Some(Self::YesNo);
        }
        let color = has(&["color"]);
        let hair = has(&["hair", "haircut", "hairstyle"]);
        Some(if has(&["background", "backdrop", "behind"]) {
            Self::Background
        } else if has(&["skin", "complexion"]) {
            Self::SkinTone
        } else if has(&["lipstick"]) {
            Self::LipstickColor
        } else if has(&["facial", "beard"]) {
            Self::FacialHair
        } else if hair && color {
            Self::HairColor
        } else if hair {
            Self::Hairstyle
        } else if has(&["eye", "eyes"]) && color {
            Self::EyeColor
        } else if has(&["nose"]) {
            Self::Nose
        } else if has(&["shape"]) {
            Self::FaceShape
        } else if has(&["glasses", "eyeglasses", "spectacles", "eyewear"]) {
            Self::Glasses
        } else if has(&["headwear", "hat"]) || has(&["head"]) && has(&["wearing", "wear", "on"]) {
            Self::Hat
        } else if has(&["old", "age", "senior"]) {
            Self::Age
        } else if has(&["emotion", "feel", "feeling", "feels", "expression", "mood"]) {
            Self::Emotion
        } else if has(&["doing", "action"]) {
            Self::Action
        } else if has(&["looking", "gaze", "look"]) {
            Self::Gaze
        } else if has(&["facing", "turned", "face"]) {
            Self::HeadTurn
        } else if color {
            Self::ClothingColor
        } else if has(&["wearing", "wear", "wears", "clothes", "clothing", "dressed"]) {
            Self::Clothing
        } else {
            return None;
        })
    }
}

/// The short answer that `answer` gives to `question`: yes, no, or the bare value as the face set writes it.
pub fn parse_answer(question: &str, answer: &str) -> Option<String> {
    let kind = QuestionKind::of(question)?;
    let words = words(answer);
    let claims = caption_claims(answer);
    if kind == QuestionKind::YesNo {
        return match words.first().map(String::as_str) {
            Some(short @ ("yes" | "no")) => Some(short.into()),
            _ => stated(question, &claims).map(str::to_owned),
        };
    }
    let said = |attribute: &str| value(&claims, attribute);
    let word = |topic: Topic, attribute: &str| said(attribute).or_else(|| bare(answer, topic, attribute));
    let both = |color: Option<&'static str>, kind: Option<&'static str>| match (color, kind) {
        (None, None) => None,
        (color, kind) => Some(color.into_iter().chain(kind).collect::<Vec<_>>().join(" ")),
    };
    let has = |any: &[&str]| words.iter().any(|word| any.contains(&word.as_str()));
    let short = match kind {
        QuestionKind::YesNo => None,
        QuestionKind::HairColor => word(Topic::Hair, "hair_color"),
        QuestionKind::EyeColor => word(Topic::Eyes, "eye_color"),
        QuestionKind::LipstickColor => word(Topic::Lipstick, "lipstick"),
        QuestionKind::ClothingColor => word(Topic::Clothes, "clothing_color"),
        QuestionKind::Background => word(Topic::Background, "background").or(has(&["blurred", "blurry"]).then_some("blurred")),
        QuestionKind::SkinTone => word(Topic::Skin, "skin_tone"),
        QuestionKind::FaceShape => word(Topic::Face, "face_shape"),
        QuestionKind::Nose => word(Topic::Nose, "nose"),
        QuestionKind::FacialHair => said("facial_hair").or(has(&["beard"]).then_some("full beard")),
        QuestionKind::Hairstyle => hairstyle(&claims, &words),
        QuestionKind::Age => said("age"),
        QuestionKind::Emotion => said("emotion"),
        QuestionKind::Action => said("action").or(has(&["smiling", "smiles"]).then_some("smiling")),
        QuestionKind::HeadTurn => direction(&has, &[("front", &["front", "forward", "straight", "camera"])]),
        QuestionKind::Gaze => {
            direction(&has, &[("camera", &["camera", "viewer", "straight"]), ("up", &["up", "upward", "upwards"])])
        }
        QuestionKind::Glasses => return both(said("glasses_color"), said("glasses")),
        QuestionKind::Hat => return both(said("hat_color"), said("hat")),
        QuestionKind::Clothing => {
            let garment = said("clothing").or(has(&["suit"]).then_some("suit"));
            return both(said("clothing_color"), garment);
        }
    };
    short.map(str::to_owned)
}

/// Yes or no by what an answer states instead of it: "She has red hair." to "Is her hair black?".
fn stated(question: &str, said: &[Claim]) -> Option<&'static str> {
    let Some(Asked::Holds { claims, any }) = asked(question) else { return None };
    let holds = |claim: &Claim| {
        let said = said.iter().find(|said| said.head == claim.head)?;
        let inside = said.accepted.iter().filter(|&&value| claim.accepts(value)).count();
        match inside {
            0 => Some(false),
            all if all == said.accepted.len() => Some(true),
            _ => None,
        }
    };
    let each: Vec<Option<bool>> = claims.iter().map(holds).collect();
    let (decisive, rest) = if any { (true, false) } else { (false, true) };
    let outcome =
        if each.contains(&Some(decisive)) { Some(decisive) } else { each.iter().all(|one| *one == Some(rest)).then_some(rest) };
    outcome.map(|yes| if yes { "yes" } else { "no" })
}

fn value(claims: &[Claim], attribute: &str) -> Option<&'static str> {
    let values = claims.iter().find(|claim| claim.attribute == attribute)?.values();
    match values.as_slice() {
        [one] => Some(one),
        _ => None,
    }
}

/// "Black." and "It is teal." have no noun: the question gives it.
fn bare(answer: &str, topic: Topic, attribute: &str) -> Option<&'static str> {
    roles(answer).into_iter().find_map(|role| {
        let Role::Adjective(word) = role else { return None };
        let claims: Vec<Claim> = statements(adjective(topic, word)?).collect();
        value(&claims, attribute)
    })
}

fn direction(has: &impl Fn(&[&str]) -> bool, others: &[(&'static str, &[&str])]) -> Option<&'static str> {
    let sides = [("left", &["left"][..]), ("right", &["right"][..])];
    others.iter().chain(&sides).find(|(_, words)| has(words)).map(|(value, _)| *value)
}

fn hairstyle(claims: &[Claim], words: &[String]) -> Option<&'static str> {
    if let Some(style) = value(claims, "hairstyle") {
        return Some(style);
    }
    let says = |attribute: &str, wanted: &str| {
        claims.iter().any(|claim| claim.attribute == attribute && claim.values().contains(&wanted))
    };
    let length = claims.iter().find(|claim| claim.attribute == "hair_length").map(Claim::values)?;
    match length.as_slice() {
        ["long"] => Some("long loose"),
        ["medium"] => Some("shoulder-length"),
        ["very short"] => Some("buzz cut"),
        _ if says("hair_type", "curly") => Some("short curls"),
        _ if says("hair_type", "straight") => Some("side part"),
        _ if words.iter().any(|word| matches!(word.as_str(), "she" | "her" | "woman" | "girl")) => Some("pixie cut"),
        _ => Some("side part"),
    }
}
