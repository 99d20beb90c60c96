//! Round trips, caps and the promise that nothing partial is left behind.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test may end by them

use std::io::{Read, Write};

use unif2ace_io::*;

fn names(folder: &std::path::Path) -> Vec<String> {
    let mut names: Vec<_> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn write_then_read_and_replace() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.bin");
    write_atomic(&path, b"one").unwrap();
    write_atomic(&path, b"second").unwrap();
    assert_eq!(read_capped(&path, 6).unwrap(), b"second");
    assert_eq!(names(folder.path()), ["a.bin"]);
}

#[test]
fn a_failing_writer_keeps_the_old_file_and_leaves_no_other() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.bin");
    write_atomic(&path, b"old").unwrap();
    let error = write_atomic_with(&path, |file| {
        file.write_all(b"half of it")?;
        Err(std::io::Error::other("the producer broke"))
    })
    .unwrap_err();
    assert!(error.to_string().contains("a.bin") && error.to_string().contains("the producer broke"), "{error}");
    assert_eq!(read_capped(&path, 100).unwrap(), b"old");
    assert_eq!(names(folder.path()), ["a.bin"]);
}

#[test]
fn the_cap_is_exact() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.bin");
    write_atomic(&path, &[7; 10]).unwrap();
    assert_eq!(read_capped(&path, 10).unwrap().len(), 10);
    let error = read_capped(&path, 9).unwrap_err();
    assert!(matches!(error, IoError::TooLarge { found: 10, max_bytes: 9, .. }), "{error}");
}

#[test]
fn a_file_that_grows_while_it_is_read_hits_the_cap() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.bin");
    write_atomic(&path, &[7; 4]).unwrap();
    let mut reader = open_capped(&path, 4).unwrap();
    std::fs::OpenOptions::new().append(true).open(&path).unwrap().write_all(&[8; 4]).unwrap();
    let mut bytes = Vec::new();
    let error = reader.read_to_end(&mut bytes).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::FileTooLarge);
    assert_eq!(bytes, [7; 4]);
}

#[test]
fn errors_name_operation_path_and_hint() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("nowhere").join("a.bin");
    for text in [
        read_capped(&missing, 10).unwrap_err().to_string(),
        write_atomic(&missing, b"x").unwrap_err().to_string(),
        ensure_writable(&missing).unwrap_err().to_string(),
    ] {
        assert!(text.contains("nowhere") && text.contains("hint:"), "{text}");
    }
    assert!(read_capped(&missing, 10).unwrap_err().is_not_found());
    assert!(matches!(read_capped(folder.path(), 10), Err(IoError::NotAFile { .. })));
    assert!(matches!(ensure_writable(folder.path()), Err(IoError::NotAFile { .. })));
}

#[test]
fn checking_for_writability_leaves_no_trace() {
    let folder = tempfile::tempdir().unwrap();
    ensure_writable(folder.path().join("later.png")).unwrap();
    assert!(names(folder.path()).is_empty());
}

#[test]
fn text_must_be_utf8() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.txt");
    write_atomic(&path, b"ab\xff").unwrap();
    assert!(matches!(read_to_string_capped(&path, 10), Err(IoError::NotUtf8 { offset: 2, .. })));
}

#[test]
fn sha256_of_bytes_file_and_stream_agree() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.bin");
    write_atomic(&path, b"abc").unwrap();
    let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    assert_eq!(sha256_hex(b"abc"), expected);
    assert_eq!(sha256_file(&path).unwrap(), expected);
    let mut writer = Sha256Writer::new(Vec::new());
    writer.write_all(b"abc").unwrap();
    assert_eq!(writer.finish(), (b"abc".to_vec(), expected.to_string()));
}

#[cfg(unix)]
#[test]
fn results_have_ordinary_permissions() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.bin");
    write_atomic(&path, b"x").unwrap();
    std::fs::write(folder.path().join("b.bin"), b"x").unwrap();
    let mode = |name| std::fs::metadata(folder.path().join(name)).unwrap().permissions().mode();
    assert_eq!(mode("a.bin"), mode("b.bin"));
}

#[test]
fn a_sealed_file_knows_what_was_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.bin");
    let bytes: Vec<u8> = (0..200_000u32).map(|place| place as u8).collect();
    let mut file = SealedFile::create(&path).unwrap();
    for piece in bytes.chunks(70_001) {
        file.write_all(piece).unwrap();
    }
    let seal = file.seal().unwrap();
    assert_eq!((seal.num_bytes, &seal.sha256), (200_000, &sha256_hex(&bytes)));
    assert_eq!(FileSeal::of(&path).unwrap(), seal);
    let error = SealedFile::create(&path).unwrap_err().to_string();
    assert!(error.contains("a.bin") && error.contains("hint: "), "what is there is not overwritten: {error}");
}

#[test]
fn folders_are_created_listed_and_removed() {
    let folder = tempfile::tempdir().unwrap();
    let deep = folder.path().join("a/b/c");
    create_dir_all(&deep).unwrap();
    create_dir_all(&deep).unwrap();
    write_atomic(deep.join("2.bin"), b"x").unwrap();
    write_atomic(deep.join("1.bin"), b"x").unwrap();
    assert_eq!(list_dir(&deep).unwrap(), [deep.join("1.bin"), deep.join("2.bin")]);
    assert!(list_dir(deep.join("1.bin")).unwrap_err().to_string().contains("cannot list"));
    rename_durable(&deep, folder.path().join("d")).unwrap();
    assert!(list_dir(&deep).unwrap().is_empty(), "a folder that is not there holds nothing");
    remove_dir_all(folder.path().join("d")).unwrap();
    remove_dir_all(folder.path().join("d")).unwrap();
    assert_eq!(names(folder.path()), ["a"]);
}
