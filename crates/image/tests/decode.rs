//! Decoding: formats, orientation, transparency, and input that was made to break things.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test may end by them

use unif2ace_image::*;

fn gradient(width: usize, height: usize) -> RgbImage {
    let data = (0..width * height).flat_map(|i| [(i % 251) as u8, (i / 3 % 241) as u8, (i * 7 % 256) as u8]).collect();
    RgbImage::new(width, height, data).unwrap()
}

fn via_image_crate(picture: &RgbImage, format: image::ImageFormat) -> Vec<u8> {
    let buffer = image::RgbImage::from_raw(picture.width() as u32, picture.height() as u32, picture.data().to_vec()).unwrap();
    let mut bytes = std::io::Cursor::new(Vec::new());
    image::DynamicImage::from(buffer).write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

fn decode(bytes: &[u8]) -> Result<RgbImage> {
    decode_rgb(bytes, "the test's bytes", DecodeLimits::default())
}

#[test]
fn lossless_formats_return_the_same_pixels_and_lossy_ones_near_ones() {
    let picture = gradient(33, 17);
    for format in [image::ImageFormat::Png, image::ImageFormat::WebP] {
        assert!(decode(&via_image_crate(&picture, format)).unwrap() == picture, "{format:?}");
    }
    let flat = RgbImage::filled(33, 17, [200, 100, 50]).unwrap();
    for format in [image::ImageFormat::Jpeg, image::ImageFormat::Gif] {
        let back = decode(&via_image_crate(&flat, format)).unwrap();
        assert_eq!((back.width(), back.height()), (33, 17));
        assert!(back.data().iter().zip(flat.data()).all(|(a, b)| a.abs_diff(*b) <= 3), "{format:?}");
    }
}

#[test]
fn an_animation_gives_its_first_frame() {
    let first = RgbImage::filled(8, 8, [255, 0, 0]).unwrap();
    let second = RgbImage::filled(8, 8, [0, 0, 255]).unwrap();
    let bytes = encode_gif(&[first.clone(), second], 50).unwrap();
    assert!(decode(&bytes).unwrap() == first);
}

#[test]
fn transparency_becomes_white_in_pictures_and_black_in_masks() {
    let buffer = image::RgbaImage::from_raw(2, 1, vec![10, 20, 30, 255, 10, 20, 30, 0]).unwrap();
    let mut bytes = std::io::Cursor::new(Vec::new());
    buffer.write_to(&mut bytes, image::ImageFormat::Png).unwrap();
    let bytes = bytes.into_inner();
    assert_eq!(decode(&bytes).unwrap().data(), [10, 20, 30, 255, 255, 255]);
    assert_eq!(decode_gray(&bytes, "mask", DecodeLimits::default()).unwrap().pixel(1, 0), Some([0]));
}

#[test]
fn exif_orientation_turns_the_picture_upright() {
    let picture = RgbImage::filled(24, 8, [90, 90, 90]).unwrap();
    let jpeg = via_image_crate(&picture, image::ImageFormat::Jpeg);
    // An APP1 segment with one entry: orientation (0x0112) = 6, a quarter turn clockwise.
    let mut exif = b"Exif\0\0II\x2a\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0".to_vec();
    let mut turned = jpeg[..2].to_vec();
    turned.extend([0xff, 0xe1]);
    turned.extend((exif.len() as u16 + 2).to_be_bytes());
    turned.append(&mut exif);
    turned.extend(&jpeg[2..]);
    let upright = decode(&turned).unwrap();
    assert_eq!((upright.width(), upright.height()), (8, 24));
}

#[test]
fn empty_and_foreign_bytes_are_named() {
    assert!(matches!(decode(b""), Err(ImageError::Empty { .. })));
    for bytes in [b"hello, this is text".as_slice(), b"BM\0\0\0\0\0\0\0\0", b"\0", b"<svg xmlns=''/>", b"%PDF-1.4"] {
        let text = decode(bytes).unwrap_err().to_string();
        assert!(text.contains("the test's bytes") && text.contains("PNG, JPEG, WebP or GIF") && text.contains("hint:"), "{text}");
    }
}

#[test]
fn every_truncation_is_an_error_or_a_picture_never_a_panic() {
    let picture = gradient(40, 30);
    for format in [image::ImageFormat::Png, image::ImageFormat::Jpeg, image::ImageFormat::WebP, image::ImageFormat::Gif] {
        let bytes = via_image_crate(&picture, format);
        for end in 0..bytes.len() {
            // Some decoders fill a missing tail; the size must still be right.
            if let Ok(part) = decode(&bytes[..end]) {
                assert_eq!((part.width(), part.height()), (40, 30), "{format:?} cut at {end}");
            }
        }
        let error = decode(&bytes[..bytes.len() / 4]).unwrap_err();
        assert!(matches!(error, ImageError::Damaged { .. }), "{format:?}: {error}");
    }
}

#[test]
fn a_huge_size_in_the_header_is_refused_before_memory_is_reserved() {
    let mut png = via_image_crate(&gradient(4, 4), image::ImageFormat::Png);
    png[16..20].copy_from_slice(&60_000u32.to_be_bytes());
    png[20..24].copy_from_slice(&60_000u32.to_be_bytes());
    let crc = crc32(&png[12..29]);
    png[29..33].copy_from_slice(&crc.to_be_bytes());
    let mut gif = via_image_crate(&gradient(4, 4), image::ImageFormat::Gif);
    gif[6..10].copy_from_slice(&[0xff; 4]);
    let mut jpeg = via_image_crate(&gradient(4, 4), image::ImageFormat::Jpeg);
    let frame = jpeg.windows(2).position(|marker| marker == [0xff, 0xc0]).unwrap();
    jpeg[frame + 5..frame + 9].copy_from_slice(&[0xff; 4]);
    for (name, bytes) in [("png", png), ("gif", gif), ("jpeg", jpeg)] {
        let error = decode(&bytes).unwrap_err();
        assert!(matches!(error, ImageError::TooManyPixels { .. }), "{name}: {error}");
    }
}

#[test]
fn limits_are_honoured_exactly() {
    let bytes = via_image_crate(&gradient(20, 10), image::ImageFormat::Png);
    let with = |limits| decode_rgb(&bytes, "x", limits);
    let base = DecodeLimits { max_bytes: bytes.len() as u64, max_side: 20, max_pixels: 200 };
    assert!(with(base).is_ok());
    assert!(matches!(with(DecodeLimits { max_side: 19, ..base }), Err(ImageError::TooManyPixels { .. })));
    assert!(matches!(with(DecodeLimits { max_pixels: 199, ..base }), Err(ImageError::TooManyPixels { .. })));
    assert!(matches!(with(DecodeLimits { max_bytes: bytes.len() as u64 - 1, ..base }), Err(ImageError::TooManyBytes { .. })));
}

#[test]
fn a_missing_file_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let text = load_rgb(folder.path().join("nobody.png"), DecodeLimits::default()).unwrap_err().to_string();
    assert!(text.contains("nobody.png") && text.contains("hint:"), "{text}");
    std::fs::write(folder.path().join("big.png"), vec![0; 100]).unwrap();
    let limits = DecodeLimits { max_bytes: 99, ..DecodeLimits::default() };
    assert!(matches!(load_rgb(folder.path().join("big.png"), limits), Err(ImageError::TooManyBytes { found: 100, .. })));
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| if crc & 1 == 1 { (crc >> 1) ^ 0xedb8_8320 } else { crc >> 1 })
    })
}
