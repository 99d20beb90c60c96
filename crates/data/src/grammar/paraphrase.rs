//! Captions in own words: from the attributes that a picture shows, in the words that people use.

use super::claims::{Claim, statements};
use super::phrases::{Unit, Use, units};
use super::pick::Pick;
use crate::sample::FaceRecord;
use crate::schema::Schema;

/// A caption in own words with what it states.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paraphrase {
    /// The text.
    pub text: String,
    /// What it states, each attribute once.
    pub claims: Vec<Claim>,
}

/// Attributes of a record as far as the picture shows them.
pub(crate) struct Facts<'a> {
    record: &'a FaceRecord,
}

impl<'a> Facts<'a> {
    pub(crate) fn new(record: &'a FaceRecord) -> Self {
        Self { record }
    }

    /// The value, where the picture settles it.
    pub(crate) fn get(&self, name: &str) -> Option<&'static str> {
        let attribute = Schema::get().attribute(name)?;
        let shown = attribute.claimable(self.record);
        shown.then(|| attribute.of(self.record).map(|value| attribute.values[value as usize])).flatten()
    }

    /// The value of something present: neither `none` nor `average`.
    pub(crate) fn present(&self, name: &str) -> Option<&'static str> {
        self.get(name).filter(|value| !matches!(*value, "none" | "average" | "false"))
    }

    pub(crate) fn is(&self, name: &str) -> bool {
        self.get(name) == Some("true")
    }

    pub(crate) fn female(&self) -> bool {
        self.record.get("gender") == Some("female")
    }
}

/// Writes a caption from the attributes that the picture shows: a full text, a short phrase or a list, with 1 to 14 attributes,
/// in the words, the order and the spelling that the seed picks.
pub fn paraphrase(record: &FaceRecord, seed: u64) -> Paraphrase {
    let mut pick = Pick::new(seed);
    let facts = Facts::new(record);
    let wanted = if pick.chance(0.12) { 1 + pick.below(3) } else { 3 + pick.below(12) };
    let mut all = units(&facts, &mut pick);
    pick.shuffle(&mut all);
    // People name what strikes them: hair, eyes, glasses, hats and the expression before lips and ears.
    all.sort_by_key(|unit| usize::from(!unit.striking && pick_late(unit, seed)));
    let mut says: Vec<&'static str> = Vec::new();
    let person = person(&facts, &mut pick, &mut says);
    let mut chosen: Vec<Unit> = Vec::new();
    let mut count: usize = says.iter().map(|said| said.split(';').count()).sum();
    for unit in all {
        if count >= wanted {
            break;
        }
        count += unit.says.iter().map(|said| said.split(';').count()).sum::<usize>();
        says.extend(unit.says.iter().copied());
        chosen.push(unit);
    }
    let she = facts.female();
    let text = match pick.below(10) {
        0..=2 => sentences(&person, chosen, she, &mut pick),
        3..=4 => list(&person, chosen, &mut pick),
        5 => spread(&person, chosen, she, &mut pick),
        _ => phrase(&person, chosen, &mut pick),
    };
    let mut claims: Vec<Claim> = says.into_iter().flat_map(statements).collect();
    claims.sort_by_key(|claim| claim.head);
    claims.dedup_by_key(|claim| claim.head);
    Paraphrase { text: spell(text, &mut pick), claims }
}

fn pick_late(unit: &Unit, seed: u64) -> bool {
    let length = unit.bare.len() as u64;
    (seed ^ length.wrapping_mul(0x9e37_79b9)).is_multiple_of(2)
}

