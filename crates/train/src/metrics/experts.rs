//! How evenly the experts are used.

use serde::{Deserialize, Serialize};
use unif2ace_model::moe::MoeStats;

/// How often each expert of one group was taken: whole numbers, so that sums don't depend on their order.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExpertUse {
    /// Token level: (token, slot) pairs, by block and expert.
    pub token: Vec<Vec<u64>>,
    /// Sequence level: (image, slot) pairs, by block and expert.
    pub sequence: Vec<Vec<u64>>,
}

impl ExpertUse {
    /// What the routers of a forward pass did.
    pub fn of(stats: &MoeStats) -> Self {
        let wide = |blocks: &[Vec<u32>]| blocks.iter().map(|block| block.iter().map(|&count| count.into()).collect()).collect();
        Self { token: wide(&stats.token_use), sequence: wide(&stats.sequence_use) }
    }

    /// Adds the counts of other rows.
    pub fn add(&mut self, other: &Self) {
        add(&mut self.token, &other.token);
        add(&mut self.sequence, &other.sequence);
    }

    /// All counts, in a fixed order.
    pub fn counts_mut(&mut self) -> impl Iterator<Item = &mut u64> {
        self.token.iter_mut().chain(&mut self.sequence).flatten()
    }

    /// The smallest and the largest share that an expert of any block has of its block's pairs, by level, as measures of `group`. Even use
    /// is 1 / experts; 0 is an expert that nobody takes. A level without pairs has no measures.
    pub fn measures(&self, group: &str) -> Vec<(String, f64)> {
        let mut measures = Vec::new();
        for (level, blocks) in [("expert_use", &self.token), ("sequence_expert_use", &self.sequence)] {
            let shares = blocks.iter().flat_map(|block| {
                let pairs: u64 = block.iter().sum();
                block.iter().filter(move |_| pairs > 0).map(move |&count| count as f64 / pairs as f64)
            });
            let range = shares.fold(None, |range: Option<(f64, f64)>, share| {
                let (least, most) = range.unwrap_or((share, share));
                Some((least.min(share), most.max(share)))
            });
            if let Some((least, most)) = range {
                measures.push((format!("{level}_min_{group}"), least));
                measures.push((format!("{level}_max_{group}"), most));
            }
        }
        measures
    }
}

fn add(sums: &mut Vec<Vec<u64>>, blocks: &[Vec<u64>]) {
    sums.resize_with(blocks.len().max(sums.len()), Vec::new);
    for (sum, block) in sums.iter_mut().zip(blocks) {
        sum.resize(block.len().max(sum.len()), 0);
        sum.iter_mut().zip(block).for_each(|(sum, count)| *sum += count);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_of_each_block_and_the_extremes_of_all() {
        let mut sum = ExpertUse::default();
        assert!(sum.measures("t2i").is_empty());
        let stats = MoeStats { token_use: vec![vec![1, 3], vec![4, 0]], ..MoeStats::default() };
        sum.add(&ExpertUse::of(&stats));
        sum.add(&ExpertUse { token: vec![vec![1, 3], vec![3, 1]], sequence: vec![vec![0, 0]] });
        assert_eq!(sum.token, [[2, 6], [7, 1]]);
        let expected = [("expert_use_min_t2i", 1.0 / 8.0), ("expert_use_max_t2i", 7.0 / 8.0)];
        assert_eq!(sum.measures("t2i"), expected.map(|(name, value)| (name.to_owned(), value)));
        sum.counts_mut().for_each(|count| *count *= 2);
        assert_eq!(sum.token, [[4, 12], [14, 2]]);
    }
}
