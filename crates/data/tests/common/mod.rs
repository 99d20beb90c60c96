//! The sample of faces that lies in the repository.
#![allow(dead_code)]

use std::path::PathBuf;

use unif2ace_data::{FaceRecord, Sample, load_split};

pub fn faces() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/faces")
}

pub fn samples() -> Vec<Sample> {
    load_split(faces(), "test", 0).unwrap().samples
}

/// The whole set, where the environment names one.
pub fn full_set() -> Option<PathBuf> {
    std::env::var_os("UNIF2ACE_FACES").map(PathBuf::from)
}

pub fn record(attributes: &str, visible: &[&str]) -> FaceRecord {
    FaceRecord {
        attributes: serde_json::from_str(attributes).unwrap(),
        visible: visible.iter().map(|part| (*part).to_owned()).collect(),
        ..FaceRecord::default()
    }
}
