//! Two bicubic filters that differ on purpose: PIL's (a = -0.5, widened when shrinking, integer arithmetic) prepares pictures;
//! torch's `interpolate` (a = -0.75, always four taps) shrinks the inpainting mask (Show-o spec 5.5 and 4.3).

use crate::{ImageError, Raster, Result};

/// Fractional bits of PIL's integer weights: 32 minus 8 for the value and 2 for overshoot.
const PRECISION_BITS: u32 = 22;
/// Largest number of output pixels, a guard against extreme aspect ratios.
const MAX_OUTPUT_PIXELS: usize = 1 << 26;

/// The taps of one output pixel: the first input index and integer weights of the following ones.
struct Taps {
    first: usize,
    weights: Vec<i32>,
}

/// Resizes with PIL's `BICUBIC`, bit by bit: antialiased, horizontal pass first, rounded to 8 bits after each pass.
///
/// # Errors
/// When a target side is zero or the result has more than 2^26 pixels.
pub fn resize_bicubic<const C: usize>(image: &Raster<C>, width: usize, height: usize) -> Result<Raster<C>> {
    let pixels = width.saturating_mul(height);
    // The pass in between has the old height and the new width.
    let between = width.saturating_mul(image.height());
    if pixels == 0 || pixels > MAX_OUTPUT_PIXELS || between > MAX_OUTPUT_PIXELS {
        return Err(ImageError::WrongSize {
            operation: "resize",
            expected: format!("a target of 1 to {MAX_OUTPUT_PIXELS} pixels"),
            width,
            height,
            hint: "the picture may be far longer than wide; crop it first",
        });
    }
    let wide = if width == image.width() { image.clone() } else { horizontal(image, width)? };
    if height == image.height() { Ok(wide) } else { vertical(&wide, height) }
}

fn horizontal<const C: usize>(image: &Raster<C>, width: usize) -> Result<Raster<C>> {
    let taps = pil_taps(image.width(), width);
    let mut data = Vec::with_capacity(width * image.height() * C);
    for y in 0..image.height() {
        let row = image.row(y);
        for tap in &taps {
            let mut sums = [1i32 << (PRECISION_BITS - 1); C];
            for (pixel, &weight) in row[tap.first * C..].chunks_exact(C).zip(&tap.weights) {
                for (sum, &value) in sums.iter_mut().zip(pixel) {
                    *sum += i32::from(value) * weight;
                }
            }
            data.extend(sums.map(clip_8));
        }
    }
    Raster::new(width, image.height(), data)
}

fn vertical<const C: usize>(image: &Raster<C>, height: usize) -> Result<Raster<C>> {
    let taps = pil_taps(image.height(), height);
    let mut data = Vec::with_capacity(image.width() * height * C);
    let mut sums = vec![0i32; image.width() * C];
    for tap in &taps {
        sums.fill(1 << (PRECISION_BITS - 1));
        for (offset, &weight) in tap.weights.iter().enumerate() {
            for (sum, &value) in sums.iter_mut().zip(image.row(tap.first + offset)) {
                *sum += i32::from(value) * weight;
            }
        }
        data.extend(sums.iter().map(|&sum| clip_8(sum)));
    }
    Raster::new(image.width(), height, data)
}

fn clip_8(sum: i32) -> u8 {
    (sum >> PRECISION_BITS).clamp(0, 255) as u8
}

fn pil_taps(input: usize, output: usize) -> Vec<Taps> {
    let scale = input as f64 / output as f64;
    let filter_scale = scale.max(1.0);
    let support = 2.0 * filter_scale;
    (0..output)
        .map(|index| {
            let centre = (index as f64 + 0.5) * scale;
            // Truncation towards zero, as a C cast does.
            let first = (centre - support + 0.5).max(0.0) as usize;
            let end = ((centre + support + 0.5) as usize).min(input);
            let real: Vec<f64> = (first..end).map(|x| cubic((x as f64 - centre + 0.5) / filter_scale, -0.5)).collect();
            let total: f64 = real.iter().sum();
            let fixed = |weight: &f64| {
                let scaled = weight / total * f64::from(1u32 << PRECISION_BITS);
                (scaled + 0.5f64.copysign(scaled)) as i32
            };
            Taps { first, weights: real.iter().map(fixed).collect() }
        })
        .collect()
}

/// Keys' cubic kernel with parameter `a`.
fn cubic(x: f64, a: f64) -> f64 {
    let x = x.abs();
    if x < 1.0 {
        ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * a
    } else {
        0.0
    }
}

/// Torch's bicubic `interpolate` on one plane of `in_height` rows: a = -0.75, half-pixel centres, no antialiasing, edges repeated.
///
/// # Errors
/// When a size is zero or `plane` doesn't hold `in_width * in_height` values.
pub fn resize_bicubic_torch(
    plane: &[f32],
    (in_width, in_height): (usize, usize),
    (width, height): (usize, usize),
) -> Result<Vec<f32>> {
    const OPERATION: &str = "shrink the mask";
    let expected = in_width.saturating_mul(in_height);
    if plane.len() != expected {
        let found = plane.len();
        let (width, height) = (in_width, in_height);
        return Err(ImageError::WrongLength { operation: OPERATION, width, height, channels: 1, expected, found });
    }
    if expected == 0 || width == 0 || height == 0 || width.saturating_mul(height) > MAX_OUTPUT_PIXELS {
        return Err(ImageError::WrongSize {
            operation: OPERATION,
            expected: "sizes above zero".into(),
            width,
            height,
            hint: "check the resolution",
        });
    }
    let columns: Vec<_> = (0..width).map(|x| torch_taps(x, in_width, width)).collect();
    let mut out = Vec::with_capacity(width * height);
    for y in 0..height {
        let rows = torch_taps(y, in_height, height);
        for taps in &columns {
            let across = |row: usize| -> f32 { taps.iter().map(|&(x, weight)| plane[row * in_width + x] * weight).sum() };
            out.push(rows.iter().map(|&(row, weight)| across(row) * weight).sum());
        }
    }
    Ok(out)
}

fn torch_taps(index: usize, input: usize, output: usize) -> [(usize, f32); 4] {
    let position = (index as f64 + 0.5) * (input as f64 / output as f64) - 0.5;
    let base = position.floor();
    let fraction = position - base;
    std::array::from_fn(|tap| {
        let place = (base as i64 + tap as i64 - 1).clamp(0, input as i64 - 1);
        (place as usize, cubic(fraction + 1.0 - tap as f64, -0.75) as f32)
    })
}
