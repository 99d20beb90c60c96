//! Forward and backward of every operation with a kernel, against its portable twin in stock burn, at every instruction level.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test may end by them
#![allow(non_snake_case)]

use std::sync::Mutex;

use burn::tensor::{Device, Distribution, Int, Tensor};
use unif2ace_kernels::cpu::{Level, force_level};
use unif2ace_ops::{Activation, Conv2dOptions, Precision, QkNorm, Rotary, portable, set_precision};

/// Level and precision are process-wide.
static ALONE: Mutex<()> = Mutex::new(());

/// Puts level and precision back, also when a test fails.
struct Restore;

impl Drop for Restore {
    fn drop(&mut self) {
        force_level(None);
        set_precision(Precision::F32);
    }
}

/// What the two precisions may differ by from f32, relative to the largest value: bf16 rounds factors to 8 bits, 2^-8 a product, less over
/// sums.
const PRECISIONS: [(Precision, f32); 2] = [(Precision::F32, 1e-4), (Precision::Bf16, 1.5e-2)];

const SEED: u64 = 2;

fn at_every_level(check: impl Fn()) {
    let _alone = ALONE.lock();
    let _restore = Restore;
    for level in Level::ALL {
        force_level(Some(level));
        // The same draws each time: what rounding to bf16 costs depends on them, and some draws come near the bound.
        Device::flex().seed(SEED);
        check();
    }
}

/// `check` gets a tolerance.
fn at_every_level_and_precision(check: impl Fn(f32)) {
    for (precision, tolerance) in PRECISIONS {
        at_every_level(|| {
            set_precision(precision);
            check(tolerance);
        });
    }
}

fn random<const D: usize>(shape: [usize; D]) -> Tensor<D> {
    Tensor::random(shape, Distribution::Normal(0.0, 1.0), &Device::flex().autodiff()).require_grad()
}

fn values<const D: usize>(x: &Tensor<D>) -> Vec<f32> {
    x.clone().into_data().iter::<f32>().collect()
}

fn assert_near(found: &[f32], expected: &[f32], tolerance: f32, what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let scale = expected.iter().fold(1.0f32, |scale, v| scale.max(v.abs()));
    for (f, e) in found.iter().zip(expected) {
        assert!((f - e).abs() <= tolerance * scale, "{what}: {f} vs {e}");
    }
}

/// Compares value and gradients of two functions of the same inputs, under a random weighting of the output.
fn compare<const N: usize, const A: usize, const B: usize>(
    inputs: [Tensor<A>; N],
    found: impl Fn([Tensor<A>; N]) -> Tensor<B>,
    expected: impl Fn([Tensor<A>; N]) -> Tensor<B>,
    tolerance: f32,
    what: &str,
) {
    let weighting = random(found(inputs.clone()).dims()).detach();
    let run = |f: &dyn Fn([Tensor<A>; N]) -> Tensor<B>| {
        let y = f(inputs.clone());
        let grads = (y.clone() * weighting.clone()).sum().backward();
        let gradients: Vec<Option<Vec<f32>>> = inputs.iter().map(|x| Some(values(&x.grad(&grads)?))).collect();
        (values(&y), gradients)
    };
    let (y, dy) = run(&found);
    let (y_expected, dy_expected) = run(&expected);
    assert_near(&y, &y_expected, tolerance, what);
    for (index, (found, expected)) in dy.iter().zip(&dy_expected).enumerate() {
        let (Some(found), Some(expected)) = (found, expected) else {
            panic!("{what}: input {index} lost its gradient");
        };
        assert_near(found, expected, tolerance, &format!("{what}, gradient {index}"));
    }
}

#[test]
fn linear_with_every_activation() {
    at_every_level_and_precision(|tolerance| {
        for act in [Activation::None, Activation::GeluNew, Activation::GeluErf, Activation::QuickGelu, Activation::Silu] {
            for (rows, num_in, num_out) in [(1, 5, 3), (7, 33, 18), (70, 64, 97), (200, 8, 150)] {
                // Products of size one, so that rounding moves no activation far.
                let weight = (random([num_out, num_in]) / (num_in as f32).sqrt()).detach().require_grad();
                let inputs = [random([rows, num_in]), weight, random([1, num_out])];
                let call = |f: &dyn Fn(Tensor<2>, Tensor<2>, Option<Tensor<1>>, Activation) -> Tensor<2>,
                            [x, w, b]: [Tensor<2>; 3]| { f(x, w, Some(b.reshape([num_out])), act) };
                compare(
                    inputs,
                    |i| call(&unif2ace_ops::linear, i),
                    |i| call(&portable::linear, i),
                    tolerance,
                    &format!("linear {act:?} {rows}x{num_in}x{num_out}"),
                );
            }
        }
    });
}

