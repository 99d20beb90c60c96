//! What users get wrong: an exit code, one clear error with a hint, and no file left behind.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test may end by them

mod common;

use std::fs;

use common::{PROMPT, error_of, names, plain_picture, root, text, unif2ace};

/// Everything is checked in an empty folder that must be empty afterwards.
fn nothing_written(check: impl FnOnce(&str)) {
    let folder = tempfile::tempdir().unwrap();
    check(text(&folder.path().join("out.png")));
    assert_eq!(names(folder.path()), Vec::<String>::new());
}

#[test]
fn an_empty_prompt() {
    nothing_written(|out| assert!(error_of(&["generate", "  ", "-o", out]).contains("prompt: expected a description")));
}

#[test]
fn a_prompt_longer_than_the_context() {
    let prompt = "a woman with red hair and green eyes ".repeat(60);
    nothing_written(|out| {
        let error = error_of(&["generate", &prompt, "-o", out]);
        assert!(error.contains("prompt: expected at most") && error.contains("shorten"), "{error}");
    });
    let folder = tempfile::tempdir().unwrap();
    let picture = folder.path().join("picture.png");
    plain_picture(&picture, 64, 64, [120, 90, 60]);
    let error = error_of(&["ask", text(&picture), &"What colour is her hair? ".repeat(60)]);
    assert!(error.contains("question: expected at most") && error.contains("shorten"), "{error}");
}

#[test]
fn a_mask_of_the_cpu_that_is_no_levels_name() {
    let output = unif2ace().arg("doctor").env("UNIF2ACE_CPU", "AVX2").output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success());
    assert!(
        error.contains("UNIF2ACE_CPU is 'AVX2'") && error.contains("portable, avx2, avx512, amx") && error.contains("hint: "),
        "{error}"
    );
}

#[test]
fn settings_out_of_range() {
    nothing_written(|out| {
        for (option, value, expected) in [
            ("--num-inference-steps", "0", "steps"),
            ("--guidance-scale", "-1", "guidance scale: expected 0 or more, found -1"),
            ("--guidance-scale", "nan", "guidance scale"),
            ("--temperature", "-1", "temperature"),
            ("--num-images", "0", "number of images: expected 1 to 1024"),
        ] {
            let error = error_of(&["generate", PROMPT, "-o", out, option, value]);
            assert!(error.contains(expected), "{option} {value}: {error}");
        }
    });
}

#[test]
fn outputs_that_cannot_be_written() {
    let missing = error_of(&["generate", PROMPT, "-o", "/nowhere/at/all/face.png"]);
    assert!(missing.contains("/nowhere/at/all"), "{missing}");
    let folder = tempfile::tempdir().unwrap();
    let named_like_a_picture = folder.path().join("folder.png");
    fs::create_dir(&named_like_a_picture).unwrap();
    error_of(&["generate", PROMPT, "-o", text(&named_like_a_picture)]);
    let other = error_of(&["generate", PROMPT, "-o", text(&folder.path().join("face.bmp"))]);
    assert!(other.contains(".png"), "{other}");
    assert_eq!(names(folder.path()), ["folder.png"]);
}

#[test]
fn an_unknown_model_folder() {
    nothing_written(|out| {
        let error = error_of(&["generate", PROMPT, "-o", out, "--model", "models/none"]);
        assert!(error.contains("models/none") && error.contains("no such folder"), "{error}");
    });
    error_of(&["inspect", "models/none"]);
}

#[test]
fn an_unknown_device() {
    let output = common::run(&["generate", PROMPT, "--device", "abacus"]);
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && error.contains("abacus") && error.contains("expected auto, cpu"), "{error}");
}

/// A copy of the shipped model with one file changed.
fn damaged(file: &str, change: impl FnOnce(Vec<u8>) -> Option<Vec<u8>>) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for name in names(&root().join("models/mini")) {
        let source = root().join("models/mini").join(&name);
        if name != file && source.is_file() {
            fs::copy(&source, folder.path().join(&name)).unwrap();
        }
    }
    if let Some(bytes) = change(fs::read(root().join("models/mini").join(file)).unwrap()) {
        fs::write(folder.path().join(file), bytes).unwrap();
    }
    folder
}

