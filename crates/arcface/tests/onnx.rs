//! Loading and running ONNX files, on tiny networks written byte by byte (field numbers are those of onnx.proto).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test may end by them

use std::path::PathBuf;

use unif2ace_arcface::{ArcFace, ArcFaceError, EMBEDDING, SIDE, Scaling};
use unif2ace_image::RgbImage;

fn varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn number(field: u64, value: u64) -> Vec<u8> {
    let mut out = Vec::new();
    varint(field << 3, &mut out);
    varint(value, &mut out);
    out
}

fn bytes(field: u64, value: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    varint(field << 3 | 2, &mut out);
    varint(value.len() as u64, &mut out);
    out.extend(value);
    out
}

fn text(field: u64, value: &str) -> Vec<u8> {
    bytes(field, value.as_bytes())
}

fn node(op: &str, inputs: &[&str], output: &str) -> Vec<u8> {
    let mut node: Vec<u8> = inputs.iter().flat_map(|input| text(1, input)).collect();
    node.extend([text(2, output), text(3, output), text(4, op)].concat());
    bytes(1, &node)
}

fn initializer(name: &str, dims: &[u64], values: &[f32]) -> Vec<u8> {
    let mut tensor: Vec<u8> = dims.iter().flat_map(|dim| number(1, *dim)).collect();
    tensor.extend(number(2, 1));
    tensor.extend(text(8, name));
    let raw: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    tensor.extend(bytes(9, &raw));
    bytes(5, &tensor)
}

fn value_info(field: u64, name: &str, dims: &[u64]) -> Vec<u8> {
    let shape: Vec<u8> = dims.iter().flat_map(|dim| bytes(1, &number(1, *dim))).collect();
    let tensor = [number(1, 1), bytes(2, &shape)].concat();
    bytes(field, &[text(1, name), bytes(2, &bytes(1, &tensor))].concat())
}

fn model(graph: &[Vec<u8>]) -> Vec<u8> {
    let opset = [text(1, ""), number(2, 13)].concat();
    [number(1, 7), bytes(7, &graph.concat()), bytes(8, &opset)].concat()
}

const SIDE_64: u64 = SIDE as u64;

/// Channel means times a `[3, width]` matrix that copies mean c to the places c, c + 3, ...; `scales_itself` prepends `(x - 1) * 2`.
fn tiny(width: usize, scales_itself: bool) -> Vec<u8> {
    let matrix: Vec<f32> = (0..3).flat_map(|c| (0..width).map(move |i| if i % 3 == c { 1.0 } else { 0.0 })).collect();
    let mut graph = Vec::new();
    let mut input = "face";
    if scales_itself {
        graph.push(node("Sub", &["face", "one"], "less"));
        graph.push(node("Mul", &["less", "two"], "scaled"));
        graph.push(initializer("one", &[1], &[1.0]));
        graph.push(initializer("two", &[1], &[2.0]));
        input = "scaled";
    }
    graph.push(node("GlobalAveragePool", &[input], "pooled"));
    graph.push(node("Flatten", &["pooled"], "flat"));
    graph.push(node("MatMul", &["flat", "matrix"], "embedding"));
    graph.push(text(2, "tiny"));
    graph.push(initializer("matrix", &[3, width as u64], &matrix));
    graph.push(value_info(11, "face", &[1, 3, SIDE_64, SIDE_64]));
    graph.push(value_info(12, "embedding", &[1, width as u64]));
    model(&graph)
}

struct File(tempfile::TempDir);

impl File {
    fn new(bytes: &[u8]) -> Self {
        let folder = tempfile::tempdir().expect("folder");
        std::fs::write(folder.path().join("net.onnx"), bytes).expect("written");
        Self(folder)
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("net.onnx")
    }

    fn load(&self) -> Result<ArcFace, ArcFaceError> {
        ArcFace::load(&self.path())
    }
}

fn plain(colour: [u8; 3]) -> RgbImage {
    RgbImage::filled(SIDE, SIDE, colour).expect("picture")
}

