//! Pictures of any size as the square that a network takes.

use unif2ace_image::{DecodeLimits, centre_crop, decode_rgb, resize_short_side};

use crate::error::SampleFault;

/// Decodes a picture to `[side, side, 3]` bytes. One of another size is resized by its short side and cropped to its middle, as
/// Show-o does (spec §5.5).
///
/// # Errors
/// When it can't be decoded or is too long to be resized.
pub fn square_rgb(bytes: &[u8], name: &str, side: usize) -> Result<Vec<u8>, SampleFault> {
    let fail = |error: unif2ace_image::ImageError| SampleFault::Picture { reason: error.to_string() };
    let picture = decode_rgb(bytes, name, DecodeLimits::default()).map_err(fail)?;
    if picture.width() == side && picture.height() == side {
        return Ok(picture.data().to_vec());
    }
    let resized = resize_short_side(&picture, side).and_then(|resized| centre_crop(&resized, side)).map_err(fail)?;
    Ok(resized.data().to_vec())
}
