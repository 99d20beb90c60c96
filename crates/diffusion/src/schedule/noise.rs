//! The noise schedules of D3Diff (arXiv 2503.08120): masked probability `m(t)`, total noise `σ̄(t)` and its rate `σ̄'(t)`, in log space.

use std::f64::consts::{FRAC_PI_2, FRAC_PI_4, LN_2};
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::mask::{Parsed, parse};
use crate::error::DiffusionError;

/// Times are kept this far from 0 and 1, where logarithms, the ratio `r` or the rate are infinite.
pub const TIME_MARGIN: f64 = 1e-5;

/// SEDD's log-linear schedule leaves this fraction unmasked at `t = 1`.
const LOG_LINEAR_REST: f64 = 1e-3;

/// How the masked probability grows with the diffusion time: `m(0) = 0`, `m(1) = 1` (log-linear: 0.999).
///
/// A code is masked at time `t` with probability `m(t) = 1 - exp(-σ̄(t))`. Written as text in configurations: `cosine`, `linear`,
/// `log-linear`, `pow2`, `sigmoid`, `sigmoid_start-6_end2_tau0.7`.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum NoiseSchedule {
    /// `m = sin(pi t / 2)`: Show-o's mask schedule, read backwards.
    #[default]
    Cosine,
    /// `m = (1 - 0.001) t`: SEDD's log-linear noise `σ̄ = -ln(1 - (1 - 0.001) t)`.
    LogLinear,
    /// `m = t`.
    Linear,
    /// `m = 1 - (1 - t)^exponent`.
    Pow {
        /// The exponent, positive.
        exponent: f64,
    },
    /// The logistic mask schedule, read backwards.
    Sigmoid {
        /// Left end of the logistic's argument.
        start: f64,
        /// Right end of the logistic's argument.
        end: f64,
        /// Its temperature.
        tau: f64,
    },
}

/// The noise at one time; logarithms are natural and finite.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NoiseLevel {
    /// `ln m`, the logarithm of the masked probability.
    pub log_masked: f64,
    /// `ln (1 - m) = -σ̄`.
    pub log_kept: f64,
    /// `ln (dm/dt)`.
    pub log_rate: f64,
}

impl NoiseLevel {
    /// `m`, the probability that a code is masked.
    pub fn masked(&self) -> f64 {
        self.log_masked.exp()
    }

    /// `σ̄ = -ln(1 - m)`, the total noise.
    pub fn sigma_bar(&self) -> f64 {
        -self.log_kept
    }

    /// `σ̄' = m' / (1 - m)`, the noise rate.
    pub fn sigma_bar_rate(&self) -> f64 {
        (self.log_rate - self.log_kept).exp()
    }

    /// `ln r`, `r = e^{-σ̄} / (1 - e^{-σ̄}) = (1 - m) / m`: the true ratio of the absorbing graph.
    pub fn log_ratio(&self) -> f64 {
        self.log_kept - self.log_masked
    }

    /// `σ̄' r = m' / m`: the weight of the cross-entropy inside the score term. `1 / t` for the (log-)linear schedule.
    pub fn score_weight(&self) -> f64 {
        (self.log_rate - self.log_masked).exp()
    }
}

impl NoiseSchedule {
    /// The logistic schedule with the reference's defaults.
    pub const SIGMOID: Self = Self::Sigmoid { start: -3.0, end: 3.0, tau: 1.0 };

    /// The noise at time `t`. Times outside `[TIME_MARGIN, 1 - TIME_MARGIN]` (NaN too) are moved to the nearest end of it.
    pub fn at(&self, t: f64) -> NoiseLevel {
        let t = if t.is_nan() { TIME_MARGIN } else { t.clamp(TIME_MARGIN, 1.0 - TIME_MARGIN) };
        let rest = 1.0 - t;
        match *self {
            Self::Cosine => NoiseLevel {
                log_masked: (FRAC_PI_2 * t).sin().ln(),
                // 1 - sin(a) = 2 sin²((pi/2 - a) / 2), without the cancellation.
                log_kept: LN_2 + 2.0 * (FRAC_PI_4 * rest).sin().ln(),
                log_rate: FRAC_PI_2.ln() + (FRAC_PI_2 * rest).sin().ln(),
            },
            Self::LogLinear => {
                let slope = 1.0 - LOG_LINEAR_REST;
                NoiseLevel { log_masked: slope.ln() + t.ln(), log_kept: (-slope * t).ln_1p(), log_rate: slope.ln() }
            }
            Self::Linear => NoiseLevel { log_masked: t.ln(), log_kept: (-t).ln_1p(), log_rate: 0.0 },
            Self::Pow { exponent } => {
                let log_kept = exponent * (-t).ln_1p();
                NoiseLevel {
                    log_masked: (-log_kept.exp_m1()).ln(),
                    log_kept,
                    log_rate: exponent.ln() + (exponent - 1.0) * (-t).ln_1p(),
                }
            }
            Self::Sigmoid { start, end, tau } => {
                // s(a) - s(b) = sinh((a - b)/2) / (2 cosh(a/2) cosh(b/2)), in logarithms.
                let (first, last) = (start / tau, end / tau);
                let here = (rest * (end - start) + start) / tau;
                let whole = log_sinh(0.5 * (last - first)) - log_cosh(0.5 * last) - log_cosh(0.5 * first);
                let part = |a: f64, b: f64, half_difference: f64| {
                    log_sinh(half_difference) - log_cosh(0.5 * a) - log_cosh(0.5 * b) - whole
                };
                let width = (end - start) / tau;
                NoiseLevel {
                    log_masked: part(last, here, 0.5 * width * t),
                    log_kept: part(here, first, 0.5 * width * rest),
                    log_rate: width.ln() - LN_2 - 2.0 * log_cosh(0.5 * here) - whole,
                }
            }
        }
    }

