//! What can be said of a face, piece by piece, each in several wordings.

use std::collections::HashMap;
use std::sync::OnceLock;

use super::paraphrase::Facts;
use super::pick::Pick;
use crate::schema::Schema;

/// Where a piece stands in a sentence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Use {
    /// "with red hair".
    Has,
    /// "wearing glasses".
    Wears,
    /// "is smiling".
    Does,
    /// "a happy man", "looks happy".
    Mood,
    /// "in front of a blue wall".
    Place,
}

/// One piece.
#[derive(Debug, Clone)]
pub(crate) struct Unit {
    pub used: Use,
    /// Without an article: "long red hair", "round face".
    pub bare: String,
    /// Whether it takes "a".
    pub singular: bool,
    /// As an adjective before the person or behind "is": "red-haired", "happy", "blue".
    pub adjective: String,
    /// As what somebody does: "smiling", "facing left".
    pub doing: String,
    /// As a sentence with `{His}`: "{His} hair is long and red."
    pub clause: String,
    /// What it states.
    pub says: Vec<&'static str>,
    /// Whether people name it first.
    pub striking: bool,
}

impl Unit {
    fn new(used: Use, bare: impl Into<String>, singular: bool, says: Vec<&'static str>) -> Self {
        Self {
            used,
            bare: bare.into(),
            singular,
            adjective: String::new(),
            doing: String::new(),
            clause: String::new(),
            says,
            striking: false,
        }
    }

    fn clause(mut self, clause: String) -> Self {
        self.clause = clause;
        self
    }

    fn adjective(mut self, adjective: impl Into<String>) -> Self {
        self.adjective = adjective.into();
        self
    }

    fn striking(mut self) -> Self {
        self.striking = true;
        self
    }
}

/// The statement "attribute=value" as the lexicon writes it.
pub(crate) fn say(attribute: &str, value: &str) -> &'static str {
    static ALL: OnceLock<HashMap<&str, HashMap<&str, String>>> = OnceLock::new();
    let all = ALL.get_or_init(|| {
        let table = Schema::get().attributes().iter();
        table.map(|a| (a.name, a.values.iter().map(|v| (*v, format!("{}={v}", a.name))).collect())).collect()
    });
    all.get(attribute).and_then(|values| values.get(value)).map_or("", String::as_str)
}

/// Everything that can be said; each attribute in one unit at most.
pub(crate) fn units(facts: &Facts, pick: &mut Pick) -> Vec<Unit> {
    let mut out = Vec::new();
    out.extend(hair(facts, pick));
    out.extend(eyes(facts, pick));
    out.extend(beard(facts, pick));
    for &(attribute, value, plural, wordings) in PLAIN {
        if facts.present(attribute) == Some(value) {
            let adjective = match attribute {
                "freckles" => "freckled",
                "wrinkles" => "wrinkled",
                "build" => "chubby",
                _ => "",
            };
            out.push(Unit::new(Use::Has, pick.one(wordings), !plural, vec![say(attribute, value)]).adjective(adjective));
        }
    }
    if let Some(tone) = facts.get("skin_tone") {
        let words = skin(tone, pick);
        out.push(
            Unit::new(
                Use::Has,
                format!("{words} {}", pick.one(&["skin", "skin", "complexion"])),
                false,
                vec![say("skin_tone", tone)],
            )
            .clause(format!("{{His}} skin is {words}."))
            .adjective(format!("{words}-skinned")),
        );
        if let Some(unit) = out.last_mut().filter(|unit| unit.bare.ends_with("complexion")) {
            unit.singular = true;
        }
    }
    out.extend(worn(facts, pick));
    out.extend(expression(facts, pick));
    out.extend(place(facts, pick));
    out
}

