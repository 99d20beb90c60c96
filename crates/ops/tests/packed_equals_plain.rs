//! Packed layers against plain ones in stock burn, values and gradients, at every instruction level.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test may end by them

use std::sync::{Mutex, MutexGuard, PoisonError};

use burn::tensor::{Device, Distribution, Int, Tensor, TensorData};
use unif2ace_kernels::cpu::{Level, force_level};
use unif2ace_ops::{Activation, WeightFormat, pack_experts, pack_linear, packed_linear, packed_moe_mlp, portable};

/// The instruction level is the process's: a test that changes it, or compares bits, runs alone.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn values<const D: usize>(x: Tensor<D>) -> Vec<f32> {
    x.into_data().iter::<f32>().collect()
}

fn assert_near(found: &[f32], expected: &[f32], tolerance: f32, what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let scale = expected.iter().fold(1.0f32, |scale, v| scale.max(v.abs()));
    for (f, e) in found.iter().zip(expected) {
        assert!((f - e).abs() <= tolerance * scale, "{what}: {f} vs {e}");
    }
}

#[test]
fn values_and_the_gradient_of_x() {
    let _alone = alone();
    let device = Device::flex().autodiff();
    let random = |shape: [usize; 2]| Tensor::<2>::random(shape, Distribution::Normal(0.0, 1.0), &device);
    for level in Level::ALL {
        force_level(Some(level));
        for (rows, num_in, num_out, act, biased) in
            [(1, 33, 70, Activation::GeluNew, true), (6, 5, 3, Activation::Silu, false), (40, 600, 97, Activation::None, true)]
        {
            let (x, weight) = (random([rows, num_in]).require_grad(), random([num_out, num_in]));
            let bias = biased.then(|| random([1, num_out]).reshape([num_out]));
            let weighting = random([rows, num_out]);
            let run = |y: Tensor<2>| {
                let grads = (y.clone() * weighting.clone()).sum().backward();
                (values(y), values(x.grad(&grads).unwrap()))
            };
            let (y, dx) = run(portable::linear(x.clone(), weight.clone(), bias.clone(), act));
            // Rounding both factors to 8 bits costs up to 2^-8 a product; int8's steps are 1/127 of the largest value, and the error before
            // the activation shows again in its derivative. That int8 is exact but for its rounding is a test of the kernels.
            for (format, tolerance) in [(WeightFormat::F32, 1e-4), (WeightFormat::Bf16, 2e-2), (WeightFormat::Int8, 0.1)] {
                let layer = pack_linear(weight.clone(), bias.clone(), format);
                let (found, gradient) = run(packed_linear(x.clone(), &layer, act));
                let what = format!("{level:?} {format:?} {rows}x{num_in}x{num_out}");
                assert_near(&found, &y, tolerance, &what);
                assert_near(&gradient, &dx, tolerance, &what);
            }
        }
    }
    force_level(None);
}

#[test]
fn layers_keep_their_values_and_batch_axes() {
    let _alone = alone();
    let device = Device::flex();
    let weight = Tensor::<2>::from_data([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], &device);
    let layer = pack_linear(weight.clone(), None, WeightFormat::Bf16);
    drop(weight);
    let x = Tensor::<3>::from_data([[[1.0, 0.0]], [[0.0, 1.0]]], &device);
    let y = packed_linear(x, &layer.clone(), Activation::None);
    assert_eq!(y.dims(), [2, 1, 3]);
    assert_eq!(values(y), [1.0, 3.0, 5.0, 2.0, 4.0, 6.0]);
}

#[test]
fn experts_and_the_gradients_of_rows_and_gates() {
    let _alone = alone();
    let device = Device::flex().autodiff();
    let [experts, inner, width, chosen] = [5, 33, 70, 2];
    let random = |shape: [usize; 3]| Tensor::<3>::random(shape, Distribution::Normal(0.0, 0.3), &device);
    let (w1, w2) = (random([experts, inner, width]), random([experts, width, inner]));
    let (b1, b2) = (random([1, experts, inner]).squeeze_dim(0), random([1, experts, width]).squeeze_dim(0));
    for rows in [1, 3, 29] {
        let x = random([1, rows, width]).squeeze_dim::<2>(0).require_grad();
        let gates = random([1, rows, chosen]).squeeze_dim::<2>(0).require_grad();
        let weighting = random([1, rows, width]).squeeze_dim::<2>(0);
        let index: Vec<i64> = (0..rows * chosen).map(|slot| (slot * 7 % 4) as i64).collect();
        let index = Tensor::<2, Int>::from_data(TensorData::new(index, [rows, chosen]), &Device::flex());
        let run = |y: Tensor<2>| {
            let grads = (y.clone() * weighting.clone()).sum().backward();
            (values(y), values(x.grad(&grads).unwrap()), values(gates.grad(&grads).unwrap()))
        };
        let act = Activation::GeluNew;
        let [w1, w2] = [&w1, &w2].map(Tensor::clone);
        let (b1, b2): (Tensor<2>, Tensor<2>) = (b1.clone(), b2.clone());
        let (x, gates) = (&x, &gates);
        let plain =
            portable::moe_mlp(x.clone(), index.clone(), gates.clone(), w1.clone(), b1.clone(), w2.clone(), b2.clone(), act);
        let (y, dx, d_gates) = run(plain);
        for (format, tolerance) in [(WeightFormat::F32, 1e-4), (WeightFormat::Bf16, 2e-2), (WeightFormat::Int8, 0.1)] {
            let bank = pack_experts(w1.clone(), b1.clone(), w2.clone(), b2.clone(), format);
            let (found, found_dx, found_gates) = run(packed_moe_mlp(x.clone(), index.clone(), gates.clone(), &bank, act));
            let what = format!("{format:?}, {rows} rows");
            let without_graph = packed_moe_mlp(x.clone().inner(), index.clone(), gates.clone().inner(), &bank, act);
            assert_eq!(values(without_graph), found, "{what}, for inference");
            assert_near(&found, &y, tolerance, &what);
            assert_near(&found_dx, &dx, tolerance, &what);
            assert_near(&found_gates, &d_gates, tolerance, &what);
        }
    }
}
