//! Questions in many wordings, with answers in the manner of the face set.

use super::paraphrase::{Facts, article};
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
    hair_color, eye_color, skin_tone, face_shape, nose, hairstyle, age, background, clothing, clothing_color, lipstick_color, glasses, facial_hair, hat, emotion,
    action, head_turn, gaze, glasses, hat, emotion, action, has_eyewear, has_glasses, has_sunglasses, has_hat, has_earrings, has_necklace, has_lipstick,
    has_shadow, has_beard, has_moustache, is_bald, has_bangs, has_long_hair, has_curly_hair, has_hair_color, has_eye_color, has_skin, has_freckles, has_wrinkles,
    has_rosy_cheeks, is_chubby, has_trait, has_trait, is_gender, is_age, is_smiling, is_winking, eyes_closed, mouth_open, teeth, tilted, feels, feels, is_facing,
];

impl Ask<'_> {
    /// Fills `{s}` (the person), `{own}` (his, her) and `{v}`; the first letter becomes a capital.
    fn fill(&self, form: &str, value: &str) -> String {
        let text = form.replace("{s}", &self.who.subject).replace("{own}", self.who.own).replace("{He}", self.who.he).replace("{v}", value);
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
        let answer = if reason.is_empty() || pick.chance(0.42) { format!("{head}.") } else { format!("{head}, {}.", self.reason(reason)) };
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

// Questions for a value.

fn hair_color(ask: &mut Ask, pick: &mut Pick) {
    if let Some(color) = ask.facts.get("hair_color") {
        let forms = [
            "What color is {own} hair?", "What is the hair color of {s}?", "Which color is {own} hair?", "What color hair does {s} have?",
            "What is {own} hair color?", "Tell me the color of {own} hair.", "What's the color of the hair?", "What color is the hair?",
        ];
        let forms: Vec<&str> = forms.into_iter().filter(|form| !(form.contains("of {s}") && ask.who.subject.len() < 4)).collect();
        let form = pick.one(&forms);
        let answers = [if ask.who.own == "her" { "Her hair is {v}." } else { "His hair is {v}." }, "The hair is {v}.", "{v}."];
        ask.open("appearance", &[form], &answers, color, color, pick);
    }
}

fn eye_color(ask: &mut Ask, pick: &mut Pick) {
    if let Some(color) = ask.facts.get("eye_color") {
        let forms = ["What color are {own} eyes?", "What is {own} eye color?", "Which color are {own} eyes?", "What color eyes does {s} have?", "What color are the eyes?"];
        let own = if ask.who.own == "her" { "Her eyes are {v}." } else { "His eyes are {v}." };
        ask.open("appearance", &forms, &[own, "{He} has {v} eyes."], color, color, pick);
    }
}

fn skin_tone(ask: &mut Ask, pick: &mut Pick) {
    if let Some(tone) = ask.facts.get("skin_tone") {
        let forms = [
            "How would you describe {own} skin tone?", "What is {own} skin tone?", "What skin tone does {s} have?", "What color is {own} skin?",
            "What kind of skin does {s} have?", "Which skin tone does {s} have?",
        ];
        ask.open("appearance", &forms, &["{He} has {v} skin."], tone, tone, pick);
    }
}

fn face_shape(ask: &mut Ask, pick: &mut Pick) {
    if let Some(shape) = ask.facts.get("face_shape").filter(|shape| *shape != "oval") {
        let said = if shape == "heart" { "heart-shaped" } else { shape };
        let forms = ["What is the shape of {own} face?", "What face shape does {s} have?", "What shape is {own} face?", "Which shape does {own} face have?"];
        ask.open("appearance", &forms, &["{He} has a {v} face."], said, shape, pick);
    }
}

fn nose(ask: &mut Ask, pick: &mut Pick) {
    if let Some(nose) = ask.facts.present("nose") {
        let forms = ["What kind of nose does {s} have?", "What does {own} nose look like?", "How would you describe {own} nose?", "Describe {own} nose."];
        ask.open("appearance", &forms, &["{He} has a {v} nose."], nose, nose, pick);
    }
}

/// A hairstyle in the set's words with its colour.
fn style(facts: &Facts, pick: &mut Pick) -> Option<String> {
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

fn hairstyle(ask: &mut Ask, pick: &mut Pick) {
    let (Some(words), Some(value)) = (style(&ask.facts, pick), ask.facts.get("hairstyle")) else { return };
    let forms = [
        "What does {own} hair look like?", "What is {own} hairstyle?", "How would you describe {own} hair?", "What kind of hairstyle does {s} have?",
        "Describe {own} hair.", "What haircut does {s} have?", "How does {s} wear {own} hair?",
    ];
    ask.open("appearance", &forms, &["{He} has {v}."], &words, value, pick);
}

fn age(ask: &mut Ask, pick: &mut Pick) {
    let Some(age) = ask.facts.get("age") else { return };
    let child = if ask.facts.female() { "girl" } else { "boy" };
    let forms = [
        "How old does {s} look?", "What age group does {s} belong to?", "How old is {s}?", "What is {own} age?", "About how old is {s}?", "Which age group is {s} in?",
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

fn background(ask: &mut Ask, pick: &mut Pick) {
    let plain = |color: &&str| !color.starts_with("blurred");
    if let Some(color) = ask.facts.get("background").filter(plain) {
        let forms = ["What color is the background?", "What is the color of the background?", "What color is behind {s}?", "Which color does the background have?"];
        let forms: Vec<&str> = forms.into_iter().filter(|form| !(form.contains("behind {s}") && ask.who.subject.len() < 4)).collect();
        ask.open("appearance", &forms, &["The background is {v}.", "It is {v}."], color, color, pick);
    }
}

fn clothing(ask: &mut Ask, pick: &mut Pick) {
    let (Some(kind), Some(color)) = (ask.facts.get("clothing"), ask.facts.get("clothing_color")) else { return };
    let said = match (kind, ask.facts.present("tie_color")) {
        ("suit and tie", Some(tie)) => format!("{} suit with {} tie", article(color), article(tie)),
        ("overalls", _) => format!("{color} overalls over a shirt"),
        _ => article(&format!("{color} {kind}")),
    };
    let forms = ["What is {s} wearing?", "What clothes does {s} wear?", "What does {s} wear?", "What clothes is {s} wearing?", "How is {s} dressed?", "What is {s} dressed in?"];
    ask.open("appearance", &forms, &["{He} is wearing {v}."], &said, &format!("{color} {kind}"), pick);
}

fn clothing_color(ask: &mut Ask, pick: &mut Pick) {
    let (Some(kind), Some(color)) = (ask.facts.get("clothing"), ask.facts.get("clothing_color")) else { return };
    if matches!(kind, "overalls" | "suit and tie" | "striped shirt" | "jacket") {
        return;
    }
    let forms = [format!("What color is {{own}} {kind}?"), format!("What color is the {kind}?"), format!("What color {kind} is {{s}} wearing?")];
    let forms: Vec<&str> = forms.iter().map(String::as_str).collect();
    let answer = format!("The {kind} is {{v}}.");
    ask.open("appearance", &forms, &[&answer], color, color, pick);
}

fn lipstick_color(ask: &mut Ask, pick: &mut Pick) {
    if let Some(color) = ask.facts.present("lipstick") {
        let forms = ["What color is {own} lipstick?", "What color of lipstick is {s} wearing?", "Which color is the lipstick?", "What color lipstick does {s} wear?"];
        ask.open("appearance", &forms, &["The lipstick is {v}."], color, color, pick);
    }
}

fn glasses(ask: &mut Ask, pick: &mut Pick) {
    let (Some(shape), Some(color)) = (ask.facts.present("glasses"), ask.facts.present("glasses_color")) else { return };
    let forms = ["What kind of glasses is {s} wearing?", "Describe the glasses.", "What do {own} glasses look like?", "What type of glasses does {s} wear?", "Describe {own} glasses."];
    let said = format!("{shape} glasses with {color} frames");
    ask.open("appearance", &forms, &["{He} is wearing {v}."], &said, &format!("{color} {shape}"), pick);
}

fn facial_hair(ask: &mut Ask, pick: &mut Pick) {
    let Some(kind) = ask.facts.present("facial_hair").filter(|_| !ask.facts.female()) else { return };
    let said = match kind {
        "stubble" => "a five o'clock shadow".to_owned(),
        "sideburns" => "sideburns".to_owned(),
        other => article(other),
    };
    let forms = ["What kind of facial hair does {s} have?", "Describe {own} facial hair.", "What facial hair does {s} have?", "What type of facial hair can be seen?"];
    ask.open("appearance", &forms, &["{He} has {v}."], &said, kind, pick);
}

fn hat(ask: &mut Ask, pick: &mut Pick) {
    let (Some(hat), Some(color)) = (ask.facts.present("hat"), ask.facts.present("hat_color")) else { return };
    let value = format!("{color} {hat}");
    let forms = ["What is {s} wearing on {own} head?", "What kind of headwear does {s} have?", "What is on {own} head?", "What headwear is {s} wearing?", "Describe {own} headwear."];
    ask.open("appearance", &forms, &["{He} is wearing {v}."], &article(&value), &value, pick);
}

fn emotion(ask: &mut Ask, pick: &mut Pick) {
    let Some(emotion) = ask.facts.get("emotion") else { return };
    let forms = [
        "What emotion does {own} face show?", "How does {s} feel?", "What expression can be seen on the face?", "What is {own} mood?", "How is {s} feeling?",
        "What emotion is {s} showing?", "What expression does {s} have?", "Which emotion can you see?", "What is {own} expression?",
    ];
    let adjective = if emotion == "afraid" { "fearful" } else { emotion };
    let face = format!("The face shows {} expression.", article(adjective));
    ask.open("emotion", &forms, &["{He} looks {v}.", "{He} appears {v}.", &face], emotion, emotion, pick);
}

/// An action in the set's words for answers.
fn doing(action: &str) -> &str {
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

fn action(ask: &mut Ask, pick: &mut Pick) {
    let Some(action) = ask.facts.present("action") else { return };
    let forms = [
        "What is {s} doing?", "What is {s} doing with {own} face?", "What action is {s} performing?", "What does {s} do with {own} face?", "What is {own} face doing?",
    ];
    let forms: Vec<&str> = forms.into_iter().filter(|form| !form.contains(" do ")).collect();
    let answer = format!("{{He}} is {}.", doing(action));
    ask.open("action", &forms, &[&answer], action, action, pick);
}

fn head_turn(ask: &mut Ask, pick: &mut Pick) {
    let Some(side) = ask.facts.get("head_turn") else { return };
    let forms = [
        "Which way is {s} facing?", "Is the face turned to the left, to the right or to the front?", "In which direction is {s} facing?", "Where is {s} facing?",
        "Which way is the face turned?",
    ];
    ask.open("action", &forms, &["The face is turned to the {v}."], side, side, pick);
}

fn gaze(ask: &mut Ask, pick: &mut Pick) {
    let Some(gaze) = ask.facts.get("gaze").filter(|gaze| *gaze != "closed") else { return };
    let said = match gaze {
        "camera" => "at the camera",
        "up" => "up",
        "left" => "to the left",
        _ => "to the right",
    };
    let forms = ["Where is {s} looking?", "Which way are {own} eyes looking?", "In which direction is {s} looking?", "Which way is {s} looking?", "Where do {own} eyes look?"];
    ask.open("action", &forms, &["{He} is looking {v}."], said, gaze, pick);
}

// Questions for yes and no.

fn has_eyewear(ask: &mut Ask, pick: &mut Pick) {
    let (glasses, sun) = (ask.facts.present("glasses").is_some(), ask.facts.is("sunglasses"));
    let reason = if sun { "{He} has sunglasses on" } else if glasses { "{He} is wearing glasses" } else { "{He} is not wearing any" };
    let form = pick.one(&[
        "Is {s} wearing glasses or sunglasses?", "Is {s} wearing any kind of eyewear?", "Does {s} wear any eyewear?", "Is {s} wearing eyewear?",
    ]);
    ask.yes_no("appearance", form, "", glasses || sun, reason, pick);
}

fn has_glasses(ask: &mut Ask, pick: &mut Pick) {
    let (glasses, sun) = (ask.facts.present("glasses").is_some(), ask.facts.is("sunglasses"));
    let reason = if glasses { "{He} is wearing glasses" } else if sun { "{He} is wearing sunglasses" } else { "{He} is not wearing any" };
    let form = pick.one(&["Is {s} wearing glasses?", "Does {s} wear glasses?", "Does {s} have glasses on?", "Does {s} have glasses?", "Has {s} got glasses?", "Is {s} wearing spectacles?"]);
    ask.yes_no("appearance", form, "", glasses, reason, pick);
}

fn has_sunglasses(ask: &mut Ask, pick: &mut Pick) {
    let sun = ask.facts.is("sunglasses");
    let reason = if sun { "{He} is wearing sunglasses" } else { "{He} is not wearing sunglasses" };
    let form = pick.one(&["Is {s} wearing sunglasses?", "Does {s} have sunglasses on?", "Does {s} wear sunglasses?", "Are there sunglasses?"]);
    ask.yes_no("appearance", form, "", sun, reason, pick);
}

fn has_hat(ask: &mut Ask, pick: &mut Pick) {
    let form = pick.one(&["Is {s} wearing a hat?", "Does {s} have a hat on?", "Does {s} wear a hat?", "Is there a hat?", "Has {s} got a hat on?"]);
    match (ask.facts.present("hat"), ask.facts.present("hat_color")) {
        // The set doesn't count a headband as a hat.
        (Some("headband"), _) => ask.yes_no("appearance", form, "", false, "{He} only has a headband", pick),
        (Some(hat), Some(color)) => {
            let reason = format!("{{He}} is wearing {}", article(&format!("{color} {hat}")));
            ask.yes_no("appearance", form, "", true, &reason, pick);
        }
        _ => ask.yes_no("appearance", form, "", false, "there is no hat", pick),
    }
}

fn has_earrings(ask: &mut Ask, pick: &mut Pick) {
    let Some(kind) = ask.facts.get("earrings") else { return };
    let form = pick.one(&["Is {s} wearing earrings?", "Does {s} have earrings?", "Does {s} wear earrings?", "Can you see any earrings?"]);
    let color = ask.facts.present("earring_color").unwrap_or("gold");
    let reason = if kind == "none" { "no earrings can be seen".to_owned() } else { format!("{{He}} wears {color} {kind} earrings") };
    ask.yes_no("appearance", form, "", kind != "none", &reason, pick);
}

fn has_necklace(ask: &mut Ask, pick: &mut Pick) {
    let Some(kind) = ask.facts.get("necklace") else { return };
    let form = pick.one(&["Is {s} wearing a necklace?", "Does {s} have a necklace?", "Does {s} wear a necklace?", "Is there a necklace?"]);
    let reason = if kind == "none" { "there is no necklace".to_owned() } else { format!("{{He}} wears {}", article(kind)) };
    ask.yes_no("appearance", form, "", kind != "none", &reason, pick);
}

fn has_lipstick(ask: &mut Ask, pick: &mut Pick) {
    let color = ask.facts.present("lipstick");
    if !ask.facts.female() || ask.facts.get("age") == Some("child") && color.is_none() {
        return;
    }
    let form = pick.one(&["Is {s} wearing lipstick?", "Does {s} wear lipstick?", "Does {s} have lipstick on?"]);
    let reason = color.map_or("the lips have no bright lipstick".to_owned(), |color| format!("the lipstick is {color}"));
    ask.yes_no("appearance", form, "", color.is_some(), &reason, pick);
}

fn has_shadow(ask: &mut Ask, pick: &mut Pick) {
    let Some(color) = ask.facts.get("eye_shadow").filter(|_| ask.facts.female()) else { return };
    let form = pick.one(&["Is {s} wearing eye shadow?", "Does {s} wear eye shadow?", "Does {s} have eye shadow on?"]);
    let reason = if color == "none" { "there is no eye shadow".to_owned() } else { format!("{{He}} wears {color} eye shadow") };
    ask.yes_no("appearance", form, "", color != "none", &reason, pick);
}

fn has_beard(ask: &mut Ask, pick: &mut Pick) {
    let Some(kind) = ask.facts.get("facial_hair").filter(|_| !ask.facts.female()) else { return };
    let form = pick.one(&["Does {s} have a beard?", "Has {s} got a beard?", "Is {s} bearded?", "Does {s} wear a beard?"]);
    let reason = match kind {
        "none" | "goatee" => "there is no beard".to_owned(),
        "moustache" => "{He} only has a moustache".to_owned(),
        "stubble" | "sideburns" => format!("{{He}} only has {kind}"),
        other => format!("{{He}} has {}", article(other)),
    };
    if kind != "goatee" {
        ask.yes_no("appearance", form, "", kind.ends_with("beard"), &reason, pick);
    }
}

fn has_moustache(ask: &mut Ask, pick: &mut Pick) {
    let Some(kind) = ask.facts.get("facial_hair").filter(|_| !ask.facts.female()) else { return };
    // A goatee may come with a moustache or not; the set doesn't ask.
    if matches!(kind, "goatee" | "stubble") {
        return;
    }
    let truth = matches!(kind, "moustache" | "full beard" | "short beard");
    let form = pick.one(&["Does {s} have a moustache?", "Has {s} got a moustache?", "Does {s} have a mustache?", "Is there a moustache?"]);
    let reason = if truth { "there is a moustache above the lips" } else { "there is no moustache" };
    ask.yes_no("appearance", form, "", truth, reason, pick);
}

fn is_bald(ask: &mut Ask, pick: &mut Pick) {
    let Some(value) = ask.facts.get("hairstyle").filter(|value| *value != "balding") else { return };
    let form = pick.one(&["Is {s} bald?", "Is {own} head bald?", "Does {s} have a bald head?"]);
    if value == "bald" {
        ask.yes_no("appearance", form, "", true, "{He} has no hair on {own} head", pick);
    } else if let Some(words) = style(&ask.facts, pick) {
        ask.yes_no("appearance", form, "", false, &format!("{{He}} has {words}"), pick);
    }
}

fn has_bangs(ask: &mut Ask, pick: &mut Pick) {
    let Some(value) = ask.facts.get("bangs") else { return };
    let form = pick.one(&["Does {s} have bangs?", "Does {s} have a fringe?", "Has {s} got bangs?"]);
    let reason = if value == "true" { "bangs cover the forehead" } else { "{own} forehead is free of bangs" };
    ask.yes_no("appearance", form, "", value == "true", reason, pick);
}

fn has_long_hair(ask: &mut Ask, pick: &mut Pick) {
    let Some(length) = ask.facts.get("hair_length").filter(|length| matches!(*length, "long" | "short" | "very short")) else { return };
    let short = pick.chance(0.35);
    let form = if short { pick.one(&["Does {s} have short hair?", "Is {own} hair short?"]) } else { pick.one(&["Does {s} have long hair?", "Is {own} hair long?"]) };
    let truth = (length == "long") != short;
    ask.yes_no("appearance", form, "", truth, &format!("the hair is {length}"), pick);
}

fn has_curly_hair(ask: &mut Ask, pick: &mut Pick) {
    let Some(kind) = ask.facts.get("hair_type") else { return };
    let form = pick.one(&["Does {s} have curly hair?", "Is {own} hair curly?", "Has {s} got curls?"]);
    let curly = matches!(kind, "curly" | "afro");
    let reason = if curly { "the hair is curly".to_owned() } else { format!("the hair is {kind}") };
    ask.yes_no("appearance", form, "", curly, &reason, pick);
}

fn has_hair_color(ask: &mut Ask, pick: &mut Pick) {
    let Some(color) = ask.facts.get("hair_color") else { return };
    let asked = ask.asked("hair_color", color, 0.6, &[], pick);
    let form = pick.one(&["Does {s} have {v} hair?", "Is {own} hair {v}?", "Has {s} got {v} hair?"]);
    ask.yes_no("appearance", form, asked, asked == color, &format!("the hair is {color}"), pick);
}

fn has_eye_color(ask: &mut Ask, pick: &mut Pick) {
    let Some(color) = ask.facts.get("eye_color") else { return };
    // Brown and dark brown are too close to ask for one of the other.
    let skip: &[&str] = if color.ends_with("brown") { &["brown", "dark brown", "hazel"] } else { &[] };
    let skip: Vec<&str> = skip.iter().copied().filter(|value| *value != color).collect();
    let asked = ask.asked("eye_color", color, 0.6, &skip, pick);
    let form = pick.one(&["Does {s} have {v} eyes?", "Are {own} eyes {v}?", "Has {s} got {v} eyes?"]);
    ask.yes_no("appearance", form, asked, asked == color, &format!("{{own}} eyes are {color}"), pick);
}

fn has_skin(ask: &mut Ask, pick: &mut Pick) {
    let Some(tone) = ask.facts.get("skin_tone") else { return };
    let asked = ask.asked("skin_tone", tone, 0.6, &[], pick);
    let form = pick.one(&["Does {s} have {v} skin?", "Is {own} skin {v}?"]);
    ask.yes_no("appearance", form, asked, asked == tone, &format!("the skin is {tone}"), pick);
}

fn has_freckles(ask: &mut Ask, pick: &mut Pick) {
    let truth = ask.facts.is("freckles");
    let form = pick.one(&["Does {s} have freckles?", "Are there freckles on {own} face?", "Is {s} freckled?", "Has {s} got freckles?"]);
    ask.yes_no("appearance", form, "", truth, if truth { "{He} has freckles on {own} face" } else { "there are no freckles" }, pick);
}

fn has_wrinkles(ask: &mut Ask, pick: &mut Pick) {
    let truth = ask.facts.is("wrinkles");
    let form = pick.one(&["Does {s} have wrinkles?", "Is {own} face wrinkled?", "Are there wrinkles on {own} face?"]);
    ask.yes_no("appearance", form, "", truth, if truth { "{own} face is wrinkled" } else { "{own} skin is smooth" }, pick);
}

fn has_rosy_cheeks(ask: &mut Ask, pick: &mut Pick) {
    // On brown and dark skin it can't be seen.
    if matches!(ask.facts.get("skin_tone"), Some("brown" | "dark")) {
        return;
    }
    let truth = ask.facts.is("rosy_cheeks");
    let form = pick.one(&["Does {s} have rosy cheeks?", "Are {own} cheeks rosy?", "Are {own} cheeks flushed?"]);
    ask.yes_no("appearance", form, "", truth, if truth { "the cheeks are rosy" } else { "the cheeks are not rosy" }, pick);
}

fn is_chubby(ask: &mut Ask, pick: &mut Pick) {
    let Some(build) = ask.facts.get("build") else { return };
    let form = pick.one(&["Does {s} have a chubby face?", "Does {s} have chubby cheeks?", "Is {own} face chubby?", "Are {own} cheeks full?"]);
    let truth = build == "chubby";
    ask.yes_no("appearance", form, "", truth, if truth { "{own} cheeks are full" } else { "{own} face is not chubby" }, pick);
}

/// Lips, eyebrows and the size of the eyes; the average is never asked about.
fn has_trait(ask: &mut Ask, pick: &mut Pick) {
    let (attribute, noun) = [("lips", "lips"), ("eyebrows", "eyebrows"), ("eye_size", "eyes")][pick.below(3)];
    let Some(value) = ask.facts.present(attribute) else { return };
    let asked = ask.asked(attribute, value, 0.6, &["average"], pick);
    let form = [format!("Does {{s}} have {{v}} {noun}?"), format!("Are {{own}} {noun} {{v}}?")];
    let form = if pick.chance(0.6) { &form[0] } else { &form[1] };
    ask.yes_no("appearance", form, asked, asked == value, &format!("{{own}} {noun} are {value}"), pick);
}

fn is_gender(ask: &mut Ask, pick: &mut Pick) {
    let she = ask.facts.female();
    let child = ask.facts.get("age") == Some("child");
    let asked = if child { ["boy", "girl"] } else { ["man", "woman"] };
    let female = pick.chance(0.5);
    let noun = asked[usize::from(female)];
    let form = match pick.below(4) {
        0 => format!("Is this a {noun}?"),
        1 => format!("Is the person {}?", if female { "female" } else { "male" }),
        2 => format!("Is the person a {noun}?"),
        _ => format!("Is this person a {noun}?"),
    };
    let truth = female == she;
    let own = asked[usize::from(she)];
    let reason = if truth && form.starts_with("Is this a") { format!("this is a {own}") } else if truth { String::new() } else { format!("{{He}} is a {own}") };
    ask.yes_no("appearance", &form, "", truth, &reason, pick);
}

fn is_age(ask: &mut Ask, pick: &mut Pick) {
    let Some(age) = ask.facts.get("age") else { return };
    let she = ask.facts.female();
    let (asked, form) = match pick.below(6) {
        0 => ("senior", "Is {s} elderly?"),
        1 => ("senior", if she { "Is this an old woman?" } else { "Is this an old man?" }),
        2 => ("senior", "Is {s} old?"),
        3 => ("child", "Is {s} a child?"),
        4 => ("middle-aged", "Is {s} middle-aged?"),
        _ => ("young adult", "Is {s} a young adult?"),
    };
    let reason = match age {
        "child" => format!("{{He}} is {}", if she { "a girl" } else { "a boy" }),
        "middle-aged" => "{He} is middle-aged".to_owned(),
        other => format!("{{He}} is {}", article(other)),
    };
    ask.yes_no("appearance", form, "", asked == age, &reason, pick);
}

/// What somebody does, as the reason of a "no".
fn instead(ask: &Ask) -> String {
    match ask.facts.get("action") {
        None | Some("none") => "{He} is not doing anything special".to_owned(),
        Some(action) => format!("{{He}} is {}", doing(action)),
    }
}

fn is_smiling(ask: &mut Ask, pick: &mut Pick) {
    let action = ask.facts.get("action").unwrap_or("none");
    let happy = ask.facts.get("emotion") == Some("happy");
    let truth = matches!(action, "smiling" | "smiling with teeth" | "laughing") || (action == "winking" && happy);
    let form = pick.one(&["Is {s} smiling?", "Does {s} smile?", "Is there a smile on {own} face?"]);
    let reason = instead(ask);
    ask.yes_no("action", form, "", truth, &reason, pick);
}

fn is_winking(ask: &mut Ask, pick: &mut Pick) {
    if ask.facts.is("sunglasses") {
        return;
    }
    let truth = ask.facts.get("action") == Some("winking");
    let form = pick.one(&["Is {s} winking?", "Does {s} wink?", "Is one of {own} eyes closed?"]);
    if form.contains("one of") && ask.facts.get("action") == Some("eyes closed") {
        return;
    }
    let reason = if truth { "one eye is closed".to_owned() } else { instead(ask) };
    ask.yes_no("action", form, "", truth, &reason, pick);
}

fn eyes_closed(ask: &mut Ask, pick: &mut Pick) {
    if ask.facts.is("sunglasses") {
        return;
    }
    let action = ask.facts.get("action").unwrap_or("none");
    let closed = action == "eyes closed";
    let open = pick.chance(0.3) && action != "winking";
    let form = if open { pick.one(&["Are {own} eyes open?", "Does {s} have {own} eyes open?"]) } else { pick.one(&["Are {own} eyes closed?", "Does {s} have {own} eyes closed?", "Are {own} eyes shut?"]) };
    let reason = if closed { "both eyes are closed" } else if action == "winking" { "one eye is open" } else { "the eyes are open" };
    ask.yes_no("action", form, "", closed != open, reason, pick);
}

fn mouth_open(ask: &mut Ask, pick: &mut Pick) {
    let Some(state) = ask.facts.get("mouth_state") else { return };
    let form = pick.one(&["Is {own} mouth open?", "Does {s} have an open mouth?", "Is the mouth open?"]);
    let truth = state == "open";
    let reason = if truth { instead(ask) } else { "the mouth is closed".to_owned() };
    let reason = if reason.contains("special") { String::new() } else { reason };
    ask.yes_no("action", form, "", truth, &reason, pick);
}

fn teeth(ask: &mut Ask, pick: &mut Pick) {
    let Some(value) = ask.facts.get("teeth_showing") else { return };
    let form = pick.one(&["Can you see {own} teeth?", "Are {own} teeth showing?", "Are {own} teeth visible?", "Does {s} show {own} teeth?"]);
    let reason = if value == "true" { "the teeth are visible" } else { "no teeth are visible" };
    ask.yes_no("action", form, "", value == "true", reason, pick);
}

fn tilted(ask: &mut Ask, pick: &mut Pick) {
    let Some(side) = ask.facts.get("head_tilt") else { return };
    let form = pick.one(&["Is {own} head tilted?", "Does {s} tilt {own} head?", "Is the head tilted to one side?"]);
    let reason = if side == "none" { "the head is upright".to_owned() } else { format!("it is tilted to the {side}") };
    ask.yes_no("action", form, "", side != "none", &reason, pick);
}

fn feels(ask: &mut Ask, pick: &mut Pick) {
    let Some(emotion) = ask.facts.get("emotion") else { return };
    let asked = ask.asked("emotion", emotion, 0.45, &[], pick);
    let form = pick.one(&["Is {s} {v}?", "Does {s} look {v}?", "Does {s} seem {v}?"]);
    let form = if asked == "neutral" { "Does {s} look {v}?" } else { form };
    ask.yes_no("emotion", form, asked, asked == emotion, &format!("{{He}} looks {emotion}"), pick);
}

fn is_facing(ask: &mut Ask, pick: &mut Pick) {
    let Some(side) = ask.facts.get("head_turn") else { return };
    let asked = ask.asked("head_turn", side, 0.5, &[], pick);
    let form = if asked == "front" { "Is {s} facing the front?" } else { pick.one(&["Is {s} facing {v}?", "Is the face turned to the {v}?", "Is {s} facing to the {v}?"]) };
    ask.yes_no("action", form, asked, asked == side, &format!("the face is turned to the {side}"), pick);
}
