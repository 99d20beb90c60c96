//! Ranks as threads of one process: the logic of several ranks without an MPI library.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Instant;

use crate::{CommError, Communicator, PendingSum, Result, Sum, in_order};

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
    sums: HashMap<u64, Round<f32>>,
    gathers: HashMap<u64, Round<u8>>,
    left: Vec<usize>,
}

struct Round<T> {
    parts: Vec<Option<Vec<T>>>,
    num_taken: usize,
}

/// Picks one kind of round from the table.
type Kind<T> = fn(&mut Table) -> &mut HashMap<u64, Round<T>>;

impl Shared {
    fn put<T>(&self, kind: Kind<T>, number: u64, rank: usize, part: Vec<T>) {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let empty = || Round { parts: (0..self.world_size).map(|_| None).collect(), num_taken: 0 };
        kind(&mut table).entry(number).or_insert_with(empty).parts[rank] = Some(part);
        self.changed.notify_all();
    }

    /// Waits for all parts of a round and hands them to `take`; the last rank to take them clears the table.
    fn take<T, R>(&self, kind: Kind<T>, number: u64, take: impl FnOnce(&[Option<Vec<T>>]) -> R) -> Result<R> {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let missing = kind(&mut table).get(&number).and_then(|round| round.parts.iter().position(Option::is_none));
            match missing {
                None => break,
                Some(rank) if table.left.contains(&rank) => return Err(CommError::Left { rank }),
                Some(_) => table = self.changed.wait(table).unwrap_or_else(PoisonError::into_inner),
            }
        }
        let rounds = kind(&mut table);
        let round = rounds.get_mut(&number).ok_or(CommError::Closed)?;
        let result = take(&round.parts);
        round.num_taken += 1;
        if round.num_taken == self.world_size {
            rounds.remove(&number);
        }
        Ok(result)
    }
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
            let values =
                shared.take(|table| &mut table.sums, number, |parts| in_order(parts.iter().flatten().map(Vec::as_slice)))?;
            Ok(Sum { values, seconds: begun.elapsed().as_secs_f64() })
        })
    }

    fn gather(&self, message: &[u8]) -> Result<Vec<Vec<u8>>> {
        let number = self.num_gathers.fetch_add(1, Ordering::Relaxed);
        self.shared.put(|table| &mut table.gathers, number, self.rank, message.to_vec());
        self.shared.take(|table| &mut table.gathers, number, |parts| parts.iter().flatten().cloned().collect())
    }

    // The others notice when this rank is dropped.
    fn abort(&self) {}
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.shared.table.lock().unwrap_or_else(PoisonError::into_inner).left.push(self.rank);
        self.shared.changed.notify_all();
    }
}
