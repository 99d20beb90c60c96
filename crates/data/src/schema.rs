//! The attribute schema: every attribute of the face set as a typed table, and which of them a record supports.
//!
//! The renderer knows every attribute; a picture doesn't show every one. An attribute is *claimable* for a record when a look at
//! the picture can settle it: eye colour only where the iris was found visible, earrings only where they
//! aren't under hair, ear size only for free ears in a frontal view. Training targets, agreement measures and the
//! caption grammar go by this and leave the others out.

use std::collections::HashMap;
use std::sync::OnceLock;

use crate::error::SampleFault;
use crate::sample::FaceRecord;

/// What values an attribute takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// One of several values; a missing key is the value `none` where the attribute can be absent.
    Classes,
    /// Set or not: `false`, `true`.
    Flag,
}

/// One attribute.
#[derive(Debug, Clone, Copy)]
pub struct Attribute {
    /// Its name in the records.
    pub name: &'static str,
    /// What values it takes.
    pub kind: Kind,
    /// The values in order of their indices.
    pub values: &'static [&'static str],
    /// Whether pictures of 128 pixels show it well enough that captions may state it and a network can be asked for it.
    pub shown: bool,
}

/// One output of the attribute network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// Name of the attribute.
    pub name: &'static str,
    /// Number of values.
    pub num_classes: usize,
}

const FLAG: &[&str] = &["false", "true"];

