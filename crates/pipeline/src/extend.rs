//! Pictures that grow beyond their edges (Show-o's extrapolation).

use unif2ace_diffusion::MASKED;
use unif2ace_diffusion::canvas::{Canvas, Direction, Window};
use unif2ace_image::RgbImage;

use crate::error::Result;
use crate::generate::{GenerateOptions, Progress};
use crate::pretrained::Pipeline;

/// Settings of extending.
#[derive(Debug, Clone)]
pub struct ExtendOptions {
    /// How new parts are made; its `num_images` doesn't count.
    pub generate: GenerateOptions,
    /// Where the picture grows, one strip after the other.
    pub directions: Vec<Direction>,
    /// Tokens that a strip is wider than half the model's grid; more leaves less context.
    pub offset: usize,
}

/// Pixels beside the codes of a canvas. Every window gives the pixels of the codes that it made.
struct Picture {
    image: RgbImage,
    token: usize,
}

impl Picture {
    /// Makes room for strips of `size` tokens (height, width); what is there moves by (`down`, `across`) tokens.
    fn grow(&mut self, size: (usize, usize), down: usize, across: usize) -> Result<()> {
        let (height, width) = (size.0 * self.token, size.1 * self.token);
        let mut data = vec![0u8; height * width * 3];
        let old = self.image.width() * 3;
        for (row, pixels) in self.image.data().chunks_exact(old).enumerate() {
            data[((row + down * self.token) * width + across * self.token) * 3..][..old].copy_from_slice(pixels);
        }
        self.image = RgbImage::new(width, height, data)?;
        Ok(())
    }

    /// Takes over the tokens of a window that were masked in `before`.
    fn paste(&mut self, window: Window, before: &[u32], made: &RgbImage) -> Result<()> {
        let (width, height, size) = (self.image.width(), self.image.height(), self.token);
        let mut data = std::mem::replace(&mut self.image, RgbImage::filled(1, 1, [0; 3])?).into_data();
        for (place, _) in before.iter().enumerate().filter(|(_, code)| **code == MASKED) {
            let (row, column) = (place / window.side, place % window.side);
            for y in 0..size {
                let from = ((row * size + y) * made.width() + column * size) * 3;
                let to = (((window.top + row) * size + y) * width + (window.left + column) * size) * 3;
                data[to..][..size * 3].copy_from_slice(&made.data()[from..][..size * 3]);
            }
        }
        self.image = RgbImage::new(width, height, data)?;
        Ok(())
    }
}

impl Pipeline {
    /// Grows a picture. It is resized and cropped to the model's size first, and passes through the image tokenizer.
    ///
    /// # Errors
    /// As [`Pipeline::generate`], and when a strip leaves no known part in the model's window.
    pub fn extend(
        &self,
        image: &RgbImage,
        options: &ExtendOptions,
        progress: &mut dyn FnMut(&Progress<'_>) -> bool,
    ) -> Result<RgbImage> {
        options.generate.check()?;
        let _awake = self.keep_awake();
        let codes = self.encode(self.pixels(image)?)?;
        let mut picture = Picture { image: self.picture(&codes)?, token: self.resolution() / self.grid() };
        let mut canvas = Canvas::new(self.grid(), codes)?;
        let denoiser = self.denoiser(&[&options.generate.prompt], options.generate.guidance_scale)?;
        let mut num_windows = 0;
        for &direction in &options.directions {
            let before = canvas.size();
            let windows = canvas.extend(direction, options.offset)?;
            let after = canvas.size();
            let (down, across) = match direction {
                Direction::Up => (after.0 - before.0, 0),
                Direction::Left => (0, after.1 - before.1),
                Direction::Right | Direction::Down => (0, 0),
            };
            picture.grow(after, down, across)?;
            for window in windows {
                let start = canvas.window(window)?;
                let made = self.denoise(&denoiser, &[&start], &options.generate, num_windows, progress)?.swap_remove(0);
                canvas.fill(window, &made)?;
                picture.paste(window, &start, &self.picture(&made)?)?;
                num_windows += 1;
            }
        }
        Ok(picture.image)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_pixels_move_and_new_ones_come_from_the_window() {
        let mut picture = Picture { image: RgbImage::filled(4, 4, [10; 3]).unwrap(), token: 2 };
        picture.grow((2, 3), 0, 1).unwrap();
        let window = Window { top: 0, left: 0, side: 2 };
        picture.paste(window, &[MASKED, 5, MASKED, 5], &RgbImage::filled(4, 4, [77; 3]).unwrap()).unwrap();
        let row: Vec<u8> = (0..6).map(|x| picture.image.pixel(x, 3).unwrap()[0]).collect();
        assert_eq!(row, [77, 77, 10, 10, 10, 10]);
    }
}
