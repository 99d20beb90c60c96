//! Questions for a value.

use super::Ask;
use crate::grammar::paraphrase::{Facts, article};
use crate::grammar::pick::Pick;

pub(super) fn hair_color(ask: &mut Ask, pick: &mut Pick) {
    if let Some(color) = ask.facts.get("hair_color") {
        let forms = [
            "What color is {own} hair?",
            "What is the hair color of {s}?",
            "Which color is {own} hair?",
            "What color hair does {s} have?",
            "What is {own} hair color?",
            "Tell me the color of {own} hair.",
            "What's the color of the hair?",
            "What color is the hair?",
        ];
        let forms: Vec<&str> = forms.into_iter().filter(|form| !(form.contains("of {s}") && ask.who.subject.len() < 4)).collect();
        let form = pick.one(&forms);
        let answers = [if ask.who.own == "her" { "Her hair is {v}." } else { "His hair is {v}." }, "The hair is {v}.", "{v}."];
        ask.open("appearance", &[form], &answers, color, color, pick);
    }
}

pub(super) fn eye_color(ask: &mut Ask, pick: &mut Pick) {
    if let Some(color) = ask.facts.get("eye_color") {
        let forms = [
            "What color are {own} eyes?",
            "What is {own} eye color?",
            "Which color are {own} eyes?",
            "What color eyes does {s} have?",
            "What color are the eyes?",
        ];
        let own = if ask.who.own == "her" { "Her eyes are {v}." } else { "His eyes are {v}." };
        ask.open("appearance", &forms, &[own, "{He} has {v} eyes."], color, color, pick);
    }
}

pub(super) fn skin_tone(ask: &mut Ask, pick: &mut Pick) {
    if let Some(tone) = ask.facts.get("skin_tone") {
        let forms = [
            "How would you describe {own} skin tone?",
            "What is {own} skin tone?",
            "What skin tone does {s} have?",
            "What color is {own} skin?",
            "What kind of skin does {s} have?",
            "Which skin tone does {s} have?",
        ];
        ask.open("appearance", &forms, &["{He} has {v} skin."], tone, tone, pick);
    }
}

pub(super) fn face_shape(ask: &mut Ask, pick: &mut Pick) {
    if let Some(shape) = ask.facts.get("face_shape").filter(|shape| *shape != "oval") {
        let said = if shape == "heart" { "heart-shaped" } else { shape };
        let forms = [
            "What is the shape of {own} face?",
            "What face shape does {s} have?",
            "What shape is {own} face?",
            "Which shape does {own} face have?",
        ];
        ask.open("appearance", &forms, &["{He} has a {v} face."], said, shape, pick);
    }
}

pub(super) fn nose(ask: &mut Ask, pick: &mut Pick) {
    if let Some(nose) = ask.facts.present("nose") {
        let forms = [
            "What kind of nose does {s} have?",
            "What does {own} nose look like?",
            "How would you describe {own} nose?",
            "Describe {own} nose.",
        ];
        ask.open("appearance", &forms, &["{He} has a {v} nose."], nose, nose, pick);
    }
}

/// A hairstyle in the set's words with its colour.
pub(super) fn style(facts: &Facts, pick: &mut Pick) -> Option<String> {
    let (style, color) = (facts.get("hairstyle")?, facts.get("hair_color")?);
    let kind = facts.get("hair_type").unwrap_or("straight");
    let female = facts.female();
    let forms: &[&str] = match style {
        "afro" => &["{c} hair in an afro", "a {c} afro"],
        "balding" => &["a bald top with {c} hair left on the sides", "thinning {c} hair only on the sides of the head"],
        "bob" => &["chin-length {t} {c} hair", "a {t} {c} bob", "{c} hair cut in a {t} bob"],
        "bowl cut" => &["a {c} bowl cut", "{c} hair in a bowl cut"],
        "braids" => &["{c} hair in two braids", "two {c} braids"],
        "bun" => &["{c} hair tied up in a bun", "a {c} bun on top of {own} head"],
        "buzz cut" => &["a {c} buzz cut", "closely cropped {c} hair", "very short {c} hair"],
        "crew cut" => &["a {c} crew cut", "short cropped {c} hair"],
        "high ponytail" => &["a {c} high ponytail", "{c} hair in a high ponytail"],
        "long loose" => &["long {t} {c} hair", "long {c} hair that is {t}"],
        "mohawk" => &["a {c} mohawk"],
        "pigtails" => &["{c} pigtails", "{c} hair in two pigtails"],
        "pixie cut" => &["a {c} pixie cut", "short {c} hair"],
        "pulled back" => &["{c} hair pulled back tightly", "{c} hair tied back behind the head"],
        "quiff" => &["a {c} quiff", "{c} hair styled in a quiff"],
        "shaggy" => &["shaggy {c} hair", "messy wavy {c} hair"],
        "short curls" => &["short curly {c} hair", "short {c} curls"],
        "shoulder-length" => &["shoulder-length {t} {c} hair", "{t}, shoulder-length {c} hair"],
        "side part" => &["short {c} hair with a parting", "short straight {c} hair", "short {c} hair"],
        "side ponytail" => &["a {c} side ponytail", "{c} hair in a side ponytail"],
        "slicked back" => &["slicked-back {c} hair", "{c} hair combed straight back"],
        "space buns" => &["two {c} buns", "{c} hair in two space buns"],
        "spiky" => &["spiky {c} hair", "{c} hair standing up in spikes"],
        "top knot" => &["a {c} top knot", "{c} hair gathered in a top knot"],
        _ => return None,
    };
    let mut form = pick.one(forms);
    // In the set plain short hair of a woman is a pixie cut.
    if form == "short {c} hair" && (style == "side part") == female {
        form = forms[0];
    }
    Some(form.replace("{c}", color).replace("{t}", kind).replace("{own}", if female { "her" } else { "his" }))
}

