//! CLIP against the golden numbers of the vision tower, and properties of both towers and the loss.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, clippy::print_stderr)] // a test may end by them
#![allow(non_snake_case)]

mod vision_support;

use burn::tensor::{Device, Int, Tensor};
use unif2ace_golden::{Tensors, assert_close, json, root};
use unif2ace_image::{RgbImage, preprocess_clip};
use unif2ace_model::encoders::{
    Clip, ClipConfig, ClipTextConfig, ClipVisionConfig, EncoderError, Stem, TextTransformer, VisionTransformer, clip_pixels,
    contrastive_loss, l2_normalise,
};
use vision_support::{fill, names, noise, to_nhwc, values};

const FEATURE_TOLERANCE: f32 = 2e-5;

fn tiny(stem: Stem) -> ClipConfig {
    let mut config = ClipConfig::mini(50, 7);
    config.projection_dim = 12;
    let vision = &mut config.vision_config;
    (vision.hidden_size, vision.intermediate_size, vision.num_attention_heads) = (32, 48, 4);
    (vision.num_hidden_layers, vision.image_size, vision.patch_size) = (2, 16, 8);
    vision.stem = stem;
    let text = &mut config.text_config;
    (text.hidden_size, text.intermediate_size, text.num_attention_heads) = (24, 40, 3);
    (text.num_hidden_layers, text.max_position_embeddings) = (2, 10);
    config
}

fn ids<const L: usize>(rows: &[[i64; L]], device: &Device) -> Tensor<2, Int> {
    Tensor::<1, Int>::from_ints(rows.concat().as_slice(), device).reshape([rows.len(), L])
}

#[test]
fn the_picture_tower_matches_the_golden_numbers() {
    let device = Device::flex();
    let folder = root().join("clip_tower");
    let golden = Tensors::load(folder.join("case.safetensors"));
    let weights = Tensors::load(folder.join("weights.safetensors"));
    let config: ClipVisionConfig = serde_json::from_value(json(folder.join("case.json"))).expect("config");
    let tower = VisionTransformer::new(&config, &device).expect("tower");
    let mut used = Vec::new();
    let tower = fill(tower, &device, |name, shape| {
        let name = format!("vision_tower.vision_model.{name}");
        let (found, values) = weights.f32(&name);
        assert_eq!(found, shape, "{name}");
        used.push(name);
        values
    });
    used.sort();
    assert_eq!(used, weights.names(), "every stored tensor has its place");

    let (shape, bytes) = golden.u8("input_u8");
    let image = RgbImage::new(shape[1], shape[0], bytes).expect("picture");
    let pixels = preprocess_clip(&image, config.image_size).expect("pixels");
    let pixels_BHWC = Tensor::<1>::from_floats(pixels.data.as_slice(), &device).reshape([1, pixels.height, pixels.width, 3]);
    let expected = to_nhwc(golden.tensor::<4>("pixel_values", &device));
    assert_close(&values(pixels_BHWC), &values(expected.clone()), 1e-6, "pixel_values");

    let first = tower.embed(expected.clone()).expect("shape");
    let output = tower.forward(expected).expect("shape");
    for (actual, key) in [(first, "hidden_0"), (output.last_BLD, "hidden_last"), (output.features_BPD, "features")] {
        let (shape, numbers) = golden.f32(key);
        assert_eq!(actual.dims().to_vec(), shape, "{key}");
        let (worst, _) = unif2ace_golden::max_abs_diff(&values(actual.clone()), &numbers);
        eprintln!("clip {key}: differs by at most {worst:e}");
        assert_close(&values(actual), &numbers, FEATURE_TOLERANCE, key);
    }
}

#[test]
fn parameters_have_the_hubs_names_and_sizes() {
    let device = Device::flex();
    let found = names(Clip::new(&tiny(Stem::Patch), &device).expect("clip"), &device);
    let shape = |name: &str| {
        let entry = found.iter().find(|(found, _)| found == name);
        entry.unwrap_or_else(|| panic!("{name} in {found:?}")).1.clone()
    };
    assert_eq!(shape("vision_model.embeddings.patch_embedding.weight"), [32, 3, 8, 8]);
    assert_eq!(shape("vision_model.embeddings.position_embedding.weight"), [5, 32]);
    assert_eq!(shape("vision_model.pre_layrnorm.weight"), [32]);
    assert_eq!(shape("text_model.embeddings.token_embedding.weight"), [50, 24]);
    assert_eq!(shape("text_model.embeddings.position_embedding.weight"), [10, 24]);
    assert_eq!(shape("text_model.encoder.layers.1.self_attn.out_proj.bias"), [24]);
    assert_eq!(shape("text_model.encoder.layers.0.mlp.fc1.weight"), [40, 24]);
    assert_eq!(shape("text_model.final_layer_norm.bias"), [24]);
    assert_eq!(shape("visual_projection.weight"), [12, 32]);
    assert_eq!(shape("text_projection.weight"), [12, 24]);
    assert_eq!(shape("logit_scale"), [1]);
    assert!(!found.iter().any(|(name, _)| name.contains("projection.bias") || name.contains("stem")));
    // 6 single tensors, 2 + 2 + 2 norm tensors, 16 in each layer.
    assert_eq!(found.len(), 3 + 2 + 3 + 6 + 16 * 4);
}

