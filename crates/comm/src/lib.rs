//! What the ranks of one training job say to each other: sums of floats and small messages.
//!
//! A sum adds the ranks' values in the order of the ranks, so its bits depend neither on timing nor on who asks. All ranks make the same
//! calls in the same order.

mod error;
#[cfg(feature = "mpi")]
mod mpi;
mod single;
mod threads;

use std::ops::Range;
use std::sync::Arc;

pub use error::{CommError, Result};
#[cfg(feature = "mpi")]
pub use mpi::Mpi;
pub use single::Single;
pub use threads::Threads;

/// The ranks of a job, seen from one of them.
pub trait Communicator: Send + Sync {
    /// This rank, below [`Communicator::world_size`].
    fn rank(&self) -> usize;

    /// Number of ranks.
    fn world_size(&self) -> usize;

    /// Starts the sum of `values` over all ranks, which must give the same number of values, and returns at once.
    fn start_sum(&self, values: Vec<f32>) -> PendingSum;

    /// The message of every rank, in the order of the ranks. Messages may differ in length.
    ///
    /// # Errors
    /// When another rank has left.
    fn gather(&self, message: &[u8]) -> Result<Vec<Vec<u8>>>;

    /// Ends the other ranks where they can't notice that this one has failed. Doesn't return where that ends this process too.
    fn abort(&self);

    /// The sum of `values` over all ranks.
    ///
    /// # Errors
    /// When another rank has left.
    fn sum(&self, values: Vec<f32>) -> Result<Vec<f32>> {
        Ok(self.start_sum(values).wait()?.values)
    }

    /// Whether this rank is the one that writes files and reports.
    fn leads(&self) -> bool {
        self.rank() == 0
    }

    /// This rank's part of `0..total`, which the ranks share equally; `None` when they can't.
    fn part_of(&self, total: usize) -> Option<Range<usize>> {
        let each = total / self.world_size();
        total.is_multiple_of(self.world_size()).then(|| self.rank() * each..(self.rank() + 1) * each)
    }
}

/// A finished sum.
#[derive(Debug, Clone, PartialEq)]
pub struct Sum {
    /// The sums.
    pub values: Vec<f32>,
    /// Time from the first byte to the last, other ranks' lateness included.
    pub seconds: f64,
}

/// A sum on its way.
pub struct PendingSum(Box<dyn FnOnce() -> Result<Sum> + Send>);

impl PendingSum {
    fn new(wait: impl FnOnce() -> Result<Sum> + Send + 'static) -> Self {
        Self(Box::new(wait))
    }

    /// Waits until all ranks have given their values.
    ///
    /// # Errors
    /// When another rank has left.
    pub fn wait(self) -> Result<Sum> {
        (self.0)()
    }
}

/// Number of this process among those that a launcher started on this machine, from 0; 0 where there is no launcher.
pub fn local_rank() -> usize {
    // Set by Open MPI's mpirun, by Slurm, by MPICH's launchers, and by Intel's.
    let names = ["OMPI_COMM_WORLD_LOCAL_RANK", "SLURM_LOCALID", "MPI_LOCALRANKID", "PMI_LOCAL_RANK"];
    names.into_iter().find_map(|name| std::env::var(name).ok()?.parse().ok()).unwrap_or(0)
}

/// The ranks that this process was started with: one, or those of `mpirun`, `srun --mpi=pmix` and their like.
///
/// # Errors
/// When it was started as one of several ranks and was built without the feature `mpi`, or when MPI can't be started.
pub fn connect() -> Result<Arc<dyn Communicator>> {
    // Set by Open MPI's mpirun, by PMIx (Slurm, the Kubernetes MPI operator) and by MPICH's launchers.
    let started = ["OMPI_COMM_WORLD_SIZE", "PMIX_RANK", "PMI_SIZE"].into_iter().find(|name| std::env::var_os(name).is_some());
    match started {
        None => Ok(Arc::new(Single)),
        Some(variable) => connect_mpi(variable),
    }
}

#[cfg(feature = "mpi")]
fn connect_mpi(_variable: &'static str) -> Result<Arc<dyn Communicator>> {
    Ok(Arc::new(Mpi::start()?))
}

#[cfg(not(feature = "mpi"))]
fn connect_mpi(variable: &'static str) -> Result<Arc<dyn Communicator>> {
    Err(CommError::NotBuilt { variable })
}
