//! Saves that are cut short: by `kill -9` at any moment, by a limit on the size of files, by a full disk.
//!
//! The process that saves is this test binary itself: [`saver`] does nothing unless a test below started it with a folder.
#![cfg(unix)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)] // a test may end by them

mod common;

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use common::{keep_two, load, names, save};

/// 4 files of half a MiB a checkpoint, so that a good part of a save is writing.
const ROWS: usize = 2048;
const NUM_KILLS: usize = 200;
const FOLDER: &str = "UNIF2ACE_TEST_SAVER";

/// Resumes from the newest checkpoint and saves step after step, naming each one that is committed.
#[test]
fn saver() {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    let checkpoints = keep_two(Path::new(&folder));
    checkpoints.remove_partial().unwrap();
    let start = load(&checkpoints, ROWS).unwrap_or(0);
    println!("start {start}");
    for step in start + 1..start + 1000 {
        match save(&checkpoints, ROWS, step) {
            Ok(_) => println!("committed {step}"),
            Err(error) => {
                println!("{error}");
                return;
            }
        }
        std::io::stdout().flush().unwrap();
    }
}

/// The arguments with which this binary runs only [`saver`].
fn as_saver(command: &mut Command, folder: &Path) -> Child {
    command.args(["saver", "--exact", "--nocapture"]).env(FOLDER, folder).stdout(Stdio::piped()).stderr(Stdio::null());
    command.spawn().unwrap()
}

/// Step of the last line `committed N` (or `start N`).
fn last_committed(lines: &[String]) -> Option<u64> {
    lines.iter().rev().find_map(|line| line.strip_prefix("committed ").or(line.strip_prefix("start "))?.parse().ok())
}

#[test]
fn killed_at_200_moments_no_committed_step_is_lost() {
    let mut cut_short = 0;
    // Two at a time: a save waits for the disk most of the time.
    std::thread::scope(|scope| {
        let lanes = [0, 1].map(|lane| scope.spawn(move || kill_again_and_again(NUM_KILLS / 2, lane)));
        cut_short += lanes.into_iter().map(|lane| lane.join().unwrap()).sum::<usize>();
    });
    println!("{NUM_KILLS} kills, {cut_short} of them in the middle of a save");
    assert!(cut_short > NUM_KILLS / 10, "only {cut_short} kills hit a save: the test says nothing");
}

/// Kills savers of one folder and returns how many left an unfinished save behind.
fn kill_again_and_again(num_kills: usize, lane: u64) -> usize {
    let folder = tempfile::tempdir().unwrap();
    let checkpoints = keep_two(folder.path());
    let (mut cut_short, mut random, mut reached) = (0, 0x9e37_79b9_7f4a_7c15 ^ lane, 0);
    // The first saver is not disturbed for a few steps: two of its saves are the time in which the others are killed.
    let mut window = Duration::ZERO;
    for kill in 0..=num_kills {
        let mut child = as_saver(&mut Command::new(std::env::current_exe().unwrap()), folder.path());
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let started = lines.by_ref().map(Result::unwrap).find(|line| line.starts_with("start ")).unwrap();
        assert_eq!(last_committed(&[started]), Some(reached), "the saver itself resumes where it was");
        if kill == 0 {
            let begun = Instant::now();
            lines.by_ref().map(Result::unwrap).find(|line| line == "committed 4").unwrap();
            window = begun.elapsed() / 2;
        }
        // xorshift: the moment is random, the test is the same each time up to the machine's own timing.
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        std::thread::sleep(window.mul_f64((random >> 11) as f64 / (1u64 << 53) as f64));
        child.kill().unwrap();
        let rest: Vec<String> = lines.map(Result::unwrap).collect();
        child.wait().unwrap();

        let committed = last_committed(&rest).unwrap_or(reached).max(reached);
        // A save that is not named yet may be there already.
        let found = load(&checkpoints, ROWS).unwrap_or(0);
        assert!(found >= committed, "step {committed} was committed, {found} is found");
        assert_eq!(checkpoints.newest_step().unwrap().unwrap_or(0), found, "what looks like a checkpoint is whole");
        reached = found;
        let partial = names(folder.path()).iter().any(|name| name.ends_with(".partial"));
        cut_short += usize::from(partial);
    }
    assert!(reached as usize > num_kills / 4, "{num_kills} kills let only {reached} saves through: the test says little");
    cut_short
}

/// What a saver says that runs under `prepare`, a line of shell which ends before the saver starts, in `folder` with one checkpoint.
fn save_under(prepare: &str, folder: &Path) -> Output {
    let mut shell = Command::new("sh");
    shell.arg("-c").arg(format!("{prepare}\nexec \"$0\" \"$@\"")).arg(std::env::current_exe().unwrap());
    as_saver(&mut shell, folder).wait_with_output().unwrap()
}

/// Asserts that the save was refused with `reason` and that step 1 is whole and alone.
fn assert_refused(output: &Output, reason: &str, folder: &Path) {
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("start 1") && !said.contains("committed"), "{said}");
    for part in ["cannot write", ".safetensors", reason, "hint: "] {
        assert!(said.contains(part), "no {part:?} in {said}");
    }
    assert_eq!(names(folder), ["step-00000001"]);
    assert_eq!(load(&keep_two(folder), ROWS), Some(1));
}

#[test]
fn a_refused_write_leaves_the_old_checkpoint_and_says_why() {
    let folder = tempfile::tempdir().unwrap();
    save(&keep_two(folder.path()), ROWS, 1).unwrap();
    // A limit on the size of files acts where a full disk does, in `write`, and needs no rights.
    let output = save_under("trap '' XFSZ; ulimit -f 512", folder.path());
    assert_refused(&output, "does not allow so large a file", folder.path());
}

#[test]
fn a_full_disk_leaves_the_old_checkpoint_and_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let outside = folder.path().join("outside");
    save(&keep_two(&outside), ROWS, 1).unwrap();
    let disk = folder.path().join("disk");
    std::fs::create_dir(&disk).unwrap();
    // A disk of 3 MiB, seen by this shell and its children only: one checkpoint of 2 MiB fits, a second doesn't. What the saver leaves
    // there is copied out, since the disk ends with the shell.
    let script = format!(
        "mount -t tmpfs -o size=3m tmpfs '{disk}' || exit 77\ncp -r '{outside}/.' '{disk}' && \"$0\" \"$@\"\ncp -r '{disk}' '{left}'",
        disk = disk.display(),
        outside = outside.display(),
        left = folder.path().join("left").display(),
    );
    let mut shell = Command::new("unshare");
    shell.args(["--user", "--map-root-user", "--mount", "sh", "-c", &script]).arg(std::env::current_exe().unwrap());
    shell.args(["saver", "--exact", "--nocapture"]).env(FOLDER, &disk);
    match shell.output() {
        Ok(output) if folder.path().join("left").is_dir() => {
            assert_refused(&output, "free some space on this disk", &folder.path().join("left"));
        }
        other => println!("no disk can be mounted here ({other:?}): the limit on the size of files stands for it"),
    }
}
