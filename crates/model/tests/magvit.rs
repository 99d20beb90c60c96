//! The tokenizer against the golden numbers of MAGVIT-v2, and properties of its own.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, clippy::print_stderr)] // a test may end by them
#![allow(non_snake_case)]

mod vision_support;

use std::path::Path;

use burn::tensor::{Device, Tensor};
use unif2ace_golden::{Tensors, assert_close, cases, json, name, procedural, root, shared_file};
use unif2ace_model::vq::{Vq, VqConfig, VqError, code_use, lookup, quantize};
use vision_support::{fill, names, nchw_values, noise, to_nhwc, values};

const Z_TOLERANCE: f32 = 1e-4;
const PIXEL_TOLERANCE: f32 = 2e-4;
const LOSS_TOLERANCE: f32 = 1e-6;

fn device() -> Device {
    Device::flex()
}

/// A small network with MAGVIT-v2's middle.
fn classic() -> VqConfig {
    VqConfig {
        patch_size: 4,
        ch: 8,
        enc_mult: vec![1, 2, 2],
        enc_blocks: vec![1, 1, 1],
        dec_mult: vec![1, 2, 2],
        dec_blocks: vec![1, 1, 1],
        ..VqConfig::magvitv2()
    }
}

fn config_of(case: &Path) -> VqConfig {
    let config = &json(case.join("case.json"))["config"];
    let one = |key: &str| config[key].as_u64().expect(key) as usize;
    let many = |key: &str| {
        let list = config[key].as_array().expect(key);
        list.iter().map(|value| value.as_u64().expect(key) as usize).collect()
    };
    VqConfig {
        in_channels: 3,
        patch_size: 1,
        ch: one("ch"),
        enc_mult: many("enc_mult"),
        enc_blocks: many("enc_blocks"),
        dec_mult: many("dec_mult"),
        dec_blocks: many("dec_blocks"),
        enc_transformer_blocks: 0,
        dec_transformer_blocks: 0,
        z_channels: one("z"),
        resolution: one("res"),
    }
}

fn network_of(case: &Path, device: &Device) -> Vq {
    let vq = Vq::new(&config_of(case), device).expect("config");
    let info = json(case.join("case.json"));
    let stored = case.join("weights.safetensors");
    if stored.is_file() {
        let weights = Tensors::load(stored);
        return fill(vq, device, |name, shape| {
            let (found, values) = weights.f32(name);
            assert_eq!(found, shape, "{name}");
            values
        });
    }
    if let Some(checks) = info["procedural_check_first4"].as_object() {
        for (tensor, first) in checks {
            let (_, shape) =
                names(vq.clone(), device).into_iter().find(|(name, _)| name == tensor).expect("a parameter of that name");
            for (actual, expected) in procedural(tensor, &shape).iter().zip(first.as_array().expect("list")) {
                assert!((f64::from(*actual) - expected.as_f64().expect("number")).abs() < 1e-7);
            }
        }
    }
    fill(vq, device, procedural)
}

fn assert_indices(actual: &[i64], expected: &[i64], z_BhwC: &Tensor<4>, what: &str) {
    let bits = z_BhwC.dims()[3];
    let z = values(z_BhwC.clone());
    assert_eq!(actual.len(), expected.len(), "{what}");
    for (position, (a, e)) in actual.iter().zip(expected).enumerate() {
        for bit in 0..bits {
            let undecided = z[position * bits + bit].abs() < 1e-4;
            let differs = (a ^ e) >> (bits - 1 - bit) & 1 == 1;
            assert!(!differs || undecided, "{what}: token {position} bit {bit}: {a} for {e}");
        }
    }
}

