//! The part of a global batch that one rank computes, and how means over the whole batch become sums of shares.

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
        Ok(Self { first: part.start, num: part.len(), total, ranks })
    }

    /// A batch that is computed here alone.
    pub fn whole(total: usize) -> Share<'static> {
        Share { first: 0, num: total, total, ranks: &Single }
    }

    /// Part of the whole batch's rows.
    pub fn fraction(&self) -> f64 {
        self.num as f64 / self.total.max(1) as f64
    }

    /// What each number is over all ranks. Counts are exact below 2^24.
    ///
    /// # Errors
    /// When another rank has left.
    pub fn over_all(&self, counts: &[usize]) -> Result<Vec<f64>> {
        let sums = self.ranks.sum(counts.iter().map(|&count| count as f32).collect())?;
        Ok(sums.into_iter().map(f64::from).collect())
    }

    /// This rank's share of the balance loss `Σ_i f_i P_i` of the whole batch, summed over blocks: `f` is counted over all ranks, and
    /// `P`, a mean over tokens, is the sum of the ranks' means by their numbers of tokens.
    ///
    /// # Errors
    /// When another rank has left.
    pub fn balance(&self, stats: &MoeStats) -> Result<Option<Tensor<1>>> {
        if self.ranks.world_size() == 1 {
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
