//! Questions for yes and no.

use super::Ask;
use super::values::{doing, style};
use crate::grammar::paraphrase::article;
use crate::grammar::pick::Pick;

pub(super) fn has_eyewear(ask: &mut Ask, pick: &mut Pick) {
    let (glasses, sun) = (ask.facts.present("glasses").is_some(), ask.facts.is("sunglasses"));
    let reason = if sun {
        "{He} has sunglasses on"
    } else if glasses {
        "{He} is wearing glasses"
    } else {
        "{He} is not wearing any"
    };
    let form = pick.one(&[
        "Is {s} wearing glasses or sunglasses?",
        "Is {s} wearing any kind of eyewear?",
        "Does {s} wear any eyewear?",
        "Is {s} wearing eyewear?",
    ]);
    ask.yes_no("appearance", form, "", glasses || sun, reason, pick);
}

pub(super) fn has_glasses(ask: &mut Ask, pick: &mut Pick) {
    let (glasses, sun) = (ask.facts.present("glasses").is_some(), ask.facts.is("sunglasses"));
    let reason = if glasses {
        "{He} is wearing glasses"
    } else if sun {
        "{He} is wearing sunglasses"
    } else {
        "{He} is not wearing any"
    };
    let form = pick.one(&[
        "Is {s} wearing glasses?",
        "Does {s} wear glasses?",
        "Does {s} have glasses on?",
        "Does {s} have glasses?",
        "Has {s} got glasses?",
        "Is {s} wearing spectacles?",
    ]);
    ask.yes_no("appearance", form, "", glasses, reason, pick);
}

pub(super) fn has_sunglasses(ask: &mut Ask, pick: &mut Pick) {
    let sun = ask.facts.is("sunglasses");
    let reason = if sun { "{He} is wearing sunglasses" } else { "{He} is not wearing sunglasses" };
    let form = pick.one(&[
        "Is {s} wearing sunglasses?",
        "Does {s} have sunglasses on?",
        "Does {s} wear sunglasses?",
        "Are there sunglasses?",
    ]);
    ask.yes_no("appearance", form, "", sun, reason, pick);
}