/// "young woman", "old man", "person".
fn person(facts: &Facts, pick: &mut Pick, says: &mut Vec<&'static str>) -> String {
    let she = facts.female();
    let age = facts.get("age").unwrap_or("young adult");
    let gender = if she { "gender=female" } else { "gender=male" };
    let (words, aged): (&[&str], &'static str) = match (age, she) {
        ("child", true) => (&["girl", "little girl", "young girl", "girl", "small girl"], "age=child"),
        ("child", false) => (&["boy", "little boy", "young boy", "boy", "lad"], "age=child"),
        ("young adult", true) => {
            (&["young woman", "young lady", "woman in her twenties", "young female", "young adult woman"], "age=young adult")
        }
        ("young adult", false) => (
            &["young man", "young guy", "man in his twenties", "young male", "young adult man", "young gentleman"],
            "age=young adult",
        ),
        ("middle-aged", true) => {
            (&["middle-aged woman", "middle-aged lady", "woman in her forties", "middle aged woman"], "age=middle-aged")
        }
        ("middle-aged", false) => (
            &["middle-aged man", "middle-aged guy", "man in his forties", "middle aged man", "man in his fifties"],
            "age=middle-aged",
        ),
        (_, true) => (
            &[
                "old woman",
                "elderly woman",
                "older woman",
                "senior woman",
                "elderly lady",
                "old lady",
                "woman in her seventies",
                "grandmother",
                "grandma",
            ],
            "age=senior",
        ),
        (_, false) => (
            &[
                "old man",
                "elderly man",
                "older man",
                "senior man",
                "elderly gentleman",
                "old guy",
                "man in his seventies",
                "grandfather",
                "grandpa",
            ],
            "age=senior",
        ),
    };
    match pick.below(20) {
        0 => pick.one(&["person", "person", "someone"]).to_owned(),
        2 | 3 => {
            says.extend([gender, aged]);
            years(age, she, pick)
        }
        1 if age == "child" => {
            says.push("age=child");
            pick.one(&["child", "kid"]).to_owned()
        }
        4..=8 if age != "child" => {
            says.push(gender);
            pick.one(if she {
                &["woman", "lady", "woman", "female"]
            } else {
                &["man", "guy", "man", "man", "male", "gentleman", "gent"]
            })
            .to_owned()
        }
        _ => {
            says.extend([gender, aged]);
            pick.one(words).to_owned()
        }
    }
}

/// "a 70-year-old woman".
fn years(age: &str, she: bool, pick: &mut Pick) -> String {
    let (from, count, nouns) = match (age, she) {
        ("child", true) => (6, 6, ["girl", "girl"]),
        ("child", false) => (6, 6, ["boy", "boy"]),
        (_, true) => (0, 0, ["woman", "lady"]),
        (_, false) => (0, 0, ["man", "guy"]),
    };
    let (from, count) = match age {
        "young adult" => (20, 12),
        "middle-aged" => (42, 14),
        "senior" => (63, 22),
        _ => (from, count),
    };
    let years = from + pick.below(count);
    let noun = pick.one(&nouns);
    if pick.chance(0.5) { format!("{years}-year-old {noun}") } else { format!("{years} year old {noun}") }
}

pub(crate) fn article(words: &str) -> String {
    // "an 8-year-old", "an 80-year-old".
    let vowel = words.starts_with(['a', 'e', 'i', 'o', 'u', '8']) || words.starts_with("11") || words.starts_with("18");
    format!("{} {words}", if vowel { "an" } else { "a" })
}

fn with_article(unit: &Unit) -> String {
    if unit.singular { article(&unit.bare) } else { unit.bare.clone() }
}

pub(crate) fn join(parts: &[String], pick: &mut Pick) -> String {
    match parts {
        [] => String::new(),
        [one] => one.clone(),
        [head @ .., last] => {
            let and = if head.len() > 1 && pick.chance(0.3) { ", and " } else { " and " };
            format!("{}{and}{last}", head.join(", "))
        }
    }
}

fn take(units: &mut Vec<Unit>, wanted: impl Fn(Use) -> bool) -> Vec<Unit> {
    let (taken, rest) = std::mem::take(units).into_iter().partition(|unit| wanted(unit.used));
    *units = rest;
    taken
}

/// "a bald old man with a grey beard, wearing round glasses, smiling, in front of a blue wall".
fn phrase(person: &str, mut units: Vec<Unit>, pick: &mut Pick) -> String {
    let mut front = Vec::new();
    for place in [Use::Mood, Use::Has] {
        if let Some(at) = units.iter().position(|unit| unit.used == place && !unit.adjective.is_empty())
            && pick.chance(0.4)
        {
            front.push(units.remove(at).adjective);
        }
    }
    let mut head = if front.is_empty() { person.to_owned() } else { format!("{} {person}", front.join(" ")) };
    if person != "someone" || !front.is_empty() {
        head = if pick.chance(0.85) { article(&head) } else { head };
    }
    if person == "someone" && !front.is_empty() {
        head = head.replace("someone", "person");
    }
    let opener = pick.one(&[
        "",
        "",
        "",
        "",
        "",
        "portrait of ",
        "a portrait of ",
        "a photo of ",
        "photo of ",
        "picture of ",
        "a picture of ",
        "an image of ",
        "a headshot of ",
        "close-up of ",
        "the face of ",
        "show me ",
        "draw ",
        "generate ",
        "please draw ",
        "i want a picture of ",
        "make a portrait of ",
        "a face: ",
        "can you make ",
        "give me ",
    ]);
    let has: Vec<String> = take(&mut units, |used| used == Use::Has).iter().map(with_article).collect();
    let worn: Vec<String> = take(&mut units, |used| used == Use::Wears).iter().map(with_article).collect();
    let place: Vec<String> = take(&mut units, |used| used == Use::Place).iter().map(|unit| place(unit, pick)).collect();
    let does: Vec<String> = units.iter().map(|unit| unit.doing.clone()).collect();
    let mut groups = Vec::new();
    let together = !worn.is_empty() && !has.is_empty() && pick.chance(0.35);
    if together {
        let mut both = has.clone();
        both.extend(worn.clone());
        pick.shuffle(&mut both);
        groups.push(format!("with {}", join(&both, pick)));
    } else {
        if !has.is_empty() {
            groups.push(format!("{} {}", pick.one(&["with", "with", "with", "who has", "having"]), join(&has, pick)));
        }
        if !worn.is_empty() {
            groups.push(format!("{} {}", pick.one(&["wearing", "wearing", "in", "who wears", "with"]), join(&worn, pick)));
        }
    }
    if !does.is_empty() {
        groups.push(join(&does, pick));
    }
    groups.extend(place);
    pick.shuffle(&mut groups);
    let glue = if pick.chance(0.6) { ", " } else { " " };
    let mut text = format!("{opener}{head}");
    for (index, group) in groups.iter().enumerate() {
        let plain =
            group.starts_with("with ") || group.starts_with("in ") || group.starts_with("against ") || group.starts_with("on ");
        text += if index == 0 && plain {
            " "
        } else if plain {
            glue
        } else {
            ", "
        };
        text += group;
    }
    finish(text, pick)
}

