//! Keys of a recipe that nothing reads or that have no effect beside the others, and rows that can't be shared: refused, with what to do.

use toml::{Table, Value};
use unif2ace_data::TaskName;
use unif2ace_diffusion::d3diff::Objective;

use crate::recipe::{OptimizerConfig, Recipe, ScheduleName, UnifiedRecipe, nearest};

/// What is wrong, and what would be right.
pub(crate) type Fault = (String, String);

/// Looks at the recipe as it was written and as it was read.
pub(crate) fn check(text: &str, recipe: &Recipe) -> Result<(), Fault> {
    // Both were parsed or are about to be written by the same library; what fails here fails elsewhere with a better message.
    let (Ok(mut given), Ok(read)) = (text.parse::<Table>(), Table::try_from(recipe)) else { return Ok(()) };
    let stages = given.remove("stage");
    unknown_key(&given, &read)?;
    if recipe.stages.is_empty() {
        return of_one(&given, recipe, true).map_or(Ok(()), Err);
    }
    // What one stage has no use for may be for another, but what a stage says itself is for that stage.
    let own = stages.as_ref().and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_table);
    let mut faults = Vec::new();
    for (stage, own) in recipe.stages.iter().zip(own) {
        let in_stage = |(reason, hint): Fault| (format!("stage `{}`: {reason}", stage.name), hint);
        passes(&stage.recipe)?;
        let mut own = own.clone();
        own.retain(|_, section| section.is_table());
        if let Ok(read) = Table::try_from(&stage.recipe) {
            unknown_key(&own, &read).map_err(in_stage)?;
        }
        if let Some(fault) = of_one(&own, &stage.recipe, is_given(&own, "data", "mixture")) {
            return Err(in_stage(fault));
        }
        faults.push(of_one(&given, &stage.recipe, true));
    }
    match faults.into_iter().collect::<Option<Vec<Fault>>>() {
        Some(mut faults) if !faults.is_empty() => Err(faults.swap_remove(0)),
        _ => Ok(()),
    }
}

/// Refuses a key that was given and that nothing reads.
fn unknown_key(given: &Table, read: &Table) -> Result<(), Fault> {
    let Some((path, name, known)) = unread(given, read, "") else { return Ok(()) };
    let hint = match nearest(name, known.iter().map(|name| name.as_str())) {
        Some(name) => format!("did you mean `{name}`?"),
        None => {
            let known: Vec<&str> = known.iter().map(|name| name.as_str()).collect();
            format!("[{path}] has {}", known.join(", "))
        }
    };
    Err((format!("unknown key `{name}` of [{path}]"), hint))
}

/// What is wrong with a recipe that has no stages, or with one stage, of which `given` was written; its sets are looked at if
/// `sets`.
fn of_one(given: &Table, recipe: &Recipe, sets: bool) -> Option<Fault> {
    let mut rules = part_rules(recipe);
    if let Err(fault) = passes(recipe) {
        return Some(fault);
    }
    if let Some(optimizer) = &recipe.optimizer {
        rules.extend(schedule_rules(optimizer));
    }
    if let Some(unified) = &recipe.unified {
        rules.extend(unified_rules(unified));
        if sets && let Err(fault) = unread_set(recipe, unified) {
            return Some(fault);
        }
    }
    let rule = rules.into_iter().find(|rule| rule.useless && is_given(given, rule.section, rule.key))?;
    let Rule { section, key, why, instead, .. } = rule;
    let hint = if instead.is_empty() { "leave it out".to_owned() } else { format!("leave it out, or {instead}") };
    Some((format!("`{key}` of [{section}] has no effect: {why}"), hint))
}

/// The first key that was given and not read: its table, its name, and the names that the table has.
fn unread<'a>(given: &'a Table, read: &'a Table, path: &str) -> Option<(String, &'a str, Vec<&'a String>)> {
    given.iter().find_map(|(name, value)| match (value, read.get(name)) {
        (_, None) => Some((path.to_owned(), name.as_str(), read.keys().collect())),
        (Value::Table(given), Some(Value::Table(read))) => {
            unread(given, read, &if path.is_empty() { name.clone() } else { format!("{path}.{name}") })
        }
        _ => None,
    })
}

/// A key that may have no effect.
struct Rule {
    section: &'static str,
    key: &'static str,
    useless: bool,
    why: &'static str,
    /// What would give it an effect, as the end of "leave it out, or".
    instead: &'static str,
}

