//! Several sets as one endless stream of samples whose order is a function of a seed and a position.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use crate::error::{DataError, Result, SampleFault};
use crate::sample::Sample;
use crate::sources::{DataSet, PIECES_MIXED};
use crate::{Broken, Item};

/// What samples are trained on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TaskName {
    /// Generation from a caption.
    T2i,
    /// Understanding: a request for a caption.
    Caption,
    /// Understanding: questions.
    Vqa,
    /// Text alone.
    Text,
}

impl TaskName {
    /// The name in recipes.
    pub fn name(self) -> &'static str {
        match self {
            Self::T2i => "t2i",
            Self::Caption => "caption",
            Self::Vqa => "vqa",
            Self::Text => "text",
        }
    }
}

/// A set of a mixture.
#[derive(Clone)]
pub struct MixtureEntry {
    /// The samples.
    pub set: Arc<DataSet>,
    /// What they are used for.
    pub tasks: Vec<TaskName>,
    /// Part of the stream, relative to the weights of the other sets.
    pub weight: f64,
}

/// A uniformly random order of `0..len` that is a function of its seed and number.
pub type Permute = fn(seed: u64, number: u64, len: usize) -> Vec<usize>;

/// A sample with what it may be used for.
#[derive(Debug, Clone)]
pub struct Drawn {
    /// The sample.
    pub sample: Sample,
    /// The tasks that were asked for and that its set is for.
    pub tasks: Vec<TaskName>,
}

/// Set and epoch with the order of its samples.
type EpochOrder = ((usize, u64), Arc<Vec<u32>>);

/// An endless stream over the sets of a mixture that are for some tasks.
///
/// Place `p` of the stream belongs to a set such that among the first `p` places every set has its share to within two, and the samples
/// of a set come epoch after epoch, each in an order of its own. So a place is found without a look at those before it.
pub struct Stream {
    entries: Vec<MixtureEntry>,
    /// Share of each set among itself and those behind it, in 2^-32.
    shares: Vec<u64>,
    seed: u64,
    permute: Permute,
    orders: Mutex<VecDeque<EpochOrder>>,
}

impl Stream {
    /// The sets of `entries` that are for one of `tasks`; `None` when there are none.
    ///
    /// # Errors
    /// When a weight isn't a positive number, or a set holds more than 2^32 samples.
    pub fn new(entries: &[MixtureEntry], tasks: &[TaskName], seed: u64, permute: Permute) -> Result<Option<Self>> {
        let mut chosen: Vec<MixtureEntry> = Vec::new();
        for entry in entries {
            let path = entry.set.path().display();
            if !(entry.weight.is_finite() && entry.weight > 0.0) {
                let reason = format!("the weight of {path} is {}", entry.weight);
                return Err(DataError::Loader { reason, hint: "weights are positive numbers" });
            }
            if u32::try_from(entry.set.len()).is_err() {
                let reason = format!("{path} holds {} samples, at most {} are accepted", entry.set.len(), u32::MAX);
                return Err(DataError::Loader { reason, hint: "cut the set into several of the mixture" });
            }
            let tasks: Vec<TaskName> = entry.tasks.iter().copied().filter(|task| tasks.contains(task)).collect();
            if !tasks.is_empty() {
                chosen.push(MixtureEntry { tasks, ..entry.clone() });
            }
        }
        if chosen.is_empty() {
            return Ok(None);
        }
        let weights = |from: usize| chosen[from..].iter().map(|entry| entry.weight).sum::<f64>();
        let shares = (0..chosen.len())
            .map(|number| (chosen[number].weight / weights(number) * (1u64 << 32) as f64).round() as u64)
            .collect();
        Ok(Some(Self { entries: chosen, shares, seed, permute, orders: Mutex::default() }))
    }

    /// The sets, with the tasks of this stream.
    pub fn entries(&self) -> &[MixtureEntry] {
        &self.entries
    }

    /// The set of place `position` of the stream, and how many places that set had before.
    fn place(&self, position: u64) -> (usize, u64) {
        let mut rest = position;
        for (number, &share) in self.shares.iter().enumerate() {
            let before = |places: u64| ((u128::from(places) * u128::from(share)) >> 32) as u64;
            // The last set takes what is left.
            if number + 1 == self.shares.len() || before(rest + 1) > before(rest) {
                return (number, if number + 1 == self.shares.len() { rest } else { before(rest) });
            }
            rest -= before(rest);
        }
        (0, rest)
    }

