//! The geometry of extrapolation: growing a picture beyond its edges (as in Show-o).
//!
//! A model sees windows of W x W codes. Growing the canvas by one step adds a strip of `W/2 + offset` rows or columns; a window over the strip
//! keeps `W/2 - offset` known ones as context. Where the reference crashes ("down", and turning a corner) this one works: a canvas whose
//! side along the strip is longer than W is filled by several windows, each overlapping what the former one made.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::MASKED;
use crate::error::{DiffusionError, Result, check_length, range};

/// The side at which a canvas grows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Direction {
    /// New columns before the first.
    Left,
    /// New columns after the last.
    Right,
    /// New rows above the first.
    Up,
    /// New rows below the last.
    Down,
}

impl FromStr for Direction {
    type Err = DiffusionError;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "left" => Ok(Self::Left),
            "right" => Ok(Self::Right),
            "up" => Ok(Self::Up),
            "down" => Ok(Self::Down),
            _ => Err(DiffusionError::Name { what: "direction", expected: "left, right, up or down", given: name.to_string() }),
        }
    }
}

/// A square window of the canvas, by its first row and column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// First row.
    pub top: usize,
    /// First column.
    pub left: usize,
    /// Rows and columns: the model's W.
    pub side: usize,
}

/// A picture of codes, row-major, larger than the model's window or equal to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Canvas {
    height: usize,
    width: usize,
    side: usize,
    codes: Vec<u32>,
}

impl Canvas {
    /// A canvas of one window: `side * side` codes.
    ///
    /// # Errors
    /// If there is another number of codes, or `side` is 0.
    pub fn new(side: usize, codes: Vec<u32>) -> Result<Self> {
        if side == 0 {
            return Err(range("starting a canvas", "the side", "at least 1", side, "tokens a side = pixels / 16"));
        }
        check_length(
            "starting a canvas",
            "codes",
            side * side,
            codes.len(),
            "the canvas starts as one square image of the model",
        )?;
        Ok(Self { height: side, width: side, side, codes })
    }

    /// Rows and columns.
    pub fn size(&self) -> (usize, usize) {
        (self.height, self.width)
    }

    /// All codes, row-major; [`MASKED`] in a strip that is not filled yet.
    pub fn codes(&self) -> &[u32] {
        &self.codes
    }

    /// Adds a strip of `W/2 + offset` masked rows or columns and returns the windows that fill it, to be sampled and put
    /// back in this order.
    ///
    /// # Errors
    /// If `offset` leaves no known row or column in the window (`offset >= W/2`).
    pub fn extend(&mut self, direction: Direction, offset: usize) -> Result<Vec<Window>> {
        let half = self.side / 2;
        if offset >= half {
            let expected = format!("below {half}, half the window");
            return Err(range("extending a canvas", "the offset", expected, offset, "0 keeps half of the window as context"));
        }
        let (new, kept) = (half + offset, self.side - (half + offset));
        let horizontal = matches!(direction, Direction::Left | Direction::Right);
        let (height, width) = if horizontal { (self.height, self.width + new) } else { (self.height + new, self.width) };
        let down = if direction == Direction::Up { new } else { 0 };
        let across = if direction == Direction::Left { new } else { 0 };
        let mut codes = vec![MASKED; height * width];
        for (row, old) in self.codes.chunks(self.width).enumerate() {
            codes[(row + down) * width + across..][..self.width].copy_from_slice(old);
        }
        (self.height, self.width, self.codes) = (height, width, codes);

        let edge = match direction {
            Direction::Left | Direction::Up => 0,
            Direction::Right => width - self.side,
            Direction::Down => height - self.side,
        };
        let along = if horizontal { height } else { width };
        Ok(window_starts(along, self.side, kept)
            .into_iter()
            .map(|start| {
                let (top, left) = if horizontal { (start, edge) } else { (edge, start) };
                Window { top, left, side: self.side }
            })
            .collect())
    }

    /// The codes of a window, as the grid a sampler starts from.
    ///
    /// # Errors
    /// If the window leaves the canvas.
    pub fn window(&self, window: Window) -> Result<Vec<u32>> {
        self.check(window)?;
        let rows = window.top..window.top + window.side;
        Ok(rows.flat_map(|row| self.codes[row * self.width + window.left..][..window.side].iter().copied()).collect())
    }

