//! From a text to plain lower-case words.

/// Words and stops of a text: lower case, hyphens split, spelling variants made one ("grey", "blonde", "mustache").
pub(crate) fn words(text: &str) -> Vec<String> {
    let mut out = Vec::new();
    let mut word = String::new();
    let lowered = text.to_lowercase().replace('\u{2019}', "'");
    for symbol in lowered.chars() {
        match symbol {
            'a'..='z' | '0'..='9' | '\'' => word.push(symbol),
            _ => {
                flush(&mut word, &mut out);
                match symbol {
                    ',' | ';' | ':' | '/' | '(' | ')' | '–' | '—' => out.push(",".into()),
                    '&' => out.push("and".into()),
                    '.' | '!' | '?' | '\n' => out.push(".".into()),
                    _ => {}
                }
            }
        }
    }
    flush(&mut word, &mut out);
    out
}

fn flush(word: &mut String, out: &mut Vec<String>) {
    if word.is_empty() {
        return;
    }
    let taken = std::mem::take(word);
    let (stem, tail) = match taken.as_str() {
        "o'clock" => ("oclock", None),
        "can't" => ("can", Some("not")),
        "won't" => ("will", Some("not")),
        "he's" => ("he", Some("is")),
        "she's" => ("she", Some("is")),
        other => match other.strip_suffix("n't") {
            Some(verb) => (verb, Some("not")),
            None => (other.strip_suffix("'s").unwrap_or(other), None),
        },
    };
    let stem = stem.trim_matches('\'');
    let same = match stem {
        "grey" => "gray",
        "colour" => "color",
        "coloured" => "colored",
        "blonde" => "blond",
        "mustache" => "moustache",
        "moustaches" => "moustache",
        "eyeshadow" => "eye shadow",
        "tshirt" => "t shirt",
        "topknot" => "top knot",
        "sunhat" => "sun hat",
        "man's" => "man",
        other => other,
    };
    out.extend(same.split(' ').filter(|part| !part.is_empty()).map(str::to_owned));
    out.extend(tail.map(str::to_owned));
}

/// Spells out `(a|b)` (one of them) and `[a]` (may be missing) in a pattern; groups may nest.
pub(crate) fn expand(pattern: &str) -> Vec<String> {
    let Some((before, choices, after)) = first_group(pattern) else {
        return vec![pattern.split_whitespace().collect::<Vec<_>>().join(" ")];
    };
    let spelt = |choice: &&str| expand(&format!("{before}{choice}{after}"));
    choices.iter().flat_map(spelt).collect()
}

/// What stands before the first group, its choices, and what stands after it.
fn first_group(pattern: &str) -> Option<(&str, Vec<&str>, &str)> {
    let open = pattern.find(['(', '['])?;
    let mut choices = Vec::new();
    let mut depth = 0usize;
    let mut start = open + 1;
    for (at, symbol) in pattern.char_indices().skip_while(|(at, _)| *at < open) {
        match symbol {
            '(' | '[' => depth += 1,
            '|' if depth == 1 => {
                choices.push(&pattern[start..at]);
                start = at + 1;
            }
            ')' | ']' => {
                depth = depth.saturating_sub(1);
                if depth == 0 {
                    choices.push(&pattern[start..at]);
                    if symbol == ']' {
                        choices.push("");
                    }
                    return Some((&pattern[..open], choices, &pattern[at + 1..]));
                }
            }
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spelling_is_made_one() {
        let text = "A woman's Grey-blonde hair; she's tired (o'clock).";
        let expected = ["a", "woman", "gray", "blond", "hair", ",", "she", "is", "tired", ",", "oclock", ",", "."];
        assert_eq!(words(text), expected);
    }

    #[test]
    fn patterns_spell_out() {
        let mut all = expand("tilting (his|her) head [to the left]");
        all.sort();
        let expected = ["tilting her head", "tilting her head to the left", "tilting his head", "tilting his head to the left"];
        assert_eq!(all, expected);
        let mut nested = expand("(a (b|c)|d [e])");
        nested.sort();
        assert_eq!(nested, ["a b", "a c", "d", "d e"]);
    }
}
