//! Reading and writing safetensors: agreement with the reference crate, every rule of the format, shards, pickles.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test may end by them

use std::collections::BTreeMap;
use std::path::Path;

use proptest::prelude::*;
use safetensors::tensor::{Dtype, TensorView};
use unif2ace_weights::*;

fn raw(header: &str, data: &[u8]) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend(data);
    bytes
}

fn open_bytes(bytes: &[u8]) -> Result<SafetensorsFile> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.safetensors");
    std::fs::write(&path, bytes).unwrap();
    SafetensorsFile::open(&path)
}

/// The message of an error that must name the file and give a hint.
fn message(bytes: &[u8]) -> String {
    let text = open_bytes(bytes).unwrap_err().to_string();
    assert!(text.contains("x.safetensors") && text.contains("hint:"), "{text}");
    text
}

fn write(path: &Path, tensors: &[(&str, &[usize], &[f32])], float: FloatType) {
    let spec = |(name, shape, _): &(&str, &[usize], &[f32])| TensorSpec { name: name.to_string(), shape: shape.to_vec() };
    let metadata = BTreeMap::from([("format".to_string(), "pt".to_string())]);
    let mut writer = SafetensorsWriter::create(path, tensors.iter().map(spec).collect(), float, &metadata).unwrap();
    for (name, _, values) in tensors {
        writer.write(name, values).unwrap();
    }
    writer.finish().unwrap();
}

#[test]
fn the_reference_crate_reads_what_we_write_and_we_read_what_it_writes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.safetensors");
    let values = [1.0, -2.5, 3.25, 1e-30, 65504.0, 0.1];
    write(&path, &[("b", &[2, 3], &values), ("a", &[], &[7.0]), ("empty", &[0, 4], &[])], FloatType::F32);
    let bytes = std::fs::read(&path).unwrap();
    let theirs = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(theirs.tensor("b").unwrap().shape(), [2, 3]);
    let expected: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    assert_eq!(theirs.tensor("b").unwrap().data(), expected);
    assert_eq!(theirs.tensor("a").unwrap().dtype(), Dtype::F32);

    let ids: Vec<u8> = [5i64, -6].iter().flat_map(|value| value.to_le_bytes()).collect();
    let views = [
        ("ids", TensorView::new(Dtype::I64, vec![2], &ids).unwrap()),
        ("w", TensorView::new(Dtype::F32, vec![3, 2], &expected).unwrap()),
    ];
    std::fs::write(&path, safetensors::serialize(views, None).unwrap()).unwrap();
    let file = SafetensorsFile::open(&path).unwrap();
    assert_eq!(file.load_f32("w").unwrap(), values);
    assert_eq!(file.load_i64("ids").unwrap(), [5, -6]);
    assert!(matches!(file.load_f32("ids"), Err(WeightsError::WrongType { .. })));
    assert!(matches!(file.load_i64("w"), Err(WeightsError::WrongType { .. })));
    assert!(matches!(file.load_f32("nobody"), Err(WeightsError::NoTensor { .. })));
}

#[test]
fn half_precision_rounds_to_nearest_even_and_refuses_overflow() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.safetensors");
    // 1 + 2^-8 lies halfway between two bfloat16 numbers; 1 + 3 * 2^-8 too, with the even one above.
    let values = [1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0, -3.0e38, f32::INFINITY];
    write(&path, &[("a", &[4], &values)], FloatType::Bf16);
    let back = SafetensorsFile::open(&path).unwrap().load_f32("a").unwrap();
    assert_eq!(back[..2], [1.0, 1.0 + 4.0 / 256.0]);
    assert!((back[2] / -3.0e38 - 1.0).abs() < 0.004 && back[3] == f32::INFINITY);
    write(&path, &[("a", &[2], &[0.333_333_34, 65504.0])], FloatType::F16);
    assert_eq!(SafetensorsFile::open(&path).unwrap().load_f32("a").unwrap(), [0.333_251_95, 65504.0]);

    let before = std::fs::read(&path).unwrap();
    let spec = TensorSpec { name: "a".into(), shape: vec![1] };
    let mut writer = SafetensorsWriter::create(&path, vec![spec], FloatType::F16, &BTreeMap::new()).unwrap();
    assert!(writer.write("a", &[70000.0]).unwrap_err().to_string().contains("bf16"));
    drop(writer);
    assert_eq!(std::fs::read(&path).unwrap(), before, "the old file stays");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left behind");
}

