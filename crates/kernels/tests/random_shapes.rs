//! Matrix products of random sizes, in every format and at every instruction level, against their definition. Sizes fall on both sides of
//! the kernels' tiles, panels, groups and blocks.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test may end by them

use std::sync::{Mutex, PoisonError};

use proptest::prelude::*;
use unif2ace_kernels::activation::Activation;
use unif2ace_kernels::conv;
use unif2ace_kernels::cpu::{Level, force_level};
use unif2ace_kernels::gemm::{Matrix, PackedMatrix, Precision, Scratch, WeightFormat, gemm};

fn values(count: usize, seed: u32) -> Vec<f32> {
    (0..count as u32).map(|i| ((i ^ seed).wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 23) as f32 - 1.0).collect()
}

/// `a w^T + bias` in f64; `w` is `[n, k]`.
fn expected(a: &[f32], w: &[f32], bias: &[f32], [m, n, k]: [usize; 3]) -> Vec<f64> {
    let dot = |i: usize, j: usize| (0..k).map(|d| f64::from(a[i * k + d]) * f64::from(w[j * k + d])).sum::<f64>();
    (0..m * n).map(|place| dot(place / n, place % n) + f64::from(bias[place % n])).collect()
}

/// Held while the instruction level, which is the whole process', is changed.
static LEVEL: Mutex<()> = Mutex::new(());

/// Whether all of `ys` are the convolution, within `tolerance`.
fn follow_definition(
    ys: &[Vec<f32>],
    x: &[f32],
    weight: &[f32],
    bias: &[f32],
    shape: conv::Shape,
    tolerance: f64,
) -> Result<(), TestCaseError> {
    let conv::Shape { batch, height, width, channels, num_out, kernel: [kernel_height, kernel_width], stride, padding, upsample } =
        shape;
    let [out_height, out_width] = shape.output();
    let len = batch * out_height * out_width * num_out;
    prop_assert!(ys.iter().all(|y| y.len() == len));
    let double = usize::from(upsample);
    for index in 0..len {
        let (pixel, out) = (index / num_out, index % num_out);
        let (b, oy, ox) = (pixel / (out_height * out_width), pixel / out_width % out_height, pixel % out_width);
        let mut sum = f64::from(bias[out]);
        for (ky, kx) in (0..kernel_height * kernel_width).map(|tap| (tap / kernel_width, tap % kernel_width)) {
            let (iy, ix) = ((oy * stride + ky).wrapping_sub(padding[0]), (ox * stride + kx).wrapping_sub(padding[2]));
            if iy >= height << double || ix >= width << double {
                continue;
            }
            let place = ((b * height + (iy >> double)) * width + (ix >> double)) * channels;
            for channel in 0..channels {
                let value = weight[((out * channels + channel) * kernel_height + ky) * kernel_width + kx];
                sum += f64::from(value) * f64::from(x[place + channel]);
            }
        }
        for found in ys.iter().map(|y| f64::from(y[index])) {
            prop_assert!((found - sum).abs() < tolerance, "{:?} at {}: {} and {}", shape, index, found, sum);
        }
    }
    Ok(())
}

