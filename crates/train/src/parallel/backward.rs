//! Gradients on their way while the backward pass still runs.
//!
//! They travel in buckets. Which parameters are done at which tap ([`unif2ace_ops::tap`]) is learnt in the first step and checked in every
//! other: what was sent too early is sent again, so the sums are right whatever the graph does.

use std::collections::BTreeMap;
use std::time::Instant;

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use unif2ace_comm::{Communicator, PendingSum};
use unif2ace_model::named::{VisitNamed, visit_named};
use unif2ace_ops::{PartialGradients, WatchedGradient, watch_gradient};

use super::Times;
use crate::error::Result;

/// A bucket is full with an eighth of the model, or with this many values (25 MB, as PyTorch's); a larger tensor is one bucket.
const MAX_BUCKET: usize = 25 * (1 << 20) / 4;

/// In which order parameters are sent.
#[derive(Default)]
pub(super) struct Plan {
    /// Parameters that have a gradient on any rank, in the order of sending.
    order: Vec<usize>,
    /// How many of them are done after each tap.
    done: Vec<usize>,
    /// Which parameters have a gradient on this rank.
    present: Vec<bool>,
}

/// A parameter as the backward pass sees it.
pub(super) struct Watched {
    path: String,
    num_values: usize,
    gradient: Option<WatchedGradient>,
}

/// What one backward pass has seen and sent.
#[derive(Default)]
pub(super) struct Backward {
    pub(super) plan: Option<Plan>,
    pub(super) parameters: Vec<Watched>,
    /// Gradients of the passes before this one.
    pub(super) carried: BTreeMap<String, Vec<f32>>,
    /// Whether the pass that runs is not the last one: nothing is sent.
    pub(super) idle: bool,
    num_taps: usize,
    /// Before there is a plan: the digest of each parameter's gradient at each tap.
    seen: Vec<Vec<Option<u64>>>,
    /// With a plan: digests of what was sent, in the plan's order.
    pub(super) sent: Vec<u64>,
    bucket: Vec<f32>,
    pending: Vec<PendingSum>,
    num_started: usize,
}

impl Backward {
    pub(super) fn begin(&mut self, parameters: Vec<Watched>) {
        self.parameters = parameters;
        self.num_taps = 0;
        self.seen.clear();
        self.sent.clear();
        self.bucket.clear();
        self.pending.clear();
        self.num_started = 0;
    }

    fn bucket_size(&self) -> usize {
        let all: usize = self.parameters.iter().map(|parameter| parameter.num_values).sum();
        (all / 8).clamp(1, MAX_BUCKET)
    }

    /// Sends what is done, or notes what is there.
    pub(super) fn at_tap(&mut self, gradients: &PartialGradients<'_>, ranks: &dyn Communicator) {
        if self.idle {
            return;
        }
        let read = |parameter: &Watched, carried: &BTreeMap<String, Vec<f32>>| {
            let values = parameter.gradient.as_ref().and_then(|gradient| gradient.values(gradients));
            match (values, carried.get(&parameter.path)) {
                (Some(values), Some(carried)) => Some(sum(carried.clone(), &values)),
                (values, carried) => values.or_else(|| carried.cloned()),
            }
        };
        match self.plan.take() {
            None => self
                .seen
                .push(self.parameters.iter().map(|parameter| read(parameter, &self.carried).as_deref().map(digest)).collect()),
            Some(plan) => {
                let done = plan.done.get(self.num_taps).copied().unwrap_or(0);
                for &index in plan.order.iter().take(done).skip(self.sent.len()) {
                    let parameter = &self.parameters[index];
                    let values = read(parameter, &self.carried).unwrap_or_else(|| vec![0.0; parameter.num_values]);
                    self.sent.push(digest(&values));
                    self.fill(&values, ranks);
                }
                self.plan = Some(plan);
            }
        }
        self.num_taps += 1;
    }

    fn fill(&mut self, values: &[f32], ranks: &dyn Communicator) {
        self.bucket.extend_from_slice(values);
        if self.bucket.len() >= self.bucket_size() {
            self.flush(ranks);
        }
    }

    fn flush(&mut self, ranks: &dyn Communicator) {
        let bucket = std::mem::take(&mut self.bucket);
        self.num_started += bucket.len();
        self.pending.push(ranks.start_sum(bucket));
    }