    /// `m(t)` with the exact ends, for samplers: 0 at `t <= 0` and 1 at `t >= 1` whatever the schedule.
    pub fn masked_probability(&self, t: f64) -> f64 {
        if t <= 0.0 {
            0.0
        } else if t >= 1.0 {
            1.0
        } else {
            self.at(t).masked()
        }
    }
}

fn log_sinh(x: f64) -> f64 {
    x + (-(-2.0 * x).exp_m1()).ln() - LN_2
}

fn log_cosh(x: f64) -> f64 {
    let x = x.abs();
    x + (-2.0 * x).exp().ln_1p() - LN_2
}

impl FromStr for NoiseSchedule {
    type Err = DiffusionError;

    fn from_str(name: &str) -> Result<Self, DiffusionError> {
        match parse(name) {
            Some(Parsed::Cosine) => Ok(Self::Cosine),
            Some(Parsed::Linear) => Ok(Self::Linear),
            Some(Parsed::LogLinear) => Ok(Self::LogLinear),
            Some(Parsed::Pow(exponent)) => Ok(Self::Pow { exponent: f64::from(exponent) }),
            Some(Parsed::Sigmoid(start, end, tau)) => {
                Ok(Self::Sigmoid { start: f64::from(start), end: f64::from(end), tau: f64::from(tau) })
            }
            None => Err(DiffusionError::Name {
                what: "noise schedule",
                expected: "cosine, log-linear, linear, powK with K > 0, or sigmoid with start < end and tau > 0",
                given: name.to_string(),
            }),
        }
    }
}

impl fmt::Display for NoiseSchedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cosine => f.write_str("cosine"),
            Self::LogLinear => f.write_str("log-linear"),
            Self::Linear => f.write_str("linear"),
            // Names are read with f32 parameters, so they are written with as many digits.
            Self::Pow { exponent } => write!(f, "pow{}", *exponent as f32),
            Self::Sigmoid { start, end, tau } => {
                write!(f, "sigmoid_start{}_end{}_tau{}", *start as f32, *end as f32, *tau as f32)
            }
        }
    }
}

impl TryFrom<String> for NoiseSchedule {
    type Error = DiffusionError;

    fn try_from(name: String) -> Result<Self, DiffusionError> {
        name.parse()
    }
}

impl From<NoiseSchedule> for String {
    fn from(schedule: NoiseSchedule) -> Self {
        schedule.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::super::MaskSchedule;
    use super::*;

    const NAMES: [&str; 7] = ["cosine", "log-linear", "linear", "pow2", "pow0.5", "sigmoid", "sigmoid_start-6_end2_tau0.7"];

    #[test]
    fn mirrors_the_mask_schedules() {
        for name in NAMES.into_iter().filter(|&name| name != "log-linear") {
            let (noise, mask) = (name.parse::<NoiseSchedule>().unwrap(), name.parse::<MaskSchedule>().unwrap());
            for i in 1..100 {
                let t = f64::from(i) / 100.0;
                let expected = f64::from(mask.masked_fraction((1.0 - t) as f32));
                assert!((noise.at(t).masked() - expected).abs() < 1e-6, "{name} at {t}");
            }
        }
    }

    #[test]
    fn logarithms_agree_with_each_other_and_with_the_difference_quotient() {
        for name in NAMES {
            let schedule: NoiseSchedule = name.parse().unwrap();
            assert_eq!(schedule.to_string().parse::<NoiseSchedule>().unwrap(), schedule);
            for i in 1..50 {
                let t = f64::from(i) / 50.0;
                let level = schedule.at(t);
                assert!((level.log_masked.exp() + level.log_kept.exp() - 1.0).abs() < 1e-12, "{name} at {t}");
                let h = 1e-6;
                let slope = (schedule.at(t + h).masked() - schedule.at(t - h).masked()) / (2.0 * h);
                assert!((level.log_rate.exp() - slope).abs() < 1e-6 * slope.max(1.0), "{name} at {t}: {slope}");
                let slope = (schedule.at(t + h).sigma_bar() - schedule.at(t - h).sigma_bar()) / (2.0 * h);
                assert!((level.sigma_bar_rate() / slope - 1.0).abs() < 1e-5, "{name} at {t}: {slope}");
            }
        }
    }

    #[test]
    fn everything_is_finite_at_both_ends_even_in_f32() {
        for name in NAMES {
            let schedule: NoiseSchedule = name.parse().unwrap();
            for t in [0.0, 1e-300, 1e-7, 1.0 - 1e-12, 1.0, -1.0, 2.0, f64::NAN] {
                let level = schedule.at(t);
                for value in [
                    level.log_masked,
                    level.log_kept,
                    level.log_rate,
                    level.masked(),
                    level.sigma_bar(),
                    level.sigma_bar_rate(),
                    level.log_ratio(),
                    level.score_weight(),
                ] {
                    assert!((value as f32).is_finite(), "{name} at {t}: {level:?}");
                }
                assert!(level.sigma_bar() as f32 > 0.0 && level.score_weight() as f32 > 0.0, "{name} at {t}");
            }
            assert_eq!((schedule.masked_probability(0.0), schedule.masked_probability(1.0)), (0.0, 1.0));
        }
    }

    #[test]
    fn the_log_linear_weight_is_one_over_t() {
        for t in [0.001, 0.25, 0.5, 0.999] {
            for schedule in [NoiseSchedule::LogLinear, NoiseSchedule::Linear] {
                assert!((schedule.at(t).score_weight() * t - 1.0).abs() < 1e-12);
            }
        }
    }
}
