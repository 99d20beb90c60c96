use std::path::Path;

use image::codecs::gif::{GifEncoder, Repeat};
use image::{Delay, Frame, RgbaImage};
use unif2ace_io::write_atomic;

use crate::{ImageError, Result, RgbImage};

/// An endlessly repeated GIF of the frames, `delay_ms` each and ten times that for the last one. Colours are reduced to 256 a
/// frame: a preview of the steps, not a result.
///
/// # Errors
/// When there is no frame, frames differ in size, or a side exceeds 65535.
pub fn encode_gif(frames: &[RgbImage], delay_ms: u32) -> Result<Vec<u8>> {
    let fail = |reason: String| ImageError::Encode { format: "GIF", reason };
    let Some(first) = frames.first() else {
        return Err(fail("expected at least one frame, found none".into()));
    };
    let mut bytes = Vec::new();
    // Speed 10 of 1 (best) to 30: a few milliseconds a frame.
    let mut encoder = GifEncoder::new_with_speed(&mut bytes, 10);
    encoder.set_repeat(Repeat::Infinite).map_err(|error| fail(error.to_string()))?;
    for (index, frame) in frames.iter().enumerate() {
        if (frame.width(), frame.height()) != (first.width(), first.height()) {
            return Err(ImageError::WrongSize {
                operation: "encode a GIF",
                expected: format!("frames of {}x{}", first.width(), first.height()),
                width: frame.width(),
                height: frame.height(),
                hint: "all frames must have one size",
            });
        }
        let is_last = index + 1 == frames.len();
        let delay = Delay::from_numer_denom_ms(delay_ms.saturating_mul(if is_last { 10 } else { 1 }), 1);
        let rgba = frame.data().chunks_exact(3).flat_map(|rgb| [rgb[0], rgb[1], rgb[2], 255]).collect();
        let buffer =
            RgbaImage::from_raw(frame.width() as u32, frame.height() as u32, rgba).ok_or_else(|| fail("frame size".into()))?;
        encoder.encode_frame(Frame::from_parts(buffer, 0, 0, delay)).map_err(|error| fail(error.to_string()))?;
    }
    drop(encoder);
    Ok(bytes)
}

/// Writes [`encode_gif`]'s bytes; the file is there completely or not at all.
///
/// # Errors
/// As [`encode_gif`], and when the file can't be written.
pub fn save_gif(path: impl AsRef<Path>, frames: &[RgbImage], delay_ms: u32) -> Result<()> {
    Ok(write_atomic(path, &encode_gif(frames, delay_ms)?)?)
}