fn is_given(given: &Table, section: &str, key: &str) -> bool {
    let mut tables = section.split('.').map(Some);
    let Some(Some(first)) = tables.next() else { return false };
    let Some(mut found) = given.get(first) else { return false };
    for name in tables.flatten() {
        let Some(next) = found.get(name) else { return false };
        found = next;
    }
    match found {
        Value::Array(tables) => tables.iter().any(|table| table.get(key).is_some()),
        table => table.get(key).is_some(),
    }
}

fn part_rules(recipe: &Recipe) -> Vec<Rule> {
    let rule = |section, key, useless, why| Rule { section, key, useless, why, instead: "" };
    let tokenizer = recipe.tokenizer.is_some();
    let at_once = "[tokenizer] is trained at once, without steps";
    let run = ["log_every", "evaluate_every", "checkpoint_every", "keep_last", "keep_best", "skip_nonfinite", "precision"];
    let optimizer = ["learning_rate", "batch_size", "num_steps", "schedule"];
    let in_memory = "only [unified] streams its data; this part holds it in memory";
    let mut rules: Vec<Rule> = run.into_iter().map(|key| rule("run", key, tokenizer, at_once)).collect();
    rules.extend(optimizer.into_iter().map(|key| rule("optimizer", key, tokenizer, at_once)));
    rules.push(rule("run", "tensorboard", tokenizer, at_once));
    rules.extend(["freeze", "unfreeze"].map(|key| rule("trainable", key, tokenizer, "the text tokenizer has no parameters")));
    rules.extend(["cache", "precompute", "num_workers"].map(|key| rule("data", key, recipe.unified.is_none(), in_memory)));
    rules.push(rule("data.mixture", "weight", recipe.unified.is_none(), "only [unified] draws its samples by weight"));
    rules
}

fn schedule_rules(optimizer: &OptimizerConfig) -> Vec<Rule> {
    let is = |schedule| optimizer.schedule == schedule;
    let rule = |key, useless, why, instead| Rule { section: "optimizer", key, useless, why, instead };
    vec![
        rule("decay_ratio", !is(ScheduleName::Wsd), "the schedule is not wsd", "set `schedule = \"wsd\"`"),
        rule(
            "num_cycles",
            !is(ScheduleName::CosineWithRestarts),
            "the schedule has no restarts",
            "set `schedule = \"cosine_with_restarts\"`",
        ),
        rule("min_lr_ratio", is(ScheduleName::Constant), "a constant schedule does not fall", "set another `schedule`"),
    ]
}

fn unified_rules(unified: &UnifiedRecipe) -> Vec<Rule> {
    let no_text = unified.text_batch_size == 0;
    let no_mmu = unified.mmu_batch_size == 0 || unified.mmu_coeff == 0.0;
    let alone = unified.loss.objective != Objective::D3Diff;
    let rule = |section, key, useless, why, instead| Rule { section, key, useless, why, instead };
    vec![
        rule("unified", "text_coeff", no_text, "no rows of text alone are trained", "set `text_batch_size`"),
        rule("unified", "text_batch_size", unified.text_coeff == 0.0, "`text_coeff` is 0", "set `text_coeff` above 0"),
        rule(
            "unified",
            "caption_fraction",
            no_mmu,
            "no rows of understanding are trained",
            "set `mmu_batch_size` and `mmu_coeff`",
        ),
        rule(
            "unified",
            "max_turn_tokens",
            no_mmu,
            "no rows of understanding are trained",
            "set `mmu_batch_size` and `mmu_coeff`",
        ),
        rule("unified.loss", "alpha", alone, "the objective is one term alone", "set `objective = \"d3diff\"`"),
    ]
}

/// A set that no row is drawn from.
fn unread_set(recipe: &Recipe, unified: &UnifiedRecipe) -> Result<(), Fault> {
    let trained = |task: TaskName| match task {
        TaskName::T2i => unified.t2i_coeff != 0.0,
        TaskName::Caption | TaskName::Vqa => unified.mmu_batch_size > 0 && unified.mmu_coeff != 0.0,
        TaskName::Text => unified.text_batch_size > 0 && unified.text_coeff != 0.0,
    };
    let Some(set) = recipe.data.mixture.iter().find(|set| !set.tasks.iter().any(|&task| trained(task))) else { return Ok(()) };
    let tasks: Vec<&str> = set.tasks.iter().map(|task| task.name()).collect();
    let reason =
        format!("the set {} of the mixture has no effect: [unified] trains no rows of {}", set.path.display(), tasks.join(", "));
    Err((reason, "leave it out, or set the batch size and the coefficient of its tasks".into()))
}

