//! The metrics of finished or running runs, read back.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::path::Path;

use serde_json::Value;
use unif2ace_io::{IoError, open_capped};

use crate::error::{Result, TrainError};
use crate::metrics::{Line, METRICS_FILE};

const MAX_LOG_BYTES: u64 = 4 << 30;

/// The metrics of one run.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Curves {
    /// What the run is called in a legend.
    pub name: String,
    /// Metrics in the order in which they first appear.
    pub names: Vec<String>,
    /// `(step, value)` by metric, without values that are not finite.
    pub points: BTreeMap<String, Vec<(f64, f64)>>,
}

impl Curves {
    /// Reads `metrics.jsonl` of the run folder `folder`. A last line that is half written, by a run that goes on, is left out.
    ///
    /// # Errors
    /// When there is no such file, a line is not one of metrics, or there is none.
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join(METRICS_FILE);
        let file = match open_capped(&path, MAX_LOG_BYTES) {
            Err(error) if error.is_not_found() => {
                let reason = format!("run {}: there is no {METRICS_FILE} in it", folder.display());
                let hint = "give the folder that the recipe calls `output`, of a run that was started";
                return Err(TrainError::Plot { reason, hint: hint.into() });
            }
            file => file?,
        };
        let mut curves = Self { name: folder.display().to_string(), ..Self::default() };
        let (mut reader, mut text) = (BufReader::new(file), Vec::new());
        for number in 1_usize.. {
            text.clear();
            reader.read_until(b'\n', &mut text).map_err(|source| IoError::system("read", &path, source))?;
            if !text.ends_with(b"\n") {
                break;
            }
            let line: Line = serde_json::from_slice(&text).map_err(|error| {
                let reason = format!("{}, line {number}: {error}", path.display());
                TrainError::Plot { reason, hint: "every line must be an object of numbers with a `step`".into() }
            })?;
            curves.add(&line);
        }
        if curves.names.is_empty() {
            let reason = format!("run {}: its {METRICS_FILE} has no metrics yet", folder.display());
            return Err(TrainError::Plot { reason, hint: "wait for its first `log_every` steps".into() });
        }
        Ok(curves)
    }

    fn add(&mut self, line: &Line) {
        let Some(step) = line.get("step").and_then(Value::as_f64) else { return };
        for (name, value) in line.iter().filter(|(name, _)| *name != "step") {
            let Some(value) = value.as_f64() else { continue };
            if !self.points.contains_key(name) {
                self.names.push(name.clone());
            }
            self.points.entry(name.clone()).or_default().push((step, value));
        }
    }
}

/// Names the runs by their folders' names, or by their paths where two folders have one name.
pub(super) fn shorten(runs: &mut [Curves]) {
    let short = |path: &str| Path::new(path).file_name().map_or(path.to_owned(), |name| name.to_string_lossy().into_owned());
    let names: Vec<String> = runs.iter().map(|run| short(&run.name)).collect();
    for (run, name) in runs.iter_mut().zip(&names) {
        if names.iter().filter(|other| *other == name).count() == 1 {
            run.name.clone_from(name);
        }
    }
}

/// The exponential average of `points` with weight `smooth` on what came before, without the bias of its start.
pub(super) fn smoothed(points: &[(f64, f64)], smooth: f64) -> Vec<(f64, f64)> {
    let (mut sum, mut weight) = (0.0, 0.0);
    let next = |&(step, value): &(f64, f64)| {
        sum = smooth * sum + (1.0 - smooth) * value;
        weight = smooth * weight + (1.0 - smooth);
        (step, sum / weight)
    };
    points.iter().map(next).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_becomes_curves() {
        let folder = tempfile::tempdir().unwrap();
        let write = |text: &str| std::fs::write(folder.path().join(METRICS_FILE), text).unwrap();
        write("{\"step\":1,\"loss\":3.5,\"bad\":null}\n{\"step\":1,\"held_out\":2}\n{\"step\":2,\"loss\":2.5}\n{\"step\":3,\"lo");
        let curves = Curves::read(folder.path()).unwrap();
        assert_eq!(curves.names, ["loss", "held_out"]);
        assert_eq!(curves.points["loss"], [(1.0, 3.5), (2.0, 2.5)]);

        let error = |text: &str| {
            write(text);
            Curves::read(folder.path()).unwrap_err().to_string()
        };
        assert!(error("{\"step\":1}\nnothing\n").contains("line 2"));
        assert!(error("").contains("no metrics yet"));
        let missing = Curves::read(&folder.path().join("none")).unwrap_err().to_string();
        assert!(missing.contains("there is no metrics.jsonl") && missing.contains("hint: "), "{missing}");
    }

    #[test]
    fn runs_are_called_by_their_folders() {
        let named = |names: &[&str]| {
            let mut runs: Vec<Curves> = names.iter().map(|&name| Curves { name: name.into(), ..Curves::default() }).collect();
            shorten(&mut runs);
            runs.into_iter().map(|run| run.name).collect::<Vec<_>>()
        };
        assert_eq!(named(&["runs/a", "runs/b/"]), ["a", "b"]);
        assert_eq!(named(&["runs/a", "other/a", "runs/c"]), ["runs/a", "other/a", "c"]);
    }

    #[test]
    fn smoothing_keeps_a_constant_and_weighs_the_past() {
        assert_eq!(smoothed(&[(1.0, 4.0), (2.0, 4.0)], 0.9), [(1.0, 4.0), (2.0, 4.0)]);
        // (0.5 * 0 + 1 * 3) / 1.5
        assert_eq!(smoothed(&[(1.0, 0.0), (2.0, 3.0)], 0.5)[1], (2.0, 2.0));
    }
}
