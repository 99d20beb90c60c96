//! How the dashboard looks.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::symbols::Marker;
use ratatui::text::{Line, Span};
use ratatui::widgets::{Axis, Block, BorderType, Chart, Dataset, Gauge, GraphType, Paragraph, Row, Table, TableState};
use serde_json::Value;
use unif2ace_train::report::{Work, duration};

use super::state::{Curve, State};

/// Values that a trend shows.
const TREND: usize = 12;
const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
const ACCENT: Style = Style::new().fg(Color::Cyan);
const QUIET: Style = Style::new().fg(Color::DarkGray);
const BOLD: Style = Style::new().add_modifier(Modifier::BOLD);

/// Draws all of it.
pub fn draw(frame: &mut Frame<'_>, state: &State) {
    let log_height = (frame.area().height / 4).clamp(3, 10);
    let [top, middle, log, keys] =
        Layout::vertical([Constraint::Length(4), Constraint::Min(5), Constraint::Length(log_height), Constraint::Length(1)])
            .areas(frame.area());
    let table_width = if middle.width >= 100 { Constraint::Length(58) } else { Constraint::Percentage(50) };
    let [chart, table] = Layout::horizontal([Constraint::Min(20), table_width]).areas(middle);
    draw_progress(frame, top, state);
    draw_chart(frame, chart, state.curves.get(state.selected));
    draw_table(frame, table, state);
    draw_log(frame, log, state);
    let text = match state.stopping {
        true => {
            Line::styled(" stopping: the run is saved after this step; q again ends it at once", Style::new().fg(Color::Yellow))
        }
        false => Line::styled(" q: save and stop   up, down: choose the curve", QUIET),
    };
    frame.render_widget(Paragraph::new(text), keys);
}

fn framed(title: impl Into<String>) -> Block<'static> {
    let title = Span::styled(format!(" {} ", title.into()), BOLD);
    Block::bordered().border_type(BorderType::Rounded).border_style(QUIET).title(title)
}

fn draw_progress(frame: &mut Frame<'_>, area: Rect, state: &State) {
    let block = framed(state.title.clone());
    let [gauge, numbers] = Layout::vertical([Constraint::Length(1); 2]).areas(block.inner(area));
    frame.render_widget(block, area);
    let Some(progress) = state.progress else {
        return frame.render_widget(Paragraph::new(Line::styled("reading the data", QUIET)), gauge);
    };
    let unit = match progress.work {
        Work::Features => "features of picture",
        Work::Steps => "step",
    };
    let eta = progress.rest().map_or("-".to_owned(), duration);
    let ratio = (progress.done as f64 / progress.total.max(1) as f64).clamp(0.0, 1.0);
    let label = format!(
        "{unit} {} of {}  {:.0}%   elapsed {}   eta {eta}",
        progress.done,
        progress.total,
        100.0 * ratio,
        duration(progress.seconds)
    );
    let style = Style::new().fg(Color::Cyan).bg(Color::DarkGray);
    frame.render_widget(
        Gauge::default().ratio(ratio).use_unicode(true).gauge_style(style).label(Span::styled(label, BOLD)),
        gauge,
    );
    let value = |name: &str| state.last.get(name).and_then(Value::as_f64);
    let mut spans = Vec::new();
    let mut add = |name: &'static str, text: Option<String>| {
        if let Some(text) = text {
            spans.extend([Span::styled(format!("{name} "), QUIET), Span::raw(text), Span::raw("   ")]);
        }
    };
    add("tokens/s", value("tokens_per_second").map(number));
    add("images/s", value("images_per_second").map(number));
    add("memory", value("resident_bytes").map(bytes));
    add("at most", value("peak_resident_bytes").map(bytes));
    add("trained", value("seconds").map(duration));
    frame.render_widget(Paragraph::new(Line::from(spans)), numbers);
}

