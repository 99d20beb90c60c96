//! Runs on mixtures of several forms of data, and the cache of codes and features.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test may end by them

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock};

use burn::tensor::Device;
use toml::{Table, Value};
use unif2ace_data::{Broken, MaxBroken};
use unif2ace_ops::{Precision, in_precision};
use unif2ace_train::batches::sample_indices;
use unif2ace_train::feed::{Feed, RankOf};
use unif2ace_train::{Outcome, Recipe, Session, features, run};

const VOCABULARY: i64 = 300;

/// First weights come from the device's one generator, so that runs beside each other would change each other's.
static ALONE: Mutex<()> = Mutex::new(());

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// A folder with faces as shards and a model folder with a small image tokenizer and a text tokenizer, made once.
fn base() -> &'static Path {
    static BASE: OnceLock<tempfile::TempDir> = OnceLock::new();
    let folder = BASE.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        for split in ["train", "val"] {
            let shard = folder.path().join(format!("faces/{split}/{split}-00000.tar"));
            fs::create_dir_all(shard.parent().unwrap()).unwrap();
            fs::copy(root().join("tests/fixtures/faces/test/test-00000.tar"), shard).unwrap();
        }
        for part in ["vq", "tokenizer"] {
            train(folder.path(), &recipe(part, folder.path()), false);
        }
        folder
    });
    folder.path()
}

/// Sets values by their paths.
fn set(recipe: &mut Table, values: &[(&str, i64)]) {
    for (path, value) in values {
        let (tables, name) = path.rsplit_once('.').unwrap();
        let table = tables.split('.').fold(&mut *recipe, |table, name| table[name].as_table_mut().unwrap());
        table.insert(name.into(), Value::Integer(*value));
    }
}

/// A recipe of the small model that takes seconds; its run and model lie in `folder`.
fn recipe(part: &str, folder: &Path) -> Table {
    let text = fs::read_to_string(root().join(format!("recipes/mini/{part}.toml"))).unwrap();
    let mut recipe: Table = toml::from_str(&text).unwrap();
    let place = |name: &str| Value::String(folder.join(name).to_str().unwrap().to_owned());
    let run = recipe["run"].as_table_mut().unwrap();
    run.insert("output".into(), place(&format!("run-{part}")));
    run.insert("export".into(), place("model"));
    recipe["data"].as_table_mut().unwrap().insert("path".into(), place("faces"));
    if part == "tokenizer" {
        set(&mut recipe, &[("tokenizer.vocab_size", VOCABULARY)]);
        return recipe;
    }
    set(
        &mut recipe,
        &[("run.log_every", 1), ("optimizer.num_steps", 1), ("optimizer.batch_size", 2), ("optimizer.warmup_steps", 1)],
    );
    let optimizer = recipe["optimizer"].as_table_mut().unwrap();
    optimizer.insert("schedule".into(), "constant".into());
    optimizer.remove("decay_ratio");
    if part == "vq" {
        let sizes = [("vq.config.ch", 32), ("vq.config.enc_transformer_blocks", 1), ("vq.config.dec_transformer_blocks", 1)];
        set(&mut recipe, &sizes);
    } else {
        let sizes = [
            ("unified.config.vocab_size", VOCABULARY + 10 + 8192 + 1),
            ("unified.config.llm_vocab_size", VOCABULARY),
            ("unified.config.eot_token_id", VOCABULARY - 1),
            ("unified.config.hidden_size", 32),
            ("unified.config.num_hidden_layers", 1),
            ("unified.config.intermediate_size", 32),
            ("unified.config.max_seq_length", 320),
            ("unified.config.moe.routed_intermediate_size", 8),
            ("unified.config.moe.feature_token_dim", 16),
            ("unified.mmu_batch_size", 2),
            ("unified.questions_per_row", 2),
            ("run.checkpoint_every", 2),
            ("run.evaluate_every", 0),
        ];
        set(&mut recipe, &sizes);
    }
    recipe
}

/// The transformer's recipe, on a mixture of shards, Parquet, LLaVA's JSON and text, in a run folder of its own.
fn mixed(name: &str, num_steps: i64) -> Table {
    let base = base();
    let mut recipe = recipe("unified", base);
    set(&mut recipe, &[("optimizer.num_steps", num_steps), ("unified.text_batch_size", 2)]);
    let run = recipe["run"].as_table_mut().unwrap();
    run.insert("output".into(), base.join(name).to_str().unwrap().into());
    fs::create_dir_all(base.join("llava/images")).unwrap();
    let talk = |key: &str| {
        fs::copy(root().join(format!("tests/fixtures/faces/{key}.webp")), base.join(format!("llava/images/{key}.webp"))).unwrap();
        serde_json::json!({"id": key, "image": format!("{key}.webp"), "conversations": [
            {"from": "human", "value": "<image>\nIs this a face?"}, {"from": "gpt", "value": "Yes."},
        ]})
    };
    let list: Vec<_> = ["test000018", "test000026", "test000044"].map(talk).into();
    fs::write(base.join("llava/list.json"), serde_json::to_vec(&list).unwrap()).unwrap();
    fs::write(base.join("lines.txt"), "A face is a face.\nHair is hair.\nEyes are two.\n").unwrap();
    let fixture = root().join("tests/fixtures/datasets/list_of_structs.parquet");
    let mixture = format!(
        r#"
        [[mixture]]
        path = "faces"
        tasks = ["t2i", "caption", "vqa"]
        weight = 2.0
        [[mixture]]
        path = "{}"
        tasks = ["t2i", "caption"]
        [[mixture]]
        path = "llava"
        tasks = ["vqa"]
        [[mixture]]
        path = "lines.txt"
        tasks = ["text"]
        "#,
        fixture.display()
    );
    let data = recipe["data"].as_table_mut().unwrap();
    data.insert("path".into(), base.to_str().unwrap().into());
    data.extend(toml::from_str::<Table>(&mixture).unwrap());
    recipe
}