const fn classes(name: &'static str, values: &'static [&'static str]) -> Attribute {
    Attribute { name, kind: Kind::Classes, values, shown: true }
}
const fn flag(name: &'static str) -> Attribute {
    Attribute { name, kind: Kind::Flag, values: FLAG, shown: true }
}
const fn hidden(attribute: Attribute) -> Attribute {
    Attribute { shown: false, ..attribute }
}

#[rustfmt::skip]
static ATTRIBUTES: &[Attribute] = &[
    classes("gender", &["female", "male"]),
    classes("age", &["child", "young adult", "middle-aged", "senior"]),
    classes("skin_tone", &["very fair", "light", "tan", "brown", "dark"]),
    classes("face_shape", &["oval", "round", "square", "long", "heart"]),
    classes("build", &["average", "chubby", "slim"]),
    classes("hairstyle", &[
        "bald", "balding", "buzz cut", "crew cut", "pixie cut", "side part", "slicked back", "quiff", "spiky", "bowl cut", "short curls",
        "afro", "mohawk", "bob", "shaggy", "shoulder-length", "long loose", "high ponytail", "side ponytail", "braids", "pigtails", "bun",
        "top knot", "space buns", "pulled back",
    ]),
    classes("hair_length", &["bald", "very short", "short", "medium", "long", "tied up"]),
    classes("hair_type", &["straight", "wavy", "curly", "afro"]),
    classes("hair_color", &["black", "brown", "blond", "red", "gray", "white", "pink", "blue", "purple", "green"]),
    hidden(classes("hair_part", &["none", "middle", "left", "right"])),
    flag("bangs"),
    flag("receding_hairline"),
    classes("eyebrows", &["average", "bushy", "thin", "arched"]),
    classes("eye_color", &["brown", "dark brown", "blue", "green", "hazel", "gray"]),
    classes("eye_size", &["average", "big", "narrow"]),
    flag("eye_bags"),
    classes("nose", &["average", "wide", "big", "pointy", "small", "hooked"]),
    classes("lips", &["average", "full", "thin"]),
    flag("big_ears"),
    flag("freckles"),
    flag("rosy_cheeks"),
    flag("wrinkles"),
    classes("facial_hair", &["none", "stubble", "moustache", "goatee", "short beard", "full beard", "sideburns"]),
    classes("lipstick", &["none", "red", "coral", "pink", "plum", "brown"]),
    classes("eye_shadow", &["none", "pink", "smoky black", "brown", "blue", "green", "purple", "gold"]),
    hidden(flag("eyeliner")),
    classes("glasses", &["none", "rectangular", "round", "thin-rimmed", "cat-eye"]),
    classes("glasses_color", &["none", "black", "gold", "silver", "brown", "red", "white", "blue"]),
    flag("sunglasses"),
    classes("earrings", &["none", "drop", "hoop", "stud"]),
    classes("earring_color", &["none", "gold", "silver", "pearl white", "blue", "red"]),
    classes("necklace", &["none", "gold chain", "silver chain", "pearl necklace", "bead necklace"]),
    classes("hat", &["none", "beanie", "baseball cap", "fedora", "sun hat", "headband"]),
    classes("hat_color", &[
        "none", "white", "black", "brown", "gray", "navy", "red", "pink", "yellow", "blue", "purple", "orange", "green", "beige", "dark red",
    ]),
    classes("clothing", &[
        "t-shirt", "collared shirt", "sweater", "turtleneck", "striped shirt", "v-neck sweater", "jacket", "overalls", "blouse", "suit",
        "suit and tie",
    ]),
    classes("clothing_color", &[
        "black", "navy", "gray", "brown", "yellow", "blue", "pink", "green", "purple", "orange", "white", "teal", "light blue", "red",
    ]),
    classes("tie_color", &["none", "purple", "black", "blue", "red", "yellow", "green"]),
    classes("head_turn", &["front", "left", "right"]),
    classes("head_tilt", &["none", "left", "right"]),
    classes("emotion", &["neutral", "happy", "sad", "angry", "surprised", "disgusted", "afraid"]),
    classes("action", &[
        "none", "smiling", "smiling with teeth", "laughing", "frowning", "grimacing", "sneering", "gasping", "glaring", "shouting",
        "gritting teeth", "talking", "eyes closed", "winking", "puckering lips", "raising eyebrows",
    ]),
    classes("gaze", &["camera", "left", "right", "up", "closed"]),
    classes("mouth_state", &["closed", "open"]),
    flag("teeth_showing"),
    classes("background", &[
        "blue", "gray", "orange", "blurred outdoor", "green", "dark", "teal", "yellow", "beige", "blurred", "purple", "red", "white", "pink",
    ]),
    hidden(classes("lighting", &["soft", "left", "right", "warm", "cool"])),
];

impl Attribute {
    /// Index of a value.
    pub fn index_of(&self, value: &str) -> Option<u16> {
        self.values.iter().position(|known| *known == value).map(|index| index as u16)
    }

    /// The value that a missing key stands for: `none` or `false`; attributes that every record states have none.
    pub fn absent(&self) -> Option<u16> {
        matches!(self.values[0], "none" | "false").then_some(0)
    }

    /// The value that a record gives, whether or not the picture shows it. `None` where the record is silent on it.
    pub fn of(&self, record: &FaceRecord) -> Option<u16> {
        match record.get(self.name) {
            Some(value) => self.index_of(value),
            None => self.absent(),
        }
    }

    /// Whether a look at the picture can settle this attribute.
    ///
    /// Rules (from `visible` and from what the set itself states and asks):
    /// - eye colour: the iris was found visible; eye size: the eyes are open; gaze: no sunglasses cover them;
    /// - eyebrows: found visible; bags and eye shadow: if worn, found visible, if not, no sunglasses cover the place;
    /// - hair colour, type and length: hair found visible, and no baldness; the style also needs that no hat covers it (a
    ///   headband doesn't; under other hats medium and long hair still shows), bangs and hairline the same;
    /// - earrings and necklace: if worn, found visible; ear size: free ears in a frontal view;
    /// - clothes and tie: found visible; teeth: `teeth_known`; the state of the mouth where the record gives one;
    /// - slim build is rendered as variation and never claimed.
    pub fn claimable(&self, record: &FaceRecord) -> bool {
        let Some(value) = self.of(record) else {
            return false;
        };
        let sunglasses = record.flag("sunglasses");
        let hat = record.get("hat").is_some_and(|hat| hat != "headband");
        let bald = record.get("hairstyle") == Some("bald");
        let long = matches!(record.get("hair_length"), Some("medium" | "long"));
        let hair = record.sees("hair") && !bald;
        let worn_or = |part: &str, free: bool| if value == 0 { free } else { record.sees(part) };
        self.shown
            && match self.name {
                "build" => self.values[value as usize] != "slim",
                "eye_color" => record.sees("eye_color") && !sunglasses,
                "eye_size" => (record.sees("eyes_open") || record.sees("eye_color")) && !sunglasses,
                "gaze" => !sunglasses,
                "eyebrows" => record.sees("brows"),
                "eye_bags" => worn_or("bags", !sunglasses),
                "eye_shadow" => worn_or("shadow", !sunglasses),
                "hair_color" => hair,
                "hair_type" => hair && (!hat || long),
                "hairstyle" | "hair_length" => {
                    if bald {
                        !hat
                    } else {
                        hair && (!hat || long)
                    }
                }
                "bangs" | "receding_hairline" => hair && !hat,
                "earrings" | "earring_color" => worn_or("earrings", true),
                "necklace" => worn_or("necklace", true),
                "big_ears" => record.sees("ears") && record.get("head_turn") == Some("front"),
                "clothing" | "clothing_color" | "tie_color" => record.sees("clothes"),
                "teeth_showing" => record.sees("teeth_known"),
                _ => true,
            }
    }
}

/// The whole table with look-up by name.
#[derive(Debug)]
pub struct Schema {
    by_name: HashMap<&'static str, usize>,
    shown: Vec<&'static Attribute>,
    head_by_name: HashMap<&'static str, usize>,
}

impl Schema {
    /// The schema of the rendered faces.
    pub fn get() -> &'static Self {
        static SCHEMA: OnceLock<Schema> = OnceLock::new();
        SCHEMA.get_or_init(|| {
            let shown: Vec<_> = ATTRIBUTES.iter().filter(|attribute| attribute.shown).collect();
            Schema {
                by_name: ATTRIBUTES.iter().enumerate().map(|(i, a)| (a.name, i)).collect(),
                head_by_name: shown.iter().enumerate().map(|(i, a)| (a.name, i)).collect(),
                shown,
            }
        })
    }

    /// Every attribute, also those that are never claimed.
    pub fn attributes(&self) -> &'static [Attribute] {
        ATTRIBUTES
    }

    /// An attribute by name.
    pub fn attribute(&self, name: &str) -> Option<&'static Attribute> {
        self.by_name.get(name).map(|&index| &ATTRIBUTES[index])
    }

    /// The attribute of a head.
    pub fn head(&self, index: usize) -> Option<&'static Attribute> {
        self.shown.get(index).copied()
    }

    /// Index of the head of an attribute.
    pub fn head_index(&self, name: &str) -> Option<usize> {
        self.head_by_name.get(name).copied()
    }

    /// Heads of the attribute network: the attributes that a picture can show, in the table's order.
    pub fn heads(&self) -> Vec<Head> {
        self.shown.iter().map(|a| Head { name: a.name, num_classes: a.values.len() }).collect()
    }

    /// One target per head; `None` where the picture can't settle it.
    pub fn targets(&self, record: &FaceRecord) -> Vec<Option<u16>> {
        self.shown.iter().map(|a| a.claimable(record).then(|| a.of(record)).flatten()).collect()
    }

    /// Refuses values that the table doesn't have. Names that the table doesn't have are left alone: a newer set may add some.
    ///
    /// # Errors
    /// Names the first attribute with an unknown value.
    pub fn check(&self, record: &FaceRecord) -> Result<(), SampleFault> {
        for (name, value) in &record.attributes {
            if self.attribute(name).is_some_and(|a| a.index_of(value.as_str()).is_none()) {
                return Err(SampleFault::Attribute { attribute: name.clone(), value: value.as_str().into() });
            }
        }
        Ok(())
    }
}