fn draw_chart(frame: &mut Frame<'_>, area: Rect, curve: Option<&Curve>) {
    let Some((curve, &[(first, _), .., (last, _)])) = curve.map(|curve| (curve, &curve.points[..])) else {
        let text = Paragraph::new(Line::styled("no curve yet", QUIET)).centered();
        return frame.render_widget(text.block(framed(curve.map_or("curve", |curve| &curve.name))), area);
    };
    let values = || curve.points.iter().map(|point| point.1);
    let (least, most) =
        values().fold((f64::INFINITY, f64::NEG_INFINITY), |(least, most), value| (least.min(value), most.max(value)));
    let room = if most > least { 0.05 * (most - least) } else { 0.1 * most.abs().max(1e-12) };
    let (low, high) = (least - room, most + room);
    let data = Dataset::default().marker(Marker::Braille).graph_type(GraphType::Line).style(ACCENT).data(&curve.points);
    let axis = |low: f64, high: f64, labels: &[f64]| {
        Axis::default()
            .style(QUIET)
            .bounds([low, high])
            .labels(labels.iter().map(|&value| Span::raw(number(value))).collect::<Vec<_>>())
    };
    let chart = Chart::new(vec![data])
        .block(framed(curve.name.clone()))
        .x_axis(axis(first, last.max(first + 1.0), &[first, ((first + last) / 2.0).round(), last]))
        .y_axis(axis(low, high, &[low, (low + high) / 2.0, high]));
    frame.render_widget(chart, area);
}

fn draw_table(frame: &mut Frame<'_>, area: Rect, state: &State) {
    let rows = state.curves.iter().map(|curve| {
        let now = curve.points.last().map_or(String::new(), |point| number(point.1));
        Row::new(vec![Span::raw(curve.name.clone()), Span::raw(format!("{now:>10}")), Span::styled(trend(&curve.points), ACCENT)])
    });
    let widths = [Constraint::Min(12), Constraint::Length(10), Constraint::Length(TREND as u16)];
    let header = Row::new(["metric", "       now", "trend"]).style(QUIET);
    let marked = Style::new().add_modifier(Modifier::REVERSED);
    let table = Table::new(rows, widths).header(header).row_highlight_style(marked).block(framed("metrics"));
    let mut place = TableState::default().with_selected((!state.curves.is_empty()).then_some(state.selected));
    frame.render_stateful_widget(table, area, &mut place);
}

fn draw_log(frame: &mut Frame<'_>, area: Rect, state: &State) {
    let height = area.height.saturating_sub(2) as usize;
    let first = state.log.len().saturating_sub(height);
    let style = |line: &str| match line {
        line if line.contains("ERROR") => Style::new().fg(Color::Red),
        line if line.contains("WARN") => Style::new().fg(Color::Yellow),
        _ => Style::new(),
    };
    let lines: Vec<Line<'_>> = state.log.iter().skip(first).map(|line| Line::styled(line.as_str(), style(line))).collect();
    frame.render_widget(Paragraph::new(lines).block(framed("log")), area);
}

/// The last values as bars between the least and the largest of them.
fn trend(points: &[(f64, f64)]) -> String {
    let last = &points[points.len().saturating_sub(TREND)..];
    let range = last.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |range, point| (range.0.min(point.1), range.1.max(point.1)));
    let height = |value: f64| match range.1 > range.0 {
        true => ((value - range.0) / (range.1 - range.0) * (BARS.len() - 1) as f64).round() as usize,
        false => 0,
    };
    last.iter().map(|point| BARS[height(point.1).min(BARS.len() - 1)]).collect()
}

/// A number in at most ten letters.
fn number(value: f64) -> String {
    match value.abs() {
        0.0 => "0".into(),
        size if size >= 1e6 => format!("{:.3}M", value / 1e6),
        size if size >= 1e5 => format!("{:.1}k", value / 1e3),
        _ if value == value.round() => format!("{value:.0}"),
        size if size >= 100.0 => format!("{value:.1}"),
        size if size >= 1e-3 => format!("{value:.4}"),
        _ => format!("{value:.2e}"),
    }
}