/// "old man, bald, grey beard, smiling, blue background".
fn list(person: &str, units: Vec<Unit>, pick: &mut Pick) -> String {
    let mut parts: Vec<String> = units
        .iter()
        .map(|unit| match unit.used {
            Use::Mood if !unit.adjective.is_empty() => unit.adjective.clone(),
            Use::Mood | Use::Does => unit.doing.clone(),
            Use::Has if !unit.adjective.is_empty() && pick.chance(0.25) && !unit.adjective.contains('-') => {
                unit.adjective.clone()
            }
            _ => unit.bare.clone(),
        })
        .collect();
    pick.shuffle(&mut parts);
    let at = if pick.chance(0.8) { 0 } else { pick.below(parts.len() + 1) };
    parts.insert(at, person.to_owned());
    let glue = pick.one(&[", ", ", ", ", ", "; "]);
    let text = parts.join(glue);
    if pick.chance(0.1) { finish(text, pick) } else { text }
}

/// Full sentences about "he" or "she".
fn sentences(person: &str, mut units: Vec<Unit>, she: bool, pick: &mut Pick) -> String {
    let neuter = !person_is_gendered(person);
    let (subject, verb) = match (neuter, she) {
        (true, _) => ("The person", ("has", "wears", "is", "looks")),
        (false, true) => ("She", ("has", "wears", "is", "looks")),
        (false, false) => ("He", ("has", "wears", "is", "looks")),
    };
    let who = if person == "someone" { person.to_owned() } else { article(person) };
    let mut text = format!(
        "{}{who}",
        pick.one(&[
            "This is ",
            "The picture shows ",
            "I see ",
            "Here we see ",
            "There is ",
            "We are looking at ",
            "It is ",
            "You can see ",
            "The photo is of "
        ])
    );
    let mut has = take(&mut units, |used| used == Use::Has);
    if !has.is_empty() && pick.chance(0.6) {
        let first: Vec<String> = has.drain(..has.len().min(1 + pick.below(3))).map(|unit| with_article(&unit)).collect();
        text += &format!(" with {}", join(&first, pick));
    }
    text += ".";
    let mut rest: Vec<String> = Vec::new();
    while !has.is_empty() {
        let some: Vec<Unit> = has.drain(..has.len().min(1 + pick.below(4))).collect();
        if some.len() == 1 && !some[0].clause.is_empty() && !neuter && pick.chance(0.6) {
            rest.push(own(&some[0].clause, she));
        } else {
            let names: Vec<String> = some.iter().map(with_article).collect();
            rest.push(format!("{subject} {} {}.", verb.0, join(&names, pick)));
        }
    }
    let worn: Vec<String> = take(&mut units, |used| used == Use::Wears).iter().map(with_article).collect();
    if !worn.is_empty() {
        let verb = pick.one(&["wears", "is wearing", "is dressed in", "has on"]);
        rest.push(format!("{subject} {verb} {}.", join(&worn, pick)));
    }
    for unit in take(&mut units, |used| used == Use::Place) {
        rest.push(if pick.chance(0.5) {
            format!("The background is {}.", unit.adjective)
        } else {
            format!(
                "Behind {} there is {}.",
                if neuter {
                    "them"
                } else if she {
                    "her"
                } else {
                    "him"
                },
                with_article(&unit)
            )
        });
    }
    let moods = take(&mut units, |used| used == Use::Mood);
    for unit in &moods {
        let verb = pick.one(&["looks", "is", "seems", "appears to be", "feels"]);
        rest.push(format!("{subject} {verb} {}.", unit.adjective));
    }
    let (with, does) = doings(&units);
    if !with.is_empty() {
        rest.push(format!("{subject} has {}.", join(&with, pick)));
    }
    if !does.is_empty() {
        rest.push(format!("{subject} is {}.", join(&does, pick)));
    }
    pick.shuffle(&mut rest);
    for sentence in rest {
        text += " ";
        text += &sentence;
    }
    text
}