pub(super) fn hairstyle(ask: &mut Ask, pick: &mut Pick) {
    let (Some(words), Some(value)) = (style(&ask.facts, pick), ask.facts.get("hairstyle")) else { return };
    let forms = [
        "What does {own} hair look like?",
        "What is {own} hairstyle?",
        "How would you describe {own} hair?",
        "What kind of hairstyle does {s} have?",
        "Describe {own} hair.",
        "What haircut does {s} have?",
        "How does {s} wear {own} hair?",
    ];
    ask.open("appearance", &forms, &["{He} has {v}."], &words, value, pick);
}

pub(super) fn age(ask: &mut Ask, pick: &mut Pick) {
    let Some(age) = ask.facts.get("age") else { return };
    let child = if ask.facts.female() { "girl" } else { "boy" };
    let forms = [
        "How old does {s} look?",
        "What age group does {s} belong to?",
        "How old is {s}?",
        "What is {own} age?",
        "About how old is {s}?",
        "Which age group is {s} in?",
        "Is {s} a child, a young adult, middle-aged or a senior?",
    ];
    let said = match age {
        "child" => article(child),
        "middle-aged" => age.to_owned(),
        other => article(other),
    };
    let looks = if age == "middle-aged" { "{He} looks {v}." } else { "{He} looks like {v}." };
    ask.open("appearance", &forms, &["{He} is {v}.", looks], &said, age, pick);
}

pub(super) fn background(ask: &mut Ask, pick: &mut Pick) {
    let plain = |color: &&str| !color.starts_with("blurred");
    if let Some(color) = ask.facts.get("background").filter(plain) {
        let forms = [
            "What color is the background?",
            "What is the color of the background?",
            "What color is behind {s}?",
            "Which color does the background have?",
        ];
        let forms: Vec<&str> =
            forms.into_iter().filter(|form| !(form.contains("behind {s}") && ask.who.subject.len() < 4)).collect();
        ask.open("appearance", &forms, &["The background is {v}.", "It is {v}."], color, color, pick);
    }
}

pub(super) fn clothing(ask: &mut Ask, pick: &mut Pick) {
    let (Some(kind), Some(color)) = (ask.facts.get("clothing"), ask.facts.get("clothing_color")) else { return };
    let said = match (kind, ask.facts.present("tie_color")) {
        ("suit and tie", Some(tie)) => format!("{} suit with {} tie", article(color), article(tie)),
        ("overalls", _) => format!("{color} overalls over a shirt"),
        _ => article(&format!("{color} {kind}")),
    };
    let forms = [
        "What is {s} wearing?",
        "What clothes does {s} wear?",
        "What does {s} wear?",
        "What clothes is {s} wearing?",
        "How is {s} dressed?",
        "What is {s} dressed in?",
    ];
    ask.open("appearance", &forms, &["{He} is wearing {v}."], &said, &format!("{color} {kind}"), pick);
}

pub(super) fn clothing_color(ask: &mut Ask, pick: &mut Pick) {
    let (Some(kind), Some(color)) = (ask.facts.get("clothing"), ask.facts.get("clothing_color")) else { return };
    if matches!(kind, "overalls" | "suit and tie" | "striped shirt" | "jacket") {
        return;
    }
    let forms = [
        format!("What color is {{own}} {kind}?"),
        format!("What color is the {kind}?"),
        format!("What color {kind} is {{s}} wearing?"),
    ];
    let forms: Vec<&str> = forms.iter().map(String::as_str).collect();
    let answer = format!("The {kind} is {{v}}.");
    ask.open("appearance", &forms, &[&answer], color, color, pick);
}

pub(super) fn lipstick_color(ask: &mut Ask, pick: &mut Pick) {
    if let Some(color) = ask.facts.present("lipstick") {
        let forms = [
            "What color is {own} lipstick?",
            "What color of lipstick is {s} wearing?",
            "Which color is the lipstick?",
            "What color lipstick does {s} wear?",
        ];
        ask.open("appearance", &forms, &["The lipstick is {v}."], color, color, pick);
    }
}