    /// Puts sampled codes into a window's masked places; known ones stay what they are.
    ///
    /// # Errors
    /// If the window leaves the canvas or there is another number of codes.
    pub fn fill(&mut self, window: Window, codes: &[u32]) -> Result<()> {
        self.check(window)?;
        check_length("filling a window", "codes", window.side * window.side, codes.len(), "give the whole window")?;
        for (row, new) in codes.chunks(window.side).enumerate() {
            let cells = &mut self.codes[(window.top + row) * self.width + window.left..][..window.side];
            cells.iter_mut().zip(new).filter(|(cell, _)| **cell == MASKED).for_each(|(cell, &code)| *cell = code);
        }
        Ok(())
    }

    fn check(&self, window: Window) -> Result<()> {
        let inside = |start: usize, size: usize| start.checked_add(window.side).is_some_and(|end| end <= size);
        if window.side > 0 && inside(window.top, self.height) && inside(window.left, self.width) {
            return Ok(());
        }
        let expected = format!("inside {} x {}", self.height, self.width);
        Err(range("reading a window", "the window", expected, format!("{window:?}"), "take windows from `extend`"))
    }
}

/// Starts of windows of `side` that cover `length`, each sharing at least `overlap` with the one before.
fn window_starts(length: usize, side: usize, overlap: usize) -> Vec<usize> {
    let last = length - side;
    let mut starts: Vec<usize> = (0..last).step_by(side - overlap).collect();
    starts.push(last);
    starts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill_all(canvas: &mut Canvas, direction: Direction, offset: usize, code: u32) {
        for window in canvas.extend(direction, offset).unwrap() {
            let grid = canvas.window(window).unwrap();
            assert!(grid.contains(&MASKED) && grid.iter().any(|&c| c != MASKED), "{direction:?}: {grid:?}");
            canvas.fill(window, &vec![code; grid.len()]).unwrap();
        }
        assert!(!canvas.codes().contains(&MASKED));
    }

    #[test]
    fn all_directions_in_any_order_fill_the_canvas_and_keep_the_start() {
        use Direction::{Down, Left, Right, Up};
        for side in [4, 5, 6] {
            for offset in 0..side / 2 {
                let start: Vec<u32> = (0..(side * side) as u32).collect();
                let mut canvas = Canvas::new(side, start.clone()).unwrap();
                for (i, direction) in [Left, Up, Right, Down, Down, Left].into_iter().enumerate() {
                    fill_all(&mut canvas, direction, offset, 1000 + i as u32);
                }
                let new = side / 2 + offset;
                assert_eq!(canvas.size(), (side + 3 * new, side + 3 * new));
                let inner = Window { top: new, left: 2 * new, side };
                assert_eq!(canvas.window(inner).unwrap(), start, "side {side}, offset {offset}");
            }
        }
    }

    #[test]
    fn down_keeps_the_lower_rows_as_context() {
        let mut canvas = Canvas::new(4, (0..16).collect()).unwrap();
        let windows = canvas.extend(Direction::Down, 0).unwrap();
        assert_eq!(windows, [Window { top: 2, left: 0, side: 4 }]);
        let grid = canvas.window(windows[0]).unwrap();
        assert_eq!(grid[..8], [8, 9, 10, 11, 12, 13, 14, 15]);
        assert_eq!(grid[8..], [MASKED; 8]);
    }

    #[test]
    fn mistakes_are_errors() {
        assert!(Canvas::new(0, vec![]).is_err());
        assert!(Canvas::new(4, vec![0; 15]).is_err());
        let mut canvas = Canvas::new(4, vec![0; 16]).unwrap();
        assert!(canvas.extend(Direction::Left, 2).unwrap_err().to_string().contains("offset"));
        assert!(canvas.window(Window { top: 1, left: 0, side: 4 }).is_err());
        assert!(canvas.window(Window { top: usize::MAX, left: 0, side: 4 }).is_err());
        assert!(canvas.fill(Window { top: 0, left: 0, side: 4 }, &[0; 3]).is_err());
        assert!("sideways".parse::<Direction>().is_err());
    }
}