#[rustfmt::skip]
const PLAIN: &[(&str, &str, bool, &[&str])] = &[
    ("bangs", "true", true, &["bangs", "bangs over the forehead"]),
    ("receding_hairline", "true", false, &["receding hairline", "high hairline"]),
    ("face_shape", "oval", false, &["oval face"]),
    ("face_shape", "round", false, &["round face", "rounded face"]),
    ("face_shape", "square", false, &["square face", "square jaw", "square jawline", "square chin"]),
    ("face_shape", "long", false, &["long face", "long narrow face", "narrow, long face"]),
    ("face_shape", "heart", false, &["heart-shaped face", "pointed chin", "face with a pointed chin"]),
    ("build", "chubby", true, &["chubby cheeks", "full cheeks", "plump cheeks", "round cheeks"]),
    ("eyebrows", "bushy", true, &["bushy eyebrows", "thick eyebrows", "heavy brows", "bushy brows", "thick brows"]),
    ("eyebrows", "thin", true, &["thin eyebrows", "thin brows", "narrow eyebrows"]),
    ("eyebrows", "arched", true, &["arched eyebrows", "arched brows"]),
    ("eye_bags", "true", true, &["bags under the eyes", "dark circles under the eyes", "eye bags", "dark circles"]),
    ("nose", "wide", false, &["wide nose", "broad nose"]),
    ("nose", "big", false, &["big nose", "large nose", "prominent nose"]),
    ("nose", "pointy", false, &["pointy nose", "pointed nose", "narrow pointed nose", "sharp nose"]),
    ("nose", "small", false, &["small nose", "little nose", "tiny nose", "button nose"]),
    ("nose", "hooked", false, &["hooked nose", "aquiline nose"]),
    ("lips", "full", true, &["full lips", "thick lips"]),
    ("lips", "thin", true, &["thin lips", "narrow lips"]),
    ("big_ears", "true", true, &["big ears", "large ears", "ears that stick out", "protruding ears"]),
    ("freckles", "true", true, &["freckles", "freckles", "freckles on the cheeks"]),
    ("rosy_cheeks", "true", true, &["rosy cheeks", "flushed cheeks", "red cheeks", "pink cheeks"]),
    ("wrinkles", "true", true, &["wrinkles", "deep wrinkles", "fine lines", "some wrinkles"]),
];

