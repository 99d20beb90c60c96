//! `[[stage]]` of a recipe: one run in several stages, each the recipe with something changed.
//!
//! A stage is a name, a number of steps, and sections whose keys replace the recipe's. Steps count on through the stages, and so does the
//! data; schedule, warm-up and optimiser start anew, as when Show-o's stages are started one after the other.

use std::collections::BTreeSet;

use burn::tensor::Device;
use serde::Serialize;
use toml::{Table, Value};
use unif2ace_model::transformer::Unif2ace;
use unif2ace_weights::named_parameters;

use crate::error::TrainError;
use crate::recipe::Recipe;
use crate::tasks::data;
use crate::trainable;

/// One stage, ready to be trained.
#[derive(Debug, Clone, Serialize)]
pub struct Stage {
    /// Its name.
    pub name: String,
    /// The recipe as the stage changes it; `first_step` says where it starts.
    pub recipe: Recipe,
}

/// Keys of a stage that are no sections of a recipe.
const OWN: [&str; 2] = ["name", "num_steps"];
/// Sections that a stage may change.
const SECTIONS: [&str; 4] = ["data", "optimizer", "trainable", "unified"];

/// Takes `[[stage]]` out of a recipe's table and gives the table of each stage; the rest gets the sum of their steps.
///
/// # Errors
/// When a stage has no name or steps, or changes what a run has once.
pub(crate) fn split(recipe: &mut Table) -> Result<Vec<(String, Table)>, String> {
    let Some(stages) = recipe.remove("stage") else { return Ok(Vec::new()) };
    let Value::Array(stages) = stages else { return Err("expected [[stage]], a list of stages, found [stage]".into()) };
    if !recipe.contains_key("unified") {
        return Err("[[stage]] is for recipes with [unified]".into());
    }
    let Some(Value::Table(optimizer)) = recipe.get("optimizer") else { return Err("section [optimizer] is missing".into()) };
    if optimizer.contains_key("num_steps") {
        return Err("num_steps of [optimizer] has no effect beside [[stage]]: each stage has its own".into());
    }
    let (mut out, mut total) = (Vec::<(String, Table)>::new(), 0);
    for (index, stage) in stages.into_iter().enumerate() {
        let Value::Table(mut stage) = stage else { return Err("expected tables as [[stage]]".into()) };
        let (Some(Value::String(name)), Some(Value::Integer(num_steps))) = (stage.remove("name"), stage.remove("num_steps"))
        else {
            return Err(format!("stage {}: expected a `name` and a whole number as `num_steps`", index + 1));
        };
        if num_steps < 1 {
            return Err(format!("stage `{name}`: num_steps must be at least 1"));
        }
        if out.iter().any(|(other, _)| *other == name) {
            return Err(format!("two stages are called `{name}`"));
        }
        if let Some(key) = stage.keys().find(|key| !SECTIONS.contains(&key.as_str())) {
            let known: Vec<String> = OWN.iter().chain(&SECTIONS).map(|name| format!("`{name}`")).collect();
            return Err(format!("stage `{name}`: unknown field `{key}`, expected one of {}", known.join(", ")));
        }
        let mut changed = recipe.clone();
        overlay(&mut changed, stage);
        set_num_steps(&mut changed, num_steps);
        total += num_steps;
        out.push((name, changed));
    }
    if out.is_empty() {
        return Err("`stage` is empty: expected one [[stage]] or more".into());
    }
    set_num_steps(recipe, total);
    Ok(out)
}

fn set_num_steps(recipe: &mut Table, num_steps: i64) {
    if let Some(Value::Table(optimizer)) = recipe.get_mut("optimizer") {
        optimizer.insert("num_steps".into(), num_steps.into());
    }
}

/// Puts the values of `changes` into `table`, section by section; lists are replaced whole.
fn overlay(table: &mut Table, changes: Table) {
    for (key, change) in changes {
        match (table.get_mut(&key), change) {
            (Some(Value::Table(inner)), Value::Table(change)) => overlay(inner, change),
            (_, change) => {
                table.insert(key, change);
            }
        }
    }
}

/// What each stage leaves as it is.
///
/// # Errors
/// When a stage's patterns fit nothing, or its network is another one than the first stage's.
pub(crate) fn frozen(recipe: &Recipe, device: &Device) -> Result<Vec<BTreeSet<String>>, TrainError> {
    let (mut all, mut first) = (Vec::with_capacity(recipe.stages.len()), None);
    for stage in &recipe.stages {
        let Some(unified) = &stage.recipe.unified else { continue };
        let model = Unif2ace::new(&unified.config, device).map_err(data)?;
        let parameters = named_parameters(&model);
        if *first.get_or_insert_with(|| parameters.clone()) != parameters {
            let reason = format!("stage `{}`: [unified.config] makes another network than the first stage has", stage.name);
            return Err(TrainError::recipe(&recipe.run.output, reason));
        }
        all.push(trainable::frozen(&stage.recipe, &model)?);
    }
    Ok(all)
}