pub(super) fn has_hat(ask: &mut Ask, pick: &mut Pick) {
    let form = pick.one(&[
        "Is {s} wearing a hat?",
        "Does {s} have a hat on?",
        "Does {s} wear a hat?",
        "Is there a hat?",
        "Has {s} got a hat on?",
    ]);
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

pub(super) fn has_earrings(ask: &mut Ask, pick: &mut Pick) {
    let Some(kind) = ask.facts.get("earrings") else { return };
    let form = pick.one(&[
        "Is {s} wearing earrings?",
        "Does {s} have earrings?",
        "Does {s} wear earrings?",
        "Can you see any earrings?",
    ]);
    let color = ask.facts.present("earring_color").unwrap_or("gold");
    let reason =
        if kind == "none" { "no earrings can be seen".to_owned() } else { format!("{{He}} wears {color} {kind} earrings") };
    ask.yes_no("appearance", form, "", kind != "none", &reason, pick);
}

pub(super) fn has_necklace(ask: &mut Ask, pick: &mut Pick) {
    let Some(kind) = ask.facts.get("necklace") else { return };
    let form = pick.one(&[
        "Is {s} wearing a necklace?",
        "Does {s} have a necklace?",
        "Does {s} wear a necklace?",
        "Is there a necklace?",
    ]);
    let reason = if kind == "none" { "there is no necklace".to_owned() } else { format!("{{He}} wears {}", article(kind)) };
    ask.yes_no("appearance", form, "", kind != "none", &reason, pick);
}

pub(super) fn has_lipstick(ask: &mut Ask, pick: &mut Pick) {
    let color = ask.facts.present("lipstick");
    if !ask.facts.female() || ask.facts.get("age") == Some("child") && color.is_none() {
        return;
    }
    let form = pick.one(&["Is {s} wearing lipstick?", "Does {s} wear lipstick?", "Does {s} have lipstick on?"]);
    let reason = color.map_or("the lips have no bright lipstick".to_owned(), |color| format!("the lipstick is {color}"));
    ask.yes_no("appearance", form, "", color.is_some(), &reason, pick);
}

pub(super) fn has_shadow(ask: &mut Ask, pick: &mut Pick) {
    let Some(color) = ask.facts.get("eye_shadow").filter(|_| ask.facts.female()) else { return };
    let form = pick.one(&["Is {s} wearing eye shadow?", "Does {s} wear eye shadow?", "Does {s} have eye shadow on?"]);
    let reason = if color == "none" { "there is no eye shadow".to_owned() } else { format!("{{He}} wears {color} eye shadow") };
    ask.yes_no("appearance", form, "", color != "none", &reason, pick);
}

pub(super) fn has_beard(ask: &mut Ask, pick: &mut Pick) {
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

pub(super) fn has_moustache(ask: &mut Ask, pick: &mut Pick) {
    let Some(kind) = ask.facts.get("facial_hair").filter(|_| !ask.facts.female()) else { return };
    // A goatee may come with a moustache or not; the set doesn't ask.
    if matches!(kind, "goatee" | "stubble") {
        return;
    }
    let truth = matches!(kind, "moustache" | "full beard" | "short beard");
    let form = pick.one(&[
        "Does {s} have a moustache?",
        "Has {s} got a moustache?",
        "Does {s} have a mustache?",
        "Is there a moustache?",
    ]);
    let reason = if truth { "there is a moustache above the lips" } else { "there is no moustache" };
    ask.yes_no("appearance", form, "", truth, reason, pick);
}

pub(super) fn is_bald(ask: &mut Ask, pick: &mut Pick) {
    let Some(value) = ask.facts.get("hairstyle").filter(|value| *value != "balding") else { return };
    let form = pick.one(&["Is {s} bald?", "Is {own} head bald?", "Does {s} have a bald head?"]);
    if value == "bald" {
        ask.yes_no("appearance", form, "", true, "{He} has no hair on {own} head", pick);
    } else if let Some(words) = style(&ask.facts, pick) {
        ask.yes_no("appearance", form, "", false, &format!("{{He}} has {words}"), pick);
    }
}

pub(super) fn has_bangs(ask: &mut Ask, pick: &mut Pick) {
    let Some(value) = ask.facts.get("bangs") else { return };
    let form = pick.one(&["Does {s} have bangs?", "Does {s} have a fringe?", "Has {s} got bangs?"]);
    let reason = if value == "true" { "bangs cover the forehead" } else { "{own} forehead is free of bangs" };
    ask.yes_no("appearance", form, "", value == "true", reason, pick);
}

pub(super) fn has_long_hair(ask: &mut Ask, pick: &mut Pick) {
    let Some(length) = ask.facts.get("hair_length").filter(|length| matches!(*length, "long" | "short" | "very short")) else {
        return;
    };
    let short = pick.chance(0.35);
    let form = if short {
        pick.one(&["Does {s} have short hair?", "Is {own} hair short?"])
    } else {
        pick.one(&["Does {s} have long hair?", "Is {own} hair long?"])
    };
    let truth = (length == "long") != short;
    ask.yes_no("appearance", form, "", truth, &format!("the hair is {length}"), pick);
}

pub(super) fn has_curly_hair(ask: &mut Ask, pick: &mut Pick) {
    let Some(kind) = ask.facts.get("hair_type") else { return };
    let form = pick.one(&["Does {s} have curly hair?", "Is {own} hair curly?", "Has {s} got curls?"]);
    let curly = matches!(kind, "curly" | "afro");
    let reason = if curly { "the hair is curly".to_owned() } else { format!("the hair is {kind}") };
    ask.yes_no("appearance", form, "", curly, &reason, pick);
}

pub(super) fn has_hair_color(ask: &mut Ask, pick: &mut Pick) {
    let Some(color) = ask.facts.get("hair_color") else { return };
    let asked = ask.asked("hair_color", color, 0.6, &[], pick);
    let form = pick.one(&["Does {s} have {v} hair?", "Is {own} hair {v}?", "Has {s} got {v} hair?"]);
    ask.yes_no("appearance", form, asked, asked == color, &format!("the hair is {color}"), pick);
}

pub(super) fn has_eye_color(ask: &mut Ask, pick: &mut Pick) {
    let Some(color) = ask.facts.get("eye_color") else { return };
    // Brown and dark brown are too close to ask for one of the other.
    let skip: &[&str] = if color.ends_with("brown") { &["brown", "dark brown", "hazel"] } else { &[] };
    let skip: Vec<&str> = skip.iter().copied().filter(|value| *value != color).collect();
    let asked = ask.asked("eye_color", color, 0.6, &skip, pick);
    let form = pick.one(&["Does {s} have {v} eyes?", "Are {own} eyes {v}?", "Has {s} got {v} eyes?"]);
    ask.yes_no("appearance", form, asked, asked == color, &format!("{{own}} eyes are {color}"), pick);
}

pub(super) fn has_skin(ask: &mut Ask, pick: &mut Pick) {
    let Some(tone) = ask.facts.get("skin_tone") else { return };
    let asked = ask.asked("skin_tone", tone, 0.6, &[], pick);
    let form = pick.one(&["Does {s} have {v} skin?", "Is {own} skin {v}?"]);
    ask.yes_no("appearance", form, asked, asked == tone, &format!("the skin is {tone}"), pick);
}

pub(super) fn has_freckles(ask: &mut Ask, pick: &mut Pick) {
    let truth = ask.facts.is("freckles");
    let form =
        pick.one(&["Does {s} have freckles?", "Are there freckles on {own} face?", "Is {s} freckled?", "Has {s} got freckles?"]);
    ask.yes_no(
        "appearance",
        form,
        "",
        truth,
        if truth { "{He} has freckles on {own} face" } else { "there are no freckles" },
        pick,
    );
}

pub(super) fn has_wrinkles(ask: &mut Ask, pick: &mut Pick) {
    let truth = ask.facts.is("wrinkles");
    let form = pick.one(&["Does {s} have wrinkles?", "Is {own} face wrinkled?", "Are there wrinkles on {own} face?"]);
    ask.yes_no("appearance", form, "", truth, if truth { "{own} face is wrinkled" } else { "{own} skin is smooth" }, pick);
}

pub(super) fn has_rosy_cheeks(ask: &mut Ask, pick: &mut Pick) {
    // On brown and dark skin it can't be seen.
    if matches!(ask.facts.get("skin_tone"), Some("brown" | "dark")) {
        return;
    }
    let truth = ask.facts.is("rosy_cheeks");
    let form = pick.one(&["Does {s} have rosy cheeks?", "Are {own} cheeks rosy?", "Are {own} cheeks flushed?"]);
    ask.yes_no("appearance", form, "", truth, if truth { "the cheeks are rosy" } else { "the cheeks are not rosy" }, pick);
}

pub(super) fn is_chubby(ask: &mut Ask, pick: &mut Pick) {
    let Some(build) = ask.facts.get("build") else { return };
    let form = pick.one(&[
        "Does {s} have a chubby face?",
        "Does {s} have chubby cheeks?",
        "Is {own} face chubby?",
        "Are {own} cheeks full?",
    ]);
    let truth = build == "chubby";
    ask.yes_no("appearance", form, "", truth, if truth { "{own} cheeks are full" } else { "{own} face is not chubby" }, pick);
}

/// Lips, eyebrows and the size of the eyes; the average is never asked about.
pub(super) fn has_trait(ask: &mut Ask, pick: &mut Pick) {
    let (attribute, noun) = [("lips", "lips"), ("eyebrows", "eyebrows"), ("eye_size", "eyes")][pick.below(3)];
    let Some(value) = ask.facts.present(attribute) else { return };
    let asked = ask.asked(attribute, value, 0.6, &["average"], pick);
    let form = [format!("Does {{s}} have {{v}} {noun}?"), format!("Are {{own}} {noun} {{v}}?")];
    let form = if pick.chance(0.6) { &form[0] } else { &form[1] };
    ask.yes_no("appearance", form, asked, asked == value, &format!("{{own}} {noun} are {value}"), pick);
}

pub(super) fn is_gender(ask: &mut Ask, pick: &mut Pick) {
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
    let reason = if truth && form.starts_with("Is this a") {
        format!("this is a {own}")
    } else if truth {
        String::new()
    } else {
        format!("{{He}} is a {own}")
    };
    ask.yes_no("appearance", &form, "", truth, &reason, pick);
}

pub(super) fn is_age(ask: &mut Ask, pick: &mut Pick) {
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
pub(super) fn instead(ask: &Ask) -> String {
    match ask.facts.get("action") {
        None | Some("none") => "{He} is not doing anything special".to_owned(),
        Some(action) => format!("{{He}} is {}", doing(action)),
    }
}

pub(super) fn is_smiling(ask: &mut Ask, pick: &mut Pick) {
    let action = ask.facts.get("action").unwrap_or("none");
    let happy = ask.facts.get("emotion") == Some("happy");
    let truth = matches!(action, "smiling" | "smiling with teeth" | "laughing") || (action == "winking" && happy);
    let form = pick.one(&["Is {s} smiling?", "Does {s} smile?", "Is there a smile on {own} face?"]);
    let reason = instead(ask);
    ask.yes_no("action", form, "", truth, &reason, pick);
}

pub(super) fn is_winking(ask: &mut Ask, pick: &mut Pick) {
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

pub(super) fn eyes_closed(ask: &mut Ask, pick: &mut Pick) {
    if ask.facts.is("sunglasses") {
        return;
    }
    let action = ask.facts.get("action").unwrap_or("none");
    let closed = action == "eyes closed";
    let open = pick.chance(0.3) && action != "winking";
    let form = if open {
        pick.one(&["Are {own} eyes open?", "Does {s} have {own} eyes open?"])
    } else {
        pick.one(&["Are {own} eyes closed?", "Does {s} have {own} eyes closed?", "Are {own} eyes shut?"])
    };
    let reason = if closed {
        "both eyes are closed"
    } else if action == "winking" {
        "one eye is open"
    } else {
        "the eyes are open"
    };
    ask.yes_no("action", form, "", closed != open, reason, pick);
}

pub(super) fn mouth_open(ask: &mut Ask, pick: &mut Pick) {
    let Some(state) = ask.facts.get("mouth_state") else { return };
    let form = pick.one(&["Is {own} mouth open?", "Does {s} have an open mouth?", "Is the mouth open?"]);
    let truth = state == "open";
    let reason = if truth { instead(ask) } else { "the mouth is closed".to_owned() };
    let reason = if reason.contains("special") { String::new() } else { reason };
    ask.yes_no("action", form, "", truth, &reason, pick);
}

pub(super) fn teeth(ask: &mut Ask, pick: &mut Pick) {
    let Some(value) = ask.facts.get("teeth_showing") else { return };
    let form = pick.one(&[
        "Can you see {own} teeth?",
        "Are {own} teeth showing?",
        "Are {own} teeth visible?",
        "Does {s} show {own} teeth?",
    ]);
    let reason = if value == "true" { "the teeth are visible" } else { "no teeth are visible" };
    ask.yes_no("action", form, "", value == "true", reason, pick);
}

pub(super) fn tilted(ask: &mut Ask, pick: &mut Pick) {
    let Some(side) = ask.facts.get("head_tilt") else { return };
    let form = pick.one(&["Is {own} head tilted?", "Does {s} tilt {own} head?", "Is the head tilted to one side?"]);
    let reason = if side == "none" { "the head is upright".to_owned() } else { format!("it is tilted to the {side}") };
    ask.yes_no("action", form, "", side != "none", &reason, pick);
}

pub(super) fn feels(ask: &mut Ask, pick: &mut Pick) {
    let Some(emotion) = ask.facts.get("emotion") else { return };
    let asked = ask.asked("emotion", emotion, 0.45, &[], pick);
    let form = pick.one(&["Is {s} {v}?", "Does {s} look {v}?", "Does {s} seem {v}?"]);
    let form = if asked == "neutral" { "Does {s} look {v}?" } else { form };
    ask.yes_no("emotion", form, asked, asked == emotion, &format!("{{He}} looks {emotion}"), pick);
}

pub(super) fn is_facing(ask: &mut Ask, pick: &mut Pick) {
    let Some(side) = ask.facts.get("head_turn") else { return };
    let asked = ask.asked("head_turn", side, 0.5, &[], pick);
    let form = if asked == "front" {
        "Is {s} facing the front?"
    } else {
        pick.one(&["Is {s} facing {v}?", "Is the face turned to the {v}?", "Is {s} facing to the {v}?"])
    };
    ask.yes_no("action", form, asked, asked == side, &format!("the face is turned to the {side}"), pick);
}
