//! Encoding, sheets, regions, and properties that hold for any size.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test may end by them

use proptest::prelude::*;
use unif2ace_image::*;

fn noise(width: usize, height: usize, seed: u64) -> RgbImage {
    let mut state = seed | 1;
    let data = (0..width * height * 3)
        .map(|_| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 56) as u8
        })
        .collect();
    RgbImage::new(width, height, data).unwrap()
}

fn provenance() -> Provenance {
    Provenance {
        software: "unif2ace 0.1.0".into(),
        model: "mini".into(),
        prompt: Some("a smiling woman — naïve\0 test".into()),
        seed: Some(42),
        settings: vec![("Steps".into(), "16".into())],
    }
}

#[test]
fn png_round_trip_keeps_pixels_and_provenance_and_is_deterministic() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.png");
    let picture = noise(37, 21, 5);
    save_png(&path, &picture, Some(&provenance())).unwrap();
    assert!(load_rgb(&path, DecodeLimits::default()).unwrap() == picture);
    let entries = read_png_text(&path).unwrap();
    let text = |keyword: &str| entries.iter().find(|(key, _)| key == keyword).map(|(_, text)| text.as_str());
    assert_eq!(text("Source"), Some("AI-generated"));
    assert_eq!(text("Seed"), Some("42"));
    assert_eq!(text("Prompt"), Some("a smiling woman — naïve test"));
    assert_eq!(text("Steps"), Some("16"));
    assert!(text("XML:com.adobe.xmp").unwrap().contains("trainedAlgorithmicMedia"));
    assert_eq!(encode_png(&picture, Some(&provenance())).unwrap(), std::fs::read(&path).unwrap());
    let private = Provenance { prompt: None, ..provenance() };
    let bytes = encode_png(&picture, Some(&private)).unwrap();
    assert!(!bytes.windows(7).any(|window| window == b"smiling"));
}

#[test]
fn a_prompt_of_any_length_and_content_is_written() {
    let picture = noise(2, 2, 1);
    let long = Provenance { prompt: Some("é".repeat(100_000)), ..provenance() };
    assert!(encode_png(&picture, Some(&long)).unwrap().len() < 40_000);
    let odd = Provenance { settings: vec![("k".repeat(200), "v".into()), (String::new(), "x".into())], ..provenance() };
    encode_png(&picture, Some(&odd)).unwrap();
}

#[test]
fn a_sheet_places_each_picture() {
    let images: Vec<_> = (1u8..=5).map(|value| RgbImage::filled(4, 3, [value; 3]).unwrap()).collect();
    let sheet = contact_sheet(&images, 3, 1, [99; 3]).unwrap();
    assert_eq!((sheet.width(), sheet.height()), (3 * 4 + 2, 2 * 3 + 1));
    assert_eq!(sheet.pixel(0, 0), Some([1; 3]));
    assert_eq!(sheet.pixel(5, 0), Some([2; 3]));
    assert_eq!(sheet.pixel(4, 0), Some([99; 3]));
    assert_eq!(sheet.pixel(8, 6), Some([5; 3]));
    assert_eq!(sheet.pixel(13, 6), Some([99; 3]));
    assert!(contact_sheet(&[], 3, 1, [0; 3]).is_err());
    assert!(contact_sheet(&images, 0, 1, [0; 3]).is_err());
    assert!(contact_sheet(&images, 1, usize::MAX, [0; 3]).is_err());
}

#[test]
fn a_gif_keeps_its_frames_and_refuses_mixed_sizes() {
    let frames = [RgbImage::filled(16, 16, [0, 200, 0]).unwrap(), RgbImage::filled(16, 16, [0, 0, 200]).unwrap()];
    let bytes = encode_gif(&frames, 80).unwrap();
    assert_eq!(bytes, encode_gif(&frames, 80).unwrap());
    use image::AnimationDecoder as _;
    let decoder = image::codecs::gif::GifDecoder::new(std::io::Cursor::new(bytes)).unwrap();
    assert_eq!(decoder.into_frames().collect_frames().unwrap().len(), 2);
    assert!(encode_gif(&[], 80).is_err());
    assert!(encode_gif(&[frames[0].clone(), noise(8, 8, 1)], 80).is_err());
}

