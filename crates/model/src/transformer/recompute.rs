//! Blocks that keep only their inputs in training and run again in the backward pass (Chen et al. 2016, one segment a block).
//!
//! Both runs compute the same bits, so losses and gradients are those of a run that keeps everything.

use std::sync::Arc;

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};
use unif2ace_ops::{Recomputed, Rotary, Run, Traced};

use super::attention::LayerCacheUse;
use super::block::{Block, ImageSpan};
use crate::moe::{MoeStats, Resampled, Task, balance_loss};

/// Which blocks run again in the backward pass: in a recipe `"none"`, `"blocks"` or a number.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Written", into = "Written")]
pub enum Recompute {
    /// None: everything that the backward pass needs is kept.
    #[default]
    None,
    /// All.
    Blocks,
    /// The first so many. They are the last that the backward pass comes to: what the others kept is free by then.
    First(usize),
}

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Written {
    Number(i64),
    Name(String),
}

impl TryFrom<Written> for Recompute {
    type Error = String;

    fn try_from(written: Written) -> Result<Self, String> {
        let found = match written {
            Written::Name(name) if name == "none" => return Ok(Self::None),
            Written::Name(name) if name == "blocks" => return Ok(Self::Blocks),
            Written::Number(number) if number > 0 => return Ok(Self::First(usize::try_from(number).unwrap_or(usize::MAX))),
            Written::Name(name) => format!("{name:?}"),
            Written::Number(number) => number.to_string(),
        };
        Err(format!("recompute: expected \"none\", \"blocks\" or a number of blocks of at least 1, found {found}"))
    }
}

impl From<Recompute> for Written {
    fn from(recompute: Recompute) -> Self {
        match recompute {
            Recompute::None => Self::Name("none".into()),
            Recompute::Blocks => Self::Name("blocks".into()),
            Recompute::First(number) => Self::Number(i64::try_from(number).unwrap_or(i64::MAX)),
        }
    }
}

impl Recompute {
    /// How many of `num_blocks` blocks run again.
    pub fn num_of(self, num_blocks: usize) -> usize {
        match self {
            Self::None => 0,
            Self::Blocks => num_blocks,
            Self::First(number) => number.min(num_blocks),
        }
    }
}

/// A block with its inputs, without a graph.
struct Piece {
    block: Block,
    x_BLD: Tensor<3>,
    rotary: Rotary,
    mask_BLS: Tensor<3>,
    real: Option<Vec<bool>>,
    task: Task,
    /// First image token and number of them.
    image: Option<(usize, usize)>,
    resampled: Resampled,
    /// Which of the inputs need a gradient, in the order in which [`Leaves`] takes them.
    wanted: Vec<bool>,
}

impl Piece {
    fn run(&self, leaves: &mut Leaves<'_>) -> (Tensor<3>, MoeStats) {
        let x_BLD = leaves.take(self.x_BLD.clone());
        let [noise, clip, face] =
            [&self.resampled.noise, &self.resampled.clip, &self.resampled.face].map(|x| x.clone().map(|x| leaves.take(x)));
        let resampled = Resampled { noise, clip, face };
        let block = self.block.clone().map(leaves);
        let image = self.image.map(|(start, num_tokens)| ImageSpan { start, num_tokens, resampled: &resampled });
        let mut stats = MoeStats::default();
        let (rotary, mask_BLS, real) = (&self.rotary, &self.mask_BLS, self.real.as_deref());
        let y_BLD = block.forward(x_BLD, rotary, mask_BLS, real, self.task, image.as_ref(), LayerCacheUse::None, &mut stats);
        (y_BLD, stats)
    }
}

/// Takes inputs out of their graph and notes which of them need a gradient.
#[derive(Default)]
struct Taken {
    wanted: Vec<bool>,
    inputs: Vec<Traced>,
    /// Whether an input needs a gradient on a device that can't recompute.
    strange: bool,
}

impl Taken {
    fn take<const D: usize>(&mut self, x: Tensor<D>) -> Tensor<D> {
        let traced = Traced::of(&x);
        self.strange |= x.is_tracked() && traced.is_none();
        self.wanted.push(traced.is_some());
        self.inputs.extend(traced);
        x.without_autodiff()
    }
}

impl ModuleMapper for Taken {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let (id, tensor, mapper) = param.consume();
        Param::from_mapped_value(id, self.take(tensor), mapper)
    }
}