/// Rows that can't be cut into the recipe's passes, and blocks that there are not.
fn passes(recipe: &Recipe) -> Result<(), Fault> {
    let Some(optimizer) = &recipe.optimizer else { return Ok(()) };
    let count = optimizer.accumulation_steps;
    if count == 0 {
        return Err((
            "`accumulation_steps` of [optimizer]: expected at least 1, found 0".into(),
            "1 computes a step in one pass".into(),
        ));
    }
    let mut rows = vec![("batch_size", optimizer.batch_size)];
    if let Some(unified) = &recipe.unified {
        rows.extend([("mmu_batch_size", unified.mmu_batch_size), ("text_batch_size", unified.text_batch_size)]);
        let num_blocks = unified.config.num_hidden_layers;
        if let unif2ace_model::transformer::Recompute::First(number) = unified.recompute
            && number > num_blocks
        {
            let reason = format!("`recompute` of [unified]: expected at most the model's {num_blocks} blocks, found {number}");
            return Err((reason, "`recompute = \"blocks\"` is all of them".into()));
        }
    }
    if count > 1 && recipe.unified.is_none() && recipe.face.is_none() {
        let reason = format!("`accumulation_steps` of [optimizer]: this part is computed in one pass, not in {count}");
        return Err((reason, "its loss compares all rows of a batch with each other: leave `accumulation_steps` out".into()));
    }
    match rows.into_iter().find(|(_, rows)| !rows.is_multiple_of(count)) {
        Some((name, rows)) => {
            let reason =
                format!("`accumulation_steps` of [optimizer]: {rows} rows (`{name}`) can't be cut into {count} equal passes");
            let near = rows.div_ceil(count) * count;
            Err((reason, format!("for example `{name} = {near}`, or another number of passes")))
        }
        None => Ok(()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // a test may end by it
mod tests {
    use std::path::Path;

    use super::*;

    /// The fault of the shipped recipe `name` after a change.
    fn fault(name: &str, change: impl FnOnce(&mut Table)) -> String {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../../recipes/{name}.toml"));
        let mut table: Table = std::fs::read_to_string(path).unwrap().parse().unwrap();
        change(&mut table);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("recipe.toml");
        std::fs::write(&path, toml::to_string(&table).unwrap()).unwrap();
        Recipe::read(&path).err().map(|error| error.to_string()).unwrap_or_default()
    }

    fn set(section: &'static str, key: &'static str, value: impl Into<Value>) -> impl FnOnce(&mut Table) {
        let value = value.into();
        move |recipe| {
            let table = section.split('.').fold(recipe, |table, name| table[name].as_table_mut().unwrap());
            table.insert(key.into(), value);
        }
    }

    fn assert_fault(found: &str, parts: &[&str]) {
        for part in parts.iter().chain(&["hint: "]) {
            assert!(found.contains(part), "no {part:?} in {found:?}");
        }
    }

    #[test]
    fn keys_without_effect_are_refused_with_a_hint() {
        let golden = "debug/golden";
        assert_eq!(fault(golden, |_| {}), "");
        let cases: [(&str, &str, Value, &str); 7] = [
            ("optimizer", "decay_ratio", 0.2.into(), "set `schedule = \"wsd\"`"),
            ("optimizer", "num_cycles", 2.into(), "cosine_with_restarts"),
            ("unified", "text_coeff", 0.5.into(), "set `text_batch_size`"),
            ("data", "weigth", 1.0.into(), "unknown field `weigth`"),
            ("optimizer", "accumulation_steps", 2.into(), "3 rows (`batch_size`) can't be cut into 2"),
            ("optimizer", "accumulation_steps", 0.into(), "at least 1"),
            ("unified", "recompute", 3.into(), "at most the model's 2 blocks, found 3"),
        ];
        for (section, key, value, expected) in cases {
            assert_fault(&fault(golden, set(section, key, value)), &[key, expected]);
        }
        let constant = |recipe: &mut Table| {
            set("optimizer", "schedule", "constant")(recipe);
            set("optimizer", "min_lr_ratio", 0.1)(recipe);
        };
        assert_fault(&fault(golden, constant), &["`min_lr_ratio` of [optimizer] has no effect"]);
        let understanding = |recipe: &mut Table| set("unified", "mmu_batch_size", 0)(recipe);
        assert_fault(&fault(golden, understanding), &["`caption_fraction` of [unified] has no effect"]);
        let alone = |recipe: &mut Table| set("unified.loss", "objective", "only-score")(recipe);
        assert_fault(&fault(golden, alone), &["`alpha` of [unified.loss] has no effect"]);
        assert_fault(&fault("mini/tokenizer", set("run", "precision", "bf16")), &["`precision` of [run]", "without steps"]);
        assert_fault(&fault("mini/face", set("data", "precompute", true)), &["`precompute` of [data]", "only [unified]"]);
        assert_fault(&fault("mini/vq", set("optimizer", "accumulation_steps", 2)), &["computed in one pass, not in 2"]);
        assert_eq!(fault("mini/face", set("optimizer", "accumulation_steps", 2)), "");
    }

    #[test]
    fn keys_of_the_networks_that_nothing_reads_are_refused_with_the_nearest_name() {
        let golden = "debug/golden";
        let found = fault(golden, set("unified.config", "rope_thetta", 1e4));
        assert_fault(&found, &["unknown key `rope_thetta` of [unified.config]", "did you mean `rope_theta`?"]);
        let found = fault(golden, set("unified.config.moe", "levels", "both"));
        assert_fault(&found, &["unknown key `levels` of [unified.config.moe]", "did you mean `level`?"]);
        let found = fault("mini/vq", set("vq.config", "colour", 3));
        assert_fault(&found, &["unknown key `colour` of [vq.config]", "[vq.config] has "]);
    }

    #[test]
    fn keys_of_a_stage_are_checked_as_those_of_a_recipe() {
        let staged = |stage: &'static str| {
            move |recipe: &mut Table| {
                recipe["optimizer"].as_table_mut().unwrap().remove("num_steps");
                let first = "[[stage]]\nname='first'\nnum_steps=3\n";
                recipe.extend(format!("{first}[[stage]]\nname='second'\nnum_steps=3\n{stage}").parse::<Table>().unwrap());
            }
        };
        let golden = "debug/golden";
        assert_eq!(fault(golden, staged("[stage.optimizer]\nlearning_rate=1e-3")), "");
        let found = fault(golden, staged("[stage.unified.config]\nrope_thetta=1e4"));
        assert_fault(&found, &["stage `second`: unknown key `rope_thetta` of [unified.config]", "did you mean `rope_theta`?"]);
        let found = fault(golden, staged("[stage.optimizer]\ndecay_ratio=0.2"));
        assert_fault(&found, &["stage `second`: `decay_ratio` of [optimizer] has no effect"]);
        // A set that one stage has no use for is for the other.
        let shared = |recipe: &mut Table| {
            let sets = "[[mixture]]\npath='faces'\ntasks=['t2i','vqa']\n[[mixture]]\npath='lines.txt'\ntasks=['text']\n";
            recipe["data"].as_table_mut().unwrap().extend(sets.parse::<Table>().unwrap());
            staged("[stage.unified]\ntext_batch_size=2")(recipe);
        };
        assert_eq!(fault(golden, shared), "");
        let frozen = |recipe: &mut Table| recipe.extend("[trainable]\nfreeze=['a']".parse::<Table>().unwrap());
        assert_fault(&fault("mini/tokenizer", frozen), &["`freeze` of [trainable] has no effect"]);
    }

    #[test]
    fn a_set_that_no_row_is_drawn_from_is_refused() {
        let mixture = |recipe: &mut Table| {
            let sets = "[[mixture]]\npath='faces'\ntasks=['t2i','vqa']\n[[mixture]]\npath='lines.txt'\ntasks=['text']\n";
            recipe["data"].as_table_mut().unwrap().extend(sets.parse::<Table>().unwrap());
        };
        assert_fault(&fault("debug/golden", mixture), &["the set lines.txt of the mixture", "no rows of text"]);
        let with_text = |recipe: &mut Table| {
            mixture(recipe);
            set("unified", "text_batch_size", 2)(recipe);
        };
        assert_eq!(fault("debug/golden", with_text), "");
    }

    #[test]
    fn every_shipped_recipe_passes() {
        for folder in ["mini", "ablations", "base", "debug"] {
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../recipes").join(folder);
            for entry in std::fs::read_dir(path).unwrap() {
                Recipe::read(&entry.unwrap().path()).unwrap();
            }
        }
    }
}
