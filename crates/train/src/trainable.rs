//! `[trainable]` of a recipe: which parameters stay as they are.

use std::collections::BTreeSet;

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};
use unif2ace_model::lora::is_adapter;
use unif2ace_model::named::{MapNamed, map_named};
use unif2ace_weights::named_parameters;

use crate::error::{Result, TrainError};
use crate::patterns::Pattern;
use crate::recipe::Recipe;

/// Parameters by pattern: whole parts of their paths, `*` for anything (`embed_tokens`, `layers.3`, `*.self_attn.*`).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainableConfig {
    /// These stay as they are: no gradient, no update, no moments, no average.
    pub freeze: Vec<String>,
    /// Of those, these are trained all the same.
    #[serde(default)]
    pub unfreeze: Vec<String>,
}

impl TrainableConfig {
    /// Refuses what has no effect on any model.
    pub(crate) fn check(&self) -> std::result::Result<(), String> {
        if self.freeze.is_empty() {
            return Err("`freeze` of [trainable] is empty: expected patterns of parameters, or no such section".into());
        }
        Pattern::all(&self.freeze).and(Pattern::all(&self.unfreeze)).map(drop).map_err(|reason| format!("[trainable]: {reason}"))
    }

    /// Which of `paths` stay as they are.
    fn frozen(&self, paths: &[String]) -> std::result::Result<BTreeSet<String>, (String, String)> {
        let patterns = |texts| Pattern::all(texts).map_err(|reason| (reason, HINT.to_owned()));
        let mut frozen = BTreeSet::new();
        for pattern in patterns(&self.freeze)? {
            let fitting: Vec<&String> = paths.iter().filter(|path| pattern.fits(path)).collect();
            if fitting.is_empty() {
                return Err(unfit("freeze", "fits no parameter", &pattern, paths.iter()));
            }
            frozen.extend(fitting.into_iter().cloned());
        }
        let all_frozen = frozen.clone();
        for pattern in patterns(&self.unfreeze)? {
            if !all_frozen.iter().any(|path| pattern.fits(path)) {
                return Err(unfit("unfreeze", "fits no parameter that `freeze` names", &pattern, all_frozen.iter()));
            }
            frozen.retain(|path| !pattern.fits(path));
        }
        if frozen.len() == paths.len() {
            return Err((
                "[trainable] leaves nothing to train".into(),
                "name less in `freeze`, or some of it in `unfreeze`".into(),
            ));
        }
        Ok(frozen)
    }
}

const HINT: &str = "a pattern is whole parts of a path, with `*` for anything";

fn unfit<'a>(key: &str, what: &str, pattern: &Pattern, paths: impl Iterator<Item = &'a String>) -> (String, String) {
    let nearest = pattern.nearest(paths.map(String::as_str)).unwrap_or_default();
    (format!("[trainable]: `{}` in `{key}` {what}", pattern.text()), format!("did you mean `{nearest}`? {HINT}"))
}

/// Paths of the parameters that the recipe freezes: with adapters all but these.
///
/// # Errors
/// When a pattern fits no parameter, or nothing is left to train.
pub(crate) fn frozen<M: Module>(recipe: &Recipe, model: &M) -> Result<BTreeSet<String>> {
    let paths: Vec<String> = named_parameters(model).into_iter().map(|(path, _)| path).collect();
    Ok(match (&recipe.lora, &recipe.trainable) {
        (Some(_), _) => paths.into_iter().filter(|path| !is_adapter(path)).collect(),
        (None, Some(config)) => config.frozen(&paths).map_err(|(reason, hint)| TrainError::Recipe {
            path: recipe.run.output.clone(),
            reason,
            hint,
        })?,
        (None, None) => BTreeSet::new(),
    })
}

/// The model with gradients for all parameters but those at the paths `frozen`.
pub(crate) fn track_all_but<M: Module>(model: M, frozen: &BTreeSet<String>) -> M {
    struct Track<'a> {
        frozen: &'a BTreeSet<String>,
    }
    impl MapNamed for Track<'_> {
        fn parameter<const D: usize>(&mut self, path: &str, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            param.set_require_grad(!self.frozen.contains(path))
        }
    }
    map_named(model, &mut Track { frozen })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // a test may end by it
mod tests {
    use super::*;

    fn frozen(freeze: &[&str], unfreeze: &[&str]) -> std::result::Result<Vec<String>, String> {
        let paths = ["a.embed.weight", "a.layers.0.attn.weight", "a.layers.0.mlp.weight", "a.layers.1.mlp.weight", "head.bias"];
        let owned = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        let config = TrainableConfig { freeze: owned(freeze), unfreeze: owned(unfreeze) };
        let paths: Vec<String> = paths.map(str::to_owned).into();
        config.frozen(&paths).map(Vec::from_iter).map_err(|(reason, hint)| format!("{reason}; {hint}"))
    }

    #[test]
    fn unfreeze_makes_exceptions() {
        assert_eq!(
            frozen(&["layers", "embed"], &["*.attn.*"]).unwrap(),
            ["a.embed.weight", "a.layers.0.mlp.weight", "a.layers.1.mlp.weight"]
        );
        assert_eq!(frozen(&["*"], &["layers.1", "head"]).unwrap().len(), 3);
    }

    #[test]
    fn patterns_without_effect_are_refused_with_the_nearest_path() {
        let error = frozen(&["embd"], &[]).unwrap_err();
        assert!(
            error.contains("`embd` in `freeze` fits no parameter") && error.contains("did you mean `a.embed.weight`?"),
            "{error}"
        );
        let error = frozen(&["layers.0"], &["layers.1"]).unwrap_err();
        assert!(error.contains("`layers.1` in `unfreeze`") && error.contains("`a.layers.0."), "{error}");
        assert!(frozen(&["*"], &[]).unwrap_err().contains("nothing to train"));
        assert!(TrainableConfig::default().check().unwrap_err().contains("empty"));
        let odd = TrainableConfig { freeze: vec!["".into()], unfreeze: vec![] };
        assert!(odd.check().unwrap_err().contains("[trainable]"), "{:?}", odd.check());
    }
}
