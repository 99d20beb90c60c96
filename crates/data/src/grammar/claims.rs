//! Which attributes a text states.
//!
//! The text becomes a row of phrases (longest match in the lexicon). Then, in this order:
//! 1. a noun followed by "is", "are", "looks" or "that is" takes the adjectives behind it ("her hair is long and red");
//! 2. every noun takes the adjectives before it as far as they suit it, over commas and "and" ("long, curly red hair");
//! 3. "no" and "without" before a noun state its absence; before a statement they take it back;
//! 4. statements about one attribute are intersected; where nothing is left the earlier one stays ("a short beard and moustache").
//!
//! What isn't in the lexicon is passed over.

use super::lexicon::{Role, Topic, adjective, lonely, negated, phrases};
use super::words::words;
use crate::sample::FaceRecord;
use crate::schema::{Attribute, Schema};

/// What a text states of one attribute: one of these values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// Name of the attribute.
    pub attribute: &'static str,
    /// Index of its head in [`Schema::heads`].
    pub head: usize,
    /// The values that agree with the text, by their indices; "glasses" alone accepts every shape.
    pub accepted: Vec<u16>,
}

impl Claim {
    /// Whether the value agrees with the text.
    pub fn accepts(&self, value: u16) -> bool {
        self.accepted.contains(&value)
    }

    /// Whether the record's attribute agrees with the text. `None` where the picture can't settle it.
    pub fn holds(&self, record: &FaceRecord) -> Option<bool> {
        let attribute = Schema::get().head(self.head)?;
        attribute.claimable(record).then(|| attribute.of(record).is_some_and(|value| self.accepts(value)))
    }

    /// The accepted values in words.
    pub fn values(&self) -> Vec<&'static str> {
        let Some(attribute) = Schema::get().head(self.head) else {
            return Vec::new();
        };
        self.accepted.iter().map(|&value| attribute.values[value as usize]).collect()
    }

    /// Reads the values of an attribute as label files write them: `red`, `short beard/full beard` (one of these), `!none` (anything but).
    /// `None` for unknown names.
    pub fn labelled(attribute: &str, values: &str) -> Option<Self> {
        let known = Schema::get().attribute(attribute)?;
        match values.strip_prefix('!') {
            Some(not) => {
                let not = known.index_of(not)?;
                Self::new(known, (0..known.values.len() as u16).filter(|&value| value != not).collect())
            }
            None => Self::one_of(attribute, &values.split('/').collect::<Vec<_>>()),
        }
    }

    /// The claim that an attribute has one of these values; `None` for unknown names.
    pub fn one_of(attribute: &str, values: &[&str]) -> Option<Self> {
        let known = Schema::get().attribute(attribute)?;
        let accepted: Option<Vec<u16>> = values.iter().map(|value| known.index_of(value)).collect();
        Self::new(known, accepted?)
    }

    fn new(attribute: &'static Attribute, accepted: Vec<u16>) -> Option<Self> {
        let head = Schema::get().head_index(attribute.name)?;
        Some(Self { attribute: attribute.name, head, accepted })
    }
}

/// Reads `a=b/c;d=!none`.
pub(crate) fn statements(says: &'static str) -> impl Iterator<Item = Claim> {
    says.split(';').filter_map(|part| {
        let (name, values) = part.split_once('=')?;
        let attribute = Schema::get().attribute(name)?;
        let accepted = match values.strip_prefix('!') {
            Some(not) => (0..attribute.values.len() as u16).filter(|&v| attribute.values[v as usize] != not).collect(),
            None => values.split('/').filter_map(|value| attribute.index_of(value)).collect(),
        };
        Claim::new(attribute, accepted)
    })
}

/// A row of phrases with what has been used up.
struct Parsed {
    row: Vec<Role>,
    used: Vec<bool>,
}

