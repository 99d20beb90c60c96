//! The face attribute network: shapes, loss with unknown attributes, accuracy, learning.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test may end by them
#![allow(non_snake_case)]

mod vision_support;

use burn::optim::{AdamWConfig, GradientsParams};
use burn::tensor::{Device, Int, Tensor};
use unif2ace_model::encoders::{EncoderError, FaceConfig, FaceNet, FaceOutput, Pooling, Stem};
use vision_support::{names, noise, values};

fn tiny(stem: Stem, pooling: Pooling) -> FaceConfig {
    let heads = [("age", 4), ("glasses", 2), ("hair", 3)];
    let mut config = FaceConfig::mini(heads.map(|(name, classes)| (name.to_string(), classes)));
    (config.embedding_size, config.pooling) = (20, pooling);
    let vision = &mut config.vision_config;
    (vision.hidden_size, vision.intermediate_size, vision.num_attention_heads) = (32, 64, 4);
    (vision.num_hidden_layers, vision.image_size, vision.patch_size) = (2, 32, 8);
    vision.stem = stem;
    config
}

fn classes<const A: usize>(rows: &[[i64; A]], device: &Device) -> Tensor<2, Int> {
    Tensor::<1, Int>::from_ints(rows.concat().as_slice(), device).reshape([rows.len(), A])
}

/// Logits that are sure of the given classes.
fn sure_of(rows: &[[usize; 3]], device: &Device) -> FaceOutput {
    let logits = [4, 2, 3].iter().enumerate().map(|(head, &num)| {
        let flat: Vec<f32> =
            rows.iter().flat_map(|row| (0..num).map(move |class| if class == row[head] { 20.0 } else { 0.0 })).collect();
        Tensor::<1>::from_floats(flat.as_slice(), device).reshape([rows.len(), num])
    });
    FaceOutput { embedding_BF: Tensor::zeros([rows.len(), 20], device), logits: logits.collect() }
}

#[test]
fn shapes_and_names() {
    let device = Device::flex();
    for stem in [Stem::Patch, Stem::Conv] {
        for pooling in [Pooling::Class, Pooling::Mean] {
            let net = FaceNet::new(&tiny(stem, pooling), &device).expect("net");
            let output = net.forward(noise("pixels", [2, 32, 32, 3], &device)).expect("shape");
            assert_eq!(output.embedding_BF.dims(), [2, 20]);
            let shapes: Vec<_> = output.logits.iter().map(|logits| logits.dims()).collect();
            assert_eq!(shapes, [[2, 4], [2, 2], [2, 3]]);
            assert!(values(output.embedding_BF).iter().all(|value| value.is_finite()));
        }
    }
    let net = FaceNet::new(&tiny(Stem::Conv, Pooling::Mean), &device).expect("net");
    let found = names(net, &device);
    let has = |name: &str, shape: &[usize]| found.iter().any(|(n, s)| n == name && s == shape);
    assert!(has("head.weight", &[9, 20]), "{found:?}");
    assert!(has("projection.weight", &[20, 32]));
    assert!(has("vision_model.embeddings.stem.stages.0.conv.weight", &[16, 3, 3, 3]));
}

#[test]
fn the_feature_holds_the_probabilities_of_each_attribute() {
    let device = Device::flex();
    let net = FaceNet::new(&tiny(Stem::Patch, Pooling::Mean), &device).expect("net");
    let pixels = noise("pixels", [2, 32, 32, 3], &device);
    let feature = values(net.attributes(pixels.clone()).expect("shape"));
    let logits: Vec<Vec<f32>> = net.forward(pixels).expect("shape").logits.into_iter().map(values).collect();
    for row in 0..2 {
        let mut start = row * 9;
        for (head, num) in [4, 2, 3].into_iter().enumerate() {
            let exps: Vec<f32> = logits[head][row * num..][..num].iter().map(|logit| logit.exp()).collect();
            let sum: f32 = exps.iter().sum();
            for (found, exp) in feature[start..][..num].iter().zip(&exps) {
                assert!((found - 4.0 * exp / sum).abs() < 1e-5, "head {head}: {found} against {}", 4.0 * exp / sum);
            }
            start += num;
        }
    }
}

