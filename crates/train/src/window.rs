//! Means between two lines of metrics.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value, json};

use crate::checkpoint::RunState;
use crate::metrics::ExpertUse;
use crate::trainer::StepLoss;

/// Sums since the last line of metrics. A checkpoint holds them bit by bit, so that the line a resumed run writes next is the line that
/// the whole run writes.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Window {
    count: u64,
    total: Sum,
    norm: Sum,
    tokens: usize,
    #[serde(default)]
    images: usize,
    #[serde(default)]
    broken: usize,
    parts: Vec<(String, Sum, u64)>,
    #[serde(default)]
    experts: Vec<(String, ExpertUse)>,
    /// Wall time of the steps.
    pub(crate) seconds: f64,
}

/// A sum that is saved as its bits: JSON has neither NaN nor infinities, and readers of it may round.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Sum(f64);

impl Serialize for Sum {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.to_bits().serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Sum {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        u64::deserialize(deserializer).map(|bits| Self(f64::from_bits(bits)))
    }
}

impl Window {
    /// Adds a step.
    pub(crate) fn add(&mut self, total: f64, step: &StepLoss, norm: f64) {
        self.count += 1;
        self.total.0 += total;
        self.norm.0 += norm;
        self.tokens += step.num_tokens;
        self.images += step.num_images;
        self.broken += step.num_broken;
        for (group, experts) in &step.experts {
            match self.experts.iter_mut().find(|known| known.0 == *group) {
                Some((_, sum)) => sum.add(experts),
                None => self.experts.push(((*group).to_owned(), experts.clone())),
            }
        }
        for &(name, value) in &step.parts {
            match self.parts.iter_mut().find(|part| part.0 == name) {
                Some((_, sum, count)) => {
                    sum.0 += value;
                    *count += 1;
                }
                None => self.parts.push((name.to_owned(), Sum(value), 1)),
            }
        }
    }

    /// The line of metrics that ends the window at `state`. Without a step there are no means.
    pub(crate) fn line(self, state: &RunState, learning_rate: f64) -> Map<String, Value> {
        let mut line = Map::new();
        line.insert("step".into(), json!(state.step));
        if self.count > 0 {
            line.insert("loss".into(), json!(self.total.0 / self.count as f64));
            for (name, sum, count) in self.parts {
                line.insert(name, json!(sum.0 / count as f64));
            }
            line.insert("grad_norm".into(), json!(self.norm.0 / self.count as f64));
            for (group, experts) in &self.experts {
                line.extend(experts.measures(group).into_iter().map(|(name, value)| (name, json!(value))));
            }
        }
        if state.num_skipped > 0 {
            line.insert("skipped_nonfinite".into(), json!(state.num_skipped));
        }
        if self.broken > 0 {
            line.insert("broken_samples".into(), json!(self.broken));
        }
        line.insert("learning_rate".into(), json!(learning_rate));
        for (name, count) in [("tokens_per_second", self.tokens), ("images_per_second", self.images)] {
            if count > 0 {
                line.insert(name.into(), json!(count as f64 / self.seconds.max(1e-9)));
            }
        }
        line.insert("seconds".into(), json!(state.seconds));
        line
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, Tensor};

    use super::*;

    #[test]
    fn a_saved_window_goes_on_to_the_same_bits() {
        let steps = [0.1, 1.0 / 3.0, 1e300, f64::INFINITY];
        let step = |value: f64| StepLoss {
            total: Tensor::zeros([1], &Device::flex()),
            parts: vec![("part", -value)],
            num_tokens: 3,
            num_images: 2,
            num_broken: 1,
            experts: vec![("t2i", ExpertUse { token: vec![vec![1, 3]], ..ExpertUse::default() })],
        };
        let mut whole = Window::default();
        for value in steps {
            whole.add(value, &step(value), value.sqrt());
            whole = serde_json::from_str(&serde_json::to_string(&whole).unwrap()).unwrap();
        }
        let mut other = Window::default();
        steps.iter().for_each(|&value| other.add(value, &step(value), value.sqrt()));
        assert_eq!(whole, other);
        whole.seconds = 2.0;
        let line = whole.line(&RunState::default(), 0.5);
        assert_eq!((&line["tokens_per_second"], &line["images_per_second"]), (&json!(6.0), &json!(4.0)));
        assert_eq!(line["broken_samples"], json!(4));
        assert_eq!((&line["expert_use_min_t2i"], &line["expert_use_max_t2i"]), (&json!(0.25), &json!(0.75)));
        let state = RunState { step: 4, num_skipped: 2, ..RunState::default() };
        let line = Window::default().line(&state, 0.5);
        assert_eq!((line.get("loss"), &line["skipped_nonfinite"], &line["step"]), (None, &json!(2), &json!(4)));
    }
}