fn hair_color(color: &'static str, pick: &mut Pick) -> &'static str {
    match color {
        "black" => pick.one(&["black", "black", "black", "black", "jet-black", "raven"]),
        "brown" => pick.one(&["brown", "brown", "brown", "chestnut", "dark brown", "light brown"]),
        "blond" => pick.one(&["blond", "blond", "blond", "golden"]),
        "red" => pick.one(&["red", "red", "ginger", "auburn", "copper"]),
        "gray" => pick.one(&["gray", "gray", "gray", "silver"]),
        "white" => pick.one(&["white", "white", "snow-white"]),
        "purple" => pick.one(&["purple", "purple", "violet"]),
        other => other,
    }
}

fn hair(facts: &Facts, pick: &mut Pick) -> Option<Unit> {
    if facts.get("hairstyle") == Some("bald") {
        let bare = pick.one(&["bald head", "bald head", "no hair"]);
        let unit = Unit::new(Use::Has, bare, bare != "no hair", vec!["hairstyle=bald"]);
        return Some(unit.adjective("bald").clause(String::new()).striking());
    }
    let color = facts.get("hair_color")?;
    let dyed = matches!(color, "pink" | "blue" | "purple" | "green");
    let word = hair_color(color, pick);
    let kind = facts.get("hair_type");
    let style = facts.get("hairstyle");
    let mut says = vec![say("hair_color", color)];
    // Sometimes the colour alone, sometimes the style alone.
    let what = pick.below(10);
    let unit = |bare: String, singular: bool, says: Vec<&'static str>| Unit::new(Use::Has, bare, singular, says).striking();
    let Some(style) = style.filter(|_| what > 1) else {
        let bare = if dyed && pick.chance(0.4) { format!("hair dyed {word}") } else { format!("{word} hair") };
        let bare = if bare.starts_with("hair dyed") { format!("dyed {word} hair") } else { bare };
        let adjective = match color {
            "brown" if facts.female() && pick.chance(0.5) => "brunette".to_owned(),
            "blond" if pick.chance(0.4) => "blond".to_owned(),
            _ => format!("{word}-haired"),
        };
        return Some(unit(bare, false, says).adjective(adjective).clause(format!("{{His}} hair is {word}.")));
    };
    let with_color = what > 2;
    let c = if with_color { format!("{word} ") } else { String::new() };
    if !with_color {
        says.clear();
    }
    let kind_word = kind.filter(|kind| matches!(*kind, "curly" | "wavy" | "straight")).filter(|_| pick.chance(0.65));
    let t = kind_word.map_or(String::new(), |kind| format!("{kind} "));
    let kind_says = kind_word.map(|kind| match kind {
        "curly" => "hair_type=curly/afro",
        other => say("hair_type", other),
    });
    if matches!(style, "long loose" | "shoulder-length") {
        says.push(if style == "long loose" { "hair_length=long" } else { "hair_length=medium" });
        says.extend(kind_says);
        let length = if style == "long loose" { "long" } else { pick.one(&["shoulder-length", "medium-length"]) };
        if length == "shoulder-length" {
            says.push("hairstyle=shoulder-length");
        }
        let bare = match pick.below(4) {
            0 if !t.is_empty() => format!("{t}{length} {c}hair"),
            1 if !t.is_empty() => format!("{length} {c}hair that is {}", t.trim()),
            2 if !t.is_empty() => format!("{length}, {}, {c}hair", t.trim()).replace(", hair", " hair"),
            _ => format!("{length} {t}{c}hair"),
        };
        let mut parts = vec![length];
        parts.extend(kind_word);
        if with_color {
            parts.push(word);
        }
        let mut names: Vec<String> = parts.iter().map(|part| (*part).to_owned()).collect();
        pick.shuffle(&mut names);
        let clause = format!("{{His}} hair is {}.", super::paraphrase::join(&names, pick));
        let adjective = if style == "long loose" && !with_color && t.is_empty() { "long-haired" } else { "" };
        return Some(unit(bare, false, says).clause(clause).adjective(adjective));
    }
    let own = say("hairstyle", style);
    let (bare, singular, stated): (String, bool, Vec<&'static str>) = match style {
        "balding" => (pick.one(&["bald top", "balding head", "bald crown"]).to_owned(), true, vec![own]),
        "buzz cut" => named(&c, &["buzz cut"], &["closely cropped"], own, pick),
        "crew cut" => named(&c, &["crew cut"], &["short cropped"], own, pick),
        "pixie cut" => named(&c, &["pixie cut", "pixie haircut"], &[], own, pick),
        "bowl cut" => named(&c, &["bowl cut", "bowl haircut"], &[], own, pick),
        "quiff" => named(&c, &["quiff"], &[], own, pick),
        "mohawk" => named(&c, &["mohawk", "mohican"], &[], own, pick),
        "afro" => named(&c, &["afro", "afro", "big afro"], &[], own, pick),
        "bun" => named(&c, &["bun", "hair bun"], &[], own, pick),
        "top knot" => named(&c, &["top knot", "topknot"], &[], own, pick),
        "high ponytail" => named(&c, &["high ponytail"], &[], own, pick),
        "side ponytail" => named(&c, &["side ponytail"], &[], own, pick),
        "bob" => {
            let mut stated = vec![own];
            stated.extend(kind_says);
            (format!("{t}{c}{}", pick.one(&["bob", "bob cut"])), true, stated)
        }
        "side part" => (
            if pick.chance(0.5) { format!("short {c}hair with a side parting") } else { format!("{c}hair parted on the side") },
            false,
            vec![own],
        ),
        "slicked back" => (
            pick_hair(
                &c,
                &["slicked-back {}hair", "{}hair combed back", "{}hair combed straight back", "{}hair brushed back"],
                pick,
            ),
            false,
            vec![own],
        ),
        "spiky" => (pick_hair(&c, &["spiky {}hair", "{}hair in spikes", "{}spikes"], pick), false, vec![own]),
        "shaggy" => (pick_hair(&c, &["shaggy {}hair", "messy {}hair"], pick), false, vec![own]),
        "braids" => (
            pick_hair(&c, &["{}braids", "two {}braids", "{}plaits", "{}hair in braids", "braided {}hair"], pick),
            false,
            vec![own],
        ),
        "pigtails" => (pick_hair(&c, &["{}pigtails", "{}hair in pigtails", "two {}pigtails"], pick), false, vec![own]),
        "space buns" => {
            (pick_hair(&c, &["{}space buns", "two {}buns", "{}hair in two buns", "{}hair in space buns"], pick), false, vec![own])
        }
        "pulled back" => {
            (pick_hair(&c, &["{}hair pulled back", "{}hair tied back", "{}hair pulled back tightly"], pick), false, vec![own])
        }
        "short curls" => match pick.below(3) {
            0 => (format!("short {c}curls"), false, vec!["hair_length=short/very short", "hair_type=curly/afro"]),
            1 => (format!("{t}{c}hair"), false, kind_says.into_iter().collect()),
            _ => (format!("short curly {c}hair"), false, vec!["hair_length=short/very short", "hair_type=curly/afro"]),
        },
        _ => (format!("{c}hair"), false, Vec::new()),
    };
    // "a bald top" says nothing of a colour.
    if style == "balding" {
        says.clear();
    }
    says.extend(stated);
    if says.is_empty() {
        return None;
    }
    let plain_short = matches!(style, "crew cut" | "buzz cut" | "pixie cut" | "side part" | "short curls") && pick.chance(0.25);
    if plain_short {
        let mut says = vec!["hair_length=short/very short"];
        if with_color {
            says.push(say("hair_color", color));
        }
        let clause = if with_color { format!("{{His}} hair is short and {word}.") } else { "{His} hair is short.".into() };
        return Some(unit(format!("short {c}hair"), false, says).clause(clause).adjective(if with_color {
            ""
        } else {
            "short-haired"
        }));
    }
    Some(unit(bare, singular, says))
}

fn pick_hair(color: &str, forms: &[&str], pick: &mut Pick) -> String {
    pick.one(forms).replace("{}", color)
}

fn named(
    color: &str,
    nouns: &[&str],
    adjectives: &[&str],
    own: &'static str,
    pick: &mut Pick,
) -> (String, bool, Vec<&'static str>) {
    if !adjectives.is_empty() && pick.chance(0.35) {
        return (format!("{} {color}hair", pick.one(adjectives)), false, vec![own, "hair_length=very short"]);
    }
    let noun = pick.one(nouns);
    if !color.is_empty() && noun != "hair bun" && pick.chance(0.3) {
        let article = if noun.starts_with('a') { "an" } else { "a" };
        return (format!("{color}hair in {article} {noun}"), false, vec![own]);
    }
    (format!("{color}{noun}"), true, vec![own])
}

fn skin(tone: &str, pick: &mut Pick) -> &'static str {
    match tone {
        "very fair" => pick.one(&["very fair", "very pale", "pale"]),
        "tan" => pick.one(&["tan", "tanned", "olive"]),
        "dark" => pick.one(&["dark", "dark", "very dark"]),
        "brown" => "brown",
        _ => "light",
    }
}

