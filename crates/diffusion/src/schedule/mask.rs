//! The mask schedules of the backbone, float32 operation by operation as the reference computes them (as in Show-o).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::DiffusionError;

const FLOOR: f32 = 1e-6;

/// The fraction of image tokens that stays masked at progress `t` in `[0, 1]`: 1 at `t = 0`, (almost) 0 at `t = 1`.
///
/// Written as text in configurations: `cosine`, `linear`, `pow2`, `pow0.5`, `sigmoid`, `sigmoid_start-6_end2_tau0.7`.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum MaskSchedule {
    /// `cos(pi t / 2)`; not clamped, so it is -4.37e-8 at `t = 1`.
    #[default]
    Cosine,
    /// `1 - t`.
    Linear,
    /// `1 - t^exponent`.
    Pow {
        /// The exponent, positive.
        exponent: f32,
    },
    /// A falling logistic curve, rescaled to run from 1 to 0.
    Sigmoid {
        /// Left end of the logistic's argument.
        start: f32,
        /// Right end of the logistic's argument.
        end: f32,
        /// Its temperature.
        tau: f32,
    },
}

impl MaskSchedule {
    /// The logistic schedule with the reference's defaults.
    pub const SIGMOID: Self = Self::Sigmoid { start: -3.0, end: 3.0, tau: 1.0 };

    /// The masked fraction at progress `t`.
    pub fn masked_fraction(&self, t: f32) -> f32 {
        match *self {
            // The cosine of the rounded f32 argument, itself rounded once: what a correctly rounded f32 cosine gives.
            Self::Cosine => f64::from(t * std::f32::consts::PI * 0.5).cos() as f32,
            Self::Linear => (1.0 - t).clamp(FLOOR, 1.0),
            Self::Pow { exponent } => (1.0 - power(t, exponent)).clamp(FLOOR, 1.0),
            Self::Sigmoid { start, end, tau } => {
                let first = logistic(start / tau);
                let last = logistic(end / tau);
                let here = logistic((t * (end - start) + start) / tau);
                ((last - here) / (last - first)).clamp(FLOOR, 1.0)
            }
        }
    }

    /// The number of tokens of `num_tokens` that are to stay masked at progress `ratio`, before the limits that the sampler sets.
    pub(crate) fn num_masked(&self, num_tokens: usize, ratio: f64) -> usize {
        (num_tokens as f32 * self.masked_fraction(ratio as f32)).floor().max(0.0) as usize
    }
}

/// The exponents that torch computes without a general power are computed the same way.
fn power(t: f32, exponent: f32) -> f32 {
    if exponent == 0.5 {
        t.sqrt()
    } else if exponent == 2.0 {
        t * t
    } else if exponent == 3.0 {
        t * t * t
    } else {
        t.powf(exponent)
    }
}

fn logistic(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

/// The parameters that a schedule's name can carry; shared by the two kinds of schedule.
pub(super) enum Parsed {
    Cosine,
    Linear,
    LogLinear,
    Pow(f32),
    Sigmoid(f32, f32, f32),
}

pub(super) fn parse(name: &str) -> Option<Parsed> {
    let name = name.trim();
    match name {
        "cosine" => return Some(Parsed::Cosine),
        "linear" => return Some(Parsed::Linear),
        "log-linear" | "log_linear" | "loglinear" => return Some(Parsed::LogLinear),
        _ => {}
    }
    if let Some(exponent) = name.strip_prefix("pow") {
        let exponent: f32 = exponent.parse().ok()?;
        return (exponent.is_finite() && exponent > 0.0).then_some(Parsed::Pow(exponent));
    }
    let parameters = name.strip_prefix("sigmoid")?;
    let (mut start, mut end, mut tau) = (-3.0f32, 3.0f32, 1.0f32);
    if !parameters.is_empty() {
        for parameter in parameters.strip_prefix('_')?.split('_') {
            let digits = parameter.find(|c: char| !c.is_ascii_alphabetic())?;
            let value: f32 = parameter[digits..].parse().ok()?;
            match &parameter[..digits] {
                "start" => start = value,
                "end" => end = value,
                "tau" => tau = value,
                _ => return None,
            }
        }
    }
    let sound = start.is_finite() && end.is_finite() && tau.is_finite() && start < end && tau > 0.0;
    sound.then_some(Parsed::Sigmoid(start, end, tau))
}

impl FromStr for MaskSchedule {
    type Err = DiffusionError;

    fn from_str(name: &str) -> Result<Self, DiffusionError> {
        match parse(name) {
            Some(Parsed::Cosine) => Ok(Self::Cosine),
            Some(Parsed::Linear) => Ok(Self::Linear),
            Some(Parsed::Pow(exponent)) => Ok(Self::Pow { exponent }),
            Some(Parsed::Sigmoid(start, end, tau)) => Ok(Self::Sigmoid { start, end, tau }),
            Some(Parsed::LogLinear) | None => Err(DiffusionError::Name {
                what: "mask schedule",
                expected: "cosine, linear, powK with K > 0, or sigmoid with start < end and tau > 0",
                given: name.to_string(),
            }),
        }
    }
}

impl fmt::Display for MaskSchedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cosine => f.write_str("cosine"),
            Self::Linear => f.write_str("linear"),
            Self::Pow { exponent } => write!(f, "pow{exponent}"),
            Self::Sigmoid { start, end, tau } => {
                write!(f, "sigmoid_start{start}_end{end}_tau{tau}")
            }
        }
    }
}

impl TryFrom<String> for MaskSchedule {
    type Error = DiffusionError;

    fn try_from(name: String) -> Result<Self, DiffusionError> {
        name.parse()
    }
}

impl From<MaskSchedule> for String {
    fn from(schedule: MaskSchedule) -> Self {
        schedule.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip_and_bad_ones_are_refused() {
        for name in ["cosine", "linear", "pow2", "pow0.5", "sigmoid", "sigmoid_start-6_end2_tau0.7", "sigmoid_tau2"] {
            let schedule: MaskSchedule = name.parse().unwrap();
            assert_eq!(schedule.to_string().parse::<MaskSchedule>().unwrap(), schedule, "{name}");
        }
        assert_eq!("sigmoid".parse::<MaskSchedule>().unwrap(), MaskSchedule::SIGMOID);
        for name in [
            "",
            "Cosine",
            "pow",
            "pow-1",
            "pownan",
            "sigmoid_start3_end-3",
            "sigmoid_tau0",
            "sigmoidx",
            "sigmoid_k1",
            "log-linear",
        ] {
            let error = name.parse::<MaskSchedule>().unwrap_err().to_string();
            assert!(error.contains("hint:") && error.contains(&format!("{name:?}")), "{error}");
        }
    }

    #[test]
    fn cosine_is_not_clamped_at_the_end() {
        assert_eq!(MaskSchedule::Cosine.masked_fraction(1.0), -4.371_139e-8);
        assert_eq!(MaskSchedule::Cosine.num_masked(256, 1.0), 0);
    }
}
