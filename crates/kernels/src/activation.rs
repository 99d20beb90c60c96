//! Activations and their derivatives, in place over slices.

use crate::simd::{exp, multiversion, tanh};

/// Which activation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// Identity.
    None,
    /// The tanh form of GELU.
    GeluNew,
    /// GELU with the error function.
    GeluErf,
    /// `x sigmoid(1.702 x)`.
    QuickGelu,
    /// `x sigmoid(x)`.
    Silu,
}

const ROOT_2_OVER_PI: f32 = 0.797_884_6;
const CUBIC: f32 = 0.044_715;

#[inline(always)]
fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// Error function within 1.5e-7 (Abramowitz and Stegun 7.1.26).
#[inline(always)]
fn erf(x: f32) -> f32 {
    let t = 1.0 / (1.0 + 0.327_591_1 * x.abs());
    let p = ((((1.061_405_4 * t - 1.453_152) * t + 1.421_413_7) * t - 0.284_496_74) * t + 0.254_829_6) * t;
    (1.0 - p * exp(-x * x)).copysign(x)
}

multiversion! {
    /// `x = act(x)`.
    pub fn forward(x: &mut [f32], act: Activation) {
        match act {
            Activation::None => {}
            Activation::GeluNew => x.iter_mut().for_each(|x| {
                let u = ROOT_2_OVER_PI * (*x + CUBIC * *x * *x * *x);
                *x = 0.5 * *x * (1.0 + tanh(u));
            }),
            Activation::GeluErf => x.iter_mut().for_each(|x| *x = 0.5 * *x * (1.0 + erf(*x * std::f32::consts::FRAC_1_SQRT_2))),
            Activation::QuickGelu => x.iter_mut().for_each(|x| *x *= sigmoid(1.702 * *x)),
            Activation::Silu => x.iter_mut().for_each(|x| *x *= sigmoid(*x)),
        }
    }
}

multiversion! {
    /// `gradient *= act'(x)`, x being the input of the activation.
    pub fn backward(gradient: &mut [f32], x: &[f32], act: Activation) {
        match act {
            Activation::None => {}
            Activation::GeluNew => gradient.iter_mut().zip(x).for_each(|(g, &x)| {
                let t = tanh(ROOT_2_OVER_PI * (x + CUBIC * x * x * x));
                let slope = ROOT_2_OVER_PI * (1.0 + 3.0 * CUBIC * x * x);
                *g *= 0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * slope;
            }),
            Activation::GeluErf => gradient.iter_mut().zip(x).for_each(|(g, &x)| {
                let density = exp(-0.5 * x * x) * 0.398_942_3;
                *g *= 0.5 * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2)) + x * density;
            }),
            Activation::QuickGelu => gradient.iter_mut().zip(x).for_each(|(g, &x)| {
                let s = sigmoid(1.702 * x);
                *g *= s + 1.702 * x * s * (1.0 - s);
            }),
            Activation::Silu => gradient.iter_mut().zip(x).for_each(|(g, &x)| {
                let s = sigmoid(x);
                *g *= s + x * s * (1.0 - s);
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn derivatives_are_finite_differences_of_the_values() {
        for act in [Activation::None, Activation::GeluNew, Activation::GeluErf, Activation::QuickGelu, Activation::Silu] {
            let x: Vec<f32> = (-40..40).map(|i| i as f32 * 0.1).collect();
            let mut gradient = vec![1.0; x.len()];
            backward(&mut gradient, &x, act);
            let shifted = |delta: f32| {
                let mut x: Vec<f32> = x.iter().map(|x| x + delta).collect();
                forward(&mut x, act);
                x
            };
            let (up, down) = (shifted(5e-3), shifted(-5e-3));
            for ((g, u), d) in gradient.iter().zip(&up).zip(&down) {
                assert!((g - (u - d) / 1e-2).abs() < 1e-3, "{act:?}: {g} vs {}", (u - d) / 1e-2);
            }
        }
    }
}