#[test]
fn logits_are_slices_of_one_classifier() {
    let device = Device::flex();
    let net = FaceNet::new(&tiny(Stem::Conv, Pooling::Mean), &device).expect("net");
    let output = net.forward(noise("pixels", [2, 32, 32, 3], &device)).expect("shape");
    let all = values(net.head.forward(output.embedding_BF));
    let joined = values(Tensor::cat(output.logits, 1));
    assert_eq!(all, joined);
}

#[test]
fn unknown_attributes_do_not_count() {
    let device = Device::flex();
    let net = FaceNet::new(&tiny(Stem::Patch, Pooling::Mean), &device).expect("net");
    let output = sure_of(&[[1, 0, 2], [3, 1, 0]], &device);
    let loss = |rows: &[[i64; 3]]| net.loss(&output, classes(rows, &device)).expect("targets");
    assert!(values(loss(&[[1, 0, 2], [3, 1, 0]]).loss)[0] < 1e-6);
    // One wrong answer of two known ones costs 20 nats.
    let found = loss(&[[1, -1, -1], [-1, -1, 1]]);
    assert!((values(found.loss)[0] - 10.0).abs() < 1e-4);
    let each = values(found.per_attribute_A);
    assert!(each[0] < 1e-6 && each[1] == 0.0 && (each[2] - 20.0).abs() < 1e-4, "{each:?}");
    assert_eq!(values(loss(&[[-1; 3], [-1; 3]]).loss), [0.0]);

    let hits = net.hits(&output, &[vec![1, -1, -1], vec![2, 1, 0]]).expect("targets");
    assert_eq!(hits, [(1, 2), (1, 1), (1, 1)]);
    assert_eq!(net.predict(&output).expect("classes"), [[1, 0, 2], [3, 1, 0]]);
}

#[test]
fn training_lowers_the_loss() {
    let device = Device::flex().autodiff();
    for stem in [Stem::Patch, Stem::Conv] {
        let mut net = FaceNet::new(&tiny(stem, Pooling::Mean), &device).expect("net");
        let pixels = noise("pixels", [4, 32, 32, 3], &device);
        let mut optimizer = AdamWConfig::new().init();
        let mut losses = Vec::new();
        for _ in 0..25 {
            let output = net.forward(pixels.clone()).expect("shape");
            let targets = classes(&[[0, 0, 0], [1, 1, 1], [2, -1, 2], [3, 0, 1]], &device);
            let loss = net.loss(&output, targets).expect("targets").loss;
            losses.push(values(loss.clone().inner())[0]);
            let gradients = GradientsParams::from_grads(loss.backward(), &net);
            net = optimizer.step(3e-3, net, gradients);
        }
        assert!(losses[24] < 0.3 * losses[0], "{stem:?}: {losses:?}");
    }
}

#[test]
fn bad_input_is_an_error() {
    let device = Device::flex();
    let good = tiny(Stem::Patch, Pooling::Mean);
    let net = FaceNet::new(&good, &device).expect("net");
    let output = sure_of(&[[1, 0, 2]], &device);
    for shape in [[1, 2], [2, 3]] {
        let error = net.loss(&output, Tensor::zeros(shape, &device)).err().expect("refused");
        assert!(matches!(error, EncoderError::Shape { .. }));
    }
    assert!(net.hits(&output, &[vec![1, 2]]).is_err());
    assert!(net.hits(&output, &[]).is_err());
    for edit in [
        |config: &mut FaceConfig| config.heads.clear(),
        |config: &mut FaceConfig| config.heads[0].num_classes = 1,
        |config: &mut FaceConfig| config.heads[1].name = "age".into(),
        |config: &mut FaceConfig| config.embedding_size = 0,
    ] {
        let mut config = good.clone();
        edit(&mut config);
        let error = FaceNet::new(&config, &device).expect_err("refused");
        assert!(error.to_string().contains("hint:"), "{error}");
    }
}
