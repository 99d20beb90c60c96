//! The threads that compute.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rayon::Yield;

/// Makes this thread one of those that compute, instead of one that waits for them. A kernel then starts at once with its first part and wakes
/// the others only for the rest; from a thread outside, it would hand everything over and sleep.
/// True if it joined; false, and nothing changed, if the pool was there already or its threads could not be started. Call it once, at the start of
/// the thread that runs the model.
///
/// The pool has as many threads as before, and this is one of them: while it waits for something else the pool has one less. A thread from outside
/// that hands work to a pool of one waits for this thread, so it is for a process whose other threads don't compute, or whose waiting
/// thread works for the pool meanwhile ([`rayon::yield_now`]).
pub fn join_pool() -> bool {
    rayon::ThreadPoolBuilder::new().use_current_thread().build_global().is_ok()
}

/// Threads of a pool that are kept awake at most: more would be in each other's way while they look for work, and nobody has measured it.
const MOST_AWAKE: usize = 8;
/// How long a thread looks for work without a pause.
const WATCHING: Duration = Duration::from_micros(500);
/// The pauses after that.
const NAP: Duration = Duration::from_micros(50);

/// While it lives, the pool's other threads look for work instead of falling asleep.
#[must_use = "threads may fall asleep again as soon as it is dropped"]
#[derive(Debug)]
pub struct Awake(Arc<AtomicBool>);

impl Drop for Awake {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Keeps the other threads of this thread's pool awake until what it returns is dropped. A thread of rayon falls asleep after some
/// microseconds without work and takes some tens to wake up; between the products of a small model that is a tenth of the time. A thread that
/// finds nothing for [half a millisecond](WATCHING) takes short naps. `None`, and nothing changed, outside the pool and in one of many threads.
pub fn keep_awake() -> Option<Awake> {
    let here = rayon::current_thread_index()?;
    if !(2..=MOST_AWAKE).contains(&rayon::current_num_threads()) {
        return None;
    }
    let done = Arc::new(AtomicBool::new(false));
    let awake = Awake(Arc::clone(&done));
    rayon::spawn_broadcast(move |context| {
        // This thread must come back to what it was doing.
        if context.index() != here {
            watch(&done);
        }
    });
    Some(awake)
}

/// Works for the pool until it is `done`.
fn watch(done: &AtomicBool) {
    let mut last = Instant::now();
    while !done.load(Ordering::Relaxed) {
        match rayon::yield_now() {
            Some(Yield::Executed) => last = Instant::now(),
            // Threads outside the pool, such as those that read data, get their turn.
            _ if last.elapsed() < WATCHING => std::thread::yield_now(),
            _ => std::thread::sleep(NAP),
        }
    }
}