fn read(folder: &Path, recipe: &Table) -> Recipe {
    let path = folder.join("recipe.toml");
    fs::write(&path, toml::to_string(recipe).unwrap()).unwrap();
    Recipe::read(&path).unwrap()
}

fn train(folder: &Path, recipe: &Table, resume: bool) {
    let outcome = run(&read(folder, recipe), Session { resume, quiet: true, ..Session::default() }).unwrap();
    assert_eq!(outcome, Outcome::Finished);
}

/// The number `name` of each line of metrics that has one.
fn metric(run: &Path, name: &str) -> Vec<f64> {
    let text = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    text.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()[name].as_f64()).collect()
}

fn feed(recipe: &Recipe, rank: usize, world_size: usize) -> Feed {
    let device = Device::flex();
    let unified = recipe.unified.as_ref().unwrap();
    let parts = features::read_parts(&recipe.run.export, &unified.config, &device).unwrap();
    Feed::open(recipe, unified, parts, RankOf { rank, world_size }, device).unwrap()
}

#[test]
fn a_mixture_in_two_sessions_is_the_mixture_in_one() {
    let _alone = ALONE.lock();
    let base = base();
    train(base, &mixed("whole", 4), false);
    train(base, &mixed("halves", 2), false);
    // Pictures that are encoded when they are read have the codes of those that are encoded before.
    let mut rest = mixed("halves", 4);
    let data = rest["data"].as_table_mut().unwrap();
    data.insert("precompute".into(), false.into());
    data.insert("num_workers".into(), 3.into());
    data.insert("cache".into(), base.join("fresh-cache").to_str().unwrap().into());
    train(base, &rest, true);
    for name in ["loss", "mask", "mmu", "text"] {
        let whole = metric(&base.join("whole"), name);
        assert_eq!(whole.len(), 4, "{name}");
        assert_eq!(whole, metric(&base.join("halves"), name), "{name}");
    }
}

#[test]
fn a_mixture_in_two_passes_is_the_mixture_in_one() {
    let _alone = ALONE.lock();
    let base = base();
    train(base, &mixed("one-pass", 3), false);
    let mut recipe = mixed("two-passes", 3);
    set(&mut recipe, &[("optimizer.accumulation_steps", 2)]);
    recipe["unified"].as_table_mut().unwrap().insert("recompute".into(), "blocks".into());
    train(base, &recipe, false);
    for name in ["loss", "mask", "score_cross_entropy", "mmu", "mmu_answers", "text", "balance_text", "balance_mmu", "grad_norm"]
    {
        let (one, two) = (metric(&base.join("one-pass"), name), metric(&base.join("two-passes"), name));
        assert_eq!((one.len(), two.len()), (3, 3), "{name}");
        for (one, two) in one.into_iter().zip(two) {
            assert!((one - two).abs() <= 1e-5 * one.abs().max(1.0), "{name}: {one} in one pass, {two} in two");
        }
    }
}

#[test]
fn broken_samples_are_counted_in_the_metrics() {
    let _alone = ALONE.lock();
    let base = base();
    // Three lines to train with, the last one is held out. Six texts are two epochs.
    fs::write(base.join("some-broken.jsonl"), "\"A face is a face.\"\n{\n\"Hair is hair.\"\n\"Eyes are two.\"\n").unwrap();
    for (name, passes) in [("broken-one-pass", 1), ("broken-two-passes", 2)] {
        let mut recipe = mixed(name, 3);
        set(&mut recipe, &[("optimizer.accumulation_steps", passes)]);
        let sets = recipe["data"]["mixture"].as_array_mut().unwrap();
        sets.last_mut().unwrap().as_table_mut().unwrap().insert("path".into(), "some-broken.jsonl".into());
        train(base, &recipe, false);
        assert_eq!(metric(&base.join(name), "broken_samples").iter().sum::<f64>(), 2.0, "{name}");
    }
}