#[test]
fn networks_match_the_golden_numbers() {
    let device = device();
    for case in cases("magvit") {
        let what = name(&case);
        let golden = Tensors::load(case.join("case.safetensors"));
        let vq = network_of(&case, &device);
        let pixels_BHWC = to_nhwc(golden.tensor::<4>("pixels", &device));
        let z_BhwC = vq.encode_z(pixels_BHWC.clone());
        assert_close(&nchw_values(z_BhwC.clone()), &golden.f32("z").1, Z_TOLERANCE, &format!("{what}: z"));

        let quantized = vq.quantize(z_BhwC.clone());
        // Where |z| is below 1e-4 the sign is undecided.
        let z = golden.f32("z").1;
        let decided = |codes: Vec<f32>| -> Vec<f32> {
            codes.into_iter().zip(&z).filter(|(_, z)| z.abs() >= 1e-4).map(|(code, _)| code).collect()
        };
        let (codes, expected) = (decided(nchw_values(quantized.codes_BhwC)), decided(golden.f32("codes").1));
        assert_close(&codes, &expected, Z_TOLERANCE, &format!("{what}: codes"));
        for (loss, key) in [(quantized.commit_loss, "quantizer_loss"), (quantized.entropy_loss, "entropy_loss")] {
            assert_close(&values(loss), &[golden.scalar(key)], LOSS_TOLERANCE, &format!("{what}: {key}"));
        }
        let expected = golden.i64("indices").1;
        let indices = vq.encode(pixels_BHWC).expect("indices");
        let as_i64: Vec<i64> = indices.iter().map(|index| i64::from(*index)).collect();
        assert_indices(&as_i64, &expected, &z_BhwC, &what);

        let [_, h, w, _] = z_BhwC.dims();
        let golden_indices: Vec<u32> = expected.iter().map(|index| *index as u32).collect();
        let pictures = vq.decode_indices(&golden_indices, h, w).expect("decode");
        assert_close(
            &nchw_values(pictures),
            &golden.f32("reconstruction").1,
            PIXEL_TOLERANCE,
            &format!("{what}: reconstruction"),
        );
        let (worst_z, _) = unif2ace_golden::max_abs_diff(&nchw_values(z_BhwC), &golden.f32("z").1);
        eprintln!("{what}: z differs by at most {worst_z:e}");
    }
}

#[test]
fn inner_layers_match_the_golden_traces() {
    let device = device();
    let mut num_compared = 0;
    for case in cases("magvit") {
        let golden = Tensors::load(case.join("case.safetensors"));
        let traces: Vec<String> = golden.names().into_iter().filter(|name| name.starts_with("trace.")).collect();
        if traces.is_empty() {
            continue;
        }
        let vq = network_of(&case, &device);
        let mut seen = Vec::new();
        let mut check = |layer: String, x: &Tensor<4>, tolerance: f32| {
            let key = format!("trace.{layer}");
            if golden.has(&key) {
                assert_close(&nchw_values(x.clone()), &golden.f32(&key).1, tolerance, &key);
                seen.push(key);
            }
        };
        let encoder = &vq.encoder;
        let mut x = encoder.conv_in.forward(to_nhwc(golden.tensor::<4>("pixels", &device)));
        check("encoder.conv_in".into(), &x, Z_TOLERANCE);
        for (l, level) in encoder.down.iter().enumerate() {
            for (b, block) in level.block.iter().enumerate() {
                x = block.forward(x);
                check(format!("encoder.down.{l}.block.{b}"), &x, Z_TOLERANCE);
            }
            if let Some(downsample) = &level.downsample {
                x = downsample.forward(x);
                check(format!("encoder.down.{l}.downsample"), &x, Z_TOLERANCE);
            }
        }
        x = encoder.mid.block_1.as_ref().expect("classic middle").forward(x);
        check("encoder.mid.block_1".into(), &x, Z_TOLERANCE);
        x = encoder.mid.attn_1.as_ref().expect("classic middle").forward(x);
        check("encoder.mid.attn_1".into(), &x, Z_TOLERANCE);
        x = encoder.mid.block_2.as_ref().expect("classic middle").forward(x);
        check("encoder.mid.block_2".into(), &x, Z_TOLERANCE);
        check("encoder.norm_out".into(), &encoder.norm_out.forward(x.clone()), Z_TOLERANCE);
        x = encoder.conv_out.forward(encoder.norm_out.forward_silu(x));
        check("encoder.conv_out".into(), &x, Z_TOLERANCE);
        x = encoder.quant_conv.forward(x);
        check("encoder.quant_conv".into(), &x, Z_TOLERANCE);

        let decoder = &vq.decoder;
        let [_, h, w, bits] = x.dims();
        let indices: Vec<u32> = golden.i64("indices").1.iter().map(|i| *i as u32).collect();
        let codes = lookup(&indices, [h, w], bits, &device).expect("codes");
        x = decoder.post_quant_conv.forward(codes);
        check("decoder.post_quant_conv".into(), &x, PIXEL_TOLERANCE);
        x = decoder.conv_in.forward(x);
        check("decoder.conv_in".into(), &x, PIXEL_TOLERANCE);
        x = decoder.mid.block_1.as_ref().expect("classic middle").forward(x);
        check("decoder.mid.block_1".into(), &x, PIXEL_TOLERANCE);
        x = decoder.mid.attn_1.as_ref().expect("classic middle").forward(x);
        check("decoder.mid.attn_1".into(), &x, PIXEL_TOLERANCE);
        x = decoder.mid.block_2.as_ref().expect("classic middle").forward(x);
        check("decoder.mid.block_2".into(), &x, PIXEL_TOLERANCE);
        for (l, level) in decoder.up.iter().enumerate().rev() {
            for (b, block) in level.block.iter().enumerate() {
                x = block.forward(x);
                check(format!("decoder.up.{l}.block.{b}"), &x, PIXEL_TOLERANCE);
            }
            if let Some(upsample) = &level.upsample {
                x = upsample.forward(x);
                check(format!("decoder.up.{l}.upsample"), &x, PIXEL_TOLERANCE);
            }
        }
        check("decoder.norm_out".into(), &decoder.norm_out.forward(x), PIXEL_TOLERANCE);
        seen.sort();
        assert_eq!(seen, traces, "{}: every trace is compared", name(&case));
        num_compared += seen.len();
    }
    assert!(num_compared > 0, "no case with traces");
}

