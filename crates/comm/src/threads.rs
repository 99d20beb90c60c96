//! Ranks as threads of one process, each with a device of its own: several ranks without an MPI library.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use rayon::prelude::*;

use crate::{CommError, Communicator, PendingSum, Result, Sum};

/// One of several ranks in one process. A rank that is dropped has left.
pub struct Threads {
    rank: usize,
    shared: Arc<Shared>,
    num_sums: AtomicU64,
    num_gathers: AtomicU64,
}

struct Shared {
    world_size: usize,
    table: Mutex<Table>,
    changed: Condvar,
}

/// What lies on the table, by the number of the call.
#[derive(Default)]
struct Table {
    sums: HashMap<u64, Round<f32, Vec<f32>>>,
    gathers: HashMap<u64, Round<u8, Vec<Vec<u8>>>>,
    left: Vec<usize>,
}

/// One call of all ranks.
struct Round<T, R> {
    stage: Stage<T, R>,
    num_taken: usize,
}

/// How far a call is.
enum Stage<T, R> {
    /// What the ranks have given so far.
    Collecting(Vec<Option<Vec<T>>>),
    /// The rank that came first makes the result of it.
    Joining,
    /// What all ranks get.
    Done(Arc<R>),
}

/// Picks one kind of round from the table.
type Kind<T, R> = fn(&mut Table) -> &mut HashMap<u64, Round<T, R>>;

impl Shared {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put<T, R>(&self, kind: Kind<T, R>, number: u64, rank: usize, part: Vec<T>) {
        let mut table = self.table();
        let empty = || Round { stage: Stage::Collecting((0..self.world_size).map(|_| None).collect()), num_taken: 0 };
        if let Stage::Collecting(parts) = &mut kind(&mut table).entry(number).or_insert_with(empty).stage {
            parts[rank] = Some(part);
        }
        self.changed.notify_all();
    }

    /// Waits for all parts of a round. The first rank that sees them joins them for all, while the table is free; the last one to take the
    /// result clears the table.
    fn take<T, R: Clone>(&self, kind: Kind<T, R>, number: u64, join: impl FnOnce(Vec<Vec<T>>) -> R) -> Result<R> {
        let mut join = Some(join);
        let mut table = self.table();
        loop {
            let left = table.left.clone();
            let round = kind(&mut table).get_mut(&number).ok_or(CommError::Closed)?;
            match &mut round.stage {
                Stage::Done(result) => {
                    let result = result.clone();
                    round.num_taken += 1;
                    if round.num_taken == self.world_size {
                        kind(&mut table).remove(&number);
                    }
                    drop(table);
                    return Ok(Arc::unwrap_or_clone(result));
                }
                Stage::Collecting(parts) => match (parts.iter().position(Option::is_none), join.take()) {
                    (None, Some(join)) => {
                        let parts = std::mem::take(parts).into_iter().flatten().collect();
                        round.stage = Stage::Joining;
                        drop(table);
                        let result = Arc::new(join(parts));
                        table = self.table();
                        if let Some(round) = kind(&mut table).get_mut(&number) {
                            round.stage = Stage::Done(result);
                        }
                        self.changed.notify_all();
                        continue;
                    }
                    (Some(rank), _) if left.contains(&rank) => return Err(CommError::Left { rank }),
                    (_, unused) => join = unused,
                },
                Stage::Joining => {}
            }
            table = self.changed.wait(table).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// Values that one thread adds up at a time.
const SLICE: usize = 1 << 16;

/// The sum of equally long parts in their order.
fn sum(parts: Vec<Vec<f32>>) -> Vec<f32> {
    let mut parts = parts.into_iter();
    let mut sum = parts.next().unwrap_or_default();
    let others: Vec<Vec<f32>> = parts.collect();
    sum.par_chunks_mut(SLICE).enumerate().for_each(|(slice, sum)| {
        for other in &others {
            let other = other.get(slice * SLICE..).unwrap_or_default();
            sum.iter_mut().zip(other).for_each(|(sum, value)| *sum += value);
        }
    });
    sum
}

impl Threads {
    /// The ranks of a job, one for each thread.
    pub fn ranks(world_size: usize) -> Vec<Self> {
        let shared = Arc::new(Shared { world_size, table: Mutex::default(), changed: Condvar::new() });
        let rank = |rank| Self { rank, shared: shared.clone(), num_sums: AtomicU64::new(0), num_gathers: AtomicU64::new(0) };
        (0..world_size).map(rank).collect()
    }
}

impl Communicator for Threads {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world_size(&self) -> usize {
        self.shared.world_size
    }

    fn start_sum(&self, values: Vec<f32>) -> PendingSum {
        let number = self.num_sums.fetch_add(1, Ordering::Relaxed);
        let shared = self.shared.clone();
        let begun = Instant::now();
        shared.put(|table| &mut table.sums, number, self.rank, values);
        PendingSum::new(move || {
            let values = shared.take(|table| &mut table.sums, number, sum)?;
            Ok(Sum { values, seconds: begun.elapsed().as_secs_f64() })
        })
    }

    fn gather(&self, message: &[u8]) -> Result<Vec<Vec<u8>>> {
        let number = self.num_gathers.fetch_add(1, Ordering::Relaxed);
        self.shared.put(|table| &mut table.gathers, number, self.rank, message.to_vec());
        self.shared.take(|table| &mut table.gathers, number, |parts| parts)
    }

    // The others notice when this rank is dropped.
    fn abort(&self) {}
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.shared.table().left.push(self.rank);
        self.shared.changed.notify_all();
    }
}
