use crate::{ImageError, Result};

/// An 8-bit picture: `height` rows of `width` pixels of `C` interleaved channels.
#[derive(Clone, PartialEq, Eq)]
pub struct Raster<const C: usize> {
    width: usize,
    height: usize,
    data: Vec<u8>,
}

/// Red, green, blue.
pub type RgbImage = Raster<3>;
/// One grey channel.
pub type GrayImage = Raster<1>;

impl<const C: usize> Raster<C> {
    /// A picture from its bytes, row by row.
    ///
    /// # Errors
    /// When a side is zero or the number of bytes isn't `width * height * C`.
    pub fn new(width: usize, height: usize, data: Vec<u8>) -> Result<Self> {
        const OPERATION: &str = "make a picture";
        if width == 0 || height == 0 {
            return Err(ImageError::WrongSize {
                operation: OPERATION,
                expected: "at least one pixel".into(),
                width,
                height,
                hint: "neither side may be zero",
            });
        }
        let expected = width.checked_mul(height).and_then(|pixels| pixels.checked_mul(C)).unwrap_or(usize::MAX);
        if data.len() != expected {
            let found = data.len();
            return Err(ImageError::WrongLength { operation: OPERATION, width, height, channels: C, expected, found });
        }
        Ok(Self { width, height, data })
    }

    /// A picture of one colour.
    ///
    /// # Errors
    /// When a side is zero or the size overflows.
    pub fn filled(width: usize, height: usize, colour: [u8; C]) -> Result<Self> {
        let pixels = width.checked_mul(height).filter(|pixels| pixels.checked_mul(C).is_some_and(|bytes| bytes <= 1 << 32));
        let data = pixels.map(|pixels| colour.repeat(pixels)).unwrap_or_default();
        Self::new(width, height, data)
    }

    /// Pixels in a row.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Number of rows.
    pub fn height(&self) -> usize {
        self.height
    }

    /// The bytes, height x width x channels.
    pub fn data(&self) -> &[u8] {
        &self.data
    }

    /// The bytes, height x width x channels.
    pub fn into_data(self) -> Vec<u8> {
        self.data
    }

    /// One row.
    pub(crate) fn row(&self, y: usize) -> &[u8] {
        &self.data[y * self.width * C..(y + 1) * self.width * C]
    }

    /// The pixel at column `x`, row `y`; `None` outside.
    pub fn pixel(&self, x: usize, y: usize) -> Option<[u8; C]> {
        if x >= self.width || y >= self.height {
            return None;
        }
        let start = (y * self.width + x) * C;
        self.data[start..start + C].try_into().ok()
    }

    /// The part of `width` x `height` pixels whose upper left corner is at (`left`, `top`).
    ///
    /// # Errors
    /// When the part is empty or reaches outside.
    pub fn crop(&self, left: usize, top: usize, width: usize, height: usize) -> Result<Self> {
        let fits = |start: usize, size: usize, whole: usize| start.checked_add(size).is_some_and(|end| end <= whole);
        if !fits(left, width, self.width) || !fits(top, height, self.height) {
            return Err(ImageError::WrongSize {
                operation: "crop",
                expected: format!("a picture that holds {width}x{height} pixels from ({left}, {top})"),
                width: self.width,
                height: self.height,
                hint: "choose a part inside the picture",
            });
        }
        let rows = (top..top + height).flat_map(|y| &self.row(y)[left * C..(left + width) * C]);
        Self::new(width, height, rows.copied().collect())
    }

    /// Copies `source` to (`left`, `top`); what reaches outside is left off.
    pub(crate) fn paste(&mut self, source: &Self, left: usize, top: usize) {
        let columns = source.width.min(self.width.saturating_sub(left));
        for y in 0..source.height.min(self.height.saturating_sub(top)) {
            let start = ((top + y) * self.width + left) * C;
            self.data[start..start + columns * C].copy_from_slice(&source.row(y)[..columns * C]);
        }
    }
}

impl RgbImage {
    /// Luma of each pixel, `(19595 R + 38470 G + 7471 B + 2^15) >> 16`, which is PIL's mode "L".
    pub fn to_gray(&self) -> GrayImage {
        let luma = |rgb: &[u8]| {
            ((u32::from(rgb[0]) * 19595 + u32::from(rgb[1]) * 38470 + u32::from(rgb[2]) * 7471 + 0x8000) >> 16) as u8
        };
        GrayImage { width: self.width, height: self.height, data: self.data.chunks_exact(3).map(luma).collect() }
    }
}

impl<const C: usize> std::fmt::Debug for Raster<C> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Raster({}x{}x{C})", self.width, self.height)
    }
}
