//! Several ranks compute what one computes. Here they are threads of one process; the same over MPI is tested by the command.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test may end by them

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::thread;

use burn::tensor::Device;
use unif2ace_comm::{Communicator, Single, Threads};
use unif2ace_data::TextTokenizer;
use unif2ace_model::config::MoeLevel;
use unif2ace_model::transformer::{Recompute, Unif2ace};
use unif2ace_train::features;
use unif2ace_train::feed::{Feed, RankOf};
use unif2ace_train::lora::LoraConfig;
use unif2ace_train::params::{HostTensors, map_parameters, parameters, with_parameters};
use unif2ace_train::recipe::RunConfig;
use unif2ace_train::tasks::unified::UnifiedObjective;
use unif2ace_train::trainable::TrainableConfig;
use unif2ace_train::trainer::{Objective, StepLoss, train};
use unif2ace_train::{Outcome, Recipe, Result, Session, TrainError, parallel};
use unif2ace_weights::SafetensorsFile;

/// What two ranks may differ by from one, of a loss of this size.
const TOLERANCE: f64 = 1e-5;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The shipped recipe of both tasks on the face sample, shrunk to milliseconds a step.
fn recipe(folder: &Path, num_steps: u64) -> Recipe {
    let mut recipe = Recipe::read(&root().join("recipes/mini/unified-2-both.toml")).unwrap();
    let export = root().join("models/mini");
    recipe.run = RunConfig { output: folder.join("run"), export, log_every: 1, checkpoint_every: 2, ..recipe.run };
    recipe.run.precision = Default::default();
    recipe.data.path = faces().join("faces");
    recipe.data.cache = Some(faces().join("cache"));
    let optimizer = recipe.optimizer.as_mut().unwrap();
    (optimizer.num_steps, optimizer.batch_size) = (num_steps, 4);
    optimizer.schedule = unif2ace_train::recipe::ScheduleName::Constant;
    optimizer.warmup_steps = 2;
    let unified = recipe.unified.as_mut().unwrap();
    (unified.mmu_batch_size, unified.questions_per_row) = (2, 2);
    let config = &mut unified.config;
    (config.hidden_size, config.num_hidden_layers, config.intermediate_size) = (32, 3, 32);
    (config.moe.routed_intermediate_size, config.moe.feature_token_dim) = (8, 16);
    recipe
}

/// A folder with the face sample as `faces`.
fn faces() -> &'static Path {
    static FACES: OnceLock<tempfile::TempDir> = OnceLock::new();
    let folder = FACES.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        for split in ["train", "val"] {
            let shard = folder.path().join(format!("faces/{split}/{split}-00000.tar"));
            fs::create_dir_all(shard.parent().unwrap()).unwrap();
            fs::copy(root().join("tests/fixtures/faces/test/test-00000.tar"), shard).unwrap();
        }
        folder
    });
    folder.path()
}

fn feed(recipe: &Recipe, rank: RankOf) -> Feed {
    let (unified, device) = (recipe.unified.as_ref().unwrap(), Device::flex());
    let parts = features::read_parts(&recipe.run.export, &unified.config, &device).unwrap();
    Feed::open(recipe, unified, parts, rank, device).unwrap()
}

/// What is read once for all tests: the features of the pictures, a tokenizer, first weights.
struct Shared {
    tokenizer: TextTokenizer,
    weights: HostTensors,
}

fn shared() -> &'static Shared {
    static SHARED: OnceLock<Shared> = OnceLock::new();
    SHARED.get_or_init(|| {
        let recipe = recipe(Path::new(""), 1);
        let quiet = Session { quiet: true, ..Session::default() };
        assert!(feed(&recipe, RankOf { rank: 0, world_size: 1 }).precompute(&recipe, &quiet).unwrap());
        let device = Device::flex();
        device.seed(1);
        let weights = parameters(&Unif2ace::new(&recipe.unified.unwrap().config, &device).unwrap());
        Shared { tokenizer: TextTokenizer::from_file(recipe.run.export.join("tokenizer.json")).unwrap(), weights }
    })
}

fn objective(recipe: &Recipe, ranks: Arc<dyn Communicator>) -> UnifiedObjective {
    let unified = recipe.unified.clone().unwrap();
    let train = feed(recipe, RankOf::of(&*ranks));
    UnifiedObjective {
        held_out: train.held_out(recipe, 1).unwrap(),
        train,
        tokenizer: shared().tokenizer.clone(),
        vq: features::read_parts(&recipe.run.export, &unified.config, &Device::flex()).unwrap().vq,
        recipe: unified,
        ranks,
        seed: recipe.run.seed,
        device: Device::flex().autodiff(),
        read: Vec::new(),
    }
}

