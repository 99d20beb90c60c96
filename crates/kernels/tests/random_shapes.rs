//! Matrix products, convolutions, attention and experts of random sizes, in every format and at every instruction level, against their
//! definitions. Sizes fall on both sides of the kernels' tiles, panels, groups and blocks.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test may end by them

use std::sync::{Mutex, PoisonError};

use half::bf16;
use proptest::prelude::*;
use unif2ace_kernels::activation::Activation;
use unif2ace_kernels::attention::{self, KeysValues, Mask, Past};
use unif2ace_kernels::conv;
use unif2ace_kernels::cpu::{Level, force_level};
use unif2ace_kernels::gemm::{Matrix, PackedMatrix, Precision, Scratch, WeightFormat, gemm};
use unif2ace_kernels::moe::{self, PackedExperts, Weights};

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

#[test]
fn columns_too_small_to_be_scaled_are_zeros_in_8_bits() {
    let (m, n, k) = (20, 40, 70);
    let tiny: Vec<f32> = values(n * k, 1).iter().map(|value| value * 1e-39).collect();
    let _alone = LEVEL.lock().unwrap_or_else(PoisonError::into_inner);
    for level in Level::ALL {
        force_level(Some(level));
        let packed = PackedMatrix::new(Matrix::new(&tiny, n, k).t(), WeightFormat::Int8);
        let found = packed.forward(Matrix::new(&values(m * k, 2), m, k), None, Activation::None);
        assert!(found.iter().all(|&value| value == 0.0), "{level:?}");
    }
    force_level(None);
}

