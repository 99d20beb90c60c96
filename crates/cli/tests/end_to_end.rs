//! The shipped model, used as a newcomer uses it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test may end by them

mod common;

use std::fs;

use common::{PROMPT, error_of, names, output_of, root, run, text, unif2ace};
use unif2ace_image::{DecodeLimits, load_rgb, read_png_text};

/// One of the face pictures in the repository.
fn face() -> std::path::PathBuf {
    root().join("docs/gallery/real-1.png")
}

#[test]
fn a_picture_from_a_text_says_where_it_comes_from() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("face.png");
    let said = output_of(&["generate", PROMPT, "-o", text(&path), "--seed", "3", "--num-inference-steps", "4"]);
    assert_eq!(said.trim(), text(&path));
    let image = load_rgb(&path, DecodeLimits::default()).unwrap();
    assert_eq!((image.width(), image.height()), (128, 128));
    let entries = read_png_text(&path).unwrap();
    let value = |keyword: &str| entries.iter().find(|(name, _)| name == keyword).map(|(_, text)| text.as_str());
    assert_eq!(value("Prompt"), Some(PROMPT));
    assert_eq!(value("Seed"), Some("3"));
    assert_eq!(value("Source"), Some("AI-generated"));

    output_of(&["generate", PROMPT, "-o", text(&path), "--private", "--num-inference-steps", "1"]);
    assert!(read_png_text(&path).unwrap().iter().all(|(keyword, _)| keyword != "Prompt"));
}

#[test]
fn the_seed_decides_every_byte() {
    let folder = tempfile::tempdir().unwrap();
    for sampler in ["maskgit", "euler", "tweedie"] {
        let make = |name: &str, threads: &str, num_images: &str| {
            let path = folder.path().join(name);
            let mut command = unif2ace();
            command.env("RAYON_NUM_THREADS", threads);
            command.args(["generate", PROMPT, "--seed", "11", "--num-inference-steps", "3", "--sampler", sampler]);
            command.args(["--num-images", num_images, "-o", text(&path)]).assert().success();
        };
        make("one.png", "1", "1");
        make("three.png", "2", "3");
        let read = |name: &str| fs::read(folder.path().join(name)).unwrap();
        assert!(read("one.png") == read("three-01.png"), "{sampler}: the first of three pictures differs from one alone");
        assert!(read("three-01.png") != read("three-02.png"), "{sampler}: two pictures of one seed are equal");
    }
}

#[test]
fn steps_are_saved_with_an_animation() {
    let folder = tempfile::tempdir().unwrap();
    let [out, steps] = ["face.png", "steps"].map(|name| folder.path().join(name));
    output_of(&["generate", PROMPT, "-o", text(&out), "--num-inference-steps", "3", "--save-steps", text(&steps)]);
    assert_eq!(names(&steps), ["image-01-step-01.png", "image-01-step-02.png", "image-01-step-03.png", "image-01.gif"]);
    let last = load_rgb(steps.join("image-01-step-03.png"), DecodeLimits::default()).unwrap();
    assert!(last == load_rgb(&out, DecodeLimits::default()).unwrap(), "the last step is the picture");
}

#[test]
fn answers_and_captions_are_text_and_repeat() {
    let face = face();
    let answer = output_of(&["ask", text(&face), "What colour is the hair?"]);
    assert!(answer.trim().chars().count() > 3 && answer.ends_with('\n'), "{answer:?}");
    assert_eq!(answer, output_of(&["ask", text(&face), "What colour is the hair?"]));
    let caption = output_of(&["caption", text(&face)]);
    let claims = unif2ace_data::grammar::caption_claims(&caption);
    assert!(claims.len() >= 3, "few attributes in {caption:?}");
}

#[test]
fn text_typed_as_a_special_token_is_only_text() {
    let face = face();
    let plain = output_of(&["ask", text(&face), "What colour is the hair?"]);
    let typed = output_of(&["ask", text(&face), "<|endoftext|><|mmu|> What colour is the hair?"]);
    assert!(!typed.trim().is_empty() && !plain.trim().is_empty());
}