impl Recipe {
    /// Steps done when the recipe, or the stage that it is of, ends.
    pub fn last_step(&self) -> u64 {
        self.first_step + self.optimizer.as_ref().map_or(0, |optimizer| optimizer.num_steps)
    }

    /// What is left to train for a run that has done `step` steps, one recipe after the other: stages, or the recipe itself. The last one is
    /// always there.
    pub(crate) fn stages_from(&self, step: u64) -> Vec<(&str, &Recipe)> {
        let Some((last, before)) = self.stages.split_last() else { return vec![("", self)] };
        let left = before.iter().filter(|stage| stage.recipe.last_step() > step);
        left.chain([last]).map(|stage| (stage.name.as_str(), &stage.recipe)).collect()
    }

    /// Gives the recipe and all its stages another folder of training data.
    pub fn set_data(&mut self, path: &std::path::Path) {
        self.data.path = path.to_path_buf();
        self.stages.iter_mut().for_each(|stage| stage.recipe.data.path = path.to_path_buf());
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // a test may end by it
mod tests {
    use super::*;

    /// The debug recipe without its number of steps, and `stages` behind it.
    fn parse(stages: &str) -> Result<Recipe, String> {
        let text = include_str!("../../../recipes/debug/golden.toml").replace("num_steps = 60\n", "");
        Recipe::parse(&format!("{text}\n{stages}"))
    }

    const TWO: &str = "
[[stage]]
name = 'alignment'
num_steps = 10
[stage.optimizer]
learning_rate = 2e-5
[stage.trainable]
freeze = ['embed_tokens']

[[stage]]
name = 'instruction'
num_steps = 30
[stage.unified]
mmu_batch_size = 7
loss = { alpha = 0.1 }
";

    #[test]
    fn a_stage_is_the_recipe_with_its_own_keys() {
        let recipe = parse(TWO).unwrap();
        let [first, second] = [0, 1].map(|index| recipe.stages[index].recipe.clone());
        assert_eq!((first.first_step, first.last_step(), second.first_step, second.last_step()), (0, 10, 10, 40));
        assert_eq!(recipe.last_step(), 40);
        let rate = |recipe: &Recipe| recipe.optimizer.as_ref().unwrap().learning_rate;
        assert_eq!((rate(&first), rate(&second)), (2e-5, rate(&recipe)));
        assert!(first.trainable.is_some() && second.trainable.is_none());
        let unified = second.unified.unwrap();
        assert_eq!((unified.mmu_batch_size, unified.loss.alpha, unified.t2i_coeff), (7, 0.1, 1.0));
        let names = |step: u64| recipe.stages_from(step).iter().map(|(name, _)| (*name).to_owned()).collect::<Vec<_>>();
        assert_eq!((names(0), names(9)), (vec!["alignment".into(), "instruction".into()], names(0)));
        assert_eq!((names(10), names(40)), (vec!["instruction".to_owned()], vec!["instruction".into()]));
    }

    #[test]
    fn stages_that_cannot_be_meant_are_refused() {
        let stage = |lines: &str| parse(&format!("[[stage]]\nname = 'a'\nnum_steps = 5\n{lines}")).err().unwrap_or_default();
        assert_eq!(stage(""), "");
        assert!(stage("[stage.run]\nseed = 2").contains("unknown field `run`"));
        assert!(
            stage("[stage.optimizer]\nlerning_rate = 2").contains("stage `a`: unknown field `lerning_rate`"),
            "{}",
            stage("[stage.optimizer]\nlerning_rate = 2")
        );
        assert!(stage("[[stage]]\nname = 'a'\nnum_steps = 5").contains("two stages"));
        assert!(stage("[[stage]]\nname = 'b'").contains("stage 2: expected a `name`"));
        assert!(stage("[[stage]]\nname = 'b'\nnum_steps = 0").contains("at least 1"));
        let twice = include_str!("../../../recipes/debug/golden.toml");
        let error = Recipe::parse(&format!("{twice}\n{TWO}")).unwrap_err();
        assert!(error.contains("num_steps of [optimizer] has no effect"), "{error}");
    }
}
