//! Vectors that start at a cache line, so that vectors and tile rows of 64 bytes never cross one, and memory that a thread keeps.

use std::cell::Cell;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::thread::LocalKey;

use bytemuck::{Pod, Zeroable};

#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
struct Line([u8; 64]);

// SAFETY: 64 bytes without padding, for which zeros are a value.
unsafe impl Zeroable for Line {}
// SAFETY: 64 bytes without padding, for which every pattern is a value.
unsafe impl Pod for Line {}

/// Plain numbers that start at a cache line.
#[derive(Debug, Clone)]
pub(crate) struct Lines<T> {
    lines: Vec<Line>,
    len: usize,
    of: PhantomData<T>,
}

impl<T> Default for Lines<T> {
    fn default() -> Self {
        Self { lines: Vec::new(), len: 0, of: PhantomData }
    }
}

impl<T: Pod> Lines<T> {
    /// `len` zeros.
    pub(crate) fn zeros(len: usize) -> Self {
        let num_lines = (len * size_of::<T>()).div_ceil(size_of::<Line>());
        Self { lines: bytemuck::zeroed_vec(num_lines), len, of: PhantomData }
    }

    /// Makes room for at least `len` values; those that are there stay, and new ones are zeros.
    pub(crate) fn reserve(&mut self, len: usize) {
        if self.len < len {
            self.lines.resize((len * size_of::<T>()).div_ceil(size_of::<Line>()), Line([0; 64]));
            self.len = len;
        }
    }
}

impl<T: Pod> Deref for Lines<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &bytemuck::cast_slice(&self.lines)[..self.len]
    }
}

impl<T: Pod> DerefMut for Lines<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut bytemuck::cast_slice_mut(&mut self.lines)[..self.len]
    }
}

/// Lends what a thread keeps; a task within a task has memory of its own.
pub(crate) fn lend<T: Default, R>(kept: &'static LocalKey<Cell<T>>, work: impl FnOnce(&mut T) -> R) -> R {
    let mut memory = kept.take();
    let result = work(&mut memory);
    kept.set(memory);
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_stay_and_start_at_a_line() {
        let mut lines = Lines::<u16>::zeros(3);
        lines.copy_from_slice(&[1, 2, 3]);
        lines.reserve(100);
        lines.reserve(50);
        assert_eq!((lines.len(), &lines[..4]), (100, &[1, 2, 3, 0][..]));
        assert_eq!(lines.as_ptr().addr() % 64, 0);
        assert!(Lines::<f32>::default().is_empty());
    }
}