    /// Which gradients there are on any rank, and the tap at which the last rank has each of them; exchanged as one byte pair each.
    pub(super) fn learn(&self, local: &BTreeMap<String, Vec<f32>>, ranks: &dyn Communicator) -> Result<Plan> {
        const ABSENT: u16 = u16::MAX;
        const AT_THE_END: u16 = u16::MAX - 1;
        let final_digests: Vec<Option<u64>> =
            self.parameters.iter().map(|parameter| local.get(&parameter.path).map(|values| digest(values))).collect();
        let mine = |(index, digest): (usize, &Option<u64>)| match digest {
            None => ABSENT,
            // The first tap from which on nothing changed.
            Some(_) => match self.seen.iter().rposition(|seen| seen[index] != *digest) {
                Some(last) if last + 1 == self.seen.len() => AT_THE_END,
                Some(last) => (last + 1).min(usize::from(AT_THE_END)) as u16,
                None if self.seen.is_empty() => AT_THE_END,
                None => 0,
            },
        };
        let mine: Vec<u16> = final_digests.iter().enumerate().map(mine).collect();
        let message: Vec<u8> = mine.iter().flat_map(|tap| tap.to_le_bytes()).collect();
        let all: Vec<Vec<u16>> = ranks
            .gather(&message)?
            .iter()
            .map(|message| message.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]])).collect())
            .collect();
        let latest = |index: usize| all.iter().filter_map(|taps| taps.get(index)).filter(|&&tap| tap != ABSENT).max().copied();
        let mut found: Vec<(u16, usize)> = (0..mine.len()).filter_map(|index| Some((latest(index)?, index))).collect();
        found.sort_unstable();
        let done = |tap: usize| found.iter().take_while(|(at, _)| usize::from(*at) <= tap).count();
        Ok(Plan {
            done: (0..self.seen.len()).map(done).collect(),
            order: found.iter().map(|&(_, index)| index).collect(),
            present: mine.iter().map(|&tap| tap != ABSENT).collect(),
        })
    }

    /// Sends the rest and waits. Also says how many gradients, over all ranks, were not what was sent or expected.
    pub(super) fn sum(
        &mut self,
        plan: &Plan,
        local: &BTreeMap<String, Vec<f32>>,
        ranks: &dyn Communicator,
        times: &mut Times,
    ) -> Result<(BTreeMap<String, Vec<f32>>, usize)> {
        times.early += self.num_started;
        let is_here = |index: usize| local.contains_key(&self.parameters[index].path);
        let mut num_wrong = (0..self.parameters.len()).filter(|&index| is_here(index) != plan.present[index]).count();
        for (place, &index) in plan.order.iter().enumerate() {
            let num_values = self.parameters[index].num_values;
            let values = local.get(&self.parameters[index].path).cloned().unwrap_or_else(|| vec![0.0; num_values]);
            match self.sent.get(place) {
                Some(&sent) => num_wrong += usize::from(sent != digest(&values)),
                None => self.fill(&values, ranks),
            }
        }
        self.bucket.push(num_wrong as f32);
        self.flush(ranks);
        let mut sums = Vec::new();
        times.values += std::mem::take(&mut self.num_started);
        let begun = Instant::now();
        for pending in self.pending.drain(..) {
            let sum = pending.wait()?;
            times.summing += sum.seconds;
            sums.extend(sum.values);
        }
        times.waiting += begun.elapsed().as_secs_f64();
        let mut rest = sums.as_slice();
        let mut out = BTreeMap::new();
        for &index in &plan.order {
            let Watched { path, num_values, .. } = &self.parameters[index];
            let (values, behind) = rest.split_at(*num_values);
            out.insert(path.clone(), values.to_vec());
            rest = behind;
        }
        Ok((out, rest.first().map_or(0, |&count| count as usize)))
    }
}

fn sum(mut first: Vec<f32>, second: &[f32]) -> Vec<f32> {
    first.iter_mut().zip(second).for_each(|(sum, value)| *sum += value);
    first
}

/// Gradients by path, with those of another pass.
pub(super) fn added(mut carried: BTreeMap<String, Vec<f32>>, pass: BTreeMap<String, Vec<f32>>) -> BTreeMap<String, Vec<f32>> {
    for (path, values) in pass {
        let all = match carried.remove(&path) {
            Some(carried) => sum(carried, &values),
            None => values,
        };
        carried.insert(path, all);
    }
    carried
}