#[test]
fn a_damaged_model() {
    let check = |model: &tempfile::TempDir, expected: &str| {
        nothing_written(|out| {
            let error = error_of(&["generate", PROMPT, "-o", out, "--model", text(model.path())]);
            assert!(error.contains(expected), "expected {expected}: {error}");
        });
    };
    check(&damaged("model.safetensors", |_| None), "model.safetensors");
    check(&damaged("model.safetensors", |bytes| Some(bytes[..bytes.len() / 2].to_vec())), "model.safetensors");
    check(&damaged("vq.safetensors", |_| Some(b"no tensors at all".to_vec())), "vq.safetensors");
    check(&damaged("config.json", |_| Some(b"{".to_vec())), "config.json");
    check(&damaged("tokenizer.json", |_| Some(b"{}".to_vec())), "tokenizer");
    // Another width in the configuration: every tensor has the wrong shape and the first ones are named.
    let wider = damaged("config.json", |bytes| {
        let mut config: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
        config["intermediate_size"] = 64.into();
        Some(serde_json::to_vec(&config).unwrap())
    });
    check(&wider, "mlp");
}

#[test]
fn pictures_that_cannot_be_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let missing = error_of(&["ask", text(&path("missing.png")), "Is she old?"]);
    assert!(missing.contains("missing.png"), "{missing}");
    fs::write(path("noise.png"), [7u8; 300]).unwrap();
    error_of(&["caption", text(&path("noise.png"))]);
    plain_picture(&path("whole.png"), 64, 64, [9, 90, 200]);
    let bytes = fs::read(path("whole.png")).unwrap();
    fs::write(path("cut.png"), &bytes[..bytes.len() / 2]).unwrap();
    error_of(&["caption", text(&path("cut.png"))]);
    // A header that promises 60,000 x 60,000 pixels is refused before memory is reserved.
    let mut huge = bytes;
    huge[16..20].copy_from_slice(&60_000u32.to_be_bytes());
    huge[20..24].copy_from_slice(&60_000u32.to_be_bytes());
    let checksum = crc32(&huge[12..29]);
    huge[29..33].copy_from_slice(&checksum.to_be_bytes());
    fs::write(path("huge.png"), huge).unwrap();
    let error = error_of(&["score", text(&path("huge.png")), "a man"]);
    assert!(error.contains("60000"), "{error}");
}

/// The checksum of a PNG chunk.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |mut sum: u32, &byte| {
        sum ^= u32::from(byte);
        (0..8).fold(sum, |sum, _| (sum >> 1) ^ if sum & 1 == 1 { 0xedb8_8320 } else { 0 })
    })
}

#[test]
fn empty_questions_and_texts() {
    let folder = tempfile::tempdir().unwrap();
    let picture = folder.path().join("picture.png");
    plain_picture(&picture, 32, 32, [1, 2, 3]);
    assert!(error_of(&["ask", text(&picture), ""]).contains("question"));
    assert!(error_of(&["score", text(&picture), " "]).contains("text"));
    assert!(error_of(&["score", text(&picture), "a man", "--num-points", "0"]).contains("number of points"));
}

#[test]
fn masks_that_do_not_fit() {
    let folder = tempfile::tempdir().unwrap();
    let [picture, mask, black] = ["picture.png", "mask.png", "black.png"].map(|name| folder.path().join(name));
    plain_picture(&picture, 128, 96, [120, 90, 60]);
    plain_picture(&mask, 96, 128, [255; 3]);
    plain_picture(&black, 128, 96, [0; 3]);
    nothing_written(|out| {
        let error = error_of(&["edit", text(&picture), "a man", "--mask", text(&mask), "-o", out]);
        assert!(error.contains("128x96") && error.contains("96x128"), "{error}");
        let error = error_of(&["edit", text(&picture), "a man", "--mask", text(&black), "-o", out]);
        assert!(error.contains("edit mask"), "{error}");
        let error = error_of(&["edit", text(&picture), "a man", "--region", "elbow", "-o", out]);
        assert!(error.contains("elbow"), "{error}");
    });
}

#[test]
fn checkpoints_that_are_pickles_or_nothing() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("pytorch_model.bin"), b"PK").unwrap();
    let target = folder.path().join("imported");
    for kind in ["show-o", "magvitv2"] {
        let error = error_of(&["import", kind, text(folder.path()), "-o", text(&target)]);
        assert!(error.contains("pytorch_model.bin") || error.contains("safetensors"), "{error}");
    }
    assert!(!target.exists());
}

#[test]
fn recipes_that_are_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = folder.path().join("recipe.toml");
    error_of(&["train", text(&recipe)]);
    fs::write(&recipe, "[run]\nspeed = 3\n").unwrap();
    assert!(error_of(&["train", text(&recipe)]).contains("speed"));
}
