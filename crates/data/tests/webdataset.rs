//! Shards: what is read, what is skipped, what ends the run.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test may end by them

mod common;

use std::path::Path;

use unif2ace_data::{DataError, FaceSet, MaxBroken, SampleFault, ShardReader, decode_rgb, load_split};

fn write_shard(folder: &Path, members: &[(&str, &[u8])]) -> std::path::PathBuf {
    std::fs::create_dir_all(folder.join("train")).unwrap();
    let path = folder.join("train/train-00000.tar");
    let mut builder = tar::Builder::new(std::fs::File::create(&path).unwrap());
    for (name, bytes) in members {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, *bytes).unwrap();
    }
    builder.finish().unwrap();
    path
}

#[test]
fn a_shard_gives_what_lies_beside_it_as_files() {
    let samples = common::samples();
    assert_eq!(samples.len(), 13);
    for sample in &samples {
        let file = |extension| std::fs::read(common::faces().join(format!("{}.{extension}", sample.key))).unwrap();
        assert_eq!(sample.image_bytes, file("webp"));
        let json: serde_json::Value = serde_json::from_slice(&file("json")).unwrap();
        assert_eq!(serde_json::to_value(&sample.record).unwrap(), json, "{}", sample.key);
    }
}

#[test]
fn pictures_are_decoded_in_order() {
    let samples = common::samples();
    let pixels = decode_rgb(&samples, 128).unwrap();
    assert_eq!(pixels.len(), samples.len() * 128 * 128 * 3);
    let last = decode_rgb(&samples[12..], 128).unwrap();
    assert_eq!(&pixels[12 * 128 * 128 * 3..], &last[..]);
    assert_ne!(&pixels[..last.len()], &last[..]);
    assert!(matches!(decode_rgb(&samples[..1], 64), Err(DataError::PictureSize { side: 64, width: 128, height: 128, .. })));
    let mut broken = samples[..1].to_vec();
    broken[0].image_bytes.truncate(100);
    assert!(matches!(decode_rgb(&broken, 128), Err(DataError::Image(_))));
}

#[test]
fn broken_samples_are_named_and_skipped_up_to_the_limit() {
    let good = common::samples().remove(0);
    let record = serde_json::to_vec(&good.record).unwrap();
    let unknown = br#"{"attributes":{"hair_color":"tartan"}}"#;
    let folder = tempfile::tempdir().unwrap();
    write_shard(
        folder.path(),
        &[
            ("a.json", &record),
            ("a.webp", &good.image_bytes),
            ("b.json", b"{\"attributes\":"),
            ("b.webp", &good.image_bytes),
            ("c.json", &record),
            ("d.webp", &good.image_bytes),
            ("e.json", unknown),
            ("e.webp", &good.image_bytes),
            ("f.json", &record),
            ("f.json", &record),
            ("f.webp", &good.image_bytes),
            ("README", b"no sample"),
            ("g.json", &record),
            ("g.webp", &good.image_bytes),
        ],
    );
    let set = FaceSet::open(folder.path()).unwrap();
    let split = set.load("train", 0, MaxBroken::Count(5)).unwrap();
    let keys: Vec<_> = split.samples.iter().map(|sample| sample.key.as_str()).collect();
    assert_eq!(keys, ["a", "g"]);
    assert_eq!(split.skipped.iter().map(|(key, _)| key.as_str()).collect::<Vec<_>>(), ["b", "c", "d", "e", "f"]);
    assert!(matches!(split.skipped[0].1, SampleFault::Record { .. }));
    assert_eq!(split.skipped[1].1, SampleFault::Incomplete { missing: "KEY.webp" });
    assert_eq!(split.skipped[2].1, SampleFault::Incomplete { missing: "KEY.json" });
    assert!(
        matches!(&split.skipped[3].1, SampleFault::Attribute { attribute, value } if attribute == "hair_color" && value == "tartan")
    );
    assert!(matches!(split.skipped[4].1, SampleFault::Duplicate { .. }));
    let error = set.load("train", 0, MaxBroken::Count(4)).unwrap_err();
    assert!(matches!(&error, DataError::TooManyBroken { count: 5, limit: 4, key, .. } if key == "f"), "{error}");
    assert_eq!(set.load("train", 1, MaxBroken::Count(0)).unwrap().samples.len(), 1);
}

#[test]
fn a_truncated_shard_is_an_error_and_says_how_far_it_went() {
    let bytes = std::fs::read(common::faces().join("test/test-00000.tar")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cut.tar");
    for cut in [1000, 5000, bytes.len() / 2 + 77] {
        std::fs::write(&path, &bytes[..cut]).unwrap();
        let mut reader = ShardReader::open(&path).unwrap();
        let outcome: Result<Vec<_>, _> = reader.items().unwrap().collect();
        assert!(matches!(outcome, Err(DataError::Shard { .. })), "cut at {cut}");
    }
    std::fs::write(&path, [7u8; 4096]).unwrap();
    let mut reader = ShardReader::open(&path).unwrap();
    assert!(reader.items().unwrap().next().unwrap().is_err(), "noise is no archive");
}

#[test]
fn missing_folders_and_odd_split_names_are_errors() {
    let folder = tempfile::tempdir().unwrap();
    assert!(matches!(FaceSet::open(folder.path()), Err(DataError::NoShards { .. })));
    assert!(matches!(FaceSet::open(folder.path().join("nowhere")), Err(DataError::Io(_))));
    assert!(matches!(load_split(common::faces(), "train", 0), Err(DataError::Io(_))));
    for name in ["", "../test", ".."] {
        assert!(matches!(load_split(common::faces(), name, 0), Err(DataError::SplitName { .. })), "{name}");
    }
}

#[test]
fn the_full_set_loads() {
    let Some(root) = common::full_set() else { return };
    for (split, count) in [("test", 1000), ("val", 1000)] {
        let loaded = load_split(&root, split, 0).unwrap();
        assert_eq!((loaded.samples.len(), loaded.skipped.len()), (count, 0));
    }
}
