//! From picture to network pixels and back (Show-o spec 5.5 and 6).

use crate::{ImageError, Raster, Result, RgbImage, resize_bicubic};

/// Mean of CLIP's training pictures by channel.
pub const CLIP_MEAN: [f32; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
/// Standard deviation of CLIP's training pictures by channel.
pub const CLIP_STD: [f32; 3] = [0.268_629_54, 0.261_302_58, 0.275_777_11];

/// Float pixels of one picture, height x width x 3.
#[derive(Clone, Debug, PartialEq)]
pub struct Pixels {
    /// Number of rows.
    pub height: usize,
    /// Pixels in a row.
    pub width: usize,
    /// Values, height x width x 3.
    pub data: Vec<f32>,
}

impl Pixels {
    /// The same values as 3 x height x width.
    pub fn to_chw(&self) -> Vec<f32> {
        (0..3).flat_map(|channel| self.data.iter().skip(channel).step_by(3)).copied().collect()
    }

    /// From 3 x height x width.
    ///
    /// # Errors
    /// When the number of values isn't `3 * height * width`.
    pub fn from_chw(height: usize, width: usize, chw: &[f32]) -> Result<Self> {
        let plane = check_length("read pixels", height, width, chw.len())?;
        let data = (0..plane).flat_map(|index| (0..3).map(move |channel| chw[channel * plane + index])).collect();
        Ok(Self { height, width, data })
    }
}

/// Number of pixels, when `found` is three times that.
fn check_length(operation: &'static str, height: usize, width: usize, found: usize) -> Result<usize> {
    let plane = width.saturating_mul(height);
    let expected = plane.saturating_mul(3);
    if found != expected {
        return Err(ImageError::WrongLength { operation, width, height, channels: 3, expected, found });
    }
    Ok(plane)
}

/// Resizes so that the short side is `size` and the other `floor(size * long / short)`.
///
/// # Errors
/// When `size` is zero or the picture is so long that the result would be too large.
pub fn resize_short_side<const C: usize>(image: &Raster<C>, size: usize) -> Result<Raster<C>> {
    let (width, height) = (image.width(), image.height());
    let other = |long: usize, short: usize| size.saturating_mul(long) / short;
    let (width, height) = if width <= height { (size, other(height, width)) } else { (other(width, height), size) };
    resize_bicubic(image, width, height)
}

/// How half a pixel is rounded when the margins of a crop are odd.
#[derive(Clone, Copy)]
enum Margin {
    HalfToEven,
    Floor,
}

/// The middle `size` x `size` pixels; a margin of half a pixel is rounded to the even number.
///
/// # Errors
/// When a side is shorter than `size`.
pub fn centre_crop<const C: usize>(image: &Raster<C>, size: usize) -> Result<Raster<C>> {
    crop_with(image, size, Margin::HalfToEven)
}

fn crop_with<const C: usize>(image: &Raster<C>, size: usize, margin: Margin) -> Result<Raster<C>> {
    let start = |side: usize| {
        let excess = side.saturating_sub(size);
        match margin {
            Margin::Floor => excess / 2,
            // An odd excess is k + 1/2 with k = excess / 2: up when k is odd.
            Margin::HalfToEven => excess / 2 + usize::from(excess % 4 == 3),
        }
    };
    image.crop(start(image.width()), start(image.height()), size, size)
}

/// `(value / 255 - mean) / std` for each channel.
pub fn normalise(image: &RgbImage, mean: [f32; 3], std: [f32; 3]) -> Pixels {
    let scaled = |(index, &value): (usize, &u8)| (f32::from(value) / 255.0 - mean[index % 3]) / std[index % 3];
    let data = image.data().iter().enumerate().map(scaled).collect();
    Pixels { height: image.height(), width: image.width(), data }
}

/// Short side to `resolution`, centre crop, values in [-1, 1]: what the image tokenizer takes.
///
/// # Errors
/// As [`resize_short_side`].
pub fn preprocess(image: &RgbImage, resolution: usize) -> Result<Pixels> {
    let cropped = centre_crop(&resize_short_side(image, resolution)?, resolution)?;
    Ok(normalise(&cropped, [0.5; 3], [0.5; 3]))
}

/// CLIP's preparation: as [`preprocess`], but with margins rounded down and CLIP's mean and deviation.
///
/// # Errors
/// As [`resize_short_side`].
pub fn preprocess_clip(image: &RgbImage, resolution: usize) -> Result<Pixels> {
    let cropped = crop_with(&resize_short_side(image, resolution)?, resolution, Margin::Floor)?;
    Ok(normalise(&cropped, CLIP_MEAN, CLIP_STD))
}

/// From decoder output (about [-1, 1]) to bytes: `clamp((x + 1) / 2, 0, 1) * 255`, truncated. Truncation, not rounding, is the
/// reference's way and can give one less than rounding. NaN becomes 0.
///
/// # Errors
/// When the number of values isn't `3 * height * width` or a side is zero.
pub fn postprocess(pixels: &Pixels) -> Result<RgbImage> {
    check_length("turn pixels into a picture", pixels.height, pixels.width, pixels.data.len())?;
    let byte = |&value: &f32| (((value + 1.0) / 2.0).clamp(0.0, 1.0) * 255.0) as u8;
    RgbImage::new(pixels.width, pixels.height, pixels.data.iter().map(byte).collect())
}
