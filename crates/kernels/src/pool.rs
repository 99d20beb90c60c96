//! The threads that compute.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
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
/// After how long without work a thread stops looking. It may have begun to look in the middle of a job, while it waits for a part of it that another
/// thread took; who waits for that job must not wait for ever.
const PATIENCE: Duration = Duration::from_millis(10);

#[derive(Debug, Default)]
struct Watch {
    done: AtomicBool,
    /// Threads that began to look for work, and those that stopped.
    begun: AtomicUsize,
    ended: AtomicUsize,
}

/// While it lives, the pool's other threads look for work instead of falling asleep.
#[must_use = "threads may fall asleep again as soon as it is dropped"]
#[derive(Debug)]
pub struct Awake(Arc<Watch>);

impl Drop for Awake {
    fn drop(&mut self) {
        self.0.done.store(true, Ordering::Relaxed);
    }
}

/// Keeps the other threads of this thread's pool awake until what it returns is dropped. A thread of rayon falls asleep after some
/// microseconds without work and takes some tens to wake up; between the products of a small model that is a tenth of the time. A thread that
/// finds nothing for half a millisecond takes short naps, and after ten it is rayon's again. `None`, and nothing changed, outside a pool, in a pool
/// of one thread, and in one of more than eight. Several at a time do no harm.
pub fn keep_awake() -> Option<Awake> {
    let here = rayon::current_thread_index()?;
    if !(2..=MOST_AWAKE).contains(&rayon::current_num_threads()) {
        return None;
    }
    let watch = Arc::new(Watch::default());
    let awake = Awake(Arc::clone(&watch));
    rayon::spawn_broadcast(move |context| {
        // This thread must come back to what it was doing.
        if context.index() != here {
            watch.begun.fetch_add(1, Ordering::Relaxed);
            work_until_done(&watch.done);
            watch.ended.fetch_add(1, Ordering::Relaxed);
        }
    });
    Some(awake)
}

fn work_until_done(done: &AtomicBool) {
    let mut last = Instant::now();
    while !done.load(Ordering::Relaxed) && last.elapsed() < PATIENCE {
        match rayon::yield_now() {
            Some(Yield::Executed) => last = Instant::now(),
            // Threads outside the pool, such as those that read data, get their turn.
            _ if last.elapsed() < WATCHING => std::thread::yield_now(),
            _ => std::thread::sleep(NAP),
        }
    }
}

#[cfg(test)]
mod tests {
    use rayon::prelude::*;

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    fn pool(num_threads: usize) -> rayon::ThreadPool {
        rayon::ThreadPoolBuilder::new().num_threads(num_threads).build().unwrap()
    }

    fn eventually(what: &str, holds: impl Fn() -> bool) {
        let begun = Instant::now();
        while !holds() {
            assert!(begun.elapsed() < LONG, "{what}");
            std::thread::sleep(NAP);
        }
    }

    #[test]
    fn all_others_watch_until_the_guard_is_dropped_or_nothing_comes() {
        let count = |counter: &AtomicUsize| counter.load(Ordering::Relaxed);
        for dropped_at_once in [false, true] {
            let awake = pool(3).install(|| {
                let awake = keep_awake().unwrap();
                let watch = Arc::clone(&awake.0);
                eventually("all others begin", || count(&watch.begun) == 2);
                assert_eq!((0..1000).into_par_iter().sum::<usize>(), 499_500);
                let kept = (!dropped_at_once).then_some(awake);
                eventually("all others end", || count(&watch.ended) == 2);
                kept
            });
            assert_eq!(awake.is_some(), !dropped_at_once);
        }
        assert!(keep_awake().is_none(), "outside a pool");
        assert!(pool(1).install(keep_awake).is_none() && pool(9).install(keep_awake).is_none());
    }

    /// A thread comes to look for work in the middle of a job, and the guard's thread waits for that job.
    #[test]
    fn a_job_that_was_interrupted_to_look_for_work_is_finished() {
        let is = |flag: &AtomicBool| flag.load(Ordering::Relaxed);
        let flags: Arc<[AtomicBool; 3]> = Arc::default();
        pool(2).install(|| {
            let [begun, taken, finished] = &*flags;
            let job = Arc::clone(&flags);
            rayon::spawn(move || {
                let [begun, taken, finished] = &*job;
                let first = || {
                    begun.store(true, Ordering::Relaxed);
                    eventually("the other half is taken", || is(taken));
                };
                // Long enough for the thread of the first half to find nothing better to do than to look for work.
                let second = || {
                    taken.store(true, Ordering::Relaxed);
                    std::thread::sleep(Duration::from_millis(20));
                };
                rayon::join(first, second);
                finished.store(true, Ordering::Relaxed);
            });
            eventually("the other thread begins the job", || is(begun));
            let _awake = keep_awake().unwrap();
            while !is(taken) {
                rayon::yield_now();
            }
            eventually("the job is finished", || is(finished));
        });
    }
}