#[test]
fn a_second_start_encodes_nothing_and_ranks_share_the_batches() {
    let _alone = ALONE.lock();
    let base = base();
    let recipe = read(base, &mixed("cached", 1));
    let quiet = Session { quiet: true, ..Session::default() };
    let mut first = feed(&recipe, 0, 1);
    assert!(first.precompute(&recipe, &quiet).unwrap());
    // 13 faces, of which the other sets repeat some.
    assert_eq!(first.encoder().num_encoded(), 13);
    assert_eq!(first.held_out(&recipe, 9).unwrap().keys.len(), 3 + 1 + 1);
    let mut second = feed(&recipe, 0, 1);
    assert!(second.precompute(&recipe, &quiet).unwrap());
    let mut ranks = [feed(&recipe, 0, 2), feed(&recipe, 1, 2)];
    for step in [0, 1, 2, 9] {
        let (whole, again) = (first.t2i(step).unwrap(), second.t2i(step).unwrap());
        assert_eq!((&whole.keys, &whole.features.codes), (&again.keys, &again.features.codes));
        let parts = ranks.each_mut().map(|rank| rank.t2i(step).unwrap());
        assert_eq!(parts.each_ref().map(|part| part.keys.clone()).concat(), whole.keys);
        assert_eq!(parts.each_ref().map(|part| part.features.codes.clone()).concat(), whole.features.codes);
        assert!(whole.records.iter().all(|record| !record.captions.is_empty()));
        let whole = first.mmu(step).unwrap();
        assert_eq!(ranks.each_mut().map(|rank| rank.mmu(step).unwrap().keys).concat(), whole.keys);
        assert_eq!(ranks.each_mut().map(|rank| rank.texts(step).unwrap()).concat(), first.texts(step).unwrap());
    }
    assert_eq!(second.encoder().num_encoded() + ranks.iter().map(|rank| rank.encoder().num_encoded()).sum::<usize>(), 0);
    // What a run in bf16 encodes is what one in f32 does.
    let mut rounded = recipe.clone();
    rounded.data.cache = Some(base.join("rounded-cache"));
    let mut rounded = feed(&rounded, 0, 1);
    for step in [0, 1] {
        let found = in_precision(Precision::Bf16, || rounded.t2i(step).unwrap());
        let known = first.t2i(step).unwrap();
        assert_eq!((&found.keys, &found.features.codes), (&known.keys, &known.features.codes));
    }
    assert!(rounded.encoder().num_encoded() > 0);
    // Other weights of the image tokenizer: nothing of the cache is taken.
    let model = base.join("other-model");
    fs::create_dir_all(&model).unwrap();
    for name in ["config.json", "tokenizer.json", "vq.safetensors"] {
        fs::copy(base.join("model").join(name), model.join(name)).unwrap();
    }
    let mut bytes = fs::read(model.join("vq.safetensors")).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(model.join("vq.safetensors"), bytes).unwrap();
    let mut other = recipe.clone();
    other.run.export = model;
    let other = feed(&other, 0, 1);
    let faces = recipe.data.open("train").unwrap().remove(0).set;
    other.encoder().load(&faces, 2, &Broken::new(MaxBroken::default())).unwrap();
    assert!(other.encoder().num_encoded() > 0);
}

#[test]
fn a_lone_set_is_read_in_the_order_of_the_other_parts() {
    let _alone = ALONE.lock();
    let recipe = read(base(), &recipe("unified", base()));
    let set = recipe.data.open("train").unwrap().remove(0).set;
    let mut feed = feed(&recipe, 0, 1);
    for step in [0, 3, 7, 8] {
        let order = sample_indices(recipe.run.seed, step, 2, set.len());
        let keys: Vec<String> = order.into_iter().map(|index| set.get(index).unwrap().unwrap().key).collect();
        assert_eq!(feed.t2i(step).unwrap().keys, keys);
    }
}

#[test]
fn data_that_can_t_be_meant_is_refused() {
    let _alone = ALONE.lock();
    let base = base();
    let fault = |change: &dyn Fn(&mut Table)| {
        let mut recipe = mixed("refused", 1);
        change(recipe["data"].as_table_mut().unwrap());
        let path = base.join("refused.toml");
        fs::write(&path, toml::to_string(&recipe).unwrap()).unwrap();
        match Recipe::read(&path) {
            Err(error) => error.to_string(),
            Ok(recipe) => run(&recipe, Session { quiet: true, ..Session::default() }).unwrap_err().to_string(),
        }
    };
    let entry = |data: &mut Table, name: &str, value: Value| {
        data["mixture"].as_array_mut().unwrap()[0].as_table_mut().unwrap().insert(name.into(), value);
    };
    type Case<'a> = (&'a str, &'a dyn Fn(&mut Table));
    let cases: [Case; 7] = [
        ("`format` of [data] has no effect", &|data| drop(data.insert("format".into(), "text".into()))),
        ("neither `path` nor `mixture`", &|data| data.clear()),
        ("num_workers", &|data| drop(data.insert("num_workers".into(), 0.into()))),
        ("a positive number", &|data| entry(data, "weight", 0.0.into())),
        ("did you mean `vqa`?", &|data| entry(data, "tasks", Value::Array(vec!["vga".into()]))),
        ("*.tar", &|data| entry(data, "path", "llava/images".into())),
        ("no set of [data] is for the tasks text", &|data| drop(data["mixture"].as_array_mut().unwrap().pop())),
    ];
    for (expected, change) in cases {
        let error = fault(change);
        assert!(error.contains(expected), "expected {expected}: {error}");
    }
}
