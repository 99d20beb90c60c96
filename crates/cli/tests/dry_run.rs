//! `train --dry-run`: what a recipe would train, and nothing on disk.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test may end by them

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use common::tiny_run::TinyRun;
use common::{text, unif2ace};
use serde_json::Value;
use toml::Table;

/// Every file and folder below one, with what identifies its content.
fn everything(folder: &Path) -> BTreeMap<PathBuf, (u64, std::time::SystemTime)> {
    let mut found = BTreeMap::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            let about = entry.metadata().unwrap();
            if about.is_dir() {
                folders.push(entry.path());
            }
            found.insert(entry.path(), (about.len(), about.modified().unwrap()));
        }
    }
    found
}

/// Standard output of a dry run that succeeds and writes nothing.
fn planned(run: &TinyRun, arguments: &[&str]) -> String {
    let before = everything(&run.folder);
    let recipe = run.folder.join("recipe.toml");
    let output = unif2ace().args(["train", text(&recipe), "--dry-run"]).args(arguments).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(everything(&run.folder), before, "a dry run writes nothing");
    String::from_utf8(output.stdout).unwrap()
}

fn json(folder: &Path, change: impl FnOnce(&mut Table)) -> Value {
    serde_json::from_str(&planned(&TinyRun::new(folder, change), &["--json"])).unwrap()
}

#[test]
fn parameters_memory_steps_and_data_are_told() {
    let folder = tempfile::tempdir().unwrap();
    let plan = json(folder.path(), |_| {});
    assert_eq!(plan["part"], "unified transformer");
    let pieces = plan["parameters"]["pieces"].as_array().unwrap();
    let piece =
        |name: &str| pieces.iter().find(|piece| piece[0] == name).unwrap_or_else(|| panic!("no {name}"))[1].as_u64().unwrap();
    // 9803 tokens of width 32; the head has a bias.
    assert_eq!((piece("embedding"), piece("head")), (9803 * 32, 9803 * 33));
    // Two blocks of a 32 x 64 MLP with biases.
    assert_eq!(piece("MLPs (shared experts)"), 2 * (2 * 32 * 64 + 64 + 32));
    let all = plan["parameters"]["all"].as_u64().unwrap();
    assert_eq!(all, pieces.iter().map(|piece| piece[1].as_u64().unwrap()).sum::<u64>());
    assert_eq!(plan["parameters"]["trained"], all);
    let memory = |name: &str| plan["memory"][name].as_u64().unwrap();
    assert_eq!([memory("weights"), memory("moments"), memory("ema")], [4 * all, 8 * all, 4 * all]);
    let sum: u64 = ["weights", "gradients", "moments", "ema", "activations"].map(memory).iter().sum();
    assert_eq!(memory("total"), sum);
    let steps = &plan["steps"];
    assert_eq!((&steps["num_steps"], &steps["rows"]["t2i"], &steps["rows"]["mmu"]), (&60.into(), &3.into(), &2.into()));
    assert_eq!(steps["tokens"], 5 * (128 + 64 + 3));
    assert_eq!((&steps["peak_step"], &steps["learning_rates"][1]), (&6.into(), &2.0e-3.into()));
    assert_eq!(steps["learning_rates"][0], 0.0);
    assert!(steps["learning_rates"][2].as_f64().unwrap() < 1e-4);
    let set = &plan["sets"][0];
    assert_eq!((&set["train"], &set["held_out"]), (&13.into(), &13.into()));
    assert_eq!(plan["samples_by_task"]["vqa"], 13);
    assert_eq!(plan["checkpoint"], Value::Null);
}

#[test]
fn frozen_parameters_and_those_beside_adapters_are_not_counted_as_trained() {
    let folder = tempfile::tempdir().unwrap();
    let counts = |plan: &Value| ["all", "trained"].map(|name| plan["parameters"][name].as_u64().unwrap());
    let frozen = json(folder.path(), |recipe| {
        let freeze = toml::Value::from(vec!["embed_tokens", "lm_head"]);
        recipe.insert("trainable".into(), Table::from_iter([("freeze".to_owned(), freeze)]).into());
    });
    let [all, trained] = counts(&frozen);
    assert_eq!(trained, all - 9803 * (32 + 33));
    assert_eq!(frozen["memory"]["moments"], 8 * trained);
    assert_eq!(frozen["memory"]["weights"], 4 * all);

    // What one of two stages trains is trained.
    let folder = tempfile::tempdir().unwrap();
    let staged = json(folder.path(), |recipe| {
        recipe["optimizer"].as_table_mut().unwrap().remove("num_steps");
        let stages: toml::Table = toml::from_str(
            "[[stage]]\nname = 'first'\nnum_steps = 30\n[stage.trainable]\nfreeze = ['embed_tokens', 'lm_head']\n
             [[stage]]\nname = 'second'\nnum_steps = 30\n[stage.trainable]\nfreeze = ['embed_tokens']\n",
        )
        .unwrap();
        recipe.extend(stages);
    });
    assert_eq!(counts(&staged), [all, all - 9803 * 32]);

    let folder = tempfile::tempdir().unwrap();
    let adapted = json(folder.path(), |recipe| {
        recipe["unified"].as_table_mut().unwrap().insert("init_from".into(), "models/none".into());
        let lora = [("rank", 2.into()), ("alpha", 4.0.into()), ("targets", toml::Value::from(vec!["layers.*.mlp"]))];
        recipe.insert("lora".into(), Table::from_iter(lora.map(|(key, value)| (key.to_owned(), value))).into());
    });
    // Rank 2 beside both layers of two blocks' MLPs, 32 and 64 wide.
    let adapters = 2 * 2 * 2 * (32 + 64);
    assert_eq!(counts(&adapted), [all + adapters, adapters]);
    assert_eq!(adapted["memory"]["moments"], 8 * adapters);
}