fn parse(text: &str) -> Parsed {
    let words = words(text);
    let all = phrases();
    let mut row = Vec::new();
    let mut at = 0;
    while at < words.len() {
        let found = all.get(&words[at]).and_then(|list| {
            list.iter()
                .find(|(phrase, _)| words.len() - at >= phrase.len() && phrase.iter().zip(&words[at..]).all(|(a, b)| a == b))
        });
        match found {
            Some((phrase, role)) => {
                row.push(Some(*role));
                at += phrase.len();
            }
            None => {
                row.push(None);
                at += 1;
            }
        }
    }
    // Articles and adverbs would only stand between adjectives and their noun.
    let row: Vec<Role> =
        row.into_iter().map(|role| role.unwrap_or(Role::Other)).filter(|role| !matches!(role, Role::Filler)).collect();
    let used = vec![false; row.len()];
    Parsed { row, used }
}

/// The phrases of a text in order.
pub(crate) fn roles(text: &str) -> Vec<Role> {
    parse(text).row
}

/// The attributes that a text states, each once, in the order of the schema's heads.
pub fn caption_claims(text: &str) -> Vec<Claim> {
    let mut parsed = parse(text);
    let mut gathered: Vec<(usize, Claim)> = Vec::new();
    parsed.predicates(&mut gathered);
    parsed.noun_phrases(&mut gathered);
    // The order in the text decides which statement is the earlier one; the sort keeps the order within a phrase.
    gathered.sort_by_key(|(at, _)| *at);
    merge(gathered.into_iter().map(|(_, claim)| claim))
}

/// The attributes that a text states with exactly one value: (index in [`Schema::heads`], index of the value).
pub fn parse_caption(text: &str) -> Vec<(usize, u16)> {
    let exact = |claim: Claim| match claim.accepted.as_slice() {
        [value] => Some((claim.head, *value)),
        _ => None,
    };
    caption_claims(text).into_iter().filter_map(exact).collect()
}

impl Parsed {
    fn predicates(&mut self, out: &mut Vec<(usize, Claim)>) {
        for at in 0..self.row.len() {
            let Role::Noun(topic, _) = self.row[at] else { continue };
            if !matches!(self.row.get(at + 1), Some(Role::Copula)) {
                continue;
            }
            let mut next = at + 2;
            while let Some(role) = self.row.get(next) {
                match role {
                    Role::Adjective(word) => match adjective(topic, word) {
                        // "her hair is red, brown eyes": an adjective whose noun follows belongs to that noun.
                        Some(says) if !self.starts_another_noun(next, at + 2) => {
                            self.used[next] = true;
                            out.extend(statements(says).map(|claim| (at, claim)));
                        }
                        _ => break,
                    },
                    Role::And | Role::Comma => {}
                    _ => break,
                }
                next += 1;
            }
        }
    }

    /// Whether the adjective stands before a noun that it suits. The first one behind "is" never does, if a comma follows it,
    /// and none does where a comma stands right before the noun.
    fn starts_another_noun(&self, at: usize, first: usize) -> bool {
        let Some(Role::Adjective(word)) = self.row.get(at) else { return false };
        let mut next = at + 1;
        while let Some(role) = self.row.get(next) {
            match role {
                Role::Noun(topic, _) => {
                    return matches!(self.row[next - 1], Role::Adjective(_)) && adjective(*topic, word).is_some();
                }
                Role::Adjective(_) => {}
                Role::Comma | Role::And if at != first => {}
                _ => return false,
            }
            next += 1;
        }
        false
    }