fn bytes(value: f64) -> String {
    match value / f64::from(1 << 20) {
        mib if mib >= 1024.0 => format!("{:.2} GiB", mib / 1024.0),
        mib => format!("{mib:.0} MiB"),
    }
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;
    use unif2ace_train::metrics::LineKind;

    use super::super::state::Message;
    use super::*;

    /// The lines of the dashboard on a terminal of this size.
    fn drawn(state: &State, width: u16, height: u16) -> Vec<String> {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw(frame, state)).unwrap();
        let buffer = terminal.backend().buffer();
        let line = |y| (0..width).map(|x| buffer[(x, y)].symbol()).collect();
        (0..height).map(line).collect()
    }

    fn state() -> State {
        let mut state = State { title: "unified: runs/golden".into(), ..State::default() };
        state.take(Message::Begin(Work::Steps, 0, 60));
        for step in 1..=30 {
            let line = serde_json::json!({
                "step": step, "loss": 12.0 - 0.25 * f64::from(step), "mask": 9.5, "learning_rate": 2e-4, "tokens_per_second": 1250.5,
                "images_per_second": 6, "seconds": 75.0, "resident_bytes": 3u64 << 29, "peak_resident_bytes": 3u64 << 30
            });
            state.take(Message::Line(LineKind::Training, line.as_object().unwrap().clone()));
            state.take(Message::Advance(step.try_into().unwrap()));
        }
        let line = serde_json::json!({ "step": 30, "held_out_mask": 8.125 });
        state.take(Message::Line(LineKind::Evaluation, line.as_object().unwrap().clone()));
        state.progress.as_mut().unwrap().seconds = 90.0;
        state.log("12:00  INFO resumed step=0");
        state
    }

    #[test]
    fn a_run_is_told_in_one_view() {
        let mut state = state();
        let lines = drawn(&state, 120, 32);
        let all = lines.join("\n");
        for part in [
            "unified: runs/golden",
            "step 30 of 60  50%   elapsed 0:01:30   eta 0:01:30",
            "tokens/s 1250.5   images/s 6   memory 1.50 GiB   at most 3.00 GiB   trained 0:01:15",
            "q: save and stop",
            "INFO resumed step=0",
        ] {
            assert!(all.contains(part), "no {part:?} in\n{all}");
        }
        let row = |name: &str| lines.iter().find(|line| line.contains(name)).unwrap_or_else(|| panic!("no {name} in\n{all}"));
        assert!(row("learning_rate").contains("2.00e-4"), "{all}");
        assert!(row("held_out_mask").contains("8.1250"), "{all}");
        assert!(row("4.5000").contains("█▇▇▆▅▅▄▄▃▂▂▁"), "{all}");
        // The chart is of the first metric, from its first to its last step.
        assert!(lines[4].contains(" loss ") && all.contains("12.1125"), "{all}");
        assert!(
            lines.iter().filter(|line| line.chars().any(|letter| ('\u{2801}'..='\u{28ff}').contains(&letter))).count() > 5,
            "{all}"
        );

        state.select(true);
        state.stopping = true;
        let lines = drawn(&state, 120, 32);
        assert!(lines[4].contains(" mask "), "{}", lines.join("\n"));
        assert!(lines[31].contains("stopping"), "{}", lines[31]);
    }

    #[test]
    fn any_size_and_any_state_can_be_drawn() {
        let mut one = State::default();
        one.take(Message::Begin(Work::Features, 0, 0));
        let line = serde_json::json!({ "step": 1, "loss": 1.5 });
        one.take(Message::Line(LineKind::Training, line.as_object().unwrap().clone()));
        for state in [State::default(), one, state()] {
            for (width, height) in [(120, 40), (80, 24), (40, 12), (10, 3), (1, 1)] {
                assert_eq!(drawn(&state, width, height).len(), usize::from(height));
            }
        }
        assert!(drawn(&State::default(), 80, 24).join("\n").contains("reading the data"));
    }

    #[test]
    fn trends_and_numbers() {
        assert_eq!(trend(&[(1.0, 1.0), (2.0, 8.0), (3.0, 4.5)]), "▁█▅");
        assert_eq!(trend(&[(1.0, 2.0)]), "▁");
        assert_eq!(trend(&[]), "");
        let numbers = [0.0, 12.0, 1.5, -250.25, 2e-5, 123_456.0, 2_500_000.0];
        assert_eq!(numbers.map(number), ["0", "12", "1.5000", "-250.2", "2.00e-5", "123.5k", "2.500M"]);
        assert_eq!([bytes(1e8), bytes(2e9)], ["95 MiB", "1.86 GiB"]);
    }
}