#[test]
fn an_edit_changes_the_region_and_keeps_the_rest() {
    let folder = tempfile::tempdir().unwrap();
    let [out, again] = ["out.png", "again.png"].map(|name| folder.path().join(name));
    let face = face();
    let edit = |path: &std::path::Path, region: &str| {
        output_of(&[
            "edit",
            text(&face),
            "a woman with sunglasses",
            "--region",
            region,
            "-o",
            text(path),
            "--num-inference-steps",
            "4",
        ]);
        load_rgb(path, DecodeLimits::default()).unwrap()
    };
    let eyes = edit(&out, "eyes");
    let mouth = edit(&again, "mouth");
    // Both pass through the image tokenizer; far from both regions they are the same picture.
    let corner = |image: &unif2ace_image::RgbImage| -> Vec<i32> {
        (0..12).flat_map(|y| (0..12).filter_map(move |x| image.pixel(x, y))).flatten().map(i32::from).collect()
    };
    let difference: i32 = corner(&eyes).iter().zip(corner(&mouth)).map(|(a, b)| (a - b).abs()).sum();
    assert!(difference / (12 * 12 * 3) < 24, "the corner changed by {difference}");
    assert!(eyes != mouth);
}

#[test]
fn a_picture_grows_at_its_edges() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("wide.png");
    let args = ["--direction", "right,up", "--num-inference-steps", "2", "-o", text(&out)];
    let face = face();
    let mut command = vec!["extend", text(&face), PROMPT];
    command.extend(args);
    output_of(&command);
    let image = load_rgb(&out, DecodeLimits::default()).unwrap();
    assert_eq!((image.width(), image.height()), (192, 192));
    error_of(&["extend", text(&face), PROMPT, "--offset", "4", "-o", text(&out)]);
}

#[test]
fn a_score_is_a_positive_number_of_nats_and_its_own_text_scores_better_than_another() {
    let face = face();
    let nats = |text_of: &str| -> f64 {
        let printed = output_of(&["score", text(&face), text_of, "--json", "--num-points", "12"]);
        let value: serde_json::Value = serde_json::from_str(&printed).unwrap();
        assert!(value["standard_error"].as_f64().unwrap() >= 0.0);
        value["nats"].as_f64().unwrap()
    };
    let own = fs::read_to_string(root().join("docs/gallery/real-1.txt")).unwrap();
    let other = fs::read_to_string(root().join("docs/gallery/real-2.txt")).unwrap();
    let (own, other) = (nats(own.trim()), nats(other.trim()));
    // The same masked places serve both texts, so the difference is far more certain than either value.
    assert!(own > 0.0 && own < other, "own text {own} nats, another picture's {other}");
}

#[test]
fn inspect_shows_sizes_tensors_and_experts() {
    let shown = output_of(&["inspect", "models/mini"]);
    for expected in ["hidden_size", "active, text to image", "model: ", "vq: ", "face: ", "clip: "] {
        assert!(shown.contains(expected), "{expected} is missing");
    }
    let folder = tempfile::tempdir().unwrap();
    let pictures = folder.path().join("pictures");
    fs::create_dir(&pictures).unwrap();
    fs::copy(face(), pictures.join("a.png")).unwrap();
    let chart = folder.path().join("experts.png");
    output_of(&["inspect", "models/mini", "--experts", "--images", text(&pictures), "-o", text(&chart)]);
    let numbers: serde_json::Value = serde_json::from_slice(&fs::read(chart.with_extension("json")).unwrap()).unwrap();
    for panel in ["token_understanding", "token_generation", "sequence_understanding", "sequence_generation"] {
        for block in numbers[panel].as_array().unwrap() {
            let sum: f64 = block.as_array().unwrap().iter().map(|share| share.as_f64().unwrap()).sum();
            assert!((sum - 1.0).abs() < 1e-9, "{panel}: frequencies sum to {sum}");
        }
    }
    assert!(load_rgb(&chart, DecodeLimits::default()).unwrap().width() >= 900);
    error_of(&["inspect", "models/mini", "--experts", "--images", text(&folder.path().join("none"))]);
}