#[test]
fn the_quantiser_matches_values_losses_and_gradients() {
    let device = device();
    let golden = Tensors::load(root().join("magvit/quantizer.safetensors"));
    let prefixes: Vec<String> = golden.names().iter().filter_map(|name| name.strip_suffix(".z").map(str::to_string)).collect();
    assert!(!prefixes.is_empty());
    for case in prefixes {
        let key = |part: &str| format!("{case}.{part}");
        let z = || to_nhwc(golden.tensor::<4>(&key("z"), &device));
        let leaf = z().autodiff().require_grad();
        let quantized = quantize(leaf.clone());
        assert_close(&nchw_values(quantized.codes_BhwC.clone().inner()), &golden.f32(&key("codes")).1, 1e-6, &key("codes"));
        let indices: Vec<i64> = quantized.indices_BN.try_into_vec_as().expect("indices");
        assert_eq!(indices, golden.i64(&key("indices")).1, "{}", key("indices"));
        for (loss, part) in [(&quantized.commit_loss, "quantizer_loss"), (&quantized.entropy_loss, "entropy_loss")] {
            let expected = golden.scalar(&key(part));
            assert_close(&values(loss.clone().inner()), &[expected], LOSS_TOLERANCE, &key(part));
        }
        let gradients = (quantized.commit_loss + quantized.entropy_loss).backward();
        assert_close(
            &nchw_values(leaf.grad(&gradients).expect("gradient")),
            &golden.f32(&key("grad_of_sum_of_losses")).1,
            1e-6,
            &key("grad_of_sum_of_losses"),
        );

        let leaf = z().autodiff().require_grad();
        let cotangent = to_nhwc(golden.tensor::<4>(&key("cotangent"), &device));
        let gradients = (quantize(leaf.clone()).codes_BhwC * cotangent.autodiff()).sum().backward();
        assert_close(
            &nchw_values(leaf.grad(&gradients).expect("gradient")),
            &golden.f32(&key("straight_through_grad")).1,
            1e-6,
            &key("straight_through_grad"),
        );

        let (shape, expected) = golden.f32(&key("lookup_codes"));
        let ids: Vec<u32> = golden.i64(&key("lookup_ids")).1.iter().map(|id| *id as u32).collect();
        let codes = lookup(&ids, [shape[2], shape[3]], shape[1], &device).expect("codes");
        assert_eq!(nchw_values(codes), expected, "{}", key("lookup_codes"));
    }
}

