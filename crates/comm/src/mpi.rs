//! Ranks as processes, over MPI. One thread of each rank makes all calls of MPI: nothing more than `MPI_THREAD_FUNNELED` is asked of
//! the library, and what is on its way moves while the other threads compute.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use mpi::Threading;
use mpi::collective::CommunicatorCollectives;
use mpi::datatype::PartitionMut;
use mpi::request::{Request, Scope, scope};
use mpi::topology::{Communicator as _, SimpleCommunicator};

use crate::{CommError, Communicator, PendingSum, Result, Sum};

/// Between two looks at a message on its way: a rank that only looked would take a core from the computation.
const PAUSE: Duration = Duration::from_micros(20);

/// Exit code that the launcher shows for a job whose rank has failed.
const FAILED: i32 = 1;

enum Job {
    Sum(Vec<f32>, Sender<Sum>),
    Gather(Vec<u8>, Sender<Vec<Vec<u8>>>),
}

/// This process among those that `mpirun` started. MPI ends when it is dropped.
pub struct Mpi {
    rank: usize,
    world_size: usize,
    jobs: Mutex<Option<Sender<Job>>>,
    failed: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Mpi {
    /// Starts MPI on a thread of its own. Once in a process.
    ///
    /// # Errors
    /// When MPI was started before or the thread can't be.
    pub fn start() -> Result<Self> {
        let (jobs, inbox) = channel();
        let (ready, started) = channel();
        let failed = Arc::new(AtomicBool::new(false));
        let flag = failed.clone();
        let serve = move || {
            let Some((universe, _)) = mpi::initialize_with_threading(Threading::Funneled) else { return };
            let world = universe.world();
            let _ = ready.send((world.rank() as usize, world.size() as usize));
            Server { world, failed: flag }.run(&inbox);
        };
        let start = |reason: String| CommError::Start { reason };
        let thread = std::thread::Builder::new().name("mpi".into()).spawn(serve).map_err(|error| start(error.to_string()))?;
        let (rank, world_size) = started.recv().map_err(|_| start("it was started before in this process".into()))?;
        Ok(Self { rank, world_size, jobs: Mutex::new(Some(jobs)), failed, thread: Some(thread) })
    }

    fn send(&self, job: Job) {
        if let Some(jobs) = &*self.jobs.lock().unwrap_or_else(PoisonError::into_inner) {
            // Who waits for the answer of a thread that is gone is told so.
            let _ = jobs.send(job);
        }
    }
}

impl Communicator for Mpi {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world_size(&self) -> usize {
        self.world_size
    }

    fn start_sum(&self, values: Vec<f32>) -> PendingSum {
        let (answer, sum) = channel();
        self.send(Job::Sum(values, answer));
        PendingSum::new(move || sum.recv().map_err(|_| CommError::Closed))
    }

    fn gather(&self, message: &[u8]) -> Result<Vec<Vec<u8>>> {
        let (answer, messages) = channel();
        self.send(Job::Gather(message.to_vec(), answer));
        messages.recv().map_err(|_| CommError::Closed)
    }

    /// `MPI_Abort`: the launcher ends every rank, this one included.
    fn abort(&self) {
        self.failed.store(true, Ordering::SeqCst);
        // Wakes the thread; it waits for nobody any more.
        let _ = self.gather(&[]);
    }
}

impl Drop for Mpi {
    fn drop(&mut self) {
        drop(self.jobs.lock().unwrap_or_else(PoisonError::into_inner).take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The thread's side.
struct Server {
    world: SimpleCommunicator,
    failed: Arc<AtomicBool>,
}

impl Server {
    fn run(&self, inbox: &Receiver<Job>) {
        while let Ok(job) = inbox.recv() {
            self.check();
            match job {
                Job::Sum(values, answer) => drop(answer.send(self.sum(&values))),
                Job::Gather(message, answer) => drop(answer.send(self.gather(&message))),
            }
        }
    }

    fn check(&self) {
        if self.failed.load(Ordering::SeqCst) {
            self.world.abort(FAILED);
        }
    }

    fn wait<'a, R: ?Sized, S: Scope<'a>>(&self, mut request: Request<'a, R, S>) {
        while let Err(unfinished) = request.test() {
            self.check();
            std::thread::sleep(PAUSE);
            request = unfinished;
        }
    }

    /// Every rank adds up its slice of the values, in the order of the ranks, and gives the sums to all: as few bytes as a ring sends,
    /// `2 (N - 1) / N` of the values, in an order of additions that nothing can change.
    fn sum(&self, values: &[f32]) -> Sum {
        let begun = Instant::now();
        let ranks = self.world.size() as usize;
        let slice = values.len().div_ceil(ranks);
        let mut given = values.to_vec();
        given.resize(slice * ranks, 0.0);
        let mut taken = vec![0.0f32; slice * ranks];
        if slice > 0 {
            scope(|scope| self.wait(self.world.immediate_all_to_all_into(scope, &given[..], &mut taken[..])));
            let sums = in_order(taken.chunks_exact(slice));
            scope(|scope| self.wait(self.world.immediate_all_gather_into(scope, &sums[..], &mut given[..])));
        }
        given.truncate(values.len());
        Sum { values: given, seconds: begun.elapsed().as_secs_f64() }
    }

    fn gather(&self, message: &[u8]) -> Vec<Vec<u8>> {
        let mut lengths = vec![0i32; self.world.size() as usize];
        let length = message.len() as i32;
        scope(|scope| self.wait(self.world.immediate_all_gather_into(scope, &length, &mut lengths[..])));
        let starts: Vec<i32> = lengths.iter().scan(0, |end, length| Some(std::mem::replace(end, *end + length))).collect();
        let mut all = vec![0u8; lengths.iter().map(|&length| length as usize).sum()];
        let mut parts = PartitionMut::new(&mut all[..], lengths.clone(), starts.clone());
        scope(|scope| self.wait(self.world.immediate_all_gather_varcount_into(scope, message, &mut parts)));
        drop(parts);
        starts.iter().zip(&lengths).map(|(&start, &length)| all[start as usize..][..length as usize].to_vec()).collect()
    }
}

/// The element-wise sum of the ranks' values, added in the order of the ranks.
fn in_order<'a>(mut parts: impl Iterator<Item = &'a [f32]>) -> Vec<f32> {
    let mut sum = parts.next().map(<[f32]>::to_vec).unwrap_or_default();
    for part in parts {
        sum.iter_mut().zip(part).for_each(|(sum, value)| *sum += value);
    }
    sum
}