fn sizes() -> impl Strategy<Value = [usize; 3]> {
    let side = prop_oneof![1usize..5, 5usize..40, 40usize..150];
    let depth = prop_oneof![1usize..9, 500usize..530, 1000usize..1100, Just(2047), Just(2049), Just(4100)];
    (side.clone(), side, depth).prop_map(|(m, n, k)| [m, n, k])
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn products_of_any_size_follow_their_definition([m, n, k] in sizes(), seed in 0u32..1000) {
        let (a, w, bias) = (values(m * k, seed), values(n * k, seed + 1), values(n, seed + 2));
        let (left, right) = (Matrix::new(&a, m, k), Matrix::new(&w, n, k).t());
        let expected = expected(&a, &w, &bias, [m, n, k]);
        let root = (k as f64).sqrt();
        let _alone = LEVEL.lock().unwrap_or_else(PoisonError::into_inner);
        for level in Level::ALL {
            force_level(Some(level));
            // f32 loses a few last bits of sums that grow with the depth; rounding a factor to bfloat16 costs up to 2^-8 of a product, to 8 bits up to 1/254 of the largest; errors of many add up like
            // a random walk.
            for (format, tolerance) in [(WeightFormat::F32, 2e-6 * root), (WeightFormat::Bf16, 8e-3), (WeightFormat::Int8, 1.6e-2)] {
                let packed = PackedMatrix::new(right, format);
                let found = packed.forward(left, Some(&bias), Activation::None);
                prop_assert_eq!(found.len(), m * n);
                for (found, expected) in found.iter().zip(&expected) {
                    let error = (f64::from(*found) - expected).abs();
                    prop_assert!(error <= tolerance * root + 1e-6, "{:?} {:?} {}x{}x{}: {} off", level, format, m, n, k, error);
                }
                // The same numbers onto a matrix that holds the bias.
                let mut onto: Vec<f32> = (0..m * n).map(|place| bias[place % n]).collect();
                packed.product(left, &mut onto, true);
                prop_assert_eq!(&onto, &found);
            }
            for (precision, tolerance) in [(Precision::F32, 2e-6 * root), (Precision::Bf16, 8e-3)] {
                let mut plain = vec![f32::NAN; m * n];
                gemm(left, right, &mut plain, false, precision);
                let mut scratch = Scratch::default();
                scratch.pack(right, precision);
                let stride = n + 3;
                let mut wide = vec![7.0f32; m * stride];
                scratch.product(left, &mut wide, stride);
                for (place, expected) in expected.iter().enumerate() {
                    let (row, column) = (place / n, place % n);
                    let expected = expected - f64::from(bias[column]);
                    prop_assert!((f64::from(plain[place]) - expected).abs() <= tolerance * root + 1e-6);
                    prop_assert!((f64::from(wide[row * stride + column]) - expected).abs() <= tolerance * root + 1e-6);
                }
                // Nothing is written between the rows.
                prop_assert!(wide.chunks(stride).all(|row| row[n..].iter().all(|&value| value == 7.0)));
            }
        }
        force_level(None);
    }

    #[test]
    fn convolutions_of_any_size_follow_their_definition(
        [height, width, channels, num_out] in [1usize..12, 1usize..12, 1usize..20, 1usize..40],
        kernel in 1usize..4,
        stride in 1usize..3,
        upsample in any::<bool>(),
        seed in 0u32..1000,
    ) {
        let padding = [kernel / 2; 4];
        let shape = conv::Shape { batch: 2, height, width, channels, num_out, kernel: [kernel; 2], stride, padding, upsample };
        let x = values(2 * height * width * channels, seed);
        let weight = values(num_out * channels * kernel * kernel, seed + 1);
        let bias = values(num_out, seed + 2);
        let y = conv::forward(&x, &weight, &bias, shape, Precision::F32);
        follow_definition(&[y], &x, &weight, &bias, shape, 1e-4)?;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn convolutions_of_large_pictures_follow_their_definition(
        [height, width] in [26usize..44, 40usize..44],
        batch in 1usize..3,
        lanes in 1usize..3,
        num_out in 1usize..70,
        upsample in any::<bool>(),
        seed in 0u32..1000,
    ) {
        let channels = 16 * lanes;
        let shape = conv::Shape { batch, height, width, channels, num_out, kernel: [3; 2], stride: 1, padding: [1; 4], upsample };
        let (x, bias) = (values(batch * height * width * channels, seed), values(num_out, seed + 2));
        let weight = values(num_out * channels * 9, seed + 1);
        let _alone = LEVEL.lock().unwrap_or_else(PoisonError::into_inner);
        let ys = Level::ALL.map(|level| {
            force_level(Some(level));
            conv::forward(&x, &weight, &bias, shape, Precision::F32)
        });
        force_level(None);
        // Sums of up to 288 products of values up to 1.
        follow_definition(&ys, &x, &weight, &bias, shape, 1e-4)?;
    }
}