/// Two clauses: "a woman whose hair is long and red; she is laughing, and she wears a green hat".
fn spread(person: &str, mut units: Vec<Unit>, she: bool, pick: &mut Pick) -> String {
    if !person_is_gendered(person) || units.len() < 2 {
        return phrase(person, units, pick);
    }
    let Some(at) = units.iter().position(|unit| unit.used == Use::Has && !unit.clause.is_empty()) else {
        return phrase(person, units, pick);
    };
    let first = units.remove(at);
    let clause = first.clause.replace("{His}", "whose").trim_end_matches('.').to_owned();
    let subject = if she { "she" } else { "he" };
    let mut text = format!("{} {clause}", article(person));
    let has: Vec<String> = take(&mut units, |used| used == Use::Has).iter().map(with_article).collect();
    let worn: Vec<String> = take(&mut units, |used| used == Use::Wears).iter().map(with_article).collect();
    let mut rest = Vec::new();
    if !has.is_empty() {
        rest.push(format!("{subject} has {}", join(&has, pick)));
    }
    if !worn.is_empty() {
        rest.push(format!("{subject} is wearing {}", join(&worn, pick)));
    }
    for unit in take(&mut units, |used| used == Use::Place) {
        rest.push(format!("the background is {}", unit.adjective));
    }
    for unit in units {
        let said = match unit.doing.strip_prefix("with ") {
            _ if unit.used == Use::Mood => format!("looks {}", unit.adjective),
            Some(what) => format!("has {what}"),
            None => format!("is {}", unit.doing),
        };
        rest.push(format!("{subject} {said}"));
    }
    pick.shuffle(&mut rest);
    for (index, part) in rest.iter().enumerate() {
        text += if index == 0 { pick.one(&["; ", ". ", ", and "]) } else { pick.one(&[", and ", "; "]) };
        text += part;
    }
    finish(text, pick)
}

/// "with a frown" can be had, "frowning" can be done.
fn doings(units: &[Unit]) -> (Vec<String>, Vec<String>) {
    let (with, does): (Vec<&Unit>, Vec<&Unit>) = units.iter().partition(|unit| unit.doing.starts_with("with "));
    let had = with.iter().filter_map(|unit| unit.doing.strip_prefix("with ")).map(str::to_owned).collect();
    (had, does.iter().map(|unit| unit.doing.clone()).collect())
}

fn person_is_gendered(person: &str) -> bool {
    !matches!(person, "person" | "someone" | "child" | "kid")
}

fn own(clause: &str, she: bool) -> String {
    clause.replace("{His}", if she { "Her" } else { "His" })
}

fn place(unit: &Unit, pick: &mut Pick) -> String {
    if unit.bare.contains("wall") {
        format!("{} {}", pick.one(&["in front of", "against"]), article(&unit.bare))
    } else if unit.bare == "outdoors" {
        unit.bare.clone()
    } else {
        format!("{} {}", pick.one(&["in front of", "against", "on", "with"]), article(&unit.bare))
    }
}

fn finish(text: String, pick: &mut Pick) -> String {
    let mut text = text;
    if pick.chance(0.5)
        && let Some(first) = text.chars().next()
    {
        text.replace_range(..first.len_utf8(), &first.to_uppercase().to_string());
    }
    if pick.chance(0.5) {
        text.push('.');
    }
    text
}

fn spell(text: String, pick: &mut Pick) -> String {
    let mut text = text;
    for (from, to, chance) in [
        ("gray", "grey", 0.5),
        ("blond", "blonde", 0.5),
        ("moustache", "mustache", 0.3),
        ("eye shadow", "eyeshadow", 0.4),
        ("t-shirt", "T-shirt", 0.2),
    ] {
        if pick.chance(chance) {
            text = text.replace(from, to);
        }
    }
    // Sentences start with a capital letter, and lists and phrases may be typed carelessly.
    if pick.chance(0.08) { text.to_lowercase() } else { text }
}
