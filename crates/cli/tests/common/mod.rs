//! What the tests of the command share.
#![allow(dead_code)] // each test file uses its part

pub mod tiny_run;

use std::path::{Path, PathBuf};
use std::process::Output;

use assert_cmd::Command;

pub const PROMPT: &str = "A young woman with long curly red hair, green eyes and round glasses, smiling";

/// Root of the repository.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The command, run from the root.
pub fn unif2ace() -> Command {
    let mut command = Command::cargo_bin("unif2ace").unwrap();
    command.current_dir(root());
    command
}

/// Runs with these arguments and returns what came out.
pub fn run(args: &[&str]) -> Output {
    unif2ace().args(args).output().unwrap()
}

/// Standard error of a run that must fail as an error does: exit code 1, one error, a hint.
pub fn error_of(args: &[&str]) -> String {
    let output = run(args);
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{args:?}: {text}");
    assert_eq!(text.matches("error:").count(), 1, "{text}");
    assert!(text.contains("hint: "), "no hint: {text}");
    assert!(!text.contains("panicked"), "{text}");
    text
}

/// Standard output of a run that must succeed.
pub fn output_of(args: &[&str]) -> String {
    let output = run(args);
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// A path as an argument.
pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Names in a folder, sorted.
pub fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Writes a picture of one colour.
pub fn plain_picture(path: &Path, width: usize, height: usize, colour: [u8; 3]) {
    let image = unif2ace_image::RgbImage::filled(width, height, colour).unwrap();
    unif2ace_image::save_png(path, &image, None).unwrap();
}