/// A model's parameters that are trained, in the order of their visit.
pub(super) fn watched<M: Module>(model: &M) -> Vec<Watched> {
    struct Collect {
        out: Vec<Watched>,
    }
    impl VisitNamed for Collect {
        fn parameter<const D: usize>(&mut self, path: &str, param: &Param<Tensor<D>>) {
            let tensor = param.val();
            if !tensor.is_require_grad() {
                return;
            }
            let (path, num_values) = (path.to_owned(), tensor.shape().num_elements());
            self.out.push(Watched { path, num_values, gradient: watch_gradient(&tensor) });
        }
    }
    let mut collect = Collect { out: Vec::new() };
    visit_named(model, &mut collect);
    collect.out
}

/// A number that tells whether values are bit for bit the same.
pub(super) fn digest(values: &[f32]) -> u64 {
    const LANES: usize = 8;
    let mut lanes = [0x9E37_79B9u32; LANES];
    for chunk in values.chunks(LANES) {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            *lane = (lane.rotate_left(5) ^ value.to_bits()).wrapping_mul(0x85EB_CA6B);
        }
    }
    lanes
        .iter()
        .fold(values.len() as u64, |sum, &lane| (sum.rotate_left(7) ^ u64::from(lane)).wrapping_mul(0x9E37_79B9_7F4A_7C15))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test may end by them
mod tests {
    use std::sync::Arc;
    use std::thread;

    use burn::tensor::{Device, TensorData};
    use unif2ace_comm::{Single, Threads};
    use unif2ace_ops::{Activation, linear, tap};

    use super::*;
    use crate::parallel::Parallel;

    const WIDTH: usize = 4;

    #[derive(Module, Debug)]
    struct Layers {
        weights: Vec<Param<Tensor<2>>>,
    }

    fn numbers(count: usize, seed: usize) -> Vec<f32> {
        (0..count).map(|place| ((place * 7 + seed * 5) % 11) as f32 / 11.0 - 0.4).collect()
    }

    impl Layers {
        fn new() -> Self {
            let weight = |seed| TensorData::new(numbers(WIDTH * WIDTH, seed), [WIDTH, WIDTH]);
            let device = Device::flex().autodiff();
            Self {
                weights: (0..6).map(|seed| Param::from_tensor(Tensor::from_data(weight(seed), &device).require_grad())).collect(),
            }
        }

        /// The share that row `row` has of the loss; the layers from `used` on have no part in it, layer `again` has two.
        fn loss(&self, row: usize, used: usize, again: Option<usize>) -> Tensor<1> {
            let data = TensorData::new(numbers(WIDTH, 3 + row), [1, WIDTH]);
            let mut x = Tensor::<2>::from_data(data, &Device::flex().autodiff());
            for weight in self.weights[..used].iter().chain(again.map(|index| &self.weights[index])) {
                x = linear(tap(x), weight.val(), None, Activation::GeluNew);
            }
            x.sum()
        }
    }

    #[test]
    fn sums_are_those_of_one_rank_though_they_leave_early_and_though_the_graph_changes() {
        // Layers in use and a layer that is used once more, step by step; and whether buckets may leave early in it.
        let steps = [
            (6, None, false),
            (6, None, true),
            (6, Some(5), true),
            (6, None, false),
            (4, None, true),
            (6, None, false),
            (6, None, true),
        ];
        let ranks = |rank: Threads| {
            let row = rank.rank();
            let mut parallel = Parallel::new(Arc::new(rank));
            let model = Layers::new();
            let mut step = |&(used, again, _): &(usize, Option<usize>, bool)| {
                let before = parallel.times.early;
                let gradients = parallel.backward(&model, model.loss(row, used, again)).unwrap().into_tensors();
                (gradients, parallel.times.early > before)
            };
            steps.iter().map(&mut step).collect::<Vec<_>>()
        };
        let found: Vec<_> = thread::scope(|scope| {
            let threads: Vec<_> = Threads::ranks(2).into_iter().map(|rank| scope.spawn(|| ranks(rank))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let mut alone = Parallel::new(Arc::new(Single));
        for (index, (used, again, early)) in steps.into_iter().enumerate() {
            let model = Layers::new();
            let mut both = |row| alone.backward(&model, model.loss(row, used, again)).unwrap().into_tensors();
            let (mut expected, second) = (both(0), both(1));
            for (values, second) in expected.values_mut().zip(second.values()) {
                values.iter_mut().zip(second).for_each(|(value, second)| *value += second);
            }
            for rank in &found {
                assert!(rank[index].0 == expected, "step {index}");
                assert_eq!(rank[index].1, early, "step {index}");
            }
        }
    }
}
