//! How a run tells what it does: a progress bar or plain lines here, other views by whoever embeds the trainer.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;

use crate::metrics::{Line, LineKind};

/// What is being done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// Pictures go through the frozen parts, before the first step.
    Features,
    /// Steps of training.
    Steps,
}

/// Follows a run. The calls come from the thread that trains, which waits for them.
pub trait Reporter: Send + Sync {
    /// Work begins: `total` units, of which `done` were done in sessions before.
    fn begin(&self, work: Work, done: u64, total: u64);
    /// So many units are done.
    fn advance(&self, done: u64);
    /// A line of metrics was written.
    fn line(&self, kind: LineKind, line: &Line);
    /// The work is done, or was stopped.
    fn end(&self, stopped: bool);
}

/// Says nothing: the reporter of ranks that don't lead.
pub struct Silent;

impl Reporter for Silent {
    fn begin(&self, _work: Work, _done: u64, _total: u64) {}
    fn advance(&self, _done: u64) {}
    fn line(&self, _kind: LineKind, _line: &Line) {}
    fn end(&self, _stopped: bool) {}
}

/// A progress bar; plain lines in the log where standard error is no terminal.
pub struct Bar {
    quiet: bool,
    shown: Mutex<Shown>,
}

struct Shown {
    work: Work,
    bar: ProgressBar,
    begun: Instant,
    done_before: u64,
}

impl Bar {
    /// A bar, or with `quiet` plain lines.
    pub fn new(quiet: bool) -> Self {
        let shown = Shown { work: Work::Steps, bar: ProgressBar::hidden(), begun: Instant::now(), done_before: 0 };
        Self { quiet, shown: Mutex::new(shown) }
    }

    fn shown(&self) -> MutexGuard<'_, Shown> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Reporter for Bar {
    fn begin(&self, work: Work, done: u64, total: u64) {
        let bar = if self.quiet { ProgressBar::hidden() } else { ProgressBar::new(total) };
        bar.set_length(total);
        bar.set_position(done);
        if let Ok(style) = ProgressStyle::with_template("{bar:24} {pos}/{len} eta {eta}  {msg}") {
            bar.set_style(style);
        }
        bar.reset_eta();
        if work == Work::Features {
            bar.set_message("features of the pictures");
        }
        *self.shown() = Shown { work, bar, begun: Instant::now(), done_before: done };
    }

    fn advance(&self, done: u64) {
        self.shown().bar.set_position(done);
    }

    fn line(&self, kind: LineKind, line: &Line) {
        let shown = self.shown();
        if kind == LineKind::Evaluation {
            let text = Value::Object(line.clone()).to_string();
            return shown.bar.suspend(|| tracing::info!("evaluation {text}"));
        }
        let text = summary(line);
        if shown.bar.is_hidden() {
            let (done, total) = (shown.bar.position(), shown.bar.length().unwrap_or(0));
            let rest = shown.begun.elapsed().as_secs_f64() * total.saturating_sub(done) as f64
                / done.saturating_sub(shown.done_before).max(1) as f64;
            tracing::info!("step {done}/{total} eta {}  {text}", duration(rest));
        }
        shown.bar.set_message(text);
    }

    fn end(&self, stopped: bool) {
        let shown = self.shown();
        match (shown.work, stopped) {
            (Work::Features, _) => shown.bar.finish_and_clear(),
            (Work::Steps, true) => shown.bar.abandon_with_message("interrupted; continue with --resume"),
            (Work::Steps, false) => shown.bar.finish(),
        }
    }
}

/// The numbers of a line that tell how training goes.
fn summary(line: &Line) -> String {
    let skip = |name: &str| {
        ["step", "learning_rate", "seconds"].contains(&name) || name.ends_with("resident_bytes") || name.contains("expert_use")
    };
    let parts: Vec<String> = line
        .iter()
        .filter(|(name, _)| !skip(name))
        .filter_map(|(name, value)| Some(format!("{name} {:.4}", value.as_f64()?)))
        .collect();
    parts.join("  ")
}

/// Hours, minutes and seconds of `seconds`.
pub fn duration(seconds: f64) -> String {
    let whole = seconds as u64;
    format!("{}:{:02}:{:02}", whole / 3600, whole / 60 % 60, whole % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn summaries_leave_out_what_a_bar_has_no_room_for() {
        let line = serde_json::json!({ "step": 3, "loss": 1.5, "expert_use_max_t2i": 0.5, "learning_rate": 1e-4, "tokens_per_second": 12.25, "resident_bytes": 7 });
        assert_eq!(summary(line.as_object().unwrap()), "loss 1.5000  tokens_per_second 12.2500");
        assert_eq!(duration(3723.9), "1:02:03");
    }
}