#[test]
fn parameter_names_are_the_manifest() {
    let manifest = json(shared_file("manifests/magvitv2.json"));
    let mut expected: Vec<(String, Vec<usize>)> = manifest["tensors"]
        .as_array()
        .expect("list")
        .iter()
        .map(|tensor| {
            let shape = tensor["shape"].as_array().expect("shape");
            (
                tensor["name"].as_str().expect("name").to_string(),
                shape.iter().map(|d| d.as_u64().expect("size") as usize).collect(),
            )
        })
        .filter(|(name, _): &(String, Vec<usize>)| !name.starts_with("quantize."))
        .collect();
    expected.sort();
    let vq = Vq::new(&VqConfig::magvitv2(), &device()).expect("config");
    let mut actual = names(vq, &device());
    actual.sort();
    assert_eq!(actual, expected);
}

#[test]
fn every_code_survives_the_round_trip() {
    let device = device();
    let all: Vec<u32> = (0..8192).collect();
    let codes = lookup(&all, [64, 128], 13, &device).expect("codes");
    let back: Vec<u32> = quantize(codes * 0.3).indices_BN.try_into_vec_as().expect("indices");
    assert_eq!(back, all);
}

#[test]
fn rectangles_odd_floors_and_the_patch_entry_have_the_right_shapes() {
    let device = device();
    let small = VqConfig {
        ch: 8,
        enc_mult: vec![1, 2],
        enc_blocks: vec![1, 1],
        dec_mult: vec![1, 2],
        dec_blocks: vec![1, 1],
        z_channels: 5,
        ..classic()
    };
    for (patch_size, (height, width)) in [(4, (24, 40)), (1, (5, 9)), (2, (8, 6))] {
        let config = VqConfig { patch_size, ..small.clone() };
        let vq = Vq::new(&config, &device).expect("config");
        let [h, w] = config.grid(height, width).expect("grid");
        let pixels = noise("pixels", [2, height, width, 3], &device);
        let z = vq.encode_z(pixels.clone());
        assert_eq!(z.dims(), [2, h, w, 5]);
        let indices = vq.encode(pixels).expect("indices");
        assert_eq!(indices.len(), 2 * h * w);
        assert!(indices.iter().all(|index| *index < 32));
        let pictures = vq.decode_indices(&indices, h, w).expect("pictures");
        let down = config.downsampling();
        assert_eq!(pictures.dims(), [2, h * down, w * down, 3]);
    }
}

#[test]
fn the_mini_tokenizer_has_64_tokens_of_13_bits() {
    let config = VqConfig::mini();
    config.check().expect("mini");
    assert_eq!(config.grid(128, 128), Ok([8, 8]));
    assert_eq!(config.codebook_size(), 8192);
    assert_eq!(VqConfig::magvitv2().grid(256, 512), Ok([16, 32]));
    let text = serde_json::to_string(&config).expect("json");
    assert_eq!(serde_json::from_str::<VqConfig>(&text).expect("config"), config);
}

#[test]
fn folding_into_channels_keeps_every_pixel() {
    use unif2ace_model::vq::layers::{depth_to_space, space_to_depth};
    let x = noise("fold", [2, 8, 12, 3], &device());
    let folded = space_to_depth(x.clone(), 4);
    assert_eq!(folded.dims(), [2, 2, 3, 48]);
    // The second row of the patch at row 1, column 2 starts after one row of 4 * 3 values.
    let first = values(folded.clone().slice([0..1, 1..2, 2..3, 12..15]));
    assert_eq!(first, values(x.clone().slice([0..1, 5..6, 8..9, 0..3])));
    assert_eq!(values(depth_to_space(folded, 4)), values(x));
}

#[test]
fn gradients_reach_the_encoder_through_the_codes() {
    let device = device().autodiff();
    let config = VqConfig { ch: 8, enc_mult: vec![1], enc_blocks: vec![1], dec_mult: vec![1], dec_blocks: vec![1], ..classic() };
    let vq = Vq::new(&config, &device).expect("config");
    let pixels = noise("pixels", [1, 8, 8, 3], &device);
    let quantized = vq.quantize(vq.encode_z(pixels.clone()));
    let loss = (vq.decode_codes(quantized.codes_BhwC) - pixels).square().mean();
    let gradients = loss.backward();
    let gradient = vq.encoder.conv_in.weight.grad(&gradients).expect("gradient");
    let size: f32 = values(gradient).iter().map(|value| value.abs()).sum();
    assert!(size.is_finite() && size > 0.0, "{size}");
}

