//! Event files, read back by a reader of their own: check sums bit by bit, messages field by field.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test may end by them

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use common::{Net, names};
use serde_json::Value;
use unif2ace_train::metrics::{ExpertUse, sheet_path};
use unif2ace_train::trainer::{Objective, StepLoss, train};
use unif2ace_train::{Recipe, Result, Session, TrainError};

/// Pulls the weights to zero, until step `dies_at`.
struct Toy {
    dies_at: u64,
}

impl Objective for Toy {
    type Model = Net;

    fn loss(&mut self, model: &Net, step: u64) -> Result<StepLoss> {
        if step == self.dies_at {
            return Err(TrainError::Data("killed".into()));
        }
        let total = model.weight.val().powi_scalar(2).mean() + model.bias.val().powi_scalar(2).mean();
        let experts = vec![("t2i", ExpertUse { token: vec![vec![1, 3]], ..ExpertUse::default() })];
        Ok(StepLoss { total, parts: vec![("part", 0.1 * step as f64)], num_tokens: 9, num_images: 2, num_broken: 0, experts })
    }

    fn sample_names(&self, _step: u64) -> Vec<String> {
        Vec::new()
    }

    fn evaluate(&mut self, _model: &Net, step: u64, folder: &Path) -> Result<Vec<(String, f64)>> {
        let sheet = unif2ace_image::RgbImage::filled(7, 5, [10, 20, 30]).unwrap();
        unif2ace_image::save_png(sheet_path(folder, step), &sheet, None).unwrap();
        Ok(vec![("held_out_part".into(), step as f64), ("held_out_nothing".into(), 0.0), ("accuracy".into(), f64::NAN)])
    }
}

fn recipe(folder: &Path) -> Recipe {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut recipe = Recipe::read(&root.join("recipes/mini/face.toml")).unwrap();
    recipe.run.output = folder.join("run");
    (recipe.run.log_every, recipe.run.evaluate_every, recipe.run.checkpoint_every) = (3, 6, 6);
    recipe.optimizer.as_mut().unwrap().num_steps = 12;
    recipe
}

fn run(recipe: &Recipe, dies_at: u64, resume: bool) -> Result<()> {
    train(recipe, &mut Toy { dies_at }, Net::new(2, 0.5), Session { resume, quiet: true, ..Session::default() }).map(drop)
}

/// CRC-32C as its polynomial says.
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |mut sum: u32, &byte| {
        sum ^= u32::from(byte);
        (0..8).fold(sum, |sum, _| (sum >> 1) ^ if sum & 1 == 1 { 0x82f6_3b78 } else { 0 })
    })
}

/// Takes `N` bytes off the front.
fn take<const N: usize>(bytes: &mut &[u8]) -> [u8; N] {
    let (taken, rest) = bytes.split_first_chunk::<N>().expect("a record is cut");
    *bytes = rest;
    *taken
}

/// The data of all records.
fn records(mut bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut records = Vec::new();
    let masked = |sum: u32| sum.rotate_right(15).wrapping_add(0xa282_ead8);
    while !bytes.is_empty() {
        let length: [u8; 8] = take(&mut bytes);
        assert_eq!(u32::from_le_bytes(take(&mut bytes)), masked(crc32c(&length)), "of the length");
        let (data, rest) = bytes.split_at(u64::from_le_bytes(length) as usize);
        bytes = rest;
        assert_eq!(u32::from_le_bytes(take(&mut bytes)), masked(crc32c(data)), "of the data");
        records.push(data.to_vec());
    }
    records
}

/// A field of a message: bytes of fixed or given length, or of a number.
type Field = (u64, Vec<u8>);

fn varint(bytes: &mut &[u8]) -> u64 {
    let mut value = 0;
    for shift in (0..).step_by(7) {
        let [byte] = take(bytes);
        value |= u64::from(byte & 127) << shift;
        if byte < 128 {
            break;
        }
    }
    value
}

fn fields(mut bytes: &[u8]) -> Vec<Field> {
    let mut fields = Vec::new();
    while !bytes.is_empty() {
        let key = varint(&mut bytes);
        let value = match key & 7 {
            0 => varint(&mut bytes).to_le_bytes().to_vec(),
            1 => take::<8>(&mut bytes).to_vec(),
            2 => {
                let length = varint(&mut bytes) as usize;
                let (value, rest) = bytes.split_at(length);
                bytes = rest;
                value.to_vec()
            }
            5 => take::<4>(&mut bytes).to_vec(),
            other => panic!("wire type {other}"),
        };
        fields.push((key >> 3, value));
    }
    fields
}

fn field(fields: &[Field], number: u64) -> Option<&[u8]> {
    fields.iter().find(|field| field.0 == number).map(|field| &field.1[..])
}