#[test]
fn portable_products_in_bf16_are_near_those_in_f32() {
    // The result is rounded too, and each factor's gradient.
    const TOLERANCE: f32 = 2e-2;
    let _alone = ALONE.lock();
    Device::flex().seed(SEED);
    let act = Activation::GeluNew;
    let weight = (random([97, 64]) / 8.0).detach().require_grad();
    let linear = |precision| move |[x, w]: [Tensor<2>; 2]| portable::linear_in(precision, x, w, None, act);
    compare([random([70, 64]), weight], linear(Precision::Bf16), linear(Precision::F32), TOLERANCE, "linear");
    let attention = |precision| move |[q, k, v]: [Tensor<3>; 3]| portable::attention_in(precision, q, k, v, 4, None, None, None);
    let inputs = [random([2, 9, 32]), random([2, 20, 32]), random([2, 20, 32])];
    compare(inputs.clone(), attention(Precision::Bf16), attention(Precision::F32), TOLERANCE, "attention");
    let [rounded, exact] = [Precision::Bf16, Precision::F32].map(|precision| values(&attention(precision)(inputs.clone())));
    assert_ne!(rounded, exact, "nothing is rounded: the test is blind");
}

#[test]
fn layer_norm_rows() {
    at_every_level(|| {
        for (rows, width) in [(3, 5), (130, 64), (39, 100), (9, 200)] {
            compare(
                [random([rows, width]), random([1, width]), random([1, width])],
                |[x, w, b]| unif2ace_ops::layer_norm(x, w.reshape([width]), b.reshape([width]), 1e-5),
                |[x, w, b]| portable::layer_norm(x, w.reshape([width]), b.reshape([width]), 1e-5),
                1e-4,
                &format!("layer norm {rows}x{width}"),
            );
        }
    });
}

#[test]
fn sums_and_parts_of_rows() {
    at_every_level(|| {
        for (dims, start, num) in [([1, 5, 3], 2, 2), ([3, 70, 200], 0, 64), ([2, 9, 33], 4, 5), ([2, 6, 8], 0, 6)] {
            let what = format!("{dims:?}, {num} from {start}");
            compare(
                [random(dims)],
                |[x]| unif2ace_ops::part_of(x, start, num),
                |[x]| portable::part_of(x, start, num),
                0.0,
                &format!("part of {what}"),
            );
            // The whole row's values, of which a part is added to itself and to another.
            let twice = |part: fn(Tensor<3>, usize, usize) -> Tensor<3>, add: fn(Tensor<3>, Tensor<3>, usize) -> Tensor<3>| {
                move |[x, y]: [Tensor<3>; 2]| add(x.clone(), part(y, start, num) + part(x, start, num), start)
            };
            compare(
                [random(dims), random(dims)],
                twice(unif2ace_ops::part_of, unif2ace_ops::add_to_part),
                twice(portable::part_of, portable::add_to_part),
                0.0,
                &format!("added to a part of {what}"),
            );
            for four in [true, false] {
                let sum = |f: fn(Tensor<3>, Tensor<3>, Tensor<3>, Option<Tensor<3>>) -> Tensor<3>| {
                    move |[a, b, c, d]: [Tensor<3>; 4]| {
                        if four { f(a, b, c, Some(d)) } else { f(a, b, c.clone(), None) + d * c }
                    }
                };
                let inputs = [random(dims), random(dims), random(dims), random(dims)];
                compare(inputs, sum(unif2ace_ops::sum_of), sum(portable::sum_of), 0.0, &format!("sum of {what}"));
            }
        }
    });
}

#[test]
fn attention_with_norm_rotation_and_mask() {
    at_every_level_and_precision(|tolerance| {
        for (batch, length, heads, head_dim, masked) in
            [(2, 7, 2, 8, true), (3, 33, 4, 16, false), (1, 40, 1, 12, true), (2, 150, 4, 64, true)]
        {
            let width = heads * head_dim;
            let device = Device::flex();
            let dims = head_dim / 2;
            let angles = Tensor::<3>::random([1, length, dims / 2], Distribution::Uniform(0.0, 6.0), &device).repeat_dim(2, 2);
            let rotary = Rotary { cos_BLR: angles.clone().cos(), sin_BLR: angles.sin() };
            let hidden = Tensor::<3>::random([batch, length, length], Distribution::Uniform(0.0, 1.0), &device).lower_elem(0.3);
            let mask = Tensor::zeros([batch, length, length], &device).mask_fill(hidden, -1e30);
            let mask = masked.then_some(mask);
            let norm = QkNorm {
                q_weight: random([head_dim]),
                q_bias: random([head_dim]),
                k_weight: random([head_dim]),
                k_bias: random([head_dim]),
                eps: 1e-5,
            };
            let shape = [batch, length, width];
            compare(
                [random(shape), random(shape), random(shape)],
                |[q, k, v]| unif2ace_ops::attention(q, k, v, heads, Some(norm.clone()), Some(rotary.clone()), mask.clone()),
                |[q, k, v]| portable::attention(q, k, v, heads, Some(norm.clone()), Some(rotary.clone()), mask.clone()),
                // Backward goes through four rounded products in a row.
                if tolerance > 1e-3 { 4.0 * tolerance } else { tolerance },
                &format!("attention {batch}x{length}x{heads}x{head_dim}"),
            );
        }
    });
}

