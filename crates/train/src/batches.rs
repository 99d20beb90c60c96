//! Which samples a step reads, and pixels as tensors. Everything is a function of (seed, step), so a run can stop anywhere.

use burn::tensor::{Device, Tensor, TensorData};
use unif2ace_diffusion::rng::{Key, Stream};

/// The samples of step `step`: epoch after epoch, each a fresh permutation of `0..num_samples`.
pub fn sample_indices(seed: u64, step: u64, batch_size: usize, num_samples: usize) -> Vec<usize> {
    let mut indices = Vec::with_capacity(batch_size);
    let mut epoch_order: Option<(u64, Vec<usize>)> = None;
    for offset in 0..batch_size {
        let position = step as usize * batch_size + offset;
        let epoch = (position / num_samples) as u64;
        if epoch_order.as_ref().is_none_or(|(known, _)| *known != epoch) {
            epoch_order = Some((epoch, Key::new(seed, epoch).permutation(Stream::Data, num_samples)));
        }
        if let Some((_, order)) = &epoch_order {
            indices.push(order[position % num_samples]);
        }
    }
    indices
}

/// Square RGB pictures in memory.
pub struct ImageStore {
    /// `[num_images, side, side, 3]`.
    pub pixels: Vec<u8>,
    /// Pixels a side.
    pub side: usize,
    /// Names of the pictures' samples.
    pub keys: Vec<String>,
}

/// How one picture of a batch is changed.
#[derive(Debug, Clone, Copy, Default)]
pub struct Augment {
    /// Mirror left and right.
    pub flip: bool,
    /// Shift to the right and down in pixels; edges are repeated.
    pub shift: [isize; 2],
}

impl Augment {
    /// As [`Augment::random_shift`], mirrored every second time.
    pub fn random_shift_and_flip(seed: u64, step: u64, row: usize, max_shift: usize) -> Self {
        let flip = Key::new(seed, step).below(Stream::Augment, row as u32, 2, 2) == 1;
        Self { flip, ..Self::random_shift(seed, step, row, max_shift) }
    }

    /// A random shift of at most `max_shift` pixels each way, for row `row` of step `step`.
    pub fn random_shift(seed: u64, step: u64, row: usize, max_shift: usize) -> Self {
        let key = Key::new(seed, step);
        let span = 2 * max_shift + 1;
        let draw = |axis| key.below(Stream::Augment, row as u32, axis, span) as isize - max_shift as isize;
        Self { flip: false, shift: [draw(0), draw(1)] }
    }
}

impl ImageStore {
    /// Number of pictures.
    pub fn len(&self) -> usize {
        self.pixels.len() / (self.side * self.side * 3)
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.pixels.is_empty()
    }

    /// Names of the samples `indices`.
    pub fn names(&self, indices: &[usize]) -> Vec<String> {
        indices.iter().map(|&index| self.keys[index].clone()).collect()
    }

    /// Pictures `indices` as `[B, side, side, 3]` in [-1, 1].
    pub fn batch(&self, indices: &[usize], augment: impl Fn(usize) -> Augment, device: &Device) -> Tensor<4> {
        let side = self.side;
        let mut values = Vec::with_capacity(indices.len() * side * side * 3);
        let edge = side as isize - 1;
        for (row, &index) in indices.iter().enumerate() {
            let Augment { flip, shift } = augment(row);
            let image = &self.pixels[index * side * side * 3..][..side * side * 3];
            for y in 0..side as isize {
                let source_y = (y - shift[1]).clamp(0, edge) as usize;
                for x in 0..side as isize {
                    let x = if flip { edge - x } else { x };
                    let source_x = (x - shift[0]).clamp(0, edge) as usize;
                    let pixel = &image[(source_y * side + source_x) * 3..][..3];
                    values.extend(pixel.iter().map(|&p| f32::from(p) / 127.5 - 1.0));
                }
            }
        }
        Tensor::from_data(TensorData::new(values, [indices.len(), side, side, 3]), device)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_epoch_reads_every_sample_once_in_another_order() {
        let steps: Vec<usize> = (0..6).flat_map(|step| sample_indices(3, step, 4, 12)).collect();
        let (first, second) = steps.split_at(12);
        let sorted = |part: &[usize]| {
            let mut part = part.to_vec();
            part.sort_unstable();
            part
        };
        assert_eq!(sorted(first), (0..12).collect::<Vec<_>>());
        assert_eq!(sorted(second), (0..12).collect::<Vec<_>>());
        assert_ne!(first, second);
        assert_eq!(sample_indices(3, 2, 4, 12), steps[8..12]);
    }

    #[test]
    fn pixels_are_scaled_flipped_and_shifted() {
        let store = ImageStore { pixels: vec![0, 0, 0, 255, 255, 255, 0, 0, 0, 255, 255, 255], side: 2, keys: vec!["a".into()] };
        let device = Device::flex();
        let plain = store.batch(&[0], |_| Augment::default(), &device).into_data().try_into_vec::<f32>().unwrap();
        assert_eq!(&plain[..6], &[-1.0, -1.0, -1.0, 1.0, 1.0, 1.0]);
        let flipped = store.batch(&[0], |_| Augment { flip: true, shift: [0, 0] }, &device);
        assert_eq!(&flipped.into_data().try_into_vec::<f32>().unwrap()[..6], &[1.0, 1.0, 1.0, -1.0, -1.0, -1.0]);
        let shifted = store.batch(&[0], |_| Augment { flip: false, shift: [1, 0] }, &device);
        assert_eq!(&shifted.into_data().try_into_vec::<f32>().unwrap()[..6], &[-1.0; 6]);
    }
}
