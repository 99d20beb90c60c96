//! A start for the rows of image codes when training from scratch.

use burn::module::Param;
use burn::tensor::{Tensor, TensorData};

use super::Unif2ace;
use crate::named::{MapNamed, map_named};

/// Gives every image code's rows of the embedding and the head a start that follows its bits: `row = sum_i ±b_i` with random vectors b_i, so
/// that codes which look alike start alike. For training from scratch; without it each of the 8,192 rows must be learned alone.
pub fn init_code_rows_from_bits(model: Unif2ace, seed: u64) -> Unif2ace {
    struct Rows {
        offset: usize,
        codes: usize,
        seed: u64,
    }
    impl MapNamed for Rows {
        fn parameter<const D: usize>(&mut self, path: &str, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            let stream = match path {
                "showo.model.embed_tokens.weight" => 0,
                "showo.lm_head.weight" => 1,
                _ => return param,
            };
            let (offset, codes, seed) = (self.offset, self.codes, self.seed);
            param.map(|tensor| code_rows(tensor, offset, codes, seed, stream))
        }
    }
    let config = model.config().clone();
    let offset = config.special_ids().image_offset as usize;
    map_named(model, &mut Rows { offset, codes: config.codebook_size, seed })
}

fn code_rows<const D: usize>(tensor: Tensor<D>, offset: usize, codes: usize, seed: u64, image: u64) -> Tensor<D> {
    use unif2ace_diffusion::rng::{Key, Stream};
    let shape = tensor.dims();
    let width = shape[D - 1];
    let device = tensor.device();
    let tracked = tensor.is_require_grad();
    let bits = codes.next_power_of_two().trailing_zeros() as usize;
    let key = Key::new(seed, image);
    let std = crate::nn::INIT_STD as f32 / (bits.max(1) as f32).sqrt();
    // Sum of uniforms: close enough to normal, and keyed.
    let normal = |bit: usize, column: usize| -> f32 {
        let sum: f32 = (0..4).map(|part| key.uniform(Stream::Init, bit as u32, (column * 4 + part) as u32)).sum();
        (sum - 2.0) * 3f32.sqrt() * std
    };
    let table: Vec<f32> =
        (0..bits).flat_map(|bit| (0..width).map(move |column| (bit, column))).map(|(bit, column)| normal(bit, column)).collect();
    let mut values: Vec<f32> = tensor.into_data().iter::<f32>().collect();
    for code in 0..codes {
        let row = &mut values[(offset + code) * width..][..width];
        // The random part that tells look-alikes apart stays, at a fifth.
        row.iter_mut().for_each(|value| *value *= 0.2);
        for bit in 0..bits {
            let sign = if code >> (bits - 1 - bit) & 1 == 1 { 1.0 } else { -1.0 };
            for (value, &direction) in row.iter_mut().zip(&table[bit * width..][..width]) {
                *value += sign * direction;
            }
        }
    }
    let tensor = Tensor::from_data(TensorData::new(values, shape), &device);
    if tracked { tensor.require_grad() } else { tensor }
}
