//! Which checkpoints stay.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::error::{Result, TrainError};

/// Which of two measures is better.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Better {
    /// As of a loss.
    #[default]
    Lower,
    /// As of an accuracy.
    Higher,
}

/// The newest checkpoints, and the best ones by a measure of the evaluations.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keep {
    /// How many of the newest stay, at least 1.
    pub last: usize,
    /// How many of the best stay, wherever they are.
    pub best: usize,
    /// What they are ranked by.
    pub metric: Option<String>,
    /// Which end of it is good.
    pub better: Better,
}

impl Keep {
    /// What a checkpoint with these measures is ranked by; `None` when it isn't ranked.
    pub(super) fn measure(&self, measures: &BTreeMap<String, Option<f64>>) -> Option<f64> {
        measures.get(self.metric.as_deref()?).copied().flatten()
    }

    /// Refuses a name that an evaluation does not measure.
    pub(super) fn check(&self, measures: &BTreeMap<String, Option<f64>>) -> Result<()> {
        match &self.metric {
            Some(metric) if !measures.is_empty() && !measures.contains_key(metric) => {
                let known: Vec<&str> = measures.keys().map(String::as_str).collect();
                Err(TrainError::BestMetric { metric: metric.clone(), known: known.join(", ") })
            }
            _ => Ok(()),
        }
    }

    /// Steps that need not be kept once `saved` is committed. `all` holds the steps with what they are ranked by. Steps after `saved` are
    /// leftovers that a resume found damaged: they are written again when the run comes to them.
    pub(super) fn superseded(&self, saved: u64, all: &[(u64, Option<f64>)]) -> Vec<u64> {
        let mut steps: Vec<u64> = all.iter().map(|&(step, _)| step).filter(|&step| step <= saved).collect();
        steps.sort_unstable_by(|one, other| other.cmp(one));
        let mut ranked: Vec<(u64, f64)> =
            all.iter().filter_map(|&(step, measure)| Some((step, measure?))).filter(|&(step, _)| step <= saved).collect();
        ranked.sort_by(|one, other| {
            let order = one.1.total_cmp(&other.1);
            let order = if self.better == Better::Higher { order.reverse() } else { order };
            order.then(one.0.cmp(&other.0))
        });
        let is_best = |step: u64| ranked.iter().take(self.best).any(|&(best, _)| best == step);
        steps.into_iter().skip(self.last.max(1)).filter(|&step| !is_best(step)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_and_the_best_stay() {
        let keep = |last, best, better| Keep { last, best, metric: Some("m".into()), better };
        let all = [(10, Some(3.0)), (20, Some(1.0)), (30, None), (40, Some(2.0)), (50, Some(1.0)), (90, Some(0.0))];
        assert_eq!(keep(2, 0, Better::Lower).superseded(50, &all), [30, 20, 10]);
        assert_eq!(keep(1, 1, Better::Lower).superseded(50, &all), [40, 30, 10], "of two equal ones the earlier");
        assert_eq!(keep(1, 2, Better::Higher).superseded(50, &all), [30, 20]);
        assert_eq!(keep(9, 0, Better::Lower).superseded(50, &all), [0u64; 0]);
        assert_eq!(keep(1, 0, Better::Lower).superseded(20, &all), [10], "what is after the saved one stays");
    }
}
