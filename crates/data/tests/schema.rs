//! The attribute table, and which attributes a record supports.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test may end by them

mod common;

use common::record;
use unif2ace_data::{Kind, Schema};

const PLAIN: &str = r#"{"gender":"female","age":"young adult","skin_tone":"tan","face_shape":"oval","build":"average","hairstyle":"bob",
    "hair_length":"medium","hair_type":"wavy","hair_color":"black","eyebrows":"thin","eye_color":"green","eye_size":"big","nose":"big",
    "lips":"full","facial_hair":"none","clothing":"t-shirt","clothing_color":"red","head_turn":"front","head_tilt":"none","emotion":"sad",
    "action":"frowning","gaze":"left","background":"blue","lighting":"soft","mouth_state":"closed""#;
const ALL: &[&str] = &["hair", "eye_color", "eyes_open", "brows", "clothes", "ears", "teeth_known"];

fn target(extra: &str, visible: &[&str], name: &str) -> Option<&'static str> {
    let schema = Schema::get();
    let record = record(&format!("{PLAIN}{extra}}}"), visible);
    let index = schema.head_index(name).unwrap();
    schema.targets(&record)[index].map(|value| schema.head(index).unwrap().values[value as usize])
}

#[test]
fn indices_and_values_are_each_others_inverse() {
    let schema = Schema::get();
    assert_eq!(schema.attributes().len(), 46);
    for attribute in schema.attributes() {
        assert!(std::ptr::eq(schema.attribute(attribute.name).unwrap(), attribute));
        for (index, value) in attribute.values.iter().enumerate() {
            assert_eq!(attribute.index_of(value), Some(index as u16), "{} {value}", attribute.name);
        }
        assert_eq!(attribute.kind == Kind::Flag, attribute.values == ["false", "true"]);
    }
    let heads = schema.heads();
    assert_eq!(heads.len(), 43);
    for (index, head) in heads.iter().enumerate() {
        assert_eq!(schema.head_index(head.name), Some(index));
        assert_eq!(schema.head(index).unwrap().values.len(), head.num_classes);
    }
    assert!(schema.head_index("lighting").is_none() && schema.head_index("eyeliner").is_none());
}

#[test]
fn absent_keys_mean_none() {
    assert_eq!(target("", ALL, "hat"), Some("none"));
    assert_eq!(target("", ALL, "freckles"), Some("false"));
    assert_eq!(target("", ALL, "earring_color"), Some("none"));
    assert_eq!(target(r#","hat":"beanie","hat_color":"navy""#, ALL, "hat_color"), Some("navy"));
}

#[test]
fn nothing_is_claimed_that_the_picture_hides() {
    assert_eq!(target("", ALL, "eye_color"), Some("green"));
    assert_eq!(target("", &["hair"], "eye_color"), None);
    for name in ["eye_color", "eye_size", "gaze", "eye_bags", "eye_shadow"] {
        assert_eq!(target(r#","sunglasses":true"#, ALL, name), None, "{name} under sunglasses");
    }
    let earrings = r#","earrings":"hoop","earring_color":"gold""#;
    assert_eq!(target(earrings, ALL, "earrings"), None);
    assert_eq!(target(earrings, &["earrings"], "earrings"), Some("hoop"));
    assert_eq!(target(r#","big_ears":true"#, ALL, "big_ears"), Some("true"));
    assert_eq!(target(r#","big_ears":true"#, &["hair"], "big_ears"), None);
    assert_eq!(target("", &[], "clothing"), None);
    assert_eq!(target("", &[], "teeth_showing"), None);
    assert_eq!(target(r#","hat":"beanie","hat_color":"red","bangs":true"#, ALL, "bangs"), None);
    assert_eq!(target(r#","hat":"headband","hat_color":"red","bangs":true"#, ALL, "bangs"), Some("true"));
}

#[test]
fn hair_under_a_hat_and_no_hair_at_all() {
    let swap = |from: &str, to: &str| PLAIN.replace(from, to);
    let schema = Schema::get();
    let read = |attributes: String, visible: &[&str], name: &str| {
        let targets = schema.targets(&record(&attributes, visible));
        let index = schema.head_index(name).unwrap();
        targets[index].map(|value| schema.head(index).unwrap().values[value as usize])
    };
    let hat = r#","hat":"fedora","hat_color":"gray"}"#;
    let short = swap("\"medium\"", "\"short\"") + hat;
    assert_eq!(read(short.clone(), ALL, "hairstyle"), None);
    assert_eq!(read(short, ALL, "hair_color"), Some("black"));
    assert_eq!(target(r#","hat":"fedora","hat_color":"gray""#, ALL, "hair_length"), Some("medium"));
    let bald = swap("\"bob\"", "\"bald\"").replace("\"medium\"", "\"bald\"");
    assert_eq!(read(format!("{bald}}}"), &[], "hairstyle"), Some("bald"));
    assert_eq!(read(format!("{bald}}}"), ALL, "hair_color"), None);
    assert_eq!(read(bald + hat, &[], "hairstyle"), None);
}

#[test]
fn every_fixture_fits_the_table() {
    let schema = Schema::get();
    for sample in common::samples() {
        schema.check(&sample.record).unwrap();
        let claimed = schema.targets(&sample.record).iter().flatten().count();
        assert!((28..=43).contains(&claimed), "{}: {claimed}", sample.key);
        for attribute in sample.record.attributes.keys() {
            assert!(schema.attribute(attribute).is_some(), "{attribute}");
        }
    }
}
