//! Panels of curves under one legend.

use std::ops::Range;

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::register_font;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use unif2ace_image::RgbImage;

use super::curves::{Curves, smoothed};
use crate::error::{Result, TrainError};
use crate::tasks::data;

const FONT: &str = "curves";
/// Everything is drawn larger by this factor and then averaged, which smooths the edges.
const FINENESS: u32 = 2;
const PANEL: (u32, u32) = (460, 300);
/// A picture of one panel.
const ALONE: (u32, u32) = (860, 520);
const MARGIN: u32 = 14;
const LEGEND_LINE: u32 = 26;
const INK: RGBColor = RGBColor(40, 44, 52);
const GREY: RGBColor = RGBColor(222, 225, 230);
/// Colours that people tell apart who don't see all of them (Okabe and Ito), the yellow one made darker.
const COLOURS: [[u8; 3]; 8] =
    [[0, 114, 178], [213, 94, 0], [0, 158, 115], [204, 121, 167], [86, 180, 233], [194, 160, 0], [120, 94, 60], [90, 90, 90]];

/// One metric of all runs.
#[derive(Debug)]
pub(super) struct Panel {
    /// The metric.
    pub metric: String,
    /// The same measured on held-out data, drawn with dots.
    pub held_out: Option<String>,
}

type Area<'a> = DrawingArea<BitMapBackend<'a>, Shift>;
type Drawing = std::result::Result<(), Box<dyn std::error::Error>>;

/// The colour of run number `run`.
pub(super) fn colour(run: usize) -> [u8; 3] {
    COLOURS[run % COLOURS.len()]
}

/// Draws the panels.
///
/// # Errors
/// When the picture can't be drawn.
pub(super) fn draw(runs: &[Curves], panels: &[Panel], smooth: f64) -> Result<RgbImage> {
    // A second registration of the same font changes nothing.
    register_font(FONT, FontStyle::Normal, epaint_default_fonts::UBUNTU_LIGHT)
        .map_err(|_| data("the built-in font can't be read"))?;
    let columns = match panels.len() {
        0 | 1 => 1,
        2..=4 => 2,
        5..=9 => 3,
        _ => 4,
    };
    let rows = panels.len().div_ceil(columns).max(1);
    let (width, height) = if panels.len() == 1 { ALONE } else { PANEL };
    let legend = Legend::new(runs, panels);
    let width = width * columns as u32 + 2 * MARGIN;
    let (places, legend_height) = legend.arrange(width - 2 * MARGIN);
    let height = height * rows as u32 + legend_height + 2 * MARGIN;
    let size = (width * FINENESS, height * FINENESS);
    let mut pixels = vec![255u8; (size.0 * size.1 * 3) as usize];
    let mut draw = || -> Drawing {
        let root = BitMapBackend::with_buffer(&mut pixels, size).into_drawing_area();
        root.fill(&WHITE)?;
        let margin = MARGIN * FINENESS;
        let (top, below) = root.margin(margin, margin, margin, margin).split_vertically(legend_height * FINENESS);
        legend.draw(&top, &places)?;
        for (area, panel) in below.split_evenly((rows, columns)).iter().zip(panels) {
            draw_panel(area, runs, panel, smooth)?;
        }
        root.present()?;
        Ok(())
    };
    draw().map_err(|error| {
        let reason = format!("the picture can't be drawn: {error}");
        TrainError::Plot { reason, hint: "choose fewer metrics".into() }
    })?;
    RgbImage::new(width as usize, height as usize, averaged(&pixels, width as usize, height as usize)).map_err(data)
}

/// A picture of `width` x `height` from one that is `FINENESS` times as fine.
fn averaged(fine: &[u8], width: usize, height: usize) -> Vec<u8> {
    const N: usize = FINENESS as usize;
    let mut pixels = Vec::with_capacity(width * height * 3);
    for (y, x, channel) in (0..height).flat_map(|y| (0..width).flat_map(move |x| (0..3).map(move |channel| (y, x, channel)))) {
        let parts = (0..N * N).map(|part| u32::from(fine[(((y * N + part / N) * width * N) + x * N + part % N) * 3 + channel]));
        pixels.push((parts.sum::<u32>() / (N * N) as u32) as u8);
    }
    pixels
}