/// What a file says: the steps of its marks of a session, its scalars by step and tag, and its pictures: width, height, PNG.
#[derive(Debug, Default, PartialEq)]
struct Said {
    sessions: Vec<u64>,
    scalars: BTreeMap<(u64, String), f32>,
    images: BTreeMap<u64, (u64, u64, Vec<u8>)>,
}

fn read(path: &Path) -> Said {
    let mut said = Said::default();
    for (index, record) in records(&fs::read(path).unwrap()).into_iter().enumerate() {
        let event = fields(&record);
        let seconds = f64::from_le_bytes(field(&event, 1).unwrap().try_into().unwrap());
        assert!(seconds > 1.7e9, "{seconds}");
        let step = field(&event, 2).map_or(0, |step| u64::from_le_bytes(step.try_into().unwrap()));
        assert_eq!(field(&event, 3), (index == 0).then_some(&b"brain.Event:2"[..]), "only the first event names the version");
        if let Some(session) = field(&event, 7) {
            assert_eq!(fields(session), [(1, 1u64.to_le_bytes().to_vec())], "the mark says START");
            said.sessions.push(step);
        }
        for (number, value) in field(&event, 5).map(fields).unwrap_or_default() {
            assert_eq!(number, 1);
            let value = fields(&value);
            let tag = String::from_utf8(field(&value, 1).unwrap().to_vec()).unwrap();
            if let Some(image) = field(&value, 4).map(fields) {
                let number = |field: &[u8]| u64::from_le_bytes(field.try_into().unwrap());
                let [height, width, channels] = [1, 2, 3].map(|at| number(self::field(&image, at).unwrap()));
                assert_eq!((tag.as_str(), channels), ("val/sheet", 3));
                said.images.insert(step, (width, height, field(&image, 4).unwrap().to_vec()));
                continue;
            }
            let number = f32::from_le_bytes(field(&value, 2).expect("a scalar of 0 is written, too").try_into().unwrap());
            assert!(said.scalars.insert((step, tag), number).is_none());
        }
    }
    said
}

/// The paths of the event files, oldest first.
fn files(recipe: &Recipe) -> Vec<PathBuf> {
    let folder = recipe.run.output.join("tensorboard");
    names(&folder).iter().map(|name| folder.join(name)).collect()
}

#[test]
fn event_files_say_what_the_lines_say_and_a_resumed_session_begins_one_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = recipe(folder.path());
    // Lines at 3, 6, 9; the one of 9 is cut off, and written again.
    run(&recipe, 10, false).unwrap_err();
    run(&recipe, u64::MAX, true).unwrap();
    let [first, second] = &files(&recipe).iter().map(|path| read(path)).collect::<Vec<_>>()[..] else { panic!("two files") };
    assert_eq!((&first.sessions[..], &second.sessions[..]), (&[1][..], &[7][..]));

    // As TensorBoard takes them: a session's mark removes what earlier files say about its step and later ones.
    let mut all = first.scalars.clone();
    all.retain(|(step, _), _| *step < second.sessions[0]);
    assert!(all.len() < first.scalars.len());
    all.extend(second.scalars.clone());
    let mut expected = BTreeMap::new();
    for line in fs::read_to_string(recipe.run.output.join("metrics.jsonl")).unwrap().lines() {
        let line: serde_json::Map<String, Value> = serde_json::from_str(line).unwrap();
        let step = line["step"].as_u64().unwrap();
        let kind = if line.contains_key("loss") { "train" } else { "val" };
        for (name, value) in line.iter().filter(|(name, value)| *name != "step" && value.is_number()) {
            let name = name.trim_start_matches("held_out_");
            expected.insert((step, format!("{kind}/{name}")), value.as_f64().unwrap() as f32);
        }
    }
    assert_eq!(all, expected);
    for tag in ["train/loss", "train/part", "train/grad_norm", "train/expert_use_max_t2i", "train/images_per_second", "val/part"]
    {
        assert!(all.contains_key(&(12, tag.to_owned())), "{tag}");
    }
    assert_eq!(all[&(6, "val/nothing".to_owned())], 0.0);
    let png = fs::read(sheet_path(&recipe.run.output, 12)).unwrap();
    assert_eq!(second.images, [(12, (7, 5, png))].into());
    assert!(!all.contains_key(&(6, "val/accuracy".to_owned())), "what is not finite is left out");
}

#[test]
fn a_recipe_can_do_without_them() {
    let folder = tempfile::tempdir().unwrap();
    let mut recipe = recipe(folder.path());
    recipe.run.tensorboard = false;
    run(&recipe, u64::MAX, false).unwrap();
    assert!(!recipe.run.output.join("tensorboard").exists());
    assert!(recipe.run.output.join("metrics.jsonl").exists());
}
