use crate::{GrayImage, ImageError, Result, centre_crop, resize_bicubic_torch, resize_short_side};

/// Which tokens of a `side` x `side` grid are repainted, row by row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenMask {
    /// Tokens in a row and in a column.
    pub side: usize,
    /// `true` where the token is repainted; `side * side` values.
    pub repaint: Vec<bool>,
}

impl TokenMask {
    /// A mask from its values.
    ///
    /// # Errors
    /// When there aren't `side * side` values.
    pub fn new(side: usize, repaint: Vec<bool>) -> Result<Self> {
        let expected = side.saturating_mul(side);
        if repaint.len() != expected {
            let (operation, found) = ("make a token mask", repaint.len());
            return Err(ImageError::WrongLength { operation, width: side, height: side, channels: 1, expected, found });
        }
        Ok(Self { side, repaint })
    }

    /// Number of tokens to repaint.
    pub fn num_repainted(&self) -> usize {
        self.repaint.iter().filter(|&&repaint| repaint).count()
    }

    /// The other tokens.
    #[must_use]
    pub fn inverted(&self) -> Self {
        Self { side: self.side, repaint: self.repaint.iter().map(|repaint| !repaint).collect() }
    }

    /// Tokens of either mask.
    ///
    /// # Errors
    /// When the grids differ.
    pub fn union(&self, other: &Self) -> Result<Self> {
        if self.side != other.side {
            return Err(ImageError::WrongSize {
                operation: "join two masks",
                expected: format!("a grid of {0}x{0} tokens", self.side),
                width: other.side,
                height: other.side,
                hint: "make both masks for the same resolution",
            });
        }
        let repaint = self.repaint.iter().zip(&other.repaint).map(|(a, b)| a | b).collect();
        Ok(Self { side: self.side, repaint })
    }
}

/// The tokens that a grey mask repaints (white = repaint): the mask goes through the picture's resize and centre crop, is scaled to
/// 0..1, shrunk to the token grid by torch's bicubic, and counts where it reaches 0.5 (Show-o spec 4.3). `patch` is the pixel side of
/// a token, 16.
///
/// # Errors
/// When `resolution` isn't a multiple of `patch`, or the mask is too long.
pub fn inpainting_mask(mask: &GrayImage, resolution: usize, patch: usize) -> Result<TokenMask> {
    if patch == 0 || resolution == 0 || !resolution.is_multiple_of(patch) {
        return Err(ImageError::WrongSize {
            operation: "shrink the mask to tokens",
            expected: format!("a multiple of {patch} pixels"),
            width: resolution,
            height: resolution,
            hint: "use the model's resolution",
        });
    }
    let cropped = centre_crop(&resize_short_side(mask, resolution)?, resolution)?;
    let full: Vec<f32> = cropped.data().iter().map(|&value| f32::from(value) / 255.0).collect();
    let side = resolution / patch;
    let small = resize_bicubic_torch(&full, (resolution, resolution), (side, side))?;
    TokenMask::new(side, small.iter().map(|&value| value >= 0.5).collect())
}
