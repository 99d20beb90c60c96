//! Means between two lines of metrics.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value, json};

use crate::checkpoint::RunState;

/// Sums since the last line of metrics. A checkpoint holds them bit by bit, so that the line a resumed run writes next is the line that
/// the whole run writes.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Window {
    count: u64,
    total: Sum,
    norm: Sum,
    tokens: usize,
    parts: Vec<(String, Sum, u64)>,
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
    pub(crate) fn add(&mut self, total: f64, parts: &[(&'static str, f64)], norm: f64, tokens: usize) {
        self.count += 1;
        self.total.0 += total;
        self.norm.0 += norm;
        self.tokens += tokens;
        for &(name, value) in parts {
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
        }
        if state.num_skipped > 0 {
            line.insert("skipped_nonfinite".into(), json!(state.num_skipped));
        }
        line.insert("learning_rate".into(), json!(learning_rate));
        line.insert("tokens_per_second".into(), json!(self.tokens as f64 / self.seconds.max(1e-9)));
        line.insert("seconds".into(), json!(state.seconds));
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_saved_window_goes_on_to_the_same_bits() {
        let steps = [0.1, 1.0 / 3.0, 1e300, f64::INFINITY];
        let mut whole = Window::default();
        for value in steps {
            whole.add(value, &[("part", -value)], value.sqrt(), 3);
            whole = serde_json::from_str(&serde_json::to_string(&whole).unwrap()).unwrap();
        }
        let mut other = Window::default();
        steps.iter().for_each(|&value| other.add(value, &[("part", -value)], value.sqrt(), 3));
        assert_eq!(whole, other);
        let state = RunState { step: 4, num_skipped: 2, ..RunState::default() };
        let line = Window::default().line(&state, 0.5);
        assert_eq!((line.get("loss"), &line["skipped_nonfinite"], &line["step"]), (None, &json!(2), &json!(4)));
    }
}
