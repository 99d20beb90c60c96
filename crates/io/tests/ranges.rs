//! Pieces of a file by their place.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test may end by them

use std::io::{Read, Seek, SeekFrom};

use unif2ace_io::{IoError, RangeReader, sha256, sha256_hex};

#[test]
fn ranges_are_read_from_any_thread_and_never_behind_the_end() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("numbers");
    let bytes: Vec<u8> = (0..=255).collect();
    std::fs::write(&path, &bytes).unwrap();
    let reader = RangeReader::open(&path).unwrap();
    std::thread::scope(|scope| {
        for start in 0..16usize {
            let (reader, bytes) = (&reader, &bytes);
            scope.spawn(move || {
                for length in [0, 1, 100, 256 - start] {
                    assert_eq!(reader.read_at(start as u64, length).unwrap(), bytes[start..start + length]);
                }
            });
        }
    });
    for (offset, length) in [(0, 257), (256, 1), (u64::MAX, 1), (300, usize::MAX)] {
        let error = reader.read_at(offset, length).unwrap_err().to_string();
        assert!(error.contains("numbers") && error.contains("end at 256"), "{error}");
    }
    assert!(matches!(RangeReader::open(folder.path()), Err(IoError::NotAFile { .. })));
    assert!(RangeReader::open(folder.path().join("none")).err().unwrap().is_not_found());
    let mut cursor = reader.cursor();
    let mut rest = Vec::new();
    cursor.seek(SeekFrom::End(-6)).unwrap();
    cursor.seek(SeekFrom::Current(2)).unwrap();
    cursor.read_to_end(&mut rest).unwrap();
    assert_eq!(rest, [252, 253, 254, 255]);
    assert!(cursor.seek(SeekFrom::End(-300)).is_err());
}

#[test]
fn both_forms_of_a_hash_are_the_same() {
    let hex: String = sha256(b"abc").iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(hex, sha256_hex(b"abc"));
    assert!(hex.starts_with("ba7816bf"));
}