fn eyes(facts: &Facts, pick: &mut Pick) -> Option<Unit> {
    let color = facts.get("eye_color").filter(|_| pick.chance(0.9));
    let size = facts.present("eye_size").filter(|_| color.is_none() || pick.chance(0.5));
    let color_word = color.map(|color| match color {
        "blue" => pick.one(&["blue", "blue", "blue", "bright blue"]),
        "green" => pick.one(&["green", "green", "green", "bright green"]),
        "dark brown" => pick.one(&["dark brown", "dark brown", "deep brown"]),
        other => other,
    });
    let size_word =
        size.map(|size| if size == "big" { pick.one(&["big", "large", "huge"]) } else { pick.one(&["narrow", "small"]) });
    let words: Vec<&str> = size_word.into_iter().chain(color_word).collect();
    if words.is_empty() {
        return None;
    }
    let mut says = Vec::new();
    says.extend(color.map(|color| say("eye_color", color)));
    says.extend(size.map(|size| say("eye_size", size)));
    let adjective = match (color_word, size) {
        (Some(color), None) => format!("{color}-eyed"),
        _ => String::new(),
    };
    let unit = Unit::new(Use::Has, format!("{} eyes", words.join(" ")), false, says).adjective(adjective).striking();
    Some(unit.clause(format!("{{His}} eyes are {}.", words.join(" and "))))
}

