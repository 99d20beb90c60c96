//! What the dashboard knows about a run.

use std::collections::VecDeque;

use serde_json::Value;
use unif2ace_train::metrics::{Line, LineKind};
use unif2ace_train::plot::Curves;
use unif2ace_train::report::Work;

const MAX_LOG_LINES: usize = 500;
/// A curve with more points loses every second one.
const MAX_POINTS: usize = 4000;
/// Numbers that have a place of their own.
const SHOWN_ABOVE: [&str; 6] =
    ["step", "seconds", "tokens_per_second", "images_per_second", "resident_bytes", "peak_resident_bytes"];

/// What a run tells.
#[derive(Debug)]
pub enum Message {
    /// Work begins: what, units done before, units in all.
    Begin(Work, u64, u64),
    /// Units that are done.
    Advance(u64),
    /// A line of metrics.
    Line(LineKind, Line),
    /// Nothing more is to be shown.
    Close,
}

/// A metric over the steps.
#[derive(Debug, Default, PartialEq)]
pub struct Curve {
    /// Its name.
    pub name: String,
    /// `(step, value)`.
    pub points: Vec<(f64, f64)>,
}

/// Where the work stands.
#[derive(Debug, Clone, Copy)]
pub struct Progress {
    /// What is done.
    pub work: Work,
    /// Units done before this session.
    pub before: u64,
    /// Units done.
    pub done: u64,
    /// Units in all.
    pub total: u64,
    /// Seconds since it began.
    pub seconds: f64,
}

impl Progress {
    /// Seconds that the rest takes at the mean speed of this session; nothing before the first unit.
    pub fn rest(&self) -> Option<f64> {
        let here = self.done.saturating_sub(self.before);
        (here > 0).then(|| self.seconds * self.total.saturating_sub(self.done) as f64 / here as f64)
    }
}

/// All that is shown.
#[derive(Debug, Default)]
pub struct State {
    /// What is trained, and where.
    pub title: String,
    /// Where the work stands; nothing while the data is read.
    pub progress: Option<Progress>,
    /// The last line of training metrics.
    pub last: Line,
    /// Metrics in the order in which they first came.
    pub curves: Vec<Curve>,
    /// Number of the curve that is drawn.
    pub selected: usize,
    /// The newest log lines.
    pub log: VecDeque<String>,
    /// A stop was asked for.
    pub stopping: bool,
}

impl State {
    /// Takes in what the run tells.
    pub fn take(&mut self, message: Message) {
        match message {
            Message::Begin(work, done, total) => {
                self.progress = Some(Progress { work, before: done, done, total, seconds: 0.0 });
            }
            Message::Advance(done) => {
                if let Some(progress) = &mut self.progress {
                    progress.done = done;
                }
            }
            Message::Line(kind, line) => {
                let step = line.get("step").and_then(Value::as_f64).unwrap_or(0.0);
                for (name, value) in line.iter().filter(|(name, _)| !SHOWN_ABOVE.contains(&name.as_str())) {
                    if let Some(value) = value.as_f64() {
                        self.push(name, step, value);
                    }
                }
                if kind == LineKind::Training {
                    self.last = line;
                }
            }
            Message::Close => {}
        }
    }

    /// Takes in the curves of earlier sessions, up to step `step`.
    pub fn remember(&mut self, earlier: Curves, step: u64) {
        for name in earlier.names.iter().filter(|name| !SHOWN_ABOVE.contains(&name.as_str())) {
            for &(at, value) in earlier.points.get(name).into_iter().flatten().filter(|point| point.0 <= step as f64) {
                self.push(name, at, value);
            }
        }
    }

    fn push(&mut self, name: &str, step: f64, value: f64) {
        let index = self.curves.iter().position(|curve| curve.name == name).unwrap_or_else(|| {
            self.curves.push(Curve { name: name.to_owned(), points: Vec::new() });
            self.curves.len() - 1
        });
        let points = &mut self.curves[index].points;
        points.push((step, value));
        if points.len() > MAX_POINTS {
            let mut keep = false;
            points.retain(|_| {
                keep = !keep;
                keep
            });
        }
    }

