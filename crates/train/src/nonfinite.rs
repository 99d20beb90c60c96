//! A step whose loss or gradient is not finite: its samples are named in a file, and the run leaves the step out or stops.

use std::path::Path;

use serde_json::{Map, Value, json};

use crate::error::{Result, TrainError};
use crate::recipe::RunConfig;

/// The first number of a step that is not finite.
pub(crate) struct NotFinite {
    /// What it is.
    pub what: &'static str,
    /// NaN or an infinity.
    pub value: f64,
}

/// Writes `nonfinite-step-N.json` into the run's folder if this rank `leads`. `step` is counted as the metrics count it, `num_skipped` with this step.
///
/// # Errors
/// When no more steps may be left out.
pub(crate) fn skip_or_stop(
    run: &RunConfig,
    step: u64,
    found: NotFinite,
    parts: &[(&'static str, f64)],
    samples: &[String],
    num_skipped: u64,
    leads: bool,
) -> Result<()> {
    let report = run.output.join(format!("nonfinite-step-{step}.json"));
    if leads && let Err(error) = write(&report, step, &found, parts, samples) {
        // A full disk must not hide what happened.
        tracing::warn!("{error}");
    }
    let NotFinite { what, value } = found;
    if num_skipped > run.skip_nonfinite {
        return Err(TrainError::NotFinite { what, step, value, report });
    }
    let limit = run.skip_nonfinite;
    tracing::warn!("step {step}: the {what} is {value}; left out ({num_skipped} of at most {limit}), see {}", report.display());
    Ok(())
}

fn write(path: &Path, step: u64, found: &NotFinite, parts: &[(&'static str, f64)], samples: &[String]) -> Result<()> {
    // JSON has no NaN.
    let number = |value: f64| if value.is_finite() { json!(value) } else { json!(value.to_string()) };
    let parts: Map<String, Value> = parts.iter().map(|&(name, value)| (name.to_owned(), number(value))).collect();
    let report = json!({ "step": step, found.what: number(found.value), "parts": parts, "samples": samples });
    Ok(unif2ace_io::write_atomic(path, format!("{report:#}\n").as_bytes())?)
}