fn beard(facts: &Facts, pick: &mut Pick) -> Option<Unit> {
    if facts.female() || facts.get("age") == Some("child") {
        return None;
    }
    let value = facts.get("facial_hair")?;
    if value == "none" {
        return pick
            .chance(0.3)
            .then(|| Unit::new(Use::Has, "no beard", false, vec!["facial_hair=none"]).adjective("clean-shaven"));
    }
    // The colour of the beard is the hair's, but the table has no attribute for it.
    let c = facts.get("hair_color").filter(|_| pick.chance(0.5)).map_or("", |color| hair_color(color, pick));
    let c = if c.is_empty() { String::new() } else { format!("{c} ") };
    let (bare, singular, says) = match value {
        "stubble" => (pick.one(&["stubble", "light stubble", "five o'clock shadow"]).to_owned(), false, "facial_hair=stubble"),
        "sideburns" => (format!("{c}sideburns"), false, "facial_hair=sideburns"),
        "moustache" => (format!("{c}moustache"), true, "facial_hair=moustache"),
        "goatee" => (format!("{c}goatee"), true, "facial_hair=goatee"),
        "short beard" if pick.chance(0.65) => {
            (format!("{} {c}beard", pick.one(&["short", "trimmed", "neatly trimmed"])), true, "facial_hair=short beard")
        }
        "full beard" if pick.chance(0.65) => {
            (format!("{} {c}beard", pick.one(&["full", "big", "long", "bushy", "thick"])), true, "facial_hair=full beard")
        }
        _ => (format!("{c}beard"), true, "facial_hair=short beard/full beard"),
    };
    let singular = singular || bare.starts_with("five");
    let adjective = if bare.ends_with("beard") && says.contains('/') { "bearded" } else { "" };
    Some(Unit::new(Use::Has, bare, singular, vec![says]).adjective(adjective).striking())
}

