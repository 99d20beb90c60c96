//! What lies in a checkpoint folder, which folders stay, and what happens when files of one are damaged.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test may end by them

mod common;

use std::fs;
use std::path::Path;

use common::{Net, content, keep_two, load, names, save};
use unif2ace_train::checkpoint::{Better, Checkpoints, Keep};

const ROWS: usize = 3;

#[test]
fn the_newest_checkpoint_is_found_and_old_ones_go() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoints = keep_two(folder.path());
    assert!(checkpoints.newest_whole().unwrap().is_none());
    for step in [10, 20, 30] {
        save(&checkpoints, ROWS, step).unwrap();
        assert_eq!(load(&checkpoints, ROWS), Some(step));
    }
    assert_eq!(names(folder.path()), ["step-00000020", "step-00000030"]);
    let files = ["ema.safetensors", "first_moments.safetensors", "manifest.json", "second_moments.safetensors", "state.json"];
    assert_eq!(names(&folder.path().join("step-00000030")), [&files[..], &["weights.safetensors"]].concat());
}

#[test]
fn the_manifest_holds_size_and_sha256_of_each_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = save(&keep_two(folder.path()), ROWS, 1).unwrap();
    let manifest: serde_json::Value = serde_json::from_slice(&fs::read(path.join("manifest.json")).unwrap()).unwrap();
    let files = manifest["files"].as_object().unwrap();
    assert_eq!(files.len(), 5);
    for (name, entry) in files {
        let bytes = fs::read(path.join(name)).unwrap();
        assert_eq!(entry["bytes"], bytes.len(), "{name}");
        assert_eq!(entry["sha256"], unif2ace_io::sha256_hex(&bytes), "{name}");
    }
}

#[test]
fn what_a_killed_save_left_is_no_checkpoint_and_is_removed() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoints = keep_two(folder.path());
    save(&checkpoints, ROWS, 10).unwrap();
    let partial = folder.path().join(".step-00000020.partial");
    fs::create_dir(&partial).unwrap();
    fs::copy(folder.path().join("step-00000010/weights.safetensors"), partial.join("weights.safetensors")).unwrap();
    fs::write(folder.path().join("notes.txt"), "mine").unwrap();
    assert_eq!(load(&checkpoints, ROWS), Some(10));
    checkpoints.remove_partial().unwrap();
    assert_eq!(names(folder.path()), ["notes.txt", "step-00000010"]);
}

#[test]
fn a_damaged_file_is_named_and_the_checkpoint_before_is_used() {
    type Damage = fn(&mut Vec<u8>);
    let damages: [(&str, Damage, &str); 4] = [
        ("weights.safetensors", |bytes| *bytes.last_mut().unwrap() ^= 1, "weights.safetensors: expected SHA-256 "),
        ("ema.safetensors", |bytes| bytes.truncate(bytes.len() - 3), "ema.safetensors: expected "),
        ("state.json", Vec::clear, "state.json: expected "),
        ("manifest.json", |bytes| bytes[0] = b'x', "manifest.json: expected value"),
    ];
    for (name, damage, reason) in damages {
        let folder = tempfile::tempdir().unwrap();
        let checkpoints = keep_two(folder.path());
        save(&checkpoints, ROWS, 10).unwrap();
        let path = save(&checkpoints, ROWS, 20).unwrap().join(name);
        let hurt = |path: &Path| {
            let mut bytes = fs::read(path).unwrap();
            damage(&mut bytes);
            fs::write(path, bytes).unwrap();
        };
        hurt(&path);
        assert_eq!(load(&checkpoints, ROWS), Some(10), "{name}");

        // The run goes on from step 10: the damaged one is not counted as kept, and is replaced when its step comes again.
        save(&checkpoints, ROWS, 15).unwrap();
        assert_eq!(names(folder.path()), ["step-00000010", "step-00000015", "step-00000020"]);
        assert_eq!(load(&checkpoints, ROWS), Some(15));
        save(&checkpoints, ROWS, 20).unwrap();
        assert_eq!(load(&checkpoints, ROWS), Some(20), "{name}");

        fs::remove_dir_all(folder.path().join("step-00000015")).unwrap();
        hurt(&path);
        let error = checkpoints.newest_whole().unwrap_err().to_string();
        for part in ["step-00000020: is damaged", reason, "hint: "] {
            assert!(error.contains(part), "no {part:?} in {error}");
        }
        fs::remove_file(&path).unwrap();
        let error = checkpoints.newest_whole().unwrap_err().to_string();
        assert!(error.contains(&format!("{name}: No such file")), "{error}");
    }
}

#[test]
fn a_whole_checkpoint_is_never_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoints = keep_two(folder.path());
    let path = save(&checkpoints, ROWS, 10).unwrap();
    let (mut state, net, optimizer) = content(ROWS, 10);
    let before = fs::metadata(path.join("state.json")).unwrap().modified().unwrap();
    state.seconds += 1.0;
    checkpoints.save(&state, &net, &optimizer).unwrap();
    assert_eq!(fs::metadata(path.join("state.json")).unwrap().modified().unwrap(), before);
}

#[test]
fn the_best_checkpoints_stay_beside_the_last() {
    let folder = tempfile::tempdir().unwrap();
    let keep = Keep { last: 1, best: 2, metric: Some("accuracy".into()), better: Better::Higher };
    let checkpoints = Checkpoints::new(folder.path(), keep);
    let measured = [(10, Some(0.5)), (20, Some(0.9)), (30, Some(0.7)), (40, None), (50, Some(0.1)), (60, None)];
    for (step, accuracy) in measured {
        let (mut state, net, optimizer) = content(ROWS, step);
        // A measure that is not finite is none.
        state.measures = [("accuracy".to_owned(), accuracy), ("loss".to_owned(), Some(step as f64))].into();
        checkpoints.save(&state, &net, &optimizer).unwrap();
    }
    assert_eq!(names(folder.path()), ["step-00000020", "step-00000030", "step-00000060"]);

    let (mut state, net, optimizer) = content(ROWS, 70);
    state.measures = [("acuracy".to_owned(), Some(1.0)), ("loss".to_owned(), Some(1.0))].into();
    let error = checkpoints.save(&state, &net, &optimizer).unwrap_err().to_string();
    assert!(error.contains("`accuracy`") && error.contains("acuracy, loss") && error.contains("hint: "), "{error}");
    assert_eq!(checkpoints.newest_whole().unwrap().unwrap().state.step, 70, "nothing is lost by it");
}

#[test]
fn another_architecture_is_refused_by_name() {
    #[derive(burn::module::Module, Debug)]
    struct Other {
        weight: burn::module::Param<burn::tensor::Tensor<2>>,
        scales: Vec<burn::module::Param<burn::tensor::Tensor<1>>>,
    }
    let folder = tempfile::tempdir().unwrap();
    let checkpoints = keep_two(folder.path());
    save(&checkpoints, ROWS, 10).unwrap();
    let found = checkpoints.newest_whole().unwrap().unwrap();
    let Net { weight, bias } = Net::new(ROWS + 1, 0.0);
    let error = found.load_into(Other { weight, scales: vec![bias; 40] }).unwrap_err().to_string();
    for part in [
        "weights.safetensors does not fit the recipe's model: 42 problems",
        "weight: expected shape [4, 64], found [3, 64]",
        "missing scales.0 [4]",
        "unexpected bias [3]",
        "and 18 more",
        "hint: resume with the recipe",
    ] {
        assert!(error.contains(part), "no {part:?} in {error}");
    }
}