#[test]
fn the_writer_holds_its_caller_to_the_list() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.safetensors");
    let spec = |name: &str| TensorSpec { name: name.into(), shape: vec![2] };
    let create = |specs| SafetensorsWriter::create(&path, specs, FloatType::F32, &BTreeMap::new());
    assert!(create(vec![spec("a"), spec("a")]).is_err());
    assert!(create(vec![spec("__metadata__")]).is_err());
    assert!(create(vec![TensorSpec { name: "big".into(), shape: vec![usize::MAX, 8] }]).is_err());
    let mut writer = create(vec![spec("a"), spec("b")]).unwrap();
    assert!(writer.write("b", &[0.0; 2]).is_err());
    assert!(writer.write("a", &[0.0; 3]).is_err());
    writer.write("a", &[0.0; 2]).unwrap();
    assert!(writer.finish().is_err());
    assert!(!path.exists());
}

#[test]
fn equal_input_gives_equal_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let [one, two] = ["1.safetensors", "2.safetensors"].map(|name| folder.path().join(name));
    for path in [&one, &two] {
        write(path, &[("z", &[1], &[1.0]), ("a", &[1], &[2.0])], FloatType::Bf16);
    }
    assert_eq!(std::fs::read(one).unwrap(), std::fs::read(two).unwrap());
}

#[test]
fn every_broken_rule_of_the_format_is_named() {
    let entry = |name: &str, dtype: &str, shape: &str, offsets: &str| {
        format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}"#)
    };
    let one = entry("a", "F32", "[1]", "[0,4]");
    assert!(open_bytes(&raw(&format!("{{{one}}}"), &[0; 4])).is_ok());
    let cases: Vec<(String, Vec<u8>, &str)> = vec![
        (String::new(), vec![], "no valid table"),
        ("[]".into(), vec![], "no valid table"),
        (format!("{{{one}"), vec![0; 4], "no valid table"),
        (format!("{{{one},{one}}}"), vec![0; 4], "twice"),
        (format!("{{{}}}", entry("a", "F99", "[1]", "[0,4]")), vec![0; 4], "unknown number type"),
        (format!("{{{}}}", entry("a", "F32", "[2]", "[0,4]")), vec![0; 4], "needs 8 bytes"),
        (format!("{{{}}}", entry("a", "F32", "[1]", "[4,0]")), vec![0; 4], "needs 4 bytes"),
        (format!("{{{}}}", entry("a", "F32", "[1]", "[4,8]")), vec![0; 8], "expected to start at byte 0"),
        (format!("{{{one},{}}}", entry("b", "F32", "[1]", "[0,4]")), vec![0; 4], "expected to start at byte 4"),
        (format!("{{{one},{}}}", entry("b", "F32", "[1]", "[2,6]")), vec![0; 6], "expected to start at byte 4"),
        (format!("{{{}}}", entry("a", "F32", "[18446744073709551615,2]", "[0,4]")), vec![0; 4], "overflows"),
        (format!("{{{}}}", entry("a", "F32", "[-1]", "[0,4]")), vec![0; 4], "no valid table"),
        (format!("{{{one}}}"), vec![0; 3], "truncated: expected 4 bytes of tensors, found 3"),
        (format!("{{{one}}}"), vec![0; 5], "too long"),
    ];
    for (header, data, expected) in cases {
        let text = message(&raw(&header, &data));
        assert!(text.contains(expected), "{header}: {text}");
    }
}

