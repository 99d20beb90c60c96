//! Curves of runs as a picture.

mod curves;
mod draw;

use std::path::{Path, PathBuf};

pub use self::curves::Curves;
use self::draw::Panel;
use crate::error::{Result, TrainError};

/// Panels that are drawn where nothing is chosen.
const MAX_PANELS: usize = 24;
/// Metrics that are drawn only where they are chosen.
const UNASKED: [&str; 2] = ["seconds", "skipped_nonfinite"];
const HELD_OUT: &str = "held_out_";

/// What is drawn.
#[derive(Debug, Clone, Default)]
pub struct PlotOptions {
    /// Metrics by name, a panel each; empty for all.
    pub metrics: Vec<String>,
    /// Weight of what came before in the running average that is drawn over the curves, 0 (none) to less than 1.
    pub smooth: f64,
}

/// Draws the metrics of the run folders `folders` into the PNG `output`, and returns the names of metrics for which there was no room.
///
/// # Errors
/// When a run can't be read, no run has a metric that was chosen, or the picture can't be written.
pub fn plot(folders: &[PathBuf], options: &PlotOptions, output: &Path) -> Result<Vec<String>> {
    if !(0.0..1.0).contains(&options.smooth) {
        let reason = format!("smooth: expected 0 or more and less than 1, found {}", options.smooth);
        return Err(TrainError::Plot { reason, hint: "0 draws the curves alone; 0.9 averages over some ten lines".into() });
    }
    let mut runs = folders.iter().map(|folder| Curves::read(folder)).collect::<Result<Vec<_>>>()?;
    curves::shorten(&mut runs);
    let mut panels = panels(&runs, &options.metrics)?;
    let left_out = match options.metrics.is_empty() {
        true => panels.split_off(panels.len().min(MAX_PANELS)),
        false => Vec::new(),
    };
    let image = draw::draw(&runs, &panels, options.smooth)?;
    unif2ace_image::save_png(output, &image, None).map_err(crate::tasks::data)?;
    Ok(left_out.into_iter().map(|panel| panel.metric).collect())
}

/// A panel for each chosen metric, or for each that there is: then held-out measures share the panel of what they are measured for.
fn panels(runs: &[Curves], chosen: &[String]) -> Result<Vec<Panel>> {
    let mut known: Vec<&String> = Vec::new();
    for name in runs.iter().flat_map(|run| &run.names) {
        if !known.contains(&name) {
            known.push(name);
        }
    }
    if chosen.is_empty() {
        let held_out =
            |name: &str| known.iter().find(|known| known.strip_prefix(HELD_OUT) == Some(name)).map(|&name| name.clone());
        let has_panel = |name: &str| name.strip_prefix(HELD_OUT).is_some_and(|name| known.iter().any(|known| *known == name));
        let drawn = known.iter().filter(|name| !UNASKED.contains(&name.as_str()) && !has_panel(name));
        return Ok(drawn.map(|&name| Panel { metric: name.clone(), held_out: held_out(name) }).collect());
    }
    let panel = |name: &String| match known.contains(&name) {
        true => Ok(Panel { metric: name.clone(), held_out: None }),
        false => {
            let names: Vec<&str> = known.iter().map(|name| name.as_str()).collect();
            let likeness = |other: &&&str| strsim::jaro_winkler(name, other);
            let nearest = names.iter().max_by(|one, other| likeness(one).total_cmp(&likeness(other)));
            let hint = nearest.map_or(String::new(), |nearest| format!("did you mean `{nearest}`?"));
            let reason = format!("metric: no run has `{name}`; known are {}", names.join(", "));
            Err(TrainError::Plot { reason, hint })
        }
    };
    chosen.iter().map(panel).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(names: &[&str]) -> Curves {
        let points = names.iter().map(|&name| (name.to_owned(), vec![(1.0, 2.0)])).collect();
        Curves { name: "run".into(), names: names.iter().map(|&name| name.into()).collect(), points }
    }

    #[test]
    fn held_out_measures_share_a_panel_unless_chosen() {
        let runs = [run(&["loss", "mask", "seconds"]), run(&["loss", "held_out_mask", "held_out_psnr"])];
        let found = panels(&runs, &[]).unwrap();
        let found: Vec<_> = found.iter().map(|panel| (panel.metric.as_str(), panel.held_out.as_deref())).collect();
        assert_eq!(found, [("loss", None), ("mask", Some("held_out_mask")), ("held_out_psnr", None)]);
        let chosen = panels(&runs, &["held_out_mask".into(), "seconds".into()]).unwrap();
        assert_eq!(chosen.iter().map(|panel| panel.metric.as_str()).collect::<Vec<_>>(), ["held_out_mask", "seconds"]);
        let error = panels(&runs, &["maske".into()]).unwrap_err().to_string();
        assert!(error.contains("no run has `maske`; known are loss, mask, seconds, held_out_mask"), "{error}");
        assert!(error.contains("hint: did you mean `mask`?"), "{error}");
    }

    #[test]
    fn every_run_leaves_its_colour() {
        let folder = tempfile::tempdir().unwrap();
        let place = |name: &str| folder.path().join(name);
        for (name, values) in [("one", [3.0, 2.0, 1.5]), ("two", [2.5, 2.4, 2.0])] {
            std::fs::create_dir(place(name)).unwrap();
            let line =
                |(index, value): (usize, &f64)| format!("{{\"step\":{},\"loss\":{value},\"lr\":1e-4}}\n", 1000 * (index + 1));
            let text: String = values.iter().enumerate().map(line).collect();
            std::fs::write(place(name).join("metrics.jsonl"), text).unwrap();
        }
        let options = PlotOptions { metrics: Vec::new(), smooth: 0.5 };
        let folders = [place("one"), place("two")];
        assert_eq!(plot(&folders, &options, &place("curves.png")).unwrap(), Vec::<String>::new());
        let image = unif2ace_image::load_rgb(place("curves.png"), unif2ace_image::DecodeLimits::default()).unwrap();
        let count = |colour: [u8; 3]| image.data().chunks_exact(3).filter(|pixel| *pixel == colour).count();
        for run in 0..2 {
            assert!(count(draw::colour(run)) > 200, "{run}");
        }
        assert_eq!(count(draw::colour(2)), 0);

        let error = plot(&folders, &PlotOptions { smooth: 1.0, ..options }, &place("other.png")).unwrap_err().to_string();
        assert!(error.contains("less than 1, found 1"), "{error}");
        assert!(!place("other.png").exists());
    }
}