fn assert_direction(embedding: &[f32], channels: [f64; 3]) {
    let length = (0..EMBEDDING).map(|i| channels[i % 3].powi(2)).sum::<f64>().sqrt();
    for (i, value) in embedding.iter().enumerate() {
        let expected = channels[i % 3] / length;
        assert!((f64::from(*value) - expected).abs() < 1e-5, "{i}: {value} for {expected}");
    }
}

#[test]
fn an_embedding_is_the_unit_vector_of_red_first_scaled_values() {
    let network = File::new(&tiny(EMBEDDING, false)).load().expect("network");
    assert_eq!(network.scaling(), Scaling { mean: 127.5, deviation: 127.5 });
    let embedding = network.embed(&plain([255, 51, 102])).expect("embedding");
    assert_eq!(embedding.len(), EMBEDDING);
    let length: f32 = embedding.iter().map(|value| value * value).sum();
    assert!((length - 1.0).abs() < 1e-5);
    assert_direction(&embedding, [1.0, -0.6, -0.2]);
}

#[test]
fn a_network_that_scales_its_input_gets_bytes() {
    let network = File::new(&tiny(EMBEDDING, true)).load().expect("network");
    assert_eq!(network.scaling(), Scaling { mean: 0.0, deviation: 1.0 });
    let embedding = network.embed(&plain([2, 11, 101])).expect("embedding");
    assert_direction(&embedding, [2.0, 20.0, 200.0]);
}

#[test]
fn a_face_without_direction_or_of_a_wrong_size_is_refused() {
    let network = File::new(&tiny(EMBEDDING, true)).load().expect("network");
    let error = network.embed(&plain([1, 1, 1])).expect_err("zero vector");
    assert!(matches!(error, ArcFaceError::Run(_)) && error.to_string().contains("hint:"), "{error}");
    let small = RgbImage::filled(64, 112, [0; 3]).expect("picture");
    assert!(matches!(network.embed(&small), Err(ArcFaceError::Size { height: 112, width: 64 })));
}

#[test]
fn other_networks_are_refused() {
    let error = File::new(&tiny(128, false)).load().expect_err("another width");
    assert!(matches!(error, ArcFaceError::Interface { .. }), "{error}");
    assert!(error.to_string().contains("[1, 128]"), "{error}");

    let other_input = [
        node("Flatten", &["face"], "embedding"),
        text(2, "tiny"),
        value_info(11, "face", &[1, 10]),
        value_info(12, "embedding", &[1, 10]),
    ];
    assert!(File::new(&model(&other_input)).load().is_err());
    let two_inputs = [
        node("Add", &["face", "more"], "embedding"),
        text(2, "tiny"),
        value_info(11, "face", &[1, 3, SIDE_64, SIDE_64]),
        value_info(11, "more", &[1, 3, SIDE_64, SIDE_64]),
        value_info(12, "embedding", &[1, 3, SIDE_64, SIDE_64]),
    ];
    let error = File::new(&model(&two_inputs)).load().expect_err("two inputs");
    assert!(error.to_string().contains("one input"), "{error}");
    let unknown = [
        node("NoSuchOperator", &["face"], "embedding"),
        text(2, "tiny"),
        value_info(11, "face", &[1, 3, SIDE_64, SIDE_64]),
        value_info(12, "embedding", &[1, 512]),
    ];
    assert!(File::new(&model(&unknown)).load().is_err());
}

#[test]
fn damaged_files_are_errors_with_a_hint() {
    let good = tiny(EMBEDDING, false);
    for length in (0..good.len()).step_by(97) {
        match File::new(&good[..length]).load() {
            Err(error) => assert!(error.to_string().contains("hint:"), "{error}"),
            Ok(_) => panic!("{length} of {} bytes were taken for a network", good.len()),
        }
    }
    assert!(matches!(File::new(b"not a network").load(), Err(ArcFaceError::Load { .. })));
    let folder = tempfile::tempdir().expect("folder");
    let missing = ArcFace::load(&folder.path().join("missing.onnx"));
    assert!(matches!(missing, Err(ArcFaceError::Io(_))));
}