fn worn(facts: &Facts, pick: &mut Pick) -> Vec<Unit> {
    let mut out = Vec::new();
    let colored = |attribute: &str, chance: f64, pick: &mut Pick| facts.present(attribute).filter(|_| pick.chance(chance));
    if let Some(shape) = facts.present("glasses") {
        let shape = Some(shape).filter(|_| pick.chance(0.6));
        let color = colored("glasses_color", 0.45, pick);
        let noun = pick.one(&["glasses", "glasses", "glasses", "eyeglasses", "spectacles", "specs"]);
        let mut words: Vec<&str> = Vec::new();
        words.extend(color);
        let shape_word = shape.map(|shape| match shape {
            "thin-rimmed" => pick.one(&["thin-rimmed", "wire-rimmed", "thin"]),
            "rectangular" => pick.one(&["rectangular", "square"]),
            other => other,
        });
        words.extend(shape_word);
        if words.len() == 2 && pick.chance(0.5) {
            words.swap(0, 1);
        }
        let mut says = vec![shape.map_or("glasses=!none", |shape| say("glasses", shape))];
        says.extend(color.map(|color| say("glasses_color", color)));
        let bare = match (color, pick.below(4)) {
            (Some(color), 0) => format!("{} {noun} with {color} frames", shape_word.unwrap_or_default()).trim().to_owned(),
            _ => format!("{} {noun}", words.join(" ")).trim().to_owned(),
        };
        out.push(Unit::new(Use::Wears, bare, false, says).striking());
    } else if facts.get("glasses") == Some("none") && facts.get("sunglasses") == Some("false") && pick.chance(0.04) {
        out.push(Unit::new(Use::Has, "no glasses", false, vec!["glasses=none"]));
    }
    if facts.is("sunglasses") {
        let color = colored("glasses_color", 0.35, pick);
        let mut says = vec!["sunglasses=true"];
        says.extend(color.map(|color| say("glasses_color", color)));
        let bare = match color {
            Some(color) if pick.chance(0.5) => format!("{color}-framed sunglasses"),
            Some(color) => format!("sunglasses with {color} frames"),
            None => pick.one(&["sunglasses", "sunglasses", "dark sunglasses", "shades", "dark glasses"]).to_owned(),
        };
        out.push(Unit::new(Use::Wears, bare, false, says).striking());
    }
    if let Some(hat) = facts.present("hat") {
        let noun = match hat {
            "beanie" => pick.one(&["beanie", "beanie", "beanie", "knit cap", "woolly hat", "knitted hat"]),
            "baseball cap" => pick.one(&["baseball cap", "baseball cap", "cap"]),
            "sun hat" => pick.one(&["sun hat", "straw hat", "wide-brimmed hat"]),
            "fedora" => pick.one(&["fedora", "fedora", "fedora hat"]),
            _ => pick.one(&["headband", "hairband"]),
        };
        let plain = hat != "headband" && pick.chance(0.15);
        let (noun, own) = if plain { ("hat", "hat=!none") } else { (noun, say("hat", hat)) };
        let color = colored("hat_color", 0.75, pick);
        let word = color.map(|color| match color {
            "navy" => pick.one(&["navy", "navy blue", "dark blue"]),
            "dark red" => pick.one(&["dark red", "maroon"]),
            other => other,
        });
        let mut says = vec![own];
        says.extend(color.map(|color| say("hat_color", color)));
        out.push(Unit::new(Use::Wears, format!("{} {noun}", word.unwrap_or_default()).trim(), true, says).striking());
    }
    if let Some(clothing) = facts.get("clothing") {
        let color = colored("clothing_color", 0.9, pick);
        let noun = match clothing {
            "t-shirt" => pick.one(&["t-shirt", "t-shirt", "tee", "tee shirt"]),
            "collared shirt" => pick.one(&["collared shirt", "dress shirt", "button-up shirt", "shirt with a collar"]),
            "sweater" => pick.one(&["sweater", "jumper", "pullover", "sweater"]),
            "turtleneck" => pick.one(&["turtleneck", "turtleneck sweater", "polo neck", "roll neck"]),
            "v-neck sweater" => pick.one(&["v-neck sweater", "v-neck jumper", "v-neck"]),
            "striped shirt" => pick.one(&["striped shirt", "striped top", "stripy shirt"]),
            "overalls" => pick.one(&["overalls", "dungarees"]),
            other => other,
        };
        let word = color.map(|color| match color {
            "navy" => pick.one(&["navy", "navy blue", "dark blue"]),
            "light blue" => pick.one(&["light blue", "sky blue", "pale blue"]),
            "teal" => pick.one(&["teal", "teal", "turquoise"]),
            other => other,
        });
        let mut says = vec![say("clothing", clothing)];
        says.extend(color.map(|color| say("clothing_color", color)));
        let c = word.map_or(String::new(), |word| format!("{word} "));
        let bare = if clothing == "suit and tie" {
            match facts.present("tie_color") {
                Some(tie) if pick.chance(0.7) => {
                    says.push(say("tie_color", tie));
                    format!("{c}suit with {} tie", super::paraphrase::article(tie))
                }
                _ => format!("{c}suit and tie"),
            }
        } else {
            format!("{c}{noun}")
        };
        if clothing == "suit" {
            says[0] = "clothing=suit/suit and tie";
        }
        out.push(Unit::new(Use::Wears, bare, clothing != "overalls", says));
    }
    if let Some(kind) = facts.present("earrings") {
        let kind = Some(kind).filter(|_| pick.chance(0.6));
        let color = colored("earring_color", 0.6, pick);
        let word =
            color.map_or("", |color| if color == "pearl white" { pick.one(&["pearl", "pearl white", "white"]) } else { color });
        let mut says = vec![kind.map_or("earrings=!none", |kind| say("earrings", kind))];
        says.extend(color.map(|color| say("earring_color", color)));
        let bare = match kind {
            Some("hoop") => format!("{word} {}", pick.one(&["hoop earrings", "hoops"])),
            Some("stud") => format!("{word} {}", pick.one(&["stud earrings", "studs"])),
            Some("drop") if pick.chance(0.5) => format!("dangling {word} earrings").replace("  ", " "),
            Some("drop") => format!("{word} drop earrings"),
            _ => format!("{word} earrings"),
        };
        out.push(Unit::new(Use::Wears, bare.trim(), false, says));
    }
    if let Some(necklace) = facts.present("necklace") {
        let plain = pick.chance(0.25);
        let bare = match necklace {
            _ if plain => "necklace",
            "gold chain" => pick.one(&["gold chain", "gold necklace", "golden chain"]),
            "silver chain" => pick.one(&["silver chain", "silver necklace"]),
            "bead necklace" => pick.one(&["bead necklace", "beaded necklace", "necklace of beads"]),
            _ => pick.one(&["pearl necklace", "string of pearls", "necklace of pearls"]),
        };
        out.push(Unit::new(Use::Wears, bare, true, vec![if plain { "necklace=!none" } else { say("necklace", necklace) }]));
    }
    for (attribute, noun) in [("lipstick", "lipstick"), ("eye_shadow", "eye shadow")] {
        if let Some(color) = facts.present(attribute) {
            let shown = pick.chance(0.75);
            let any = if attribute == "lipstick" { "lipstick=!none" } else { "eye_shadow=!none" };
            let bare = if shown { format!("{color} {noun}") } else { noun.to_owned() };
            out.push(Unit::new(Use::Wears, bare, false, vec![if shown { say(attribute, color) } else { any }]));
        }
    }
    out
}

