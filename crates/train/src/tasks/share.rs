//! The part of a global batch that one rank computes in one pass, and how means over the whole batch become sums of shares.

use std::cell::{Cell, RefCell};

use burn::tensor::{Tensor, TensorData};
use unif2ace_comm::{Communicator, Single};
use unif2ace_model::moe::MoeStats;

use crate::error::{Result, TrainError};

/// Rows `first .. first + num` of a batch of `total`. Noise and texts are drawn by a row's place in the whole batch.
pub struct Share<'a> {
    /// First row.
    pub first: usize,
    /// Rows here.
    pub num: usize,
    /// Rows of all ranks.
    pub total: usize,
    ranks: &'a dyn Communicator,
    tally: Option<&'a Tally>,
}

/// One of the passes that a rank computes its rows in.
#[derive(Clone, Copy)]
pub struct Pass<'a> {
    /// Its number.
    pub index: usize,
    /// How many there are.
    pub count: usize,
    /// What all passes count together; `None` for a single pass.
    pub tally: Option<&'a Tally>,
}

impl Pass<'static> {
    /// All rows at once.
    pub const WHOLE: Self = Self { index: 0, count: 1, tally: None };
}

impl Pass<'_> {
    /// Whether only [`Share::over_all`] is of interest.
    pub fn is_counting(&self) -> bool {
        self.tally.is_some_and(|tally| !tally.known.get())
    }
}

/// Calls `pass` for each of several passes of a step, first to count and then to compute.
///
/// # Errors
/// The first of `pass`, and when another rank has left.
pub fn each_pass(ranks: &dyn Communicator, count: usize, mut pass: impl FnMut(Pass<'_>) -> Result<()>) -> Result<()> {
    let tally = Tally::default();
    for known in [false, true] {
        if known {
            tally.close(ranks)?;
        }
        for index in 0..count {
            tally.next.set(0);
            pass(Pass { index, count, tally: Some(&tally) })?;
        }
    }
    Ok(())
}

/// Numbers that are known only when all passes have been counted. Every pass is gone through twice: to count, and then to compute. Both
/// times it asks for the same numbers in the same order.
#[derive(Default)]
pub struct Tally {
    sums: RefCell<Vec<Vec<f64>>>,
    next: Cell<usize>,
    known: Cell<bool>,
}

impl Tally {
    /// Ends the counting: from now on the numbers are those of all passes of all ranks.
    fn close(&self, ranks: &dyn Communicator) -> Result<()> {
        let mut sums = self.sums.borrow_mut();
        let all = ranks.sum(sums.iter().flatten().map(|&sum| sum as f32).collect())?;
        sums.iter_mut().flatten().zip(all).for_each(|(sum, all)| *sum = f64::from(all));
        self.known.set(true);
        Ok(())
    }

    /// The next number of each kind: over all passes once they are known, over those that were counted before.
    fn next(&self, counts: &[usize]) -> Vec<f64> {
        let place = self.next.replace(self.next.get() + 1);
        let mut sums = self.sums.borrow_mut();
        if sums.len() <= place {
            sums.resize(place + 1, vec![0.0; counts.len()]);
        }
        if !self.known.get() {
            sums[place].iter_mut().zip(counts).for_each(|(sum, &count)| *sum += count as f64);
        }
        sums[place].clone()
    }
}

impl<'a> Share<'a> {
    /// This rank's part of `total` rows.
    ///
    /// # Errors
    /// When the ranks can't share them equally.
    pub fn of(ranks: &'a dyn Communicator, total: usize) -> Result<Self> {
        let Some(part) = ranks.part_of(total) else {
            let reason = format!("{total} rows a step can't be shared equally by {} ranks", ranks.world_size());
            let hint = "choose `batch_size` and `mmu_batch_size` as multiples of the number of ranks; they count the rows of all ranks together";
            return Err(TrainError::Ranks { reason, hint });
        };
        Ok(Self { first: part.start, num: part.len(), total, ranks, tally: None })
    }

    /// The part of these rows that a pass computes.
    ///
    /// # Errors
    /// When the passes can't share them equally.
    pub fn of_pass(self, pass: Pass<'a>) -> Result<Self> {
        if !self.num.is_multiple_of(pass.count) {
            let reason = format!("{} rows of a rank can't be computed in {} equal passes", self.num, pass.count);
            let hint = "choose `batch_size` and `mmu_batch_size` as multiples of `accumulation_steps` times the number of ranks";
            return Err(TrainError::Ranks { reason, hint });
        }
        let num = self.num / pass.count;
        Ok(Self { first: self.first + pass.index * num, num, tally: pass.tally, ..self })
    }

    /// Whether only [`Share::over_all`] is of interest.
    pub fn is_counting(&self) -> bool {
        self.tally.is_some_and(|tally| !tally.known.get())
    }

    /// A batch that is computed here alone.
    pub fn whole(total: usize) -> Share<'static> {
        Share { first: 0, num: total, total, ranks: &Single, tally: None }
    }

    /// Part of the whole batch's rows.
    pub fn fraction(&self) -> f64 {
        self.num as f64 / self.total.max(1) as f64
    }

    /// What each number is over all ranks and passes. Counts are exact below 2^24.
    ///
    /// # Errors
    /// When another rank has left.
    pub fn over_all(&self, counts: &[usize]) -> Result<Vec<f64>> {
        if let Some(tally) = self.tally {
            return Ok(tally.next(counts));
        }
        let sums = self.ranks.sum(counts.iter().map(|&count| count as f32).collect())?;
        Ok(sums.into_iter().map(f64::from).collect())
    }

    /// This rank's share of the balance loss `Σ_i f_i P_i` of the whole batch, summed over blocks: `f` is counted over all ranks and
    /// passes, and `P`, a mean over tokens, is the sum of their means by their numbers of tokens.
    ///
    /// # Errors
    /// When another rank has left.
    pub fn balance(&self, stats: &MoeStats) -> Result<Option<Tensor<1>>> {
        if self.ranks.world_size() == 1 && self.tally.is_none() {
            return Ok(stats.balance_loss.clone());
        }
        let counts = stats.token_use.iter().flatten().map(|&count| count as usize);
        let counts: Vec<usize> = counts.chain([stats.num_tokens]).collect();
        let all = self.over_all(&counts)?;
        let tokens = stats.num_tokens as f64 / all[all.len() - 1].max(1.0);
        let mut start = 0;
        let mut sum: Option<Tensor<1>> = None;
        for mean_E in &stats.token_means {
            let [experts] = mean_E.dims();
            let used = &all[start..start + experts];
            start += experts;
            let scale = tokens * experts as f64 / used.iter().sum::<f64>().max(1.0);
            let f: Vec<f32> = used.iter().map(|&count| (count * scale) as f32).collect();
            let f_E = Tensor::<1>::from_data(TensorData::new(f, [experts]), &mean_E.device().without_autodiff());
            let share = (mean_E.clone() * f_E).sum();
            sum = Some(match sum {
                Some(sum) => sum + share,
                None => share,
            });
        }
        Ok(sum)
    }
}
