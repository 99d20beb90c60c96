//! An activation by itself is the one behind a linear layer, to the bit, and its gradient is that of its portable twin.
#![allow(clippy::unwrap_used)] // a test may end by it

use burn::tensor::{Device, Tensor, TensorData};
use unif2ace_kernels::cpu::{Level, force_level};
use unif2ace_ops::{Activation, activate, linear, portable};

fn numbers<const D: usize>(shape: [usize; D]) -> Tensor<D> {
    let values = (0..shape.iter().product()).map(|place: usize| ((place * 37 % 101) as f32 - 50.0) / 20.0).collect::<Vec<_>>();
    Tensor::from_data(TensorData::new(values, shape), &Device::flex().autodiff()).require_grad()
}

fn values<const D: usize>(x: Tensor<D>) -> Vec<f32> {
    x.into_data().iter::<f32>().collect()
}

#[test]
fn an_activation_by_itself_is_the_one_behind_a_linear_layer() {
    for level in Level::ALL {
        force_level(Some(level));
        for act in [Activation::None, Activation::GeluNew, Activation::GeluErf, Activation::QuickGelu, Activation::Silu] {
            let (x, weight, bias) = (numbers([2, 7, 33]), numbers([18, 33]) / 33.0, numbers([18]));
            let behind = linear(x.clone(), weight.clone(), Some(bias.clone()), act);
            let after = activate(linear(x.clone(), weight, Some(bias), Activation::None), act);
            assert_eq!(values(behind), values(after), "{act:?}");

            let run = |f: &dyn Fn(Tensor<3>, Activation) -> Tensor<3>| {
                let y = f(x.clone(), act);
                let gradients = (y.clone() * numbers(y.dims())).sum().backward();
                (values(y), values(x.grad(&gradients).unwrap()))
            };
            let (found, expected) = (run(&activate), run(&portable::activate));
            for (found, expected) in [(found.0, expected.0), (found.1, expected.1)] {
                assert!(found.iter().zip(&expected).all(|(found, expected)| (found - expected).abs() <= 1e-4), "{act:?}");
            }
        }
    }
    force_level(None);
}