    /// Set and sample at place `position`; each further `skip` is the sample behind it in the order of its epoch.
    fn sample_at(&self, position: u64, skip: usize) -> (usize, usize) {
        let (number, ordinal) = self.place(position);
        let len = self.entries[number].set.len();
        let order = self.order(number, ordinal / len as u64);
        (number, order[((ordinal % len as u64) as usize + skip) % len] as usize)
    }

    /// Reads the sample at place `position`, and says how many broken ones were passed over. A broken one is noted and the one behind it in its
    /// epoch's order takes its place, so that no other place changes. `prepare` may find a sample broken too.
    ///
    /// # Errors
    /// When a file can't be read, or more samples are broken than `broken` accepts.
    pub fn draw<T>(
        &self,
        position: u64,
        broken: &Broken,
        prepare: impl Fn(Drawn) -> Result<T, SampleFault>,
    ) -> Result<(T, usize)> {
        let len = self.entries[self.place(position).0].set.len();
        for skip in 0..len {
            let (number, index) = self.sample_at(position, skip);
            let entry = &self.entries[number];
            let (key, fault) = match entry.set.get(index)? {
                Ok(sample) => {
                    let key = sample.key.clone();
                    match prepare(Drawn { sample, tasks: entry.tasks.clone() }) {
                        Ok(prepared) => return Ok((prepared, skip)),
                        Err(fault) => (key, fault),
                    }
                }
                Err(named) => named,
            };
            broken.note(entry.set.path(), len, index, &key, fault)?;
        }
        let path = self.entries[self.place(position).0].set.path().display();
        let hint = "check how the set was written, and that it is for the tasks that the recipe names";
        Err(DataError::Loader { reason: format!("all {len} samples of {path} are broken"), hint })
    }

    /// The order of an epoch of a set. Where only whole pieces can be read, pieces are shuffled, and the samples of a few that follow
    /// each other are shuffled among themselves.
    fn order(&self, number: usize, epoch: u64) -> Arc<Vec<u32>> {
        let mut orders = self.orders.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, order)) = orders.iter().find(|(known, _)| *known == (number, epoch)) {
            return Arc::clone(order);
        }
        // The first set's order is that of the seed itself.
        let seed = self.seed ^ (number as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let pieces = self.entries[number].set.pieces();
        let shuffled = if pieces.len() == 1 { vec![0] } else { (self.permute)(!seed, epoch, pieces.len()) };
        let starts: Vec<usize> = pieces.iter().scan(0, |end, &length| Some(std::mem::replace(end, *end + length))).collect();
        let mut order: Vec<u32> = Vec::with_capacity(self.entries[number].set.len());
        for (window, mixed) in shuffled.chunks(PIECES_MIXED).enumerate() {
            let held: Vec<usize> = mixed.iter().flat_map(|&piece| starts[piece]..starts[piece] + pieces[piece]).collect();
            let window_seed = seed ^ (window as u64).wrapping_mul(0xD6E8_FEB8_6659_FD93);
            order.extend((self.permute)(window_seed, epoch, held.len()).into_iter().map(|place| held[place] as u32));
        }
        let order = Arc::new(order);
        orders.push_back(((number, epoch), Arc::clone(&order)));
        // Workers are at most an epoch apart.
        while orders.len() > 2 * self.entries.len() {
            orders.pop_front();
        }
        order
    }
}

/// Reads all samples of a set in order, at most `limit` good ones (0: all), several at a time; broken ones are noted and left out.
///
/// # Errors
/// When a file can't be read, or more samples are broken than `broken` accepts.
pub fn load_all<T: Send>(
    set: &DataSet,
    limit: usize,
    broken: &Broken,
    prepare: impl Fn(Sample) -> Result<T, SampleFault> + Sync,
) -> Result<Vec<T>> {
    use rayon::prelude::*;
    const AT_ONCE: usize = 256;
    let limit = if limit == 0 { usize::MAX } else { limit };
    let mut loaded = Vec::new();
    for start in (0..set.len()).step_by(AT_ONCE) {
        let items: Vec<Result<Result<T, (String, SampleFault)>>> = (start..set.len().min(start + AT_ONCE))
            .into_par_iter()
            .map(|index| {
                let item: Item = set.get(index)?;
                Ok(item.and_then(|sample| {
                    let key = sample.key.clone();
                    prepare(sample).map_err(|fault| (key, fault))
                }))
            })
            .collect();
        for (place, item) in items.into_iter().enumerate() {
            match item? {
                Ok(prepared) => loaded.push(prepared),
                Err((key, fault)) => broken.note(set.path(), set.len(), start + place, &key, fault)?,
            }
            if loaded.len() >= limit {
                return Ok(loaded);
            }
        }
    }
    Ok(loaded)
}
