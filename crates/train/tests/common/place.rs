//! Runs of the debug recipe in a folder of their own.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use toml::Table;
use unif2ace_train::{Outcome, Recipe, Result, Session, run};

/// First weights come from the device's one generator, so that runs beside each other would change each other's.
pub static ALONE: Mutex<()> = Mutex::new(());

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// A folder with the face sample, and in `model` the frozen parts of the shipped model.
pub struct Place(tempfile::TempDir);

impl Place {
    pub fn new() -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        for split in ["train", "val"] {
            fs::create_dir_all(place.path("faces").join(split)).unwrap();
            let shard = place.path(&format!("faces/{split}/{split}-00000.tar"));
            fs::copy(root().join("tests/fixtures/faces/test/test-00000.tar"), shard).unwrap();
        }
        fs::create_dir_all(place.path("model")).unwrap();
        for name in ["config.json", "tokenizer.json", "vq.safetensors", "clip.safetensors", "face.safetensors"] {
            fs::copy(root().join("models/mini").join(name), place.path("model").join(name)).unwrap();
        }
        place
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Trains the debug recipe as `change` leaves it, with a checkpoint every other step.
    pub fn train(&self, name: &str, num_steps: i64, resume: bool, change: impl FnOnce(&mut Table)) -> Result<()> {
        let mut recipe: Table = toml::from_str(&fs::read_to_string(root().join("recipes/debug/golden.toml")).unwrap()).unwrap();
        let text = |name: &str| self.path(name).to_str().unwrap().to_owned();
        recipe["run"]["output"] = text(name).into();
        recipe["run"]["export"] = text("model").into();
        recipe["run"]["checkpoint_every"] = 2.into();
        recipe["data"]["path"] = text("faces").into();
        recipe["data"].as_table_mut().unwrap().insert("cache".into(), text("cache").into());
        recipe["optimizer"]["num_steps"] = num_steps.into();
        recipe["optimizer"]["schedule"] = "constant".into();
        recipe["optimizer"]["warmup_steps"] = 1.into();
        change(&mut recipe);
        let path = self.path(&format!("{name}.toml"));
        fs::write(&path, toml::to_string(&recipe).unwrap()).unwrap();
        let outcome = run(&Recipe::read(&path)?, Session { resume, quiet: true, ..Session::default() })?;
        assert_eq!(outcome, Outcome::Finished);
        Ok(())
    }

    /// Bytes of a file.
    pub fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).unwrap()
    }
}