/// One rank's session with what `change` makes of its objective and first weights.
fn train_rank<O: Objective<Model = Unif2ace>>(
    recipe: &Recipe,
    ranks: Arc<dyn Communicator>,
    change: impl Fn(UnifiedObjective, &mut HostTensors) -> O,
) -> Result<Outcome> {
    parallel::check(&*ranks, recipe)?;
    let mut weights = shared().weights.clone();
    let mut objective = change(objective(recipe, ranks.clone()), &mut weights);
    let unified = recipe.unified.as_ref().unwrap();
    let model = Unif2ace::new(&unified.config, &Device::flex().autodiff()).unwrap().with_recompute(unified.recompute);
    let (mut model, problems) = with_parameters(model, &weights);
    assert!(problems.is_empty(), "{problems:?}");
    if let Some(lora) = &recipe.lora {
        model = model.with_lora(lora.rank, lora.alpha, |layer| layer.contains("self_attn"));
        // The threads share the one generator that would draw them.
        model = map_parameters(model, |path, _, values| {
            if path.ends_with("lora_A.weight") {
                values.iter_mut().enumerate().for_each(|(place, value)| *value = (place % 7) as f32 * 0.1 - 0.3);
            }
        });
    }
    train(recipe, &mut objective, model, Session { resume: true, quiet: true, ranks, ..Session::default() })
        .map(|(_, outcome)| outcome)
}