#[test]
fn cross_entropy_ignores_negative_targets() {
    at_every_level(|| {
        for (rows, vocab) in [(13, 301), (90, 400)] {
            let device = Device::flex();
            let targets: Vec<i64> = (0..rows as i64).map(|r| if r % 4 == 3 { -100 } else { r * 23 % vocab as i64 }).collect();
            let targets = Tensor::<1, Int>::from_data(targets.as_slice(), &device);
            compare(
                [random([rows, vocab])],
                |[x]| unif2ace_ops::cross_entropy(x, targets.clone()),
                |[x]| portable::cross_entropy(x, targets.clone()),
                1e-5,
                "cross-entropy",
            );
        }
    });
}

#[test]
fn experts_on_their_rows_only() {
    at_every_level_and_precision(|tolerance| {
        // Expert 5 gets no row.
        let (rows, width, experts, inner) = (29, 16, 6, 7);
        let device = Device::flex();
        let index: Vec<i64> = (0..rows as i64).flat_map(|r| [r % 3, 3 + r % 2]).collect();
        let index = Tensor::<1, Int>::from_data(index.as_slice(), &device).reshape([rows, 2]);
        let call = |dense: bool, [x, g, w1, b1, w2, b2]: [Tensor<2>; 6]| {
            let (w1, w2) = (w1.reshape([experts, inner, width]), w2.reshape([experts, width, inner]));
            let f = if dense { portable::moe_mlp } else { unif2ace_ops::moe_mlp };
            f(x, index.clone(), g, w1, b1, w2, b2, Activation::GeluNew)
        };
        let inputs = [
            random([rows, width]),
            random([rows, 2]),
            random([experts * inner, width]),
            random([experts, inner]),
            random([experts * width, inner]),
            random([experts, width]),
        ];
        compare(inputs, |i| call(false, i), |i| call(true, i), tolerance, "experts");
    });
}

#[test]
fn convolution_forms() {
    at_every_level_and_precision(|tolerance| {
        let plain = Conv2dOptions { stride: 1, padding: [1; 4], upsample: false };
        let (small, large) = ([2, 6, 5, 3], [1, 33, 32, 16]);
        for (dims, options) in [
            (small, plain),
            (small, Conv2dOptions { stride: 2, padding: [0, 1, 0, 1], ..plain }),
            (small, Conv2dOptions { upsample: true, ..plain }),
            (small, Conv2dOptions { padding: [0, 2, 1, 0], ..plain }),
            // Large enough for fewer products.
            (large, plain),
        ] {
            compare(
                [random(dims), random([4, dims[3], 3, 3])],
                |[x, w]| unif2ace_ops::conv2d_nhwc(x, w, None, options),
                |[x, w]| portable::conv2d_nhwc(x, w, None, options),
                tolerance,
                &format!("convolution of {dims:?}, {options:?}"),
            );
        }
    });
}

#[test]
fn group_norm_with_and_without_silu() {
    at_every_level(|| {
        for (shape, groups, silu) in [([2, 3, 5, 8], 4, true), ([1, 20, 17, 6], 2, false), ([3, 1, 1, 4], 1, true)] {
            let channels = shape[3];
            let one = [1, 1, 1, channels];
            compare(
                [random(shape) * 2.0 + 1.5, random(one), random(one)].map(|x| x.detach().require_grad()),
                |[x, w, b]| unif2ace_ops::group_norm_nhwc(x, w.reshape([channels]), b.reshape([channels]), groups, 1e-6, silu),
                |[x, w, b]| portable::group_norm_nhwc(x, w.reshape([channels]), b.reshape([channels]), groups, 1e-6, silu),
                2e-4,
                &format!("group norm {shape:?} in {groups}"),
            );
        }
    });
}

#[test]
fn a_frozen_weight_leaves_the_gradient_of_the_picture() {
    let _alone = ALONE.lock();
    let frozen = |shape| Tensor::<4>::random(shape, Distribution::Normal(0.0, 1.0), &Device::flex());
    let (x, w) = (random([2, 4, 4, 3]), frozen([5, 3, 3, 3]));
    let options = Conv2dOptions { stride: 1, padding: [1; 4], upsample: false };
    let y = unif2ace_ops::conv2d_nhwc(x.clone(), w.clone(), None, options);
    let expected = portable::conv2d_nhwc(x.clone(), Tensor::from_data(w.into_data(), &Device::flex().autodiff()), None, options);
    let gradient = |y: Tensor<4>| values(&x.grad(&y.sum().backward()).unwrap());
    assert_near(&gradient(y), &gradient(expected), 1e-4, "gradient of x with frozen weights");
}