fn expression(facts: &Facts, pick: &mut Pick) -> Vec<Unit> {
    let mut out = Vec::new();
    if let Some(emotion) = facts.get("emotion") {
        let word = match emotion {
            "happy" => pick.one(&["happy", "happy", "happy", "cheerful", "joyful", "delighted", "merry"]),
            "sad" => pick.one(&["sad", "sad", "sad", "unhappy", "sorrowful", "gloomy", "upset", "miserable"]),
            "angry" => pick.one(&["angry", "angry", "angry", "furious", "mad", "annoyed"]),
            "surprised" => pick.one(&["surprised", "surprised", "astonished", "amazed", "shocked", "startled", "stunned"]),
            "disgusted" => "disgusted",
            "afraid" => pick.one(&["afraid", "scared", "frightened", "fearful", "terrified"]),
            _ => pick.one(&["neutral", "calm", "relaxed"]),
        };
        let form = if matches!(word, "afraid") { 0 } else { pick.below(3) };
        let doing = match form {
            0 => format!("looking {word}"),
            1 => format!("with {} expression", super::paraphrase::article(word)),
            _ => format!("with {} look", super::paraphrase::article(word)),
        };
        let mut unit = Unit::new(Use::Mood, "", false, vec![say("emotion", emotion)]).adjective(word).striking();
        unit.doing = doing;
        out.push(unit);
    }
    let her = if facts.female() { "her" } else { "his" };
    let action = facts.present("action").map(|action| {
        let closed: &[&str] = &["with closed eyes", "with eyes closed", "keeping {} eyes closed", "closing {} eyes"];
        let forms: &[&str] = match action {
            "smiling" => &["smiling gently", "smiling", "with a closed-mouth smile", "with a slight smile", "smiling softly"],
            "smiling with teeth" => &[
                "smiling broadly",
                "grinning",
                "smiling with teeth",
                "with a big smile",
                "with a wide grin",
                "with a toothy grin",
                "beaming",
                "grinning",
                "smiling",
            ],
            "laughing" => &["laughing", "laughing out loud", "laughing", "chuckling"],
            "frowning" => &["frowning", "with a frown"],
            "grimacing" => &["grimacing", "with a grimace"],
            "sneering" => &["sneering", "wrinkling {} nose"],
            "gasping" => &["gasping", "gasping with an open mouth"],
            "glaring" => &["glaring", "scowling"],
            "shouting" => &["shouting", "yelling", "screaming"],
            "gritting teeth" => &["gritting {} teeth", "baring {} teeth", "with gritted teeth", "clenching {} teeth"],
            "talking" => &["talking", "speaking"],
            "eyes closed" => closed,
            "winking" => &["winking", "with one eye closed", "closing one eye"],
            "puckering lips" => &["puckering {} lips", "pursing {} lips", "with puckered lips"],
            _ => &["raising {} eyebrows", "with raised eyebrows", "lifting {} eyebrows"],
        };
        let doing = pick.one(forms).replace("{}", her);
        let says = match (action, doing.as_str()) {
            (_, "smiling") => "action=smiling/smiling with teeth",
            ("eyes closed", _) => "action=eyes closed;gaze=closed",
            _ => say("action", action),
        };
        (doing, says)
    });
    let mut does = |doing: String, says: &'static str, striking: bool| {
        let mut unit = Unit::new(Use::Does, "", false, vec![says]);
        unit.doing = doing;
        unit.striking = striking;
        out.push(unit);
    };
    if let Some((doing, says)) = action {
        does(doing, says, true);
    }
    if let Some(side) = facts.get("head_turn") {
        let form = match side {
            "front" => pick.one(&["facing forward", "facing the camera", "turned to the front"]).to_owned(),
            side => pick.one(&["facing {}", "facing to the {}", "turned to the {}", "turned {}"]).replace("{}", side),
        };
        if side != "front" || pick.chance(0.4) {
            does(form, say("head_turn", side), false);
        }
    }
    if let Some(side) = facts.present("head_tilt") {
        if pick.chance(0.3) {
            does(format!("tilting {her} head"), "head_tilt=left/right", false);
        } else {
            let form = pick
                .one(&["tilting {} head to the SIDE", "with {} head tilted to the SIDE"])
                .replace("{}", her)
                .replace("SIDE", side);
            does(form, say("head_tilt", side), false);
        }
    }
    if let Some(gaze) = facts.get("gaze").filter(|gaze| *gaze != "closed") {
        let form = match gaze {
            "camera" => pick.one(&[
                "looking at the camera",
                "looking straight at the viewer",
                "looking into the camera",
                "looking directly at the camera",
            ]),
            "up" => pick.one(&["looking up", "looking upward", "glancing up"]),
            "left" => pick.one(&["looking to the left", "looking left", "glancing left"]),
            _ => pick.one(&["looking to the right", "looking right", "glancing right"]),
        };
        if gaze != "camera" || pick.chance(0.4) {
            does(form.to_owned(), say("gaze", gaze), false);
        }
    }
    out
}

fn place(facts: &Facts, pick: &mut Pick) -> Option<Unit> {
    let background = facts.get("background")?;
    let word = match background {
        "blurred" => pick.one(&["blurred", "blurry"]),
        "blurred outdoor" => pick.one(&["blurred outdoor", "outdoor"]),
        "teal" => pick.one(&["teal", "teal", "turquoise"]),
        "beige" => pick.one(&["beige", "beige", "cream"]),
        other => other,
    };
    let plain = !matches!(background, "blurred" | "blurred outdoor" | "dark");
    let bare = if plain {
        format!("{word} {}", pick.one(&["background", "background", "backdrop", "wall"]))
    } else {
        format!("{word} background")
    };
    let bare = if plain && pick.chance(0.15) { format!("{} {bare}", pick.one(&["plain", "solid"])) } else { bare };
    let says = if background == "blurred" { "background=blurred/blurred outdoor" } else { say("background", background) };
    Some(Unit::new(Use::Place, bare, true, vec![says]).adjective(word))
}
