use crate::{Communicator, PendingSum, Result, Sum};

/// One rank alone: what it says is the sum.
#[derive(Debug, Clone, Copy, Default)]
pub struct Single;

impl Communicator for Single {
    fn rank(&self) -> usize {
        0
    }

    fn world_size(&self) -> usize {
        1
    }

    fn start_sum(&self, values: Vec<f32>) -> PendingSum {
        PendingSum::new(|| Ok(Sum { values, seconds: 0.0 }))
    }

    fn gather(&self, message: &[u8]) -> Result<Vec<Vec<u8>>> {
        Ok(vec![message.to_vec()])
    }

    fn abort(&self) {}
}