    fn noun_phrases(&mut self, out: &mut Vec<(usize, Claim)>) {
        // The shirt under overalls isn't the garment that the set names.
        let overalls = self.row.iter().any(|role| matches!(role, Role::Noun(_, "clothing=overalls")));
        for at in 0..self.row.len() {
            let denied = at > 0 && matches!(self.row[at - 1], Role::Negation);
            match self.row[at] {
                Role::Statement(says) if !denied => out.extend(statements(says).map(|claim| (at, claim))),
                Role::Noun(topic, says) => {
                    let before = out.len();
                    // The noun's own statement comes first: a young boy is a boy.
                    out.extend(statements(says).map(|claim| (at, claim)));
                    let start = self.adjectives_before(at, topic, out);
                    if overalls && topic == Topic::Shirt {
                        out.truncate(before);
                    }
                    if start > 0 && matches!(self.row[start - 1], Role::Negation) {
                        out.truncate(before);
                        if let Some(none) = negated(topic) {
                            out.extend(statements(none).map(|claim| (at, claim)));
                        }
                    }
                }
                _ => {}
            }
        }
        // Adjectives that no noun took: "bald, grey beard".
        for at in 0..self.row.len() {
            let Role::Adjective(word) = self.row[at] else { continue };
            let denied = at > 0 && matches!(self.row[at - 1], Role::Negation);
            if let Some(says) = lonely(word).filter(|_| !self.used[at] && !denied && !self.before_person(at)) {
                out.extend(statements(says).map(|claim| (at, claim)));
            }
        }
    }

    /// Whether the adjective's noun, the person, is still to come; that noun takes it.
    fn before_person(&self, at: usize) -> bool {
        let rest = self.row[at + 1..].iter();
        let between = rest.clone().take_while(|role| matches!(role, Role::Adjective(_) | Role::Comma | Role::And)).count();
        // "chubby, man" is a list: nothing attaches over a comma right before the noun.
        let apart = between > 0 && matches!(self.row[at + between], Role::Comma | Role::And);
        !apart && matches!(self.row.get(at + 1 + between), Some(Role::Noun(Topic::Person, says)) if !says.is_empty())
    }

    /// Takes the adjectives before a noun; gives the index where its phrase begins.
    fn adjectives_before(&mut self, noun: usize, topic: Topic, out: &mut Vec<(usize, Claim)>) -> usize {
        let mut taken: Vec<&str> = Vec::new();
        let mut start = noun;
        let mut at = noun;
        while at > 0 {
            at -= 1;
            match self.row[at] {
                Role::Adjective(word) if !self.used[at] => {
                    let Some(mut says) = adjective(topic, word) else { break };
                    // A thick moustache is no full beard.
                    if topic == Topic::Beard && !matches!(self.row[noun], Role::Noun(_, own) if own.contains("beard")) {
                        says = "";
                    }
                    let attributes: Vec<&str> = says.split(';').filter_map(|part| part.split('=').next()).collect();
                    if !says.is_empty() && attributes.iter().all(|name| taken.contains(name)) {
                        break;
                    }
                    taken.extend(attributes);
                    self.used[at] = true;
                    start = at;
                    out.extend(statements(says).map(|claim| (noun, claim)));
                }
                Role::Comma | Role::And if start < noun => {}
                // "an elderly, happy woman": an expression may stand among the adjectives.
                Role::Statement(says) if topic == Topic::Person && says.starts_with("emotion") => {}
                Role::Noun(Topic::Freckles | Topic::Wrinkles, _)
                    if matches!(topic, Topic::Face | Topic::Skin | Topic::Person) => {}
                _ => break,
            }
        }
        start
    }
}

fn merge(claims: impl Iterator<Item = Claim>) -> Vec<Claim> {
    let mut merged: Vec<Claim> = Vec::new();
    for claim in claims {
        let Some(known) = merged.iter_mut().find(|known| known.attribute == claim.attribute) else {
            merged.push(claim);
            continue;
        };
        let both: Vec<u16> = known.accepted.iter().copied().filter(|&value| claim.accepts(value)).collect();
        // A beard goes with a moustache: "a moustache and a beard" is a beard in the schema.
        let beard = known.values() == ["moustache"] && claim.values().iter().all(|value| value.ends_with("beard"));
        if !both.is_empty() {
            known.accepted = both;
        } else if beard {
            known.accepted = claim.accepted;
        }
    }
    merged.sort_by_key(|claim| claim.head);
    merged
}
