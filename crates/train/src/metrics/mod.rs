//! The numbers of a run: lines of JSON, and the same as TensorBoard event files.

mod experts;
mod memory;
mod tensorboard;

use std::io::Write;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};
use unif2ace_io::IoError;

use crate::error::Result;
use crate::recipe::RunConfig;
use crate::resume;
use tensorboard::EventFile;

pub use experts::ExpertUse;
pub use memory::resident;

/// Name of the file of lines in a run's folder.
pub const METRICS_FILE: &str = "metrics.jsonl";
/// Name of the folder of event files in a run's folder.
const EVENTS_FOLDER: &str = "tensorboard";
const MAX_SHEET_BYTES: u64 = 64 << 20;
/// What the names of most measures on held-out data begin with.
const HELD_OUT: &str = "held_out_";

/// A line of metrics by name.
pub type Line = Map<String, Value>;

/// What a line tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LineKind {
    /// Means over the steps since the line before.
    Training,
    /// Measures on held-out data.
    Evaluation,
}

impl LineKind {
    /// The tag that TensorBoard shows a metric under: `train/loss`, and `val/mask` for `held_out_mask`.
    fn tag(self, name: &str) -> String {
        match self {
            Self::Training => format!("train/{name}"),
            Self::Evaluation => format!("val/{}", name.strip_prefix(HELD_OUT).unwrap_or(name)),
        }
    }
}

/// The sample sheet of an evaluation in a run's folder.
pub fn sheet_path(folder: &Path, step: u64) -> PathBuf {
    folder.join(format!("sheet-{step:08}.png"))
}

/// The metrics of a run, appended.
pub(crate) struct MetricLog {
    file: std::fs::File,
    path: PathBuf,
    events: Option<EventFile>,
}

impl MetricLog {
    /// Opens the metrics of `run`, which goes on from `step`: lines past it are cut off.
    pub fn open(run: &RunConfig, step: u64) -> Result<Self> {
        let path = run.output.join(METRICS_FILE);
        resume::cut_lines_after(&path, step)?;
        let file = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .map_err(|source| IoError::system("append to", &path, source))?;
        let events = run.tensorboard.then(|| EventFile::create(&run.output.join(EVENTS_FOLDER), step + 1)).transpose()?;
        Ok(Self { file, path, events })
    }

    /// Flushes what was written to the device.
    pub fn sync(&self) -> Result<()> {
        self.file.sync_data().map_err(|source| IoError::system("flush", &self.path, source).into())
    }

    /// Appends the line of `step`.
    pub fn write(&mut self, step: u64, line: &Line, kind: LineKind) -> Result<()> {
        let text = format!("{}\n", Value::Object(line.clone()));
        self.file.write_all(text.as_bytes()).map_err(|source| IoError::system("append to", &self.path, source))?;
        let Some(events) = &mut self.events else { return Ok(()) };
        let numbers = line.iter().filter(|(name, _)| *name != "step");
        events.scalars(step, numbers.filter_map(|(name, value)| Some((kind.tag(name), value.as_f64()?))))?;
        let sheet = sheet_path(self.path.parent().unwrap_or(Path::new("")), step);
        match kind == LineKind::Evaluation && sheet.is_file() {
            true => events.image(step, "val/sheet", unif2ace_io::read_capped(sheet, MAX_SHEET_BYTES)?),
            false => Ok(()),
        }
    }
}