/// Runs every rank on a thread of its own.
fn on_ranks<R: Send>(world_size: usize, work: impl Fn(Arc<dyn Communicator>) -> R + Sync) -> Vec<R> {
    shared();
    thread::scope(|scope| {
        let work = &work;
        let start = |rank: Threads| scope.spawn(move || work(Arc::new(rank)));
        let threads: Vec<_> = Threads::ranks(world_size).into_iter().map(start).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

/// Trains, or trains on, to the recipe's last step.
fn run(recipe: &Recipe, world_size: usize) {
    let outcomes = match world_size {
        1 => vec![train_rank(recipe, Arc::new(Single), |objective, _| objective)],
        _ => on_ranks(world_size, |ranks| train_rank(recipe, ranks, |objective, _| objective)),
    };
    outcomes.into_iter().for_each(|outcome| assert_eq!(outcome.unwrap(), Outcome::Finished));
}

/// Every number that each step has in the metrics, but times and counts: where a router is undecided, they jump with the last bit.
fn numbers(recipe: &Recipe) -> Vec<Vec<(String, f64)>> {
    let text = fs::read_to_string(recipe.run.output.join("metrics.jsonl")).unwrap();
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

/// The largest difference of two runs' losses and parts, of numbers above 1 as a part of them.
fn difference(one: &Recipe, other: &Recipe) -> f64 {
    let (one, other) = (numbers(one), numbers(other));
    assert_eq!(one.len(), other.len());
    let mut largest: f64 = 0.0;
    for (one, other) in one.iter().flatten().zip(other.iter().flatten()) {
        assert_eq!(one.0, other.0);
        largest = largest.max((one.1 - other.1).abs() / one.1.abs().max(1.0));
    }
    largest
}

#[test]
fn two_ranks_and_four_give_the_losses_of_one() {
    let folder = tempfile::tempdir().unwrap();
    for (world_size, num_steps) in [(2, 50), (4, 10)] {
        let place = |world_size: usize| {
            let mut recipe = recipe(&folder.path().join(format!("{world_size} of {num_steps}")), num_steps);
            recipe.run.checkpoint_every = 0;
            let unified = recipe.unified.as_mut().unwrap();
            unified.mmu_batch_size = 4;
            if num_steps == 50 {
                // Choosing some experts jumps where two scores are equal to the last bits, and among a hundred thousand choices there are
                // such; so many steps can be compared where all experts are chosen.
                let moe = &mut unified.config.moe;
                moe.num_experts_per_tok = moe.num_routed_experts;
            }
            run(&recipe, world_size);
            recipe
        };
        let (alone, together) = (place(1), place(world_size));
        assert_eq!(numbers(&alone).len(), num_steps as usize);
        let difference = difference(&alone, &together);
        assert!(difference <= TOLERANCE, "{world_size} ranks: {difference:e}");
    }
}

#[test]
fn a_run_goes_on_with_another_number_of_ranks() {
    let folder = tempfile::tempdir().unwrap();
    let place = |name: &str, num_steps| recipe(&folder.path().join(name), num_steps);
    run(&place("whole", 8), 1);
    for (name, world_sizes) in [("two then one", [2, 1]), ("one then two", [1, 2])] {
        run(&place(name, 4), world_sizes[0]);
        run(&place(name, 8), world_sizes[1]);
        let difference = difference(&place("whole", 8), &place(name, 8));
        assert!(difference <= TOLERANCE, "{name}: {difference:e}");
    }
}

#[test]
fn passes_give_the_losses_of_one_pass_on_one_rank_and_on_two() {
    let folder = tempfile::tempdir().unwrap();
    let place = |world_size: usize, passes: usize, level| {
        let mut recipe = recipe(&folder.path().join(format!("{world_size} x {passes} {level:?}")), 10);
        recipe.optimizer.as_mut().unwrap().accumulation_steps = passes;
        let unified = recipe.unified.as_mut().unwrap();
        (unified.mmu_batch_size, unified.config.moe.level) = (4, level);
        recipe
    };
    let alone = place(1, 1, MoeLevel::Both);
    run(&alone, 1);
    for (world_size, passes) in [(1, 2), (1, 4), (2, 2)] {
        let mut in_passes = place(world_size, passes, MoeLevel::Both);
        // In two sessions: the second one starts at the checkpoint of step 6.
        in_passes.optimizer.as_mut().unwrap().num_steps = 6;
        run(&in_passes, world_size);
        in_passes.optimizer.as_mut().unwrap().num_steps = 10;
        run(&in_passes, world_size);
        let difference = difference(&alone, &in_passes);
        assert!(difference <= TOLERANCE, "{world_size} ranks, {passes} passes: {difference:e}");
    }
}

#[test]
fn passes_leave_the_same_run_to_the_last_bit_when_it_is_resumed() {
    let folder = tempfile::tempdir().unwrap();
    let place = |name: &str, num_steps| {
        let mut recipe = recipe(&folder.path().join(name), num_steps);
        recipe.optimizer.as_mut().unwrap().accumulation_steps = 2;
        recipe.unified.as_mut().unwrap().recompute = Recompute::First(2);
        recipe
    };
    run(&place("whole", 6), 1);
    run(&place("halves", 4), 1);
    run(&place("halves", 6), 1);
    assert_eq!(numbers(&place("whole", 6)), numbers(&place("halves", 6)));
}

#[test]
fn blocks_that_run_again_change_no_number_on_one_rank_and_on_two() {
    let folder = tempfile::tempdir().unwrap();
    for world_size in [1, 2] {
        let place = |recompute| {
            let mut recipe = recipe(&folder.path().join(format!("{world_size} {recompute:?}")), 6);
            recipe.unified.as_mut().unwrap().recompute = recompute;
            run(&recipe, world_size);
            numbers(&recipe)
        };
        let kept = place(Recompute::None);
        assert_eq!(kept.len(), 6);
        assert_eq!(place(Recompute::Blocks), kept, "{world_size} ranks");
        assert_eq!(place(Recompute::First(2)), kept, "{world_size} ranks");
    }
}

#[test]
fn rows_that_passes_can_t_share_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let mut recipe = recipe(folder.path(), 2);
    recipe.optimizer.as_mut().unwrap().accumulation_steps = 2;
    for error in on_ranks(2, |ranks| train_rank(&recipe, ranks, |objective, _| objective).unwrap_err().to_string()) {
        assert!(error.contains("1 rows of a rank can't be computed in 2 equal passes"), "{error}");
        assert!(error.contains("hint: ") && error.contains("accumulation_steps"), "{error}");
    }
}

/// Fails at a step, on one rank.
struct Failing(UnifiedObjective, u64);

impl Objective for Failing {
    type Model = Unif2ace;

    fn loss(&mut self, model: &Unif2ace, step: u64) -> Result<StepLoss> {
        if step == self.1 {
            return Err(TrainError::Data("a broken disk".into()));
        }
        self.0.loss(model, step)
    }

    fn sample_names(&self, step: u64) -> Vec<String> {
        self.0.sample_names(step)
    }

    fn evaluate(&mut self, model: &Unif2ace, step: u64, folder: &Path) -> Result<Vec<(String, f64)>> {
        self.0.evaluate(model, step, folder)
    }
}

#[test]
fn a_rank_that_fails_ends_the_others_and_the_run_goes_on_from_its_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = recipe(folder.path(), 4);
    let results = on_ranks(2, |ranks| {
        let last = if ranks.leads() { u64::MAX } else { 3 };
        train_rank(&recipe, ranks, |objective, _| Failing(objective, last))
    });
    let [leading, failing] = [0, 1].map(|rank| results[rank].as_ref().unwrap_err().to_string());
    assert!(leading.contains("rank 1 has left") && leading.contains("--resume"), "{leading}");
    assert!(failing.contains("a broken disk"), "{failing}");
    assert!(recipe.run.output.join("checkpoints/step-00000002").is_dir());
    run(&recipe, 2);
    let steps: Vec<f64> = numbers(&recipe).iter().map(|step| step[0].1).collect();
    assert_eq!(steps, [1.0, 2.0, 3.0, 4.0]);
}

#[test]
fn ranks_that_do_not_fit_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let same = recipe(folder.path(), 2);
    let refused = |change: &(dyn Fn(&mut Recipe, usize) + Sync), weight: f32| {
        let errors = on_ranks(3, |ranks| {
            let (mut recipe, rank) = (same.clone(), ranks.rank());
            change(&mut recipe, rank);
            let change = |objective, weights: &mut HostTensors| {
                if rank == 2 {
                    weights.values_mut().for_each(|tensor| tensor.values[0] += weight);
                }
                objective
            };
            train_rank(&recipe, ranks, change).unwrap_err().to_string()
        });
        assert!(!same.run.output.join("checkpoints").exists(), "nothing is written");
        errors
    };
    for error in refused(&|recipe, rank| recipe.run.seed += u64::from(rank > 0), 0.0) {
        assert!(error.contains("rank mismatch: the recipe or program version of rank 1, 2 (of 3)"), "{error}");
    }
    for error in refused(&|_, _| {}, 0.0) {
        assert!(error.contains("4 rows a step can't be shared equally by 3 ranks"), "{error}");
    }
    let threes = |recipe: &mut Recipe, _| {
        recipe.optimizer.as_mut().unwrap().batch_size = 3;
        recipe.unified.as_mut().unwrap().mmu_batch_size = 3;
    };
    for error in refused(&threes, 1e-3) {
        assert!(error.contains("the state (weights, moments, averages) of rank 2 (of 3)"), "{error}");
    }
}

#[test]
fn ranks_agree_on_what_is_frozen() {
    let folder = tempfile::tempdir().unwrap();
    let place = |name: &str, world_size: usize| {
        let mut recipe = recipe(&folder.path().join(name), 4);
        let freeze = ["embed_tokens", "layers.0", "layers.*.moe"].map(str::to_owned).into();
        recipe.trainable = Some(TrainableConfig { freeze, unfreeze: vec!["*.router".into()] });
        run(&recipe, world_size);
        recipe
    };
    let (alone, together) = (place("alone", 1), place("together", 2));
    let difference = difference(&alone, &together);
    assert!(difference <= TOLERANCE, "{difference:e}");
    let file = together.run.output.join("checkpoints/step-00000004/weights.safetensors");
    let saved = SafetensorsFile::open(file).unwrap();
    for (name, start) in &shared().weights {
        let frozen = ["embed_tokens", "layers.0.", ".moe."].iter().any(|part| name.contains(part)) && !name.contains(".router.");
        let kept = saved.load_f32(name).unwrap() == start.values;
        assert!(kept || !frozen, "{name} changed");
        assert!(!kept || frozen || !name.contains("layers.1.self_attn.q_proj"), "{name} did not change");
    }
}

#[test]
fn ranks_train_adapters_as_one_does() {
    let folder = tempfile::tempdir().unwrap();
    let place = |name: &str, world_size: usize| {
        let mut recipe = recipe(&folder.path().join(name), 4);
        recipe.lora = Some(LoraConfig { rank: 2, alpha: 4.0, targets: vec!["self_attn".into()] });
        run(&recipe, world_size);
        recipe
    };
    let (alone, together) = (place("alone", 1), place("together", 2));
    let difference = difference(&alone, &together);
    assert!(difference <= TOLERANCE, "{difference:e}");
    let saved = SafetensorsFile::open(together.run.output.join("checkpoints/step-00000004/weights.safetensors")).unwrap();
    // Three blocks of four layers with two factors each.
    assert_eq!(saved.names().count(), 24);
}