    /// Adds a log line.
    pub fn log(&mut self, line: &str) {
        if self.log.len() == MAX_LOG_LINES {
            self.log.pop_front();
        }
        self.log.push_back(plain(line));
    }

    /// Draws the next curve, or the one before.
    pub fn select(&mut self, forward: bool) {
        let count = self.curves.len().max(1);
        self.selected = (self.selected + if forward { 1 } else { count - 1 }) % count;
    }

    /// Log lines that stay on the terminal when the dashboard is gone: warnings, errors, and the last few.
    pub fn last_words(&self) -> impl Iterator<Item = &String> {
        let first = self.log.len().saturating_sub(5);
        let serious = |line: &str| ["WARN", "ERROR"].iter().any(|level| line.contains(level));
        self.log.iter().enumerate().filter(move |(index, line)| *index >= first || serious(line)).map(|(_, line)| line)
    }
}

/// A line without the escape sequences that colour it, and without other control characters.
fn plain(line: &str) -> String {
    let mut text = String::with_capacity(line.len());
    let mut characters = line.chars();
    while let Some(character) = characters.next() {
        match character {
            '\u{1b}' => {
                // A sequence ends with a letter.
                let _ = characters.by_ref().find(char::is_ascii_alphabetic);
            }
            '\t' => text.push(' '),
            other if other.is_control() => {}
            other => text.push(other),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn curves_grow_and_are_thinned() {
        let mut state = State::default();
        for step in 0..=MAX_POINTS {
            let line = serde_json::json!({ "step": step, "loss": step * 2, "seconds": 1, "none": null });
            state.take(Message::Line(LineKind::Training, line.as_object().unwrap().clone()));
        }
        assert_eq!(state.curves.len(), 1);
        let points = &state.curves[0].points;
        assert_eq!((points.len(), points[1]), (MAX_POINTS / 2 + 1, (2.0, 4.0)));
        assert_eq!(state.last["step"], MAX_POINTS);

        let earlier = Curves {
            names: vec!["loss".into(), "seconds".into()],
            points: [("loss".into(), vec![(1.0, 5.0), (3.0, 4.0)])].into(),
            ..Curves::default()
        };
        let mut resumed = State::default();
        resumed.remember(earlier, 2);
        assert_eq!(resumed.curves, [Curve { name: "loss".into(), points: vec![(1.0, 5.0)] }]);
    }

    #[test]
    fn the_rest_is_estimated_from_this_session() {
        let mut state = State::default();
        state.take(Message::Begin(Work::Steps, 50, 100));
        assert_eq!(state.progress.unwrap().rest(), None);
        state.take(Message::Advance(60));
        state.progress.as_mut().unwrap().seconds = 20.0;
        assert_eq!(state.progress.unwrap().rest(), Some(80.0));
    }

    #[test]
    fn log_lines_are_plain_and_warnings_stay() {
        let mut state = State::default();
        state.log("\u{1b}[2m12:00\u{1b}[0m \u{1b}[33m WARN\u{1b}[0m a\tdisk");
        (0..20).for_each(|number| state.log(&format!("INFO {number}")));
        assert_eq!(state.log[0], "12:00  WARN a disk");
        let words: Vec<&String> = state.last_words().collect();
        assert_eq!((words.len(), words[0].as_str(), words[5].as_str()), (6, "12:00  WARN a disk", "INFO 19"));
    }

    #[test]
    fn selection_goes_round() {
        let mut state = State::default();
        state.select(true);
        assert_eq!(state.selected, 0);
        ["a", "b", "c"].iter().for_each(|name| state.push(name, 1.0, 1.0));
        state.select(false);
        assert_eq!(state.selected, 2);
        state.select(true);
        assert_eq!(state.selected, 0);
    }
}