#[test]
fn lengths_that_cannot_be_are_refused_without_reserving_memory() {
    for length in [101u64 << 20, 1 << 40, u64::MAX] {
        let mut bytes = length.to_le_bytes().to_vec();
        bytes.extend(b"{}");
        assert!(message(&bytes).contains("at most 100000000"));
    }
    let mut bytes = 1000u64.to_le_bytes().to_vec();
    bytes.extend(b"{}");
    assert!(message(&bytes).contains("only 2 follow"));
    for size in [0, 1, 7] {
        assert!(message(&vec![0; size]).contains(&format!("found {size} bytes")));
    }
}

#[test]
fn a_file_cut_anywhere_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.safetensors");
    write(&path, &[("a", &[5], &[1.0; 5]), ("b", &[2], &[2.0; 2])], FloatType::F32);
    let bytes = std::fs::read(&path).unwrap();
    assert!(open_bytes(&bytes).is_ok());
    for end in 0..bytes.len() {
        assert!(open_bytes(&bytes[..end]).is_err(), "cut at {end}");
    }
}

#[test]
fn a_file_that_shrinks_after_opening_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.safetensors");
    write(&path, &[("a", &[100], &[1.0; 100])], FloatType::F32);
    let file = SafetensorsFile::open(&path).unwrap();
    std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(200).unwrap();
    assert!(file.load_f32("a").unwrap_err().to_string().contains("a.safetensors"));
}

#[test]
fn pickles_are_refused_by_name_and_by_content() {
    let folder = tempfile::tempdir().unwrap();
    let contents: [&[u8]; 3] = [b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j", b"PK\x03\x04\x14\0\0\0\0\0", b"\x80\x04\x95"];
    for (name, content) in ["a.safetensors", "b.safetensors", "c.safetensors"].iter().zip(contents) {
        std::fs::write(folder.path().join(name), content).unwrap();
        let error = SafetensorsFile::open(folder.path().join(name)).unwrap_err();
        assert!(matches!(error, WeightsError::Pickle { .. }), "{name}: {error}");
    }
    for name in ["pytorch_model.bin", "x.pt", "x.pth", "x.CKPT", "x.pkl"] {
        let text = SafetensorsDir::open(folder.path().join(name)).unwrap_err().to_string();
        assert!(text.contains("pickle") && text.contains("hint:"), "{text}");
    }
    // A header of 66,176 bytes has a length that starts with a pickle's bytes.
    let header = format!("{{{}}}", " ".repeat(0x1_0280 - 2));
    assert!(open_bytes(&raw(&header, &[])).is_ok());
}

fn shard_folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    write(&folder.path().join("model-00001-of-00002.safetensors"), &[("a", &[2], &[1.0, 2.0])], FloatType::F32);
    write(&folder.path().join("model-00002-of-00002.safetensors"), &[("b", &[1], &[3.0])], FloatType::Bf16);
    folder
}

fn put_index(folder: &Path, map: &[(&str, &str)]) {
    let map: BTreeMap<_, _> = map.iter().copied().collect();
    let json = serde_json::json!({ "metadata": { "total_size": 10 }, "weight_map": map });
    std::fs::write(folder.join("model.safetensors.index.json"), json.to_string()).unwrap();
}

const FIRST: &str = "model-00001-of-00002.safetensors";
const SECOND: &str = "model-00002-of-00002.safetensors";

