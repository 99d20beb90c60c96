//! Bit-exact agreement with the reference's picture preparation.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test may end by them

use unif2ace_golden::{Tensors, assert_close, json, root, shared_file};
use unif2ace_image::*;

fn picture(tensors: &Tensors, name: &str) -> RgbImage {
    let (shape, data) = tensors.u8(name);
    RgbImage::new(shape[1], shape[0], data).unwrap()
}

#[test]
fn preprocess_is_exact() {
    let tensors = Tensors::load(root().join("preprocess/preprocess.safetensors"));
    let cases = json(root().join("preprocess/preprocess.json"));
    let (mut compared, mut with_pixels) = (0, 0);
    for case in cases.as_array().unwrap() {
        let name = case["name"].as_str().unwrap();
        if !tensors.has(&format!("{name}.resized_u8")) {
            continue;
        }
        let resolution = case["resolution"].as_u64().unwrap() as usize;
        let input = picture(&tensors, &format!("{name}.input_u8"));
        let resized = resize_short_side(&input, resolution).unwrap();
        assert!(resized.data() == picture(&tensors, &format!("{name}.resized_u8")).data(), "{name} resized");
        let cropped = centre_crop(&resized, resolution).unwrap();
        assert!(cropped == picture(&tensors, &format!("{name}.cropped_u8")), "{name} cropped");
        let pixels = preprocess(&input, resolution).unwrap();
        if tensors.has(&format!("{name}.pixels")) {
            assert_close(&pixels.to_chw(), &tensors.f32(&format!("{name}.pixels")).1, 1e-6, name);
            with_pixels += 1;
        }
        let back = postprocess(&pixels).unwrap();
        assert!(back == picture(&tensors, &format!("{name}.back_u8")), "{name} back");
        compared += 1;
    }
    assert!(compared > 0 && with_pixels > 0);
}

#[test]
fn postprocess_truncates_and_clamps() {
    let tensors = Tensors::load(root().join("preprocess/preprocess.safetensors"));
    let (shape, chw) = tensors.f32("post.decoder_output");
    let plane = 3 * shape[2] * shape[3];
    let expected = tensors.u8("post.u8").1;
    for item in 0..shape[0] {
        let pixels = Pixels::from_chw(shape[2], shape[3], &chw[item * plane..(item + 1) * plane]).unwrap();
        assert_eq!(postprocess(&pixels).unwrap().data(), &expected[item * plane..(item + 1) * plane]);
    }
}

#[test]
fn inpainting_masks_match() {
    let tensors = Tensors::load(root().join("preprocess/preprocess.safetensors"));
    let cases = json(root().join("preprocess/preprocess.json"));
    let mut compared = 0;
    for case in cases.as_array().unwrap() {
        let name = case["name"].as_str().unwrap();
        if !tensors.has(&format!("{name}.mask_full")) {
            continue;
        }
        let resolution = case["resolution"].as_u64().unwrap() as usize;
        let (shape, data) = tensors.u8(&format!("{name}.input_u8"));
        let mask = GrayImage::new(shape[1], shape[0], data).unwrap();
        let full = centre_crop(&resize_short_side(&mask, resolution).unwrap(), resolution).unwrap();
        let full: Vec<f32> = full.data().iter().map(|&value| f32::from(value) / 255.0).collect();
        assert_close(&full, &tensors.f32(&format!("{name}.mask_full")).1, 1e-7, name);
        let side = resolution / 16;
        let small = resize_bicubic_torch(&full, (resolution, resolution), (side, side)).unwrap();
        assert_close(&small, &tensors.f32(&format!("{name}.mask_small")).1, 1e-5, name);
        let tokens = inpainting_mask(&mask, resolution, 16).unwrap();
        let expected: Vec<bool> = tensors.u8(&format!("{name}.token_mask")).1.iter().map(|&value| value != 0).collect();
        assert_eq!(tokens.repaint, expected, "{name}");
        assert_eq!(tokens.num_repainted() as u64, case["masked"].as_u64().unwrap());
        compared += 1;
    }
    assert!(compared > 0);
}

#[test]
fn clip_pixels_match() {
    let tensors = Tensors::load(shared_file("clip_tower/case.safetensors"));
    let config = json(shared_file("clip_tower/case.json"));
    let input = picture(&tensors, "input_u8");
    let pixels = preprocess_clip(&input, config["image_size"].as_u64().unwrap() as usize).unwrap();
    assert_close(&pixels.to_chw(), &tensors.f32("pixel_values").1, 1e-6, "pixel_values");
}