#[test]
fn a_released_config_is_read() {
    let text = r#"{
        "architectures": ["CLIPModel"], "projection_dim": 768, "logit_scale_init_value": 2.6592,
        "text_config": {"vocab_size": 49408, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
            "num_attention_heads": 12, "max_position_embeddings": 77, "bos_token_id": 0, "dropout": 0.0},
        "vision_config": {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
            "num_attention_heads": 16, "image_size": 336, "patch_size": 14, "hidden_act": "quick_gelu"}}"#;
    let config: ClipConfig = serde_json::from_str(text).expect("config");
    assert_eq!(config, ClipConfig::large_patch14_336());
    config.check().expect("checked");
    let mini = ClipConfig::mini(2058, 2048);
    mini.check().expect("checked");
    let back = serde_json::from_str(&serde_json::to_string(&mini).expect("json"));
    assert_eq!(back.ok(), Some(mini));
}

#[test]
fn both_stems_give_the_same_grid() {
    let device = Device::flex();
    for (stem, size, patch) in [(Stem::Patch, 16, 8), (Stem::Conv, 16, 8), (Stem::Conv, 32, 4), (Stem::Patch, 21, 7)] {
        let mut config = tiny(stem).vision_config;
        (config.image_size, config.patch_size) = (size, patch);
        let tower = VisionTransformer::new(&config, &device).expect("tower");
        let output = tower.forward(noise("pixels", [2, size, size, 3], &device)).expect("shape");
        let patches = (size / patch) * (size / patch);
        assert_eq!(output.features_BPD.dims(), [2, patches, 32]);
        assert_eq!(output.last_BLD.dims(), [2, patches + 1, 32]);
        assert_eq!(output.pooled_BD.dims(), [2, 32]);
    }
    let mini = VisionTransformer::new(&ClipVisionConfig::mini(), &device).expect("tower");
    let output = mini.forward(noise("pixels", [1, 128, 128, 3], &device)).expect("shape");
    assert_eq!(output.features_BPD.dims(), [1, 64, 160]);
}

#[test]
fn text_is_causal_and_pooled_at_the_first_end_token() {
    let device = Device::flex();
    let tower = TextTransformer::new(&tiny(Stem::Patch).text_config, &device).expect("tower");
    let run = |row: [i64; 5]| tower.forward(ids(&[row], &device)).expect("length");
    let a = run([3, 9, 7, 4, 7]);
    let b = run([3, 9, 7, 11, 2]);
    assert_close(&values(a.pooled_BD.clone()), &values(b.pooled_BD), 1e-6, "padding after the end is not seen");
    let end = a.last_BLD.slice([0..1, 2..3, 0..24]);
    assert_eq!(values(end), values(a.pooled_BD.clone()));
    let c = run([8, 9, 7, 4, 7]);
    let (far, _) = unif2ace_golden::max_abs_diff(&values(a.pooled_BD), &values(c.pooled_BD));
    assert!(far > 1e-3, "earlier tokens are seen: {far}");

    let legacy = ClipTextConfig { eos_token_id: 2, ..tiny(Stem::Patch).text_config };
    let tower = TextTransformer::new(&legacy, &device).expect("tower");
    let output = tower.forward(ids(&[[3, 49, 7, 2], [5, 4, 3, 49]], &device)).expect("length");
    let first = output.last_BLD.clone().slice([0..1, 1..2, 0..24]);
    let second = output.last_BLD.slice([1..2, 3..4, 0..24]);
    let expected = [values(first), values(second)].concat();
    assert_eq!(values(output.pooled_BD), expected);
}

