//! The debug recipe in a folder of its own, trained by the command.

use std::fs;
use std::path::{Path, PathBuf};

use assert_cmd::Command;
use serde_json::Value;
use toml::Table;

use super::{root, text, unif2ace};

/// A run of recipes/debug/golden.toml below a folder.
pub struct TinyRun {
    pub folder: PathBuf,
}

impl TinyRun {
    /// Writes the face sample, the frozen parts and the recipe as `change` leaves it.
    pub fn new(folder: &Path, change: impl FnOnce(&mut Table)) -> Self {
        let folder = folder.to_path_buf();
        for split in ["train", "val"] {
            fs::create_dir_all(folder.join("faces").join(split)).unwrap();
            let shard = folder.join(format!("faces/{split}/{split}-00000.tar"));
            fs::copy(root().join("tests/fixtures/faces/test/test-00000.tar"), shard).unwrap();
        }
        fs::create_dir_all(folder.join("model")).unwrap();
        for name in ["config.json", "tokenizer.json", "vq.safetensors", "clip.safetensors", "face.safetensors"] {
            fs::copy(root().join("models/mini").join(name), folder.join("model").join(name)).unwrap();
        }
        let mut recipe: Table = toml::from_str(&fs::read_to_string(root().join("recipes/debug/golden.toml")).unwrap()).unwrap();
        recipe["run"]["output"] = text(&folder.join("run")).into();
        recipe["run"]["export"] = text(&folder.join("model")).into();
        recipe["data"]["path"] = text(&folder.join("faces")).into();
        change(&mut recipe);
        fs::write(folder.join("recipe.toml"), toml::to_string(&recipe).unwrap()).unwrap();
        Self { folder }
    }

    /// A run of `num_steps` steps whose rows two ranks can share.
    pub fn shareable(folder: &Path, num_steps: i64) -> Self {
        Self::new(folder, |recipe| {
            recipe["run"]["checkpoint_every"] = 2.into();
            recipe["optimizer"]["batch_size"] = 4.into();
            recipe["optimizer"]["num_steps"] = num_steps.into();
            recipe["optimizer"]["schedule"] = "constant".into();
        })
    }

    /// `unif2ace train` of the recipe.
    pub fn command(&self, resume: bool) -> Command {
        let mut command = unif2ace();
        command.args(["train", "--quiet", text(&self.folder.join("recipe.toml"))]);
        command.args(resume.then_some("--resume"));
        command
    }

    /// A file of the run.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join("run").join(name)
    }

    /// Lines of the metrics without what the clock and the system say; none before there are any.
    pub fn metrics(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.path("metrics.jsonl")).unwrap_or_default();
        // A run that goes on may have written half a line.
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        let mut lines: Vec<Value> = whole.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        for line in &mut lines {
            let line = line.as_object_mut().unwrap();
            for timed in ["seconds", "tokens_per_second", "images_per_second", "resident_bytes", "peak_resident_bytes"] {
                line.shift_remove(timed);
            }
        }
        lines
    }
}