/// Which line is whose.
struct Legend {
    /// Name, colour, and whether it is drawn with dots.
    entries: Vec<(String, RGBColor, bool)>,
}

impl Legend {
    fn new(runs: &[Curves], panels: &[Panel]) -> Self {
        let colour = |run| {
            let [r, g, b] = colour(run);
            RGBColor(r, g, b)
        };
        let mut entries: Vec<_> =
            runs.iter().enumerate().map(|(run, curves)| (curves.name.clone(), colour(run), false)).collect();
        if panels.iter().any(|panel| panel.held_out.is_some()) {
            entries.push(("on held-out data".into(), if runs.len() == 1 { colour(0) } else { INK }, true));
        }
        Self { entries }
    }

    /// The place of each entry within `width`, and the height of them all.
    fn arrange(&self, width: u32) -> (Vec<(u32, u32)>, u32) {
        let (mut x, mut y) = (0, 0);
        let places = self.entries.iter().map(|(name, ..)| {
            // Wide enough for most letters; measured text would tie the layout to the drawing.
            let needed = 58 + 8 * name.chars().count() as u32;
            if x > 0 && x + needed > width {
                (x, y) = (0, y + LEGEND_LINE);
            }
            x += needed;
            (x - needed, y)
        });
        (places.collect(), y + LEGEND_LINE + 8)
    }

    fn draw(&self, area: &Area<'_>, places: &[(u32, u32)]) -> Drawing {
        let at = |x: u32, y: u32| ((x * FINENESS) as i32, (y * FINENESS) as i32);
        let text = font(16).color(&INK).pos(Pos::new(HPos::Left, VPos::Center));
        for ((name, colour, dotted), &(x, y)) in self.entries.iter().zip(places) {
            let middle = y + LEGEND_LINE / 2;
            let line = vec![at(x + 4, middle), at(x + 32, middle)];
            area.draw(&PathElement::new(line, colour.stroke_width(2 * FINENESS)))?;
            if *dotted {
                area.draw(&Circle::new(at(x + 18, middle), 4 * FINENESS, colour.filled()))?;
            }
            area.draw(&Text::new(name.clone(), at(x + 40, middle), text.clone()))?;
        }
        Ok(())
    }
}

fn font(size: u32) -> TextStyle<'static> {
    (FONT, size * FINENESS).into_text_style(&(0, 0))
}