/// Attention of one query and head over all keys, in f64.
fn attend(q: &[f32], keys: &[&[f32]], values: &[&[f32]], mask: &[f32]) -> Vec<f64> {
    let dot = |k: &[f32]| q.iter().zip(k).map(|(q, k)| f64::from(*q) * f64::from(*k)).sum::<f64>();
    let scores: Vec<f64> = keys.iter().zip(mask).map(|(k, mask)| dot(k) / (q.len() as f64).sqrt() + f64::from(*mask)).collect();
    let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> = scores.iter().map(|score| (score - most).exp()).collect();
    let sum: f64 = weights.iter().sum();
    let mix = |d: usize| weights.iter().zip(values).map(|(weight, v)| weight * f64::from(v[d])).sum::<f64>() / sum;
    (0..q.len()).map(mix).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn attention_of_any_size_follows_its_definition(
        queries in prop_oneof![1usize..4, 40usize..60],
        [before, keys] in [0usize..40, 1usize..60],
        [batch, heads, head_dim] in [1usize..3, 1usize..4, 1usize..70],
        [room, past_room] in [0usize..3, 0usize..3],
        [one_past, one_mask] in [any::<bool>(), any::<bool>()],
        seed in 0u32..1000,
    ) {
        let width = heads * head_dim;
        let exact = |count, seed| -> Vec<f32> { values(count, seed).iter().map(|&x| bf16::from_f32(x).to_f32()).collect() };
        let narrow = |x: &[f32]| x.iter().map(|&x| bf16::from_f32(x)).collect::<Vec<_>>();
        let (past_rows, mask_rows) = (if one_past { 1 } else { batch }, if one_mask { 1 } else { batch });
        let q = exact(batch * queries * width, seed);
        let new = [1, 2].map(|n| exact(batch * (keys + room) * width, seed + n));
        let old = [3, 4].map(|n| exact(past_rows * (before + past_room) * width, seed + n));
        // The last key is always seen: a softmax over nothing is not defined.
        let mask: Vec<f32> = values(mask_rows * queries * (before + keys), seed + 5)
            .iter()
            .enumerate()
            .map(|(place, &x)| if x < -0.2 && (place + 1) % (before + keys) != 0 { -1e9 } else { 0.0 })
            .collect();
        let part = |x: &'_ [f32], row: usize, head: usize| -> Vec<f32> { x[row * width + head * head_dim..][..head_dim].to_vec() };
        let mut expected = Vec::new();
        for (b, query) in (0..batch * queries).map(|row| (row / queries, row % queries)) {
            let mask = &mask[((b % mask_rows) * queries + query) * (before + keys)..][..before + keys];
            for head in 0..heads {
                let [k, v] = [0, 1].map(|which| -> Vec<Vec<f32>> {
                    let past = (0..before).map(|key| part(&old[which], (b % past_rows) * (before + past_room) + key, head));
                    past.chain((0..keys).map(|key| part(&new[which], b * (keys + room) + key, head))).collect()
                });
                let k: Vec<&[f32]> = k.iter().map(Vec::as_slice).collect();
                let v: Vec<&[f32]> = v.iter().map(Vec::as_slice).collect();
                expected.extend(attend(&part(&q, b * queries + query, head), &k, &v, mask));
            }
        }
        let shape = attention::Shape { batch, queries, keys, key_room: keys + room, heads, head_dim };
        let narrow_new = [narrow(&new[0]), narrow(&new[1])];
        let narrow_old = [narrow(&old[0]), narrow(&old[1])];
        let forms = [
            (KeysValues::F32([&new[0], &new[1]]), KeysValues::F32([&old[0], &old[1]])),
            (KeysValues::Bf16([&narrow_new[0], &narrow_new[1]]), KeysValues::Bf16([&narrow_old[0], &narrow_old[1]])),
        ];
        let _alone = LEVEL.lock().unwrap_or_else(PoisonError::into_inner);
        for level in Level::ALL {
            force_level(Some(level));
            // In bf16 scores and weights are rounded too.
            for (precision, tolerance) in [(Precision::F32, 1e-5), (Precision::Bf16, 1.5e-2)] {
                for (new, keys_values) in forms {
                    let past = Past { keys_values, keys: before, room: before + past_room, rows: past_rows };
                    let past = (before > 0).then_some(past);
                    let mask = Mask { values: &mask, rows: mask_rows };
                    let found = attention::infer(&q, new, past, Some(mask), shape, precision);
                    prop_assert_eq!(found.len(), expected.len());
                    for (found, expected) in found.iter().zip(&expected) {
                        let error = (f64::from(*found) - expected).abs();
                        prop_assert!(error < tolerance, "{:?} {:?} {:?}: {} and {}", level, precision, shape, found, expected);
                    }
                }
            }
        }
        force_level(None);
    }

    #[test]
    fn experts_of_any_size_follow_their_definition(
        rows in prop_oneof![1usize..4, 10usize..70],
        [width, inner] in [1usize..80, 1usize..80],
        experts in 1usize..9,
        chosen in 1usize..5,
        seed in 0u32..1000,
    ) {
        let chosen = chosen.min(experts);
        let shape = moe::Shape { width, inner, experts, chosen };
        let (x, gates) = (values(rows * width, seed), values(rows * chosen, seed + 1));
        let (w1, b1) = (values(experts * inner * width, seed + 2), values(experts * inner, seed + 3));
        let (w2, b2) = (values(experts * width * inner, seed + 4), values(experts * width, seed + 5));
        let index: Vec<i64> = (0..rows * chosen).map(|slot| ((slot / chosen * 5 + slot % chosen + seed as usize) % experts) as i64).collect();
        let mut expected = vec![0.0f64; rows * width];
        for (slot, (&expert, gate)) in index.iter().zip(&gates).enumerate() {
            let (row, e) = (slot / chosen, expert as usize);
            let layer = |x: &[f64], w: &[f32], b: &[f32]| -> Vec<f64> {
                let dot = |w: &[f32]| w.iter().zip(x).map(|(w, x)| f64::from(*w) * x).sum::<f64>();
                w.chunks_exact(x.len()).zip(b).map(|(w, b)| dot(w) + f64::from(*b)).collect()
            };
            let x: Vec<f64> = x[row * width..][..width].iter().map(|&x| f64::from(x)).collect();
            let hidden = layer(&x, &w1[e * inner * width..][..inner * width], &b1[e * inner..][..inner]);
            let y = layer(&hidden, &w2[e * width * inner..][..width * inner], &b2[e * width..][..width]);
            expected[row * width..].iter_mut().zip(y).for_each(|(sum, y)| *sum += f64::from(*gate) * y);
        }
        let weights = Weights { w1: &w1, b1: &b1, w2: &w2, b2: &b2 };
        let _alone = LEVEL.lock().unwrap_or_else(PoisonError::into_inner);
        for level in Level::ALL {
            force_level(Some(level));
            // Values grow with the root of both widths; each rounding is relative to them.
            let size = ((width * inner) as f64).sqrt() * chosen as f64;
            for (format, tolerance) in [(WeightFormat::F32, 1e-6), (WeightFormat::Bf16, 1e-2), (WeightFormat::Int8, 3e-2)] {
                let bank = PackedExperts::new(weights, shape, format);
                let inferred = moe::infer_packed(&x, &index, &gates, &bank, Activation::None, shape);
                let (kept, _) = moe::forward_packed(&x, &index, &gates, &bank, Activation::None, shape);
                for (found, what) in [(inferred, "infer"), (kept, "forward")] {
                    prop_assert_eq!(found.len(), expected.len());
                    for (found, expected) in found.iter().zip(&expected) {
                        let error = (f64::from(*found) - expected).abs();
                        prop_assert!(error < tolerance * (size + 4.0), "{:?} {:?} {} {:?}: {} and {}", level, format, what, shape, found, expected);
                    }
                }
            }
        }
        force_level(None);
    }
}
