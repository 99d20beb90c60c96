//! Training by several processes over MPI. `.ci/mpi` runs these tests.
#![cfg(feature = "mpi")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test may end by them

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use common::{names, root, text};
use toml::{Table, Value};

/// What two ranks may differ by from one, of a loss of this size.
const TOLERANCE: f64 = 1e-5;
/// Longest that a job may take to notice that a rank is gone.
const NOTICE: Duration = Duration::from_secs(30);

/// A folder with the shipped frozen parts, the face sample and recipes of a small transformer.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("model")).unwrap();
        for name in ["config.json", "vq.safetensors", "clip.safetensors", "face.safetensors", "tokenizer.json"] {
            fs::copy(root().join("models/mini").join(name), folder.path().join("model").join(name)).unwrap();
        }
        for split in ["train", "val"] {
            let split_folder = folder.path().join("faces").join(split);
            fs::create_dir_all(&split_folder).unwrap();
            let shard = root().join("tests/fixtures/faces/test/test-00000.tar");
            fs::copy(shard, split_folder.join(format!("{split}-00000.tar"))).unwrap();
        }
        Self(folder)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A recipe whose run lies in `run`.
    fn recipe(&self, run: &str, num_steps: i64, changes: &[(&str, Value)]) -> PathBuf {
        let text = fs::read_to_string(root().join("recipes/mini/unified-2-both.toml")).unwrap();
        let mut recipe: Table = toml::from_str(&text).unwrap();
        let place = |name: &str| Value::from(self.path(name).to_str().unwrap());
        let sizes = [
            ("run.output", place(run)),
            ("run.export", place("model")),
            ("run.log_every", 1.into()),
            ("run.checkpoint_every", 0.into()),
            ("run.evaluate_every", 0.into()),
            ("run.precision", "f32".into()),
            ("data.path", place("faces")),
            ("optimizer.num_steps", num_steps.into()),
            ("optimizer.batch_size", 4.into()),
            ("optimizer.schedule", "constant".into()),
            ("optimizer.warmup_steps", 2.into()),
            ("unified.mmu_batch_size", 2.into()),
            ("unified.questions_per_row", 2.into()),
            ("unified.config.num_hidden_layers", 3.into()),
            ("unified.config.hidden_size", 64.into()),
            ("unified.config.intermediate_size", 64.into()),
        ];
        for (path, value) in sizes.iter().chain(changes) {
            let (tables, name) = path.rsplit_once('.').unwrap();
            let table = tables.split('.').fold(&mut recipe, |table, name| table[name].as_table_mut().unwrap());
            assert!(table.insert(name.into(), value.clone()).is_some(), "the recipe has no {path}");
        }
        recipe["optimizer"].as_table_mut().unwrap().remove("decay_ratio");
        let path = self.path(&format!("{run}.toml"));
        fs::write(&path, toml::to_string(&recipe).unwrap()).unwrap();
        path
    }

    /// Every number of every step in the metrics, but times and counts: where a router is undecided, they jump with the last bit.
    fn numbers(&self, run: &str) -> Vec<Vec<(String, f64)>> {
        let text = fs::read_to_string(self.path(run).join("metrics.jsonl")).unwrap();
        let steps = text.lines().map(|line| serde_json::from_str::<serde_json::Map<_, _>>(line).unwrap());
        let number = |(name, value): (String, serde_json::Value)| Some((name, value.as_f64()?));
        let timed = |name: &str| {
            name == "seconds" || name.ends_with("_per_second") || name.ends_with("resident_bytes") || name.contains("expert_use")
        };
        steps
            .filter(|step| step.contains_key("loss"))
            .map(|step| step.into_iter().filter_map(number).filter(|(name, _)| !timed(name)).collect())
            .collect()
    }

    /// The largest difference of two runs, of numbers above 1 as a part of them.
    fn difference(&self, one: &str, other: &str) -> f64 {
        let (one, other) = (self.numbers(one), self.numbers(other));
        assert_eq!(one.len(), other.len());
        let pairs = one.iter().flatten().zip(other.iter().flatten());
        pairs.map(|(one, other)| (one.1 - other.1).abs() / one.1.abs().max(1.0)).fold(0.0, f64::max)
    }
}

