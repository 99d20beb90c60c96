//! Pictures in and out: capped decoding, PIL-exact resizing, the model's pre- and post-processing, inpainting masks, PNG with
//! provenance, contact sheets and animated previews.
//!
//! Two number formats meet here: 8-bit pictures ([`RgbImage`], [`GrayImage`], rows of interleaved channels) and the network's
//! float32 pixels ([`Pixels`], height x width x channels, so that a batch is NHWC).

mod animate;
mod decode;
mod encode;
mod error;
mod grid;
mod mask;
mod preprocess;
mod raster;
mod region;
mod resize;

pub use animate::{encode_gif, save_gif};
pub use decode::{DecodeLimits, decode_gray, decode_rgb, load_gray, load_rgb};
pub use encode::{Provenance, encode_png, read_png_text, save_png};
pub use error::{ImageError, Result};
pub use grid::contact_sheet;
pub use mask::{TokenMask, inpainting_mask};
pub use preprocess::{
    CLIP_MEAN, CLIP_STD, Pixels, centre_crop, normalise, postprocess, preprocess, preprocess_clip, resize_short_side,
};
pub use raster::{GrayImage, Raster, RgbImage};
pub use region::Region;
pub use resize::{resize_bicubic, resize_bicubic_torch};