#[test]
fn shards_are_one_set() {
    let folder = shard_folder();
    put_index(folder.path(), &[("a", FIRST), ("b", SECOND)]);
    for path in [folder.path().to_path_buf(), folder.path().join("model.safetensors.index.json")] {
        let set = SafetensorsDir::open(path).unwrap();
        assert_eq!(set.names().collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(set.shape("a"), Some([2].as_slice()));
        assert_eq!(set.load_f32("a").unwrap(), [1.0, 2.0]);
        assert_eq!(set.load_f32("b").unwrap(), [3.0]);
        assert_eq!(set.metadata("format"), Some("pt"));
        assert!(set.load_f32("c").is_err());
    }
}

#[test]
fn an_index_that_does_not_fit_is_refused() {
    let cases: [(&[(&str, &str)], &str); 6] = [
        (&[], "names no shard"),
        (&[("a", FIRST), ("b", FIRST)], "does not hold it"),
        (&[("a", FIRST), ("b", SECOND), ("c", SECOND)], "does not hold it"),
        (&[("b", SECOND), ("a", "../a.safetensors")], "plain file names"),
        (&[("a", "/etc/passwd")], "plain file names"),
        (&[("a", FIRST), ("b", "model-00003.safetensors")], "model-00003"),
    ];
    for (map, expected) in cases {
        let folder = shard_folder();
        put_index(folder.path(), map);
        let text = SafetensorsDir::open(folder.path()).unwrap_err().to_string();
        assert!(text.contains(expected) && text.contains("hint:"), "{text}");
    }
    let folder = shard_folder();
    write(&folder.path().join(SECOND), &[("b", &[1], &[3.0]), ("c", &[1], &[3.0])], FloatType::F32);
    put_index(folder.path(), &[("a", FIRST), ("b", SECOND)]);
    assert!(SafetensorsDir::open(folder.path()).unwrap_err().to_string().contains("does not name"));
    std::fs::write(folder.path().join("model.safetensors.index.json"), "{").unwrap();
    assert!(SafetensorsDir::open(folder.path()).is_err());
}

#[test]
fn a_folder_is_searched_and_its_content_named() {
    let folder = tempfile::tempdir().unwrap();
    let open = || SafetensorsDir::open(folder.path());
    assert!(open().unwrap_err().to_string().contains("an empty folder"));
    std::fs::write(folder.path().join("notes.txt"), "x").unwrap();
    assert!(open().unwrap_err().to_string().contains("notes.txt"));
    std::fs::write(folder.path().join("pytorch_model.bin"), "x").unwrap();
    assert!(matches!(open(), Err(WeightsError::Pickle { .. })));
    write(&folder.path().join("anything.safetensors"), &[("a", &[1], &[1.0])], FloatType::F32);
    assert_eq!(open().unwrap().names().collect::<Vec<_>>(), ["a"]);
    write(&folder.path().join("model.safetensors"), &[("m", &[1], &[1.0])], FloatType::F32);
    assert_eq!(open().unwrap().names().collect::<Vec<_>>(), ["m"]);
    let missing = SafetensorsDir::open(folder.path().join("nowhere")).unwrap_err().to_string();
    assert!(missing.contains("nowhere") && missing.contains("hint:"), "{missing}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn damaged_bytes_never_panic(flips in proptest::collection::vec((0usize..400, any::<u8>()), 1..6)) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.safetensors");
        write(&path, &[("a", &[5], &[1.0; 5]), ("b", &[2, 2], &[2.0; 4])], FloatType::F32);
        let mut bytes = std::fs::read(&path).unwrap();
        for (place, value) in flips {
            let len = bytes.len();
            bytes[place % len] = value;
        }
        std::fs::write(&path, &bytes).unwrap();
        if let Ok(file) = SafetensorsFile::open(&path) {
            for name in file.names() {
                let info = file.info(name).unwrap();
                if info.dtype.is_float() {
                    prop_assert_eq!(file.load_f32(name).unwrap().len(), info.num_values());
                }
            }
        }
    }

    #[test]
    fn any_floats_survive_a_round_trip(values in proptest::collection::vec(any::<u32>().prop_map(f32::from_bits), 0..50)) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.safetensors");
        write(&path, &[("a", &[values.len()], &values)], FloatType::F32);
        let back = SafetensorsFile::open(&path).unwrap().load_f32("a").unwrap();
        prop_assert!(back.iter().zip(&values).all(|(a, b)| a.to_bits() == b.to_bits()));
    }
}
