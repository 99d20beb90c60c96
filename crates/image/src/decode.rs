use std::io::Cursor;
use std::path::Path;

use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, Limits};
use unif2ace_io::{IoError, read_capped};

use crate::{GrayImage, ImageError, Result, RgbImage};

/// Caps on what a decoder accepts; sizes are taken from the header, before memory for the pixels is reserved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DecodeLimits {
    /// Largest file.
    pub max_bytes: u64,
    /// Longest side.
    pub max_side: u32,
    /// Largest width times height.
    pub max_pixels: u64,
}

impl Default for DecodeLimits {
    /// 32 MiB, 16384 a side, 40 million pixels.
    fn default() -> Self {
        Self { max_bytes: 32 << 20, max_side: 16_384, max_pixels: 40_000_000 }
    }
}

/// Reads a PNG, JPEG, WebP or GIF (first frame) as RGB, upright by its EXIF orientation. Transparent parts become white.
///
/// # Errors
/// When the file can't be read, is no such picture, is damaged, or is larger than `limits`.
pub fn load_rgb(path: impl AsRef<Path>, limits: DecodeLimits) -> Result<RgbImage> {
    let (bytes, origin) = read(path.as_ref(), limits)?;
    decode_rgb(&bytes, &origin, limits)
}

/// As [`load_rgb`], as one grey channel; transparent parts become black. For masks, where white means "repaint".
///
/// # Errors
/// As [`load_rgb`].
pub fn load_gray(path: impl AsRef<Path>, limits: DecodeLimits) -> Result<GrayImage> {
    let (bytes, origin) = read(path.as_ref(), limits)?;
    decode_gray(&bytes, &origin, limits)
}

/// Decodes bytes in memory; `origin` names them in errors.
///
/// # Errors
/// As [`load_rgb`].
pub fn decode_rgb(bytes: &[u8], origin: &str, limits: DecodeLimits) -> Result<RgbImage> {
    flatten(decode(bytes, origin, limits)?, 255)
}

/// As [`decode_rgb`], as one grey channel; transparent parts become black.
///
/// # Errors
/// As [`load_rgb`].
pub fn decode_gray(bytes: &[u8], origin: &str, limits: DecodeLimits) -> Result<GrayImage> {
    Ok(flatten(decode(bytes, origin, limits)?, 0)?.to_gray())
}

fn read(path: &Path, limits: DecodeLimits) -> Result<(Vec<u8>, String)> {
    let origin = path.display().to_string();
    match read_capped(path, limits.max_bytes) {
        Ok(bytes) => Ok((bytes, origin)),
        Err(IoError::TooLarge { found, max_bytes, .. }) => Err(ImageError::TooManyBytes { origin, found, max_bytes }),
        Err(error) => Err(error.into()),
    }
}

fn decode(bytes: &[u8], origin: &str, limits: DecodeLimits) -> Result<DynamicImage> {
    let origin = || origin.to_string();
    if bytes.is_empty() {
        return Err(ImageError::Empty { origin: origin() });
    }
    if bytes.len() as u64 > limits.max_bytes {
        let (found, max_bytes) = (bytes.len() as u64, limits.max_bytes);
        return Err(ImageError::TooManyBytes { origin: origin(), found, max_bytes });
    }
    let (format, format_name) = match image::guess_format(bytes) {
        Ok(ImageFormat::Png) => (ImageFormat::Png, "PNG"),
        Ok(ImageFormat::Jpeg) => (ImageFormat::Jpeg, "JPEG"),
        Ok(ImageFormat::WebP) => (ImageFormat::WebP, "WebP"),
        Ok(ImageFormat::Gif) => (ImageFormat::Gif, "GIF"),
        _ => {
            return Err(ImageError::UnknownFormat { origin: origin(), found: describe_start(bytes) });
        }
    };
    let damaged = |reason: String| ImageError::Damaged { origin: origin(), format: format_name, reason };
    let too_many = |width, height| ImageError::TooManyPixels {
        origin: origin(),
        width,
        height,
        max_side: limits.max_side,
        max_pixels: limits.max_pixels,
    };

    // Only the pixel count is checked here: the reader's own limit on sides would hide the size that was found.
    let mut caps = Limits::no_limits();
    // Eight bytes a pixel is 16-bit RGBA; the rest is for tables and compressed metadata.
    caps.max_alloc = Some(limits.max_pixels.saturating_mul(8).saturating_add(16 << 20));
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    reader.limits(caps);
    let mut decoder = reader.into_decoder().map_err(|error| damaged(error.to_string()))?;
    let (width, height) = decoder.dimensions();
    if width == 0 || height == 0 {
        return Err(damaged(format!("its size is {width}x{height}")));
    }
    if width.max(height) > limits.max_side || u64::from(width) * u64::from(height) > limits.max_pixels {
        return Err(too_many(width, height));
    }
    // Damaged metadata is no reason to refuse good pixels.
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    let mut picture = DynamicImage::from_decoder(decoder).map_err(|error| damaged(error.to_string()))?;
    picture.apply_orientation(orientation);
    Ok(picture)
}

/// Mixes transparent pixels with a grey of `background`; opaque pixels keep their bytes.
fn flatten(picture: DynamicImage, background: u32) -> Result<RgbImage> {
    let (width, height) = (picture.width() as usize, picture.height() as usize);
    if !picture.color().has_alpha() {
        return RgbImage::new(width, height, picture.into_rgb8().into_raw());
    }
    let rgba = picture.into_rgba8();
    let mix = |pixel: &[u8]| {
        let alpha = u32::from(pixel[3]);
        let channel = move |value: u8| ((u32::from(value) * alpha + background * (255 - alpha) + 127) / 255) as u8;
        [channel(pixel[0]), channel(pixel[1]), channel(pixel[2])]
    };
    RgbImage::new(width, height, rgba.as_raw().chunks_exact(4).flat_map(mix).collect())
}

fn describe_start(bytes: &[u8]) -> String {
    let start: Vec<String> = bytes.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    format!("{} bytes that start with {}", bytes.len(), start.join(" "))
}