#[test]
fn regions_have_names_and_scale_with_the_grid() {
    for region in Region::ALL {
        assert_eq!(region.name().parse::<Region>().unwrap(), region);
        let small = region.token_mask(8);
        let large = region.token_mask(16);
        assert!((1..64).contains(&small.num_repainted()), "{region}");
        assert_eq!(large.num_repainted(), 4 * small.num_repainted(), "{region}");
        for side in [1, 3, 5, 7, 24] {
            assert_eq!(region.token_mask(side).repaint.len(), side * side);
        }
    }
    let both = Region::parse_mask("eyes, Mouth", 8).unwrap();
    let parts = [Region::Eyes, Region::Mouth].map(|region| region.token_mask(8));
    assert_eq!(both, parts[0].union(&parts[1]).unwrap());
    let text = Region::parse_mask("eyes,elbow", 8).unwrap_err().to_string();
    assert!(text.contains("elbow") && text.contains("background"), "{text}");
    assert!(Region::parse_mask("", 8).is_err());
    assert_eq!(both.inverted().num_repainted(), 64 - both.num_repainted());
}

#[test]
fn wrong_sizes_are_errors() {
    assert!(RgbImage::new(0, 4, vec![]).is_err());
    assert!(RgbImage::new(2, 2, vec![0; 11]).is_err());
    assert!(RgbImage::new(usize::MAX, 2, vec![]).is_err());
    assert!(RgbImage::filled(usize::MAX, 2, [0; 3]).is_err());
    let picture = noise(10, 6, 3);
    assert!(resize_bicubic(&picture, 0, 5).is_err());
    assert!(resize_bicubic(&picture, usize::MAX, 5).is_err());
    assert!(picture.crop(9, 0, 2, 1).is_err());
    assert!(picture.crop(usize::MAX, 0, 2, 1).is_err());
    assert!(centre_crop(&picture, 7).is_err());
    assert!(preprocess(&picture, 0).is_err());
    assert!(resize_short_side(&noise(1_000, 1, 3), 128).is_ok());
    assert!(resize_short_side(&noise(600_000, 1, 3), 128).is_err());
    assert!(inpainting_mask(&picture.to_gray(), 40, 16).is_err());
    assert!(postprocess(&Pixels { height: 2, width: 2, data: vec![0.0; 11] }).is_err());
    assert!(Pixels::from_chw(2, 2, &[0.0; 13]).is_err());
}

#[test]
fn postprocess_survives_non_finite_values() {
    let pixels = Pixels { height: 1, width: 1, data: vec![f32::NAN, f32::INFINITY, f32::NEG_INFINITY] };
    assert_eq!(postprocess(&pixels).unwrap().data(), [0, 255, 0]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn preparing_any_size_gives_a_square_in_range(width in 1usize..90, height in 1usize..90, size in 1usize..40, seed in 0u64..9) {
        let pixels = preprocess(&noise(width, height, seed), size).unwrap();
        prop_assert_eq!((pixels.width, pixels.height, pixels.data.len()), (size, size, size * size * 3));
        prop_assert!(pixels.data.iter().all(|value| (-1.0..=1.0).contains(value)));
        let clip = preprocess_clip(&noise(width, height, seed), size).unwrap();
        prop_assert!(clip.data.iter().all(|value| value.abs() < 3.0));
        let chw = pixels.to_chw();
        prop_assert_eq!(Pixels::from_chw(size, size, &chw).unwrap(), pixels);
    }

    #[test]
    fn resizing_keeps_flat_colours(width in 1usize..60, height in 1usize..60, to_width in 1usize..60, to_height in 1usize..60, value: u8) {
        let flat = RgbImage::filled(width, height, [value, 255 - value, 7]).unwrap();
        let resized = resize_bicubic(&flat, to_width, to_height).unwrap();
        prop_assert!(resized == RgbImage::filled(to_width, to_height, [value, 255 - value, 7]).unwrap());
    }

    #[test]
    fn shrinking_a_flat_mask_keeps_it(side in 1usize..6, white: bool) {
        let mask = GrayImage::filled(side * 16 + 3, side * 16, [if white { 255 } else { 0 }]).unwrap();
        let tokens = inpainting_mask(&mask, side * 16, 16).unwrap();
        prop_assert!(tokens.repaint.iter().all(|&repaint| repaint == white));
    }

    #[test]
    fn bytes_survive_the_way_to_pixels_and_back(seed in 0u64..50) {
        let picture = noise(16, 16, seed);
        let back = postprocess(&normalise(&picture, [0.5; 3], [0.5; 3])).unwrap();
        // Truncation may lose one.
        prop_assert!(back.data().iter().zip(picture.data()).all(|(a, b)| a <= b && b - a <= 1));
    }
}