#[test]
fn recomputation_and_passes_take_less_memory_by_the_formula_too() {
    let activations = |change: fn(&mut Table)| {
        let folder = tempfile::tempdir().unwrap();
        json(folder.path(), |recipe| {
            let optimizer = recipe["optimizer"].as_table_mut().unwrap();
            optimizer["batch_size"] = 4.into();
            change(recipe);
        })["memory"]["activations"]
            .as_u64()
            .unwrap()
    };
    let kept = activations(|_| {});
    let again = activations(|recipe| drop(recipe["unified"].as_table_mut().unwrap().insert("recompute".into(), "blocks".into())));
    let passes =
        activations(|recipe| drop(recipe["optimizer"].as_table_mut().unwrap().insert("accumulation_steps".into(), 2.into())));
    assert!(again < kept, "{again} of {kept}");
    assert_eq!(2 * passes, kept);
}

#[test]
fn people_read_a_table_and_learn_of_a_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let run = TinyRun::new(folder.path(), |recipe| {
        recipe["optimizer"]["num_steps"] = 2.into();
        recipe["optimizer"]["warmup_steps"] = 1.into();
    });
    let table = planned(&run, &[]);
    for part in [
        "unified transformer",
        "token experts, generation",
        "activations",
        "MB",
        "rows a step, t2i",
        "samples for vqa",
        "starts at step 0",
    ] {
        assert!(table.contains(part), "no {part:?} in {table}");
    }
    run.command(false).assert().success();
    assert!(planned(&run, &["--resume"]).contains("a checkpoint of step 2"));
}

#[test]
fn what_the_run_would_refuse_is_refused() {
    let refused = |change: fn(&mut Table)| {
        let folder = tempfile::tempdir().unwrap();
        let run = TinyRun::new(folder.path(), change);
        let output = unif2ace().args(["train", text(&run.folder.join("recipe.toml")), "--dry-run"]).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        assert!(output.stdout.is_empty());
        String::from_utf8(output.stderr).unwrap()
    };
    type Case = (fn(&mut Table), &'static str);
    let cases: [Case; 5] = [
        (|recipe| recipe["data"]["path"] = "no/such/faces".into(), "no/such/faces"),
        (|recipe| recipe["run"]["export"] = "no/such/model".into(), "no/such/model"),
        (|recipe| recipe["unified"]["config"]["num_attention_heads"] = 5.into(), "expected a multiple of 5 heads"),
        (|recipe| drop(recipe["optimizer"].as_table_mut().unwrap().insert("decay_ratio".into(), 0.5.into())), "`decay_ratio`"),
        (
            |recipe| {
                let freeze = toml::Value::from(vec!["embd_tokens"]);
                recipe.insert("trainable".into(), Table::from_iter([("freeze".to_owned(), freeze)]).into());
            },
            "did you mean",
        ),
    ];
    for (change, expected) in cases {
        let error = refused(change);
        assert!(error.contains(expected) && error.starts_with("error: "), "no {expected:?} in {error}");
    }
}

#[test]
fn each_stage_is_told_with_its_own_data() {
    let folder = tempfile::tempdir().unwrap();
    let staged = |recipe: &mut Table| {
        recipe["optimizer"].as_table_mut().unwrap().remove("num_steps");
        // Sets are named in stages alone, as in recipes/base.
        let faces = recipe["data"]["path"].as_str().unwrap().to_owned();
        recipe["data"]["path"] = format!("{faces}/..").into();
        let stages = "
            [[stage]]
            name = 'captions'
            num_steps = 3
            [[stage.data.mixture]]
            path = 'faces'
            tasks = ['t2i', 'caption']

            [[stage]]
            name = 'questions'
            num_steps = 5
            [stage.optimizer]
            batch_size = 6
            [[stage.data.mixture]]
            path = 'faces'
            tasks = ['t2i', 'vqa']";
        recipe.insert("stage".into(), stages.parse::<Table>().unwrap()["stage"].clone());
    };
    let plan = json(folder.path(), staged);
    assert!(plan["steps"].is_null() && plan["parameters"]["all"].as_u64().unwrap() > 0);
    let stages = plan["stages"].as_array().unwrap();
    let told: Vec<_> = stages
        .iter()
        .map(|stage| (stage["name"].as_str().unwrap(), &stage["steps"]["num_steps"], &stage["steps"]["rows"]["t2i"]))
        .collect();
    assert_eq!(told, [("captions", &3.into(), &3.into()), ("questions", &5.into(), &6.into())]);
    assert_eq!((&stages[0]["samples_by_task"]["caption"], &stages[0]["samples_by_task"]["vqa"]), (&13.into(), &0.into()));
    assert_eq!(stages[1]["samples_by_task"]["vqa"], 13);
    let memory = |stage: usize| stages[stage]["memory"]["activations"].as_u64().unwrap();
    assert!(memory(1) > memory(0), "more rows take more memory");
    let lines = planned(&TinyRun::new(folder.path(), staged), &[]);
    assert!(lines.contains("stage captions") && lines.contains("stage questions"), "{lines}");
}