/// Makes inputs the leaves of a new graph, those that need a gradient.
#[derive(Default)]
struct Leaves<'a> {
    wanted: std::slice::Iter<'a, bool>,
    made: Vec<Traced>,
}

impl Leaves<'_> {
    fn take<const D: usize>(&mut self, x: Tensor<D>) -> Tensor<D> {
        if !self.wanted.next().copied().unwrap_or(false) {
            return x.autodiff();
        }
        let leaf = x.autodiff().require_grad();
        self.made.extend(Traced::of(&leaf));
        leaf
    }
}

impl ModuleMapper for Leaves<'_> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let (id, tensor, mapper) = param.consume();
        Param::from_mapped_value(id, self.take(tensor), mapper)
    }
}

impl Block {
    /// As [`Block::forward`] without a cache, keeping nothing but the inputs.
    #[allow(clippy::too_many_arguments)] // those of `forward`
    pub(super) fn forward_recomputed(
        &self,
        x_BLD: Tensor<3>,
        rotary: &Rotary,
        mask_BLS: &Tensor<3>,
        real: Option<&[bool]>,
        task: Task,
        image: Option<&ImageSpan<'_>>,
        stats: &mut MoeStats,
    ) -> Tensor<3> {
        let mut taken = Taken::default();
        let whole_x_BLD = x_BLD.clone();
        let features = image.map(|image| image.resampled.clone()).unwrap_or_default();
        let piece_x_BLD = taken.take(x_BLD);
        let [noise, clip, face] = [features.noise, features.clip, features.face].map(|x| x.map(|x| taken.take(x)));
        let bare = |x: &Tensor<3>| x.clone().without_autodiff();
        let piece = Piece {
            x_BLD: piece_x_BLD,
            resampled: Resampled { noise, clip, face },
            block: self.clone().map(&mut taken),
            rotary: Rotary { cos_BLR: bare(&rotary.cos_BLR), sin_BLR: bare(&rotary.sin_BLR) },
            mask_BLS: bare(mask_BLS),
            real: real.map(<[bool]>::to_vec),
            task,
            image: image.map(|image| (image.start, image.num_tokens)),
            wanted: taken.wanted,
        };
        if taken.strange {
            return self.forward(whole_x_BLD, rotary, mask_BLS, real, task, image, LayerCacheUse::None, stats);
        }
        drop(whole_x_BLD);
        let piece = Arc::new(piece);
        let (y_BLD, ran) = piece.run(&mut Leaves::default());
        let node = Recomputed::new(taken.inputs, move || {
            let mut leaves = Leaves { wanted: piece.wanted.iter(), made: Vec::new() };
            let (y_BLD, ran) = piece.run(&mut leaves);
            let means = ran.token_means.iter().map(Traced::of);
            Run { outputs: std::iter::once(Traced::of(&y_BLD)).chain(means).collect(), leaves: leaves.made }
        });
        let y_BLD = output(node.as_ref(), y_BLD);
        for (counts, mean_E) in ran.token_use.into_iter().zip(ran.token_means) {
            let mean_E = output(node.as_ref(), mean_E);
            stats.add(balance_loss(&mean_E, &counts), counts, mean_E, ran.num_tokens);
        }
        stats.sequence_use.extend(ran.sequence_use);
        y_BLD
    }
}

/// An output of a piece in the outer graph; a constant there where nothing in the piece needs a gradient.
fn output<const D: usize>(node: Option<&Recomputed>, value: Tensor<D>) -> Tensor<D> {
    match node {
        Some(node) => node.output(value),
        None => value.autodiff(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // a test may end by it
mod tests {
    use super::*;

    #[test]
    fn it_is_a_name_or_a_number_of_blocks() {
        let read = |text: &str| serde_json::from_str::<Recompute>(text).map_err(|error| error.to_string());
        for (text, expected) in [("\"none\"", Recompute::None), ("\"blocks\"", Recompute::Blocks), ("3", Recompute::First(3))] {
            assert_eq!(read(text), Ok(expected));
            assert_eq!(serde_json::to_string(&expected).unwrap(), text);
        }
        for text in ["0", "-1", "\"all\""] {
            let error = read(text).unwrap_err();
            assert!(error.contains("expected \"none\", \"blocks\" or a number"), "{error}");
        }
        assert_eq!([Recompute::None, Recompute::Blocks, Recompute::First(9)].map(|which| which.num_of(5)), [0, 5, 5]);
    }
}