fn draw_panel(area: &Area<'_>, runs: &[Curves], panel: &Panel, smooth: f64) -> Drawing {
    let points = |name: &str, run: &Curves| run.points.get(name).cloned().unwrap_or_default();
    let all = runs
        .iter()
        .flat_map(|run| [Some(&panel.metric), panel.held_out.as_ref()].into_iter().flatten().flat_map(|name| points(name, run)));
    let (steps, values): (Vec<f64>, Vec<f64>) = all.unzip();
    let (x_range, values) = (range(&steps, 0.0), range(&values, 0.06));
    let (unit, factor) = unit(&panel.metric, values.end);
    let y_range = values.start * factor..values.end * factor;
    let mut chart = ChartBuilder::on(area)
        .caption(format!("{}{unit}", panel.metric), font(19).color(&INK))
        .margin(8 * FINENESS)
        .x_label_area_size(38 * FINENESS)
        .y_label_area_size(58 * FINENESS)
        .build_cartesian_2d(x_range, y_range)?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(GREY.stroke_width(FINENESS))
        .axis_style(INK.stroke_width(FINENESS))
        .label_style(font(13).color(&INK))
        .axis_desc_style(font(14).color(&INK))
        .x_desc("step")
        .x_labels(6)
        .y_labels(6)
        .x_label_formatter(&|value| short(*value))
        .y_label_formatter(&|value| short(*value))
        .draw()?;
    for (index, run) in runs.iter().enumerate() {
        let [r, g, b] = colour(index);
        let colour = RGBColor(r, g, b);
        let curve: Vec<(f64, f64)> = points(&panel.metric, run).into_iter().map(|(step, value)| (step, value * factor)).collect();
        if smooth > 0.0 {
            let faint = colour.mix(0.3).stroke_width(FINENESS);
            let line = smoothed(&curve, smooth);
            chart.draw_series(LineSeries::new(curve, faint))?;
            chart.draw_series(LineSeries::new(line, colour.stroke_width(2 * FINENESS)))?;
        } else if let &[point] = &curve[..] {
            chart.draw_series([Circle::new(point, 3 * FINENESS, colour.filled())])?;
        } else {
            chart.draw_series(LineSeries::new(curve, colour.stroke_width(2 * FINENESS)))?;
        }
        let held_out = panel.held_out.as_ref().map(|name| points(name, run)).unwrap_or_default();
        chart.draw_series(LineSeries::new(held_out.clone(), colour.stroke_width(FINENESS)))?;
        chart.draw_series(held_out.into_iter().map(|point| Circle::new(point, 4 * FINENESS, colour.filled())))?;
    }
    Ok(())
}

/// From the least to the largest value, and a `part` of the distance more at both ends; never empty.
fn range(values: &[f64], part: f64) -> Range<f64> {
    let least = values.iter().copied().fold(f64::INFINITY, f64::min);
    let most = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if least > most {
        return 0.0..1.0;
    }
    let room = part * (most - least);
    match most - least > 1e-9 * most.abs().max(least.abs()) {
        true => least - room..most + room,
        false => {
            let room = if most == 0.0 { 1.0 } else { 0.1 * most.abs() };
            least - room..most + room
        }
    }
}

/// The unit that a metric is shown in, and the factor that leads to it.
fn unit(metric: &str, most: f64) -> (&'static str, f64) {
    let (mib, gib) = (1_048_576.0_f64, 1_073_741_824.0_f64);
    match metric.ends_with("_bytes") {
        true if most >= gib => (" (GiB)", gib.recip()),
        true => (" (MiB)", mib.recip()),
        false => ("", 1.0),
    }
}

/// A number of an axis in few letters.
fn short(value: f64) -> String {
    let trimmed = |text: String| match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text,
    };
    match value.abs() {
        size if size >= 1e6 => format!("{}M", trimmed(format!("{:.2}", value / 1e6))),
        size if size >= 1e4 => format!("{}k", trimmed(format!("{:.1}", value / 1e3))),
        size if size >= 100.0 => trimmed(format!("{value:.1}")),
        size if size >= 1e-3 => trimmed(format!("{value:.4}")),
        size if size >= 1e-12 => {
            let text = format!("{value:.2e}");
            let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
            format!("{}e{exponent}", trimmed(digits.to_owned()))
        }
        _ => "0".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_say_numbers_in_few_letters() {
        let numbers = [0.0, 1.5, 250.0, 12_000.0, 2_500_000.0, 0.125, 2e-4, -1.25e-5, 1e-20];
        assert_eq!(numbers.map(short), ["0", "1.5", "250", "12k", "2.5M", "0.125", "2e-4", "-1.25e-5", "0"]);
    }

    #[test]
    fn ranges_are_never_empty() {
        assert_eq!(range(&[1.0, 3.0], 0.5), 0.0..4.0);
        assert_eq!(range(&[], 0.5), 0.0..1.0);
        assert_eq!(range(&[0.0, 0.0], 0.5), -1.0..1.0);
        let flat = range(&[2.0], 0.0);
        assert!(flat.start < 2.0 && flat.end > 2.0);
        assert_eq!(unit("resident_bytes", 3e9).0, " (GiB)");
    }
}