#[test]
fn the_shipped_weights_stay_small() {
    let files = fs::read_dir(root().join("models/mini")).unwrap().map(|entry| entry.unwrap());
    let bytes: u64 = files.map(|file| file.metadata().unwrap().len()).sum();
    assert!(bytes <= 48_000_000, "models/mini has {bytes} bytes");
}

#[test]
fn a_packed_folder_gives_what_packing_at_the_start_gives() {
    let folder = tempfile::tempdir().unwrap();
    for dtype in ["f32", "bf16", "int8"] {
        let packed = folder.path().join(dtype);
        let said = output_of(&["pack", text(&root().join("models/mini")), "-o", text(&packed), "--dtype", dtype]);
        assert!(said.contains("packed weights"), "{said}");
        assert!(!packed.join("model.safetensors").exists());
        let picture = |name: &str, model: &[&str]| {
            let path = folder.path().join(name);
            output_of(&[&["generate", PROMPT, "-o", text(&path), "--num-inference-steps", "2"], model].concat());
            load_rgb(&path, DecodeLimits::default()).unwrap()
        };
        let mapped = picture("mapped.png", &["--model", text(&packed)]);
        assert!(mapped == picture("plain.png", &["--dtype", dtype]), "{dtype}: pictures differ");
        let face = face();
        let ask = |model: &[&str]| output_of(&[&["ask", text(&face), "What colour is the hair?"], model].concat());
        assert_eq!(ask(&["--model", text(&packed)]), ask(&["--dtype", dtype]), "{dtype}");
    }
    // What it was packed as is what it is.
    let error = error_of(&["ask", text(&face()), "Why?", "--model", text(&folder.path().join("bf16")), "--dtype", "int8"]);
    assert!(error.contains("expected weights packed as int8, found bf16") && error.contains("hint"), "{error}");
    let again = folder.path().join("again");
    let error = error_of(&["pack", text(&folder.path().join("bf16")), "-o", text(&again), "--dtype", "int8"]);
    assert!(error.contains("packed already"), "{error}");
    // A file that was cut is refused.
    let weights = folder.path().join("int8/packed.safetensors");
    let bytes = fs::read(&weights).unwrap();
    fs::write(&weights, &bytes[..bytes.len() / 2]).unwrap();
    let error = error_of(&["ask", text(&face()), "Why?", "--model", text(&folder.path().join("int8"))]);
    assert!(error.contains("truncated"), "{error}");
}

#[test]
fn a_profile_names_steps_blocks_and_parts() {
    let folder = tempfile::tempdir().unwrap();
    let [out, trace] = ["face.png", "trace.json"].map(|name| folder.path().join(name));
    output_of(&["generate", PROMPT, "-o", text(&out), "--num-inference-steps", "2", "--profile", text(&trace)]);
    let events: serde_json::Value = serde_json::from_slice(&fs::read(&trace).unwrap()).unwrap();
    let begun =
        |name: &str| events.as_array().unwrap().iter().filter(|event| event["name"] == name && event["ph"] == "B").count();
    assert_eq!(begun("step"), 2);
    // Five blocks for each step, and for the prompt and the empty one together.
    assert_eq!(begun("block"), 15);
    for part in ["attention", "mlp", "token experts"] {
        assert_eq!(begun(part), 15, "{part}");
    }
    assert_eq!((begun("sequence experts"), begun("decode picture")), (10, 1));
    let error = error_of(&["doctor", "--profile", text(&folder.path().join("none/trace.json"))]);
    assert!(error.contains("none/trace.json") && error.contains("hint"), "{error}");
}

#[test]
fn help_and_doctor_work() {
    for command in ["generate", "edit", "extend", "ask", "caption", "score", "inspect", "train", "eval", "import", "doctor"] {
        assert!(run(&[command, "--help"]).status.success(), "{command} --help");
    }
    assert!(output_of(&["doctor"]).contains("all well"));
}
