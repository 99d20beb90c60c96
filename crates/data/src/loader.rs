//! Batches of a stream, made ready by workers beside the training thread.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError, sync_channel};
use std::time::Duration;

use crate::Broken;
use crate::error::{DataError, Result, SampleFault};
use crate::mixture::{Drawn, Stream};

/// Makes a sample ready, on a worker.
pub type Prepare<T> = Arc<dyn Fn(Drawn) -> Result<T, SampleFault> + Send + Sync>;

/// How batches are cut from a stream, and who makes them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LoaderOptions {
    /// Samples of a batch over all ranks.
    pub batch_size: usize,
    /// Which part of each batch this process reads.
    pub rank: usize,
    /// Number of such processes.
    pub world_size: usize,
    /// Threads that read.
    pub num_workers: usize,
    /// Batches that are made ready ahead.
    pub num_ahead: usize,
}

/// Batches in order, from any position.
///
/// The batch at position `p` is made of places `p .. p + batch_size` of the stream, of which rank `r` of `w` reads the `r`-th of `w`
/// equal parts. So the batches are the same for any number of ranks and of workers, and the position is all that must be kept to go on.
pub struct Loader<T> {
    stream: Arc<Stream>,
    options: LoaderOptions,
    broken: Arc<Broken>,
    prepare: Prepare<T>,
    position: u64,
    /// One channel a worker; sample `i` from the start comes from worker `i % num_workers`, with the number of broken ones it stands for.
    workers: Vec<Receiver<Result<(T, usize)>>>,
    taken: usize,
    num_broken: usize,
}

impl<T: Send + 'static> Loader<T> {
    /// A loader at position 0; workers start with the first batch, and note what is `broken`, which several loaders of the same sets may share.
    ///
    /// # Errors
    /// When the batch can't be cut into equal parts.
    pub fn new(stream: Stream, options: LoaderOptions, broken: Arc<Broken>, prepare: Prepare<T>) -> Result<Self> {
        let LoaderOptions { batch_size, rank, world_size, num_workers, .. } = options;
        if world_size == 0 || rank >= world_size || num_workers == 0 {
            let reason = format!("rank {rank} of {world_size} with {num_workers} workers");
            return Err(DataError::Loader { reason, hint: "ranks count from 0, and there must be at least one worker" });
        }
        if batch_size == 0 || batch_size % world_size != 0 {
            let reason = format!("a batch of {batch_size} samples can't be shared equally by {world_size} ranks");
            return Err(DataError::Loader { reason, hint: "make the batch size a multiple of the number of ranks" });
        }
        Ok(Self { stream: Arc::new(stream), options, broken, prepare, position: 0, workers: Vec::new(), taken: 0, num_broken: 0 })
    }

    /// Samples of all ranks that were given out: what a checkpoint must keep.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Goes on from `position`; nothing happens where the loader already is.
    pub fn seek(&mut self, position: u64) {
        if position != self.position {
            self.position = position;
            self.workers.clear();
        }
    }

    /// The sets that are read.
    pub fn stream(&self) -> &Stream {
        &self.stream
    }

    /// Broken samples in whose places others were given out since this was called last. It follows from the positions, not from what workers have
    /// read ahead.
    pub fn take_num_broken(&mut self) -> usize {
        std::mem::take(&mut self.num_broken)
    }

    /// This rank's part of the next batch.
    ///
    /// # Errors
    /// When a file can't be read, or more samples are broken than are accepted.
    pub fn next_batch(&mut self) -> Result<Vec<T>> {
        if self.workers.is_empty() {
            self.start();
        }
        let mut batch = Vec::with_capacity(self.options.batch_size / self.options.world_size);
        for _ in 0..batch.capacity() {
            let worker = &self.workers[self.taken % self.workers.len()];
            let ended =
                || DataError::Loader { reason: "a worker ended".into(), hint: "this is a fault of the program: report it" };
            let item = wait(worker).unwrap_or_else(|| Err(ended()));
            if item.is_err() {
                // The next call starts anew, at the same position.
                self.workers.clear();
            }
            let (sample, num_broken) = item?;
            batch.push(sample);
            self.num_broken += num_broken;
            self.taken += 1;
        }
        self.position += self.options.batch_size as u64;
        Ok(batch)
    }

    fn start(&mut self) {
        let LoaderOptions { batch_size, rank, world_size, num_workers, num_ahead, .. } = self.options;
        let part = batch_size / world_size;
        let first = self.position + (rank * part) as u64;
        let depth = (part * num_ahead).div_ceil(num_workers).max(1);
        self.taken = 0;
        self.workers = (0..num_workers)
            .map(|worker| {
                let (sender, receiver) = sync_channel(depth);
                let (stream, broken, prepare) = (Arc::clone(&self.stream), Arc::clone(&self.broken), Arc::clone(&self.prepare));
                // It ends when the loader is dropped or sent elsewhere: nobody receives then.
                std::thread::spawn(move || {
                    for number in (worker..).step_by(num_workers) {
                        let place = first + (number / part * batch_size + number % part) as u64;
                        let item = stream.draw(place, &broken, &*prepare);
                        let failed = item.is_err();
                        if sender.send(item).is_err() || failed {
                            break;
                        }
                    }
                });
                receiver
            })
            .collect();
    }
}

/// What a worker sends next; `None` when it has ended. A thread of rayon's pool takes its part of the pool's work meanwhile: the worker may be
/// waiting for just that.
fn wait<T>(worker: &Receiver<T>) -> Option<T> {
    const IDLE: Duration = Duration::from_micros(200);
    loop {
        match worker.try_recv() {
            Ok(item) => return Some(item),
            Err(TryRecvError::Disconnected) => return None,
            Err(TryRecvError::Empty) => {}
        }
        match rayon::yield_now() {
            None => return worker.recv().ok(),
            Some(rayon::Yield::Executed) => {}
            Some(rayon::Yield::Idle) => match worker.recv_timeout(IDLE) {
                Ok(item) => return Some(item),
                Err(RecvTimeoutError::Disconnected) => return None,
                Err(RecvTimeoutError::Timeout) => {}
            },
        }
    }
}