#[test]
fn code_use_sees_undecided_unbalanced_and_repeated_bits() {
    let device = device();
    let of = |rows: &[[f32; 2]]| {
        let flat: Vec<f32> = rows.concat();
        let z = Tensor::<1>::from_floats(flat.as_slice(), &device).reshape([1, rows.len(), 1, 2]);
        let found = code_use(z, 1.0);
        [found.token_entropy, found.batch_entropy, found.correlation].map(|x| values(x)[0])
    };
    let ln2 = std::f32::consts::LN_2;
    let [token, batch, correlation] = of(&[[9., 9.], [9., -9.], [-9., 9.], [-9., -9.]]);
    assert!(token < 1e-3 && (batch - ln2).abs() < 1e-4 && correlation < 1e-4);
    let [_, batch, correlation] = of(&[[9., 9.], [9., 9.], [-9., -9.], [-9., -9.]]);
    assert!((batch - ln2).abs() < 1e-4 && correlation > 0.9, "equal bits");
    let [token, batch, _] = of(&[[0., 9.], [0., 9.]]);
    assert!((token - ln2 / 2.0).abs() < 1e-3 && (batch - ln2 / 2.0).abs() < 1e-3);
}

#[test]
fn bad_input_is_an_error_with_a_hint() {
    let device = device();
    let vq = Vq::new(&VqConfig { ch: 4, ..classic() }, &device).expect("config");
    let encode = |shape| vq.encode(Tensor::zeros(shape, &device)).expect_err("refused");
    assert!(matches!(encode([1, 130, 128, 3]), VqError::ImageSize { .. }));
    assert!(matches!(encode([1, 12, 128, 3]), VqError::ImageSize { .. }));
    assert!(matches!(encode([1, 64, 64, 4]), VqError::Channels { .. }));
    let decode = |indices: &[u32], h, w| vq.decode_indices(indices, h, w).expect_err("refused");
    assert!(matches!(decode(&[0, 8192], 1, 2), VqError::IndexOutOfRange { index: 8192, position: 1, .. }));
    assert!(matches!(decode(&[0; 3], 1, 2), VqError::NumIndices { .. }));
    assert!(matches!(decode(&[], 1, 2), VqError::NumIndices { .. }));
    assert!(matches!(decode(&[0], 0, 2), VqError::NumIndices { .. }));
    for bad in [
        VqConfig { z_channels: 0, ..classic() },
        VqConfig { z_channels: 60, ..classic() },
        VqConfig { patch_size: 0, ..classic() },
        VqConfig { ch: 33, ..classic() },
        VqConfig { ch: usize::MAX, ..classic() },
        VqConfig { dec_mult: vec![1], ..classic() },
        VqConfig { enc_blocks: vec![1, 0, 1], ..classic() },
        VqConfig { dec_blocks: vec![0, 1, 1], ..classic() },
    ] {
        let error = Vq::new(&bad, &device).expect_err("refused");
        assert!(error.to_string().contains("hint:"), "{error}");
    }
}

#[test]
fn transformer_middle_encodes_decodes_and_refuses_other_sizes() {
    let device = device();
    let config = VqConfig { ch: 64, resolution: 32, ..VqConfig::mini() };
    let vq = Vq::new(&config, &device).expect("config");
    let indices = vq.encode(noise("pixels", [2, 32, 32, 3], &device)).expect("indices");
    assert_eq!(indices.len(), 2 * config.num_positions());
    let pictures = vq.decode_indices(&indices, 2, 2).expect("pictures");
    assert_eq!(pictures.dims(), [2, 32, 32, 3]);
    let error = vq.encode(Tensor::zeros([1, 32, 48, 3], &device)).expect_err("refused");
    assert!(matches!(error, VqError::OnlyResolution { .. }));
    let error = vq.decode_indices(&indices, 2, 4).expect_err("refused");
    assert!(matches!(error, VqError::OnlyResolution { .. }));
    for bad in [VqConfig { ch: 224, ..config.clone() }, VqConfig { dec_transformer_blocks: 1000, ..config }] {
        assert!(matches!(Vq::new(&bad, &device), Err(VqError::Config { .. })));
    }
}
