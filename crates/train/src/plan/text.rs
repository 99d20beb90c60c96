//! A plan as lines of text.

use std::fmt::{Display, Formatter, Result};

use super::{Plan, StagePlan, Work};

impl Display for Plan {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        writeln!(f, "{:<30} {:>16}", "part", self.part)?;
        if let Some(parameters) = &self.parameters {
            writeln!(f, "\nparameters")?;
            for (name, count) in &parameters.pieces {
                writeln!(f, "  {name:<28} {count:>16}")?;
            }
            writeln!(f, "  {:<28} {:>16}\n  {:<28} {:>16}", "all", parameters.all, "trained", parameters.trained)?;
        }
        if let Some(work) = &self.work {
            write!(f, "{work}")?;
        }
        for StagePlan { name, work } in &self.stages {
            write!(f, "\nstage {name}\n{work}")?;
        }
        match self.checkpoint {
            Some(step) => write!(f, "\nthe run's folder has a checkpoint of step {step}: --resume continues there"),
            None => write!(f, "\nthe run's folder has no checkpoint: the run starts at step 0"),
        }
    }
}

impl Display for Work {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        if let Some(memory) = &self.memory {
            writeln!(f, "\nmemory of a rank, estimated (docs/scaling.md)")?;
            let rows = [
                ("weights", Some(memory.weights)),
                ("gradients", Some(memory.gradients)),
                ("moments", Some(memory.moments)),
                ("moving average", Some(memory.ema)),
                ("activations", memory.activations),
                ("all", Some(memory.total)),
            ];
            for (name, bytes) in rows {
                writeln!(f, "  {name:<28} {:>16}", bytes.map_or("no formula".into(), size))?;
            }
        }
        if let Some(steps) = &self.steps {
            writeln!(f, "\nsteps")?;
            let mut line = |name: &str, value: String| writeln!(f, "  {name:<28} {value:>16}");
            line("steps", steps.num_steps.to_string())?;
            for (name, rows) in &steps.rows {
                line(&format!("rows a step, {name}"), rows.to_string())?;
            }
            line("passes a step", steps.passes.to_string())?;
            line("blocks computed again", steps.recomputed_blocks.to_string())?;
            line("tokens a step, about", steps.tokens.to_string())?;
            let [first, peak, last] = steps.learning_rates;
            line("learning rate, first step", format!("{first:.3e}"))?;
            line(&format!("learning rate, step {}", steps.peak_step), format!("{peak:.3e}"))?;
            line("learning rate, last step", format!("{last:.3e}"))?;
            line("disk for checkpoints", size(steps.checkpoint_bytes))?;
        }
        writeln!(f, "\ndata{:<26} {:>16} {:>10}", "", "train", "held out")?;
        for set in &self.sets {
            let held_out = set.held_out.map_or("-".into(), |count| count.to_string());
            writeln!(f, "  {:<28} {:>16} {held_out:>10}   {} x {}", set.path, set.train, set.weight, set.tasks.join(", "))?;
        }
        for (task, count) in &self.samples_by_task {
            writeln!(f, "  {:<28} {count:>16}", format!("samples for {task}"))?;
        }
        Ok(())
    }
}

/// Bytes in the largest unit of which there is at least one.
fn size(bytes: u64) -> String {
    let units = [("GB", 1e9), ("MB", 1e6), ("kB", 1e3)];
    match units.into_iter().find(|unit| bytes as f64 >= unit.1) {
        Some((unit, one)) => format!("{:.2} {unit}", bytes as f64 / one),
        None => format!("{bytes} B"),
    }
}