pub(super) fn glasses(ask: &mut Ask, pick: &mut Pick) {
    let (Some(shape), Some(color)) = (ask.facts.present("glasses"), ask.facts.present("glasses_color")) else { return };
    let forms = [
        "What kind of glasses is {s} wearing?",
        "Describe the glasses.",
        "What do {own} glasses look like?",
        "What type of glasses does {s} wear?",
        "Describe {own} glasses.",
    ];
    let said = format!("{shape} glasses with {color} frames");
    ask.open("appearance", &forms, &["{He} is wearing {v}."], &said, &format!("{color} {shape}"), pick);
}

pub(super) fn facial_hair(ask: &mut Ask, pick: &mut Pick) {
    let Some(kind) = ask.facts.present("facial_hair").filter(|_| !ask.facts.female()) else { return };
    let said = match kind {
        "stubble" => "a five o'clock shadow".to_owned(),
        "sideburns" => "sideburns".to_owned(),
        other => article(other),
    };
    let forms = [
        "What kind of facial hair does {s} have?",
        "Describe {own} facial hair.",
        "What facial hair does {s} have?",
        "What type of facial hair can be seen?",
    ];
    ask.open("appearance", &forms, &["{He} has {v}."], &said, kind, pick);
}

pub(super) fn hat(ask: &mut Ask, pick: &mut Pick) {
    let (Some(hat), Some(color)) = (ask.facts.present("hat"), ask.facts.present("hat_color")) else { return };
    let value = format!("{color} {hat}");
    let forms = [
        "What is {s} wearing on {own} head?",
        "What kind of headwear does {s} have?",
        "What is on {own} head?",
        "What headwear is {s} wearing?",
        "Describe {own} headwear.",
    ];
    ask.open("appearance", &forms, &["{He} is wearing {v}."], &article(&value), &value, pick);
}

pub(super) fn emotion(ask: &mut Ask, pick: &mut Pick) {
    let Some(emotion) = ask.facts.get("emotion") else { return };
    let forms = [
        "What emotion does {own} face show?",
        "How does {s} feel?",
        "What expression can be seen on the face?",
        "What is {own} mood?",
        "How is {s} feeling?",
        "What emotion is {s} showing?",
        "What expression does {s} have?",
        "Which emotion can you see?",
        "What is {own} expression?",
    ];
    let adjective = if emotion == "afraid" { "fearful" } else { emotion };
    let face = format!("The face shows {} expression.", article(adjective));
    ask.open("emotion", &forms, &["{He} looks {v}.", "{He} appears {v}.", &face], emotion, emotion, pick);
}

/// An action in the set's words for answers.
pub(super) fn doing(action: &str) -> &str {
    match action {
        "smiling with teeth" => "smiling with {own} teeth showing",
        "gasping" => "gasping with an open mouth",
        "gritting teeth" => "gritting {own} teeth",
        "eyes closed" => "keeping {own} eyes closed",
        "puckering lips" => "puckering {own} lips",
        "raising eyebrows" => "raising {own} eyebrows",
        other => other,
    }
}

pub(super) fn action(ask: &mut Ask, pick: &mut Pick) {
    let Some(action) = ask.facts.present("action") else { return };
    let forms = [
        "What is {s} doing?",
        "What is {s} doing with {own} face?",
        "What action is {s} performing?",
        "What does {s} do with {own} face?",
        "What is {own} face doing?",
    ];
    let forms: Vec<&str> = forms.into_iter().filter(|form| !form.contains(" do ")).collect();
    let answer = format!("{{He}} is {}.", doing(action));
    ask.open("action", &forms, &[&answer], action, action, pick);
}

pub(super) fn head_turn(ask: &mut Ask, pick: &mut Pick) {
    let Some(side) = ask.facts.get("head_turn") else { return };
    let forms = [
        "Which way is {s} facing?",
        "Is the face turned to the left, to the right or to the front?",
        "In which direction is {s} facing?",
        "Where is {s} facing?",
        "Which way is the face turned?",
    ];
    ask.open("action", &forms, &["The face is turned to the {v}."], side, side, pick);
}

pub(super) fn gaze(ask: &mut Ask, pick: &mut Pick) {
    let Some(gaze) = ask.facts.get("gaze").filter(|gaze| *gaze != "closed") else { return };
    let said = match gaze {
        "camera" => "at the camera",
        "up" => "up",
        "left" => "to the left",
        _ => "to the right",
    };
    let forms = [
        "Where is {s} looking?",
        "Which way are {own} eyes looking?",
        "In which direction is {s} looking?",
        "Which way is {s} looking?",
        "Where do {own} eyes look?",
    ];
    ask.open("action", &forms, &["{He} is looking {v}."], said, gaze, pick);
}