/// `mpirun` of one recipe a rank.
fn mpirun(recipes: &[&Path], resume: bool) -> Child {
    let mut command = Command::new("mpirun");
    command.args(["--allow-run-as-root", "--oversubscribe", "--bind-to", "none"]);
    for (rank, recipe) in recipes.iter().enumerate() {
        let between: &[&str] = if rank == 0 { &[] } else { &[":"] };
        command.args(between).args(["-n", "1", env!("CARGO_BIN_EXE_unif2ace"), "train", text(recipe), "--quiet"]);
        command.args(if resume { &["--resume"][..] } else { &[] });
    }
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn run(recipe: &Path, world_size: usize, resume: bool) -> Output {
    let output = mpirun(&vec![recipe; world_size], resume).wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output
}

fn wait_for(what: &str, limit: Duration, mut there: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !there() {
        assert!(begun.elapsed() < limit, "{what} did not come");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The process of rank `rank` that trains `recipe`.
fn process_of(recipe: &Path, rank: usize) -> String {
    let variable = format!("OMPI_COMM_WORLD_RANK={rank}");
    let has = |folder: &Path, file: &str, entry: &str| {
        fs::read(folder.join(file)).is_ok_and(|bytes| bytes.split(|&byte| byte == 0).any(|part| part == entry.as_bytes()))
    };
    let folders = fs::read_dir("/proc").unwrap().map(|entry| entry.unwrap().path());
    let found = folders.into_iter().find(|folder| has(folder, "environ", &variable) && has(folder, "cmdline", text(recipe)));
    found.expect("a process of the rank").file_name().unwrap().to_str().unwrap().to_owned()
}

fn signal(process: &str, name: &str) {
    assert!(Command::new("kill").args([name, process]).status().unwrap().success());
}

/// Waits for the job's end and gives its standard error.
fn end_of(mut job: Child) -> String {
    wait_for("the end of the job", NOTICE, || job.try_wait().unwrap().is_some());
    let output = job.wait_with_output().unwrap();
    assert!(!output.status.success());
    String::from_utf8(output.stderr).unwrap()
}

fn last_checkpoint(place: &Place, run: &str) -> u64 {
    let last = names(&place.path(run).join("checkpoints")).pop().unwrap();
    last.strip_prefix("step-").unwrap().parse().unwrap()
}

#[test]
fn two_processes_give_the_losses_of_one_and_either_goes_on_with_the_others_run() {
    let place = Place::new();
    let [one, two] = ["one", "two"].map(|run| place.recipe(run, 50, &[]));
    run(&one, 1, false);
    let said = String::from_utf8(run(&two, 2, false).stderr).unwrap();
    let difference = place.difference("one", "two");
    println!("largest difference in 50 steps: {difference:e}");
    println!("{}", said.lines().filter(|line| line.contains("gradients:")).collect::<String>());
    assert_eq!(place.numbers("one").len(), 50);
    assert!(difference <= TOLERANCE, "{difference:e}");
    assert!(said.contains("% left during the backward pass") && !said.contains(" 0% left"), "{said}");

    run(&place.recipe("one", 56, &[]), 2, true);
    run(&place.recipe("two", 56, &[]), 1, true);
    let difference = place.difference("one", "two");
    assert!(difference <= TOLERANCE, "after changing places: {difference:e}");
}

#[test]
fn a_killed_rank_ends_the_job_and_the_run_goes_on_from_its_checkpoint() {
    let place = Place::new();
    let recipe = place.recipe("run", 100_000, &[("run.checkpoint_every", 2.into())]);
    let job = mpirun(&[&recipe, &recipe], false);
    wait_for("a checkpoint", 4 * NOTICE, || place.path("run/checkpoints/step-00000004").is_dir());
    signal(&process_of(&recipe, 1), "-KILL");
    let said = end_of(job);
    assert!(said.contains("rank 1") && said.contains("signal 9"), "{said}");
    let last = last_checkpoint(&place, "run");
    run(&place.recipe("run", last as i64 + 2, &[]), 1, true);
    assert_eq!(place.numbers("run").last().unwrap()[0].1, (last + 2) as f64);
}

#[test]
fn one_interrupted_rank_stops_all_after_saving() {
    let place = Place::new();
    let recipe = place.recipe("run", 100_000, &[]);
    let job = mpirun(&[&recipe, &recipe], false);
    wait_for("the first steps", 4 * NOTICE, || fs::read(place.path("run/metrics.jsonl")).is_ok_and(|lines| !lines.is_empty()));
    signal(&process_of(&recipe, 1), "-INT");
    let said = end_of(job);
    assert!(said.contains("the run is saved"), "{said}");
    let last = last_checkpoint(&place, "run");
    assert_eq!(place.numbers("run").last().unwrap()[0].1, last as f64);
    run(&place.recipe("run", last as i64 + 2, &[]), 2, true);
}

#[test]
fn ranks_that_do_not_fit_end_with_an_error_and_leave_the_run_as_it_was() {
    let place = Place::new();
    let even = place.recipe("run", 2, &[]);
    run(&even, 2, false);
    let before = names(&place.path("run/checkpoints"));
    let refused = |recipes: &[&Path], expected: &str| {
        let said = end_of(mpirun(recipes, true));
        assert!(said.contains("error: rank ") && said.contains(expected) && said.contains("hint: "), "{said}");
        assert_eq!(names(&place.path("run/checkpoints")), before);
    };
    let odd = place.recipe("run", 4, &[("optimizer.batch_size", 3.into())]);
    refused(&[&odd, &odd], "rank mismatch: 3 rows a step can't be shared equally by 2 ranks");
    fs::rename(&odd, place.path("odd.toml")).unwrap();
    let longer = place.recipe("run", 4, &[]);
    refused(&[&longer, &place.path("odd.toml")], "rank mismatch: the recipe or program version of rank 1 (of 2)");
}