#[test]
fn contrastive_loss_by_hand() {
    let device = Device::flex();
    let image = Tensor::<2>::from_floats([[1.0, 0.0], [0.6, 0.8]], &device);
    let text = Tensor::<2>::from_floats([[0.0, 1.0], [1.0, 0.0]], &device);
    let scale = 2.0f64;
    // Cosines: [[0, 1], [0.8, 0.6]], times 2.
    let logits = [[0.0, 2.0], [1.6, 1.2]];
    let cross = |own: f64, other: f64| (own.exp() + other.exp()).ln() - own;
    let expected = (cross(logits[0][0], logits[0][1])
        + cross(logits[1][1], logits[1][0])
        + cross(logits[0][0], logits[1][0])
        + cross(logits[1][1], logits[0][1]))
        / 4.0;
    let of = |scale: f64| {
        let log_scale = Tensor::<1>::from_floats([scale.ln() as f32], &device);
        values(contrastive_loss(image.clone(), text.clone(), log_scale))[0]
    };
    assert!((f64::from(of(scale)) - expected).abs() < 1e-5, "{} for {expected}", of(scale));
    assert_eq!(of(100.0), of(1e6), "the scale is held at 100");
}

#[test]
fn training_lowers_the_contrastive_loss() {
    use burn::optim::{AdamWConfig, GradientsParams};
    let device = Device::flex().autodiff();
    for stem in [Stem::Patch, Stem::Conv] {
        let mut clip = Clip::new(&tiny(stem), &device).expect("clip");
        let pixels = noise("pixels", [4, 16, 16, 3], &device);
        let texts = || ids(&[[10, 11, 7], [12, 13, 7], [14, 15, 7], [16, 17, 7]], &device);
        let mut optimizer = AdamWConfig::new().init();
        let mut losses = Vec::new();
        for _ in 0..15 {
            let loss = clip.loss(pixels.clone(), texts()).expect("pairs");
            losses.push(values(loss.clone().inner())[0]);
            let gradients = GradientsParams::from_grads(loss.backward(), &clip);
            clip = optimizer.step(3e-3, clip, gradients);
        }
        assert!(losses[14] < 0.5 * losses[0], "{stem:?}: {losses:?}");
        let gradients = clip.loss(pixels, texts()).expect("pairs").backward();
        let scale = clip.logit_scale.grad(&gradients).expect("the scale is learnt");
        assert!(values(scale)[0].is_finite());
    }
}

#[test]
fn pixels_of_the_tokenizer_become_clips() {
    let device = Device::flex();
    let white = clip_pixels(Tensor::ones([1, 1, 1, 3], &device));
    let expected = [0usize, 1, 2].map(|c| (1.0 - unif2ace_image::CLIP_MEAN[c] as f64) / unif2ace_image::CLIP_STD[c] as f64);
    for (actual, expected) in values(white).iter().zip(expected) {
        assert!((f64::from(*actual) - expected).abs() < 1e-5);
    }
    let zero = l2_normalise(Tensor::zeros([1, 3], &device));
    assert_eq!(values(zero), [0.0; 3]);
}

#[test]
fn bad_input_is_an_error_with_a_hint() {
    let device = Device::flex();
    let clip = Clip::new(&tiny(Stem::Conv), &device).expect("clip");
    let shape_error = |error: EncoderError| {
        assert!(matches!(error, EncoderError::Shape { .. }) && error.to_string().contains("hint:"), "{error}");
    };
    for shape in [[1, 16, 17, 3], [1, 8, 8, 3], [1, 16, 16, 1], [0, 16, 16, 3]] {
        shape_error(clip.embed_image(Tensor::zeros(shape, &device)).expect_err("refused"));
    }
    shape_error(clip.embed_text(Tensor::zeros([1, 11], &device)).expect_err("refused"));
    let pair = clip.loss(Tensor::zeros([2, 16, 16, 3], &device), Tensor::zeros([1, 4], &device));
    shape_error(pair.expect_err("refused"));

    let change = |edit: fn(&mut ClipConfig)| {
        let mut config = tiny(Stem::Conv);
        edit(&mut config);
        let error = Clip::new(&config, &device).expect_err("refused");
        assert!(matches!(error, EncoderError::Config { .. }), "{error}");
    };
    change(|config| config.vision_config.num_attention_heads = 5);
    change(|config| config.vision_config.num_attention_heads = 0);
    change(|config| config.vision_config.patch_size = 0);
    change(|config| config.vision_config.patch_size = 3);
    change(|config| {
        config.vision_config.image_size = 12;
        config.vision_config.patch_size = 6;
    });
    change(|config| config.vision_config.num_hidden_layers = 0);
    change(|config| config.text_config.vocab_size = 0);
    change(|config| config.text_config.max_position_embeddings = 0);
    change(|config| config.projection_dim = 0);
    change(|config| config.logit_scale_init_value = f64::NAN);
}
