//! The pool of threads is one of a process, so this test has a process of its own.
#![allow(clippy::unwrap_used)]

use std::collections::HashSet;
use std::time::{Duration, Instant};

use rayon::prelude::*;
use unif2ace_kernels::pool::{join_pool, keep_awake};

#[test]
fn this_thread_computes_from_then_on_and_keeps_the_others_awake() {
    assert!(rayon::current_thread_index().is_none());
    assert!(keep_awake().is_none(), "this thread is not of the pool yet");
    assert!(join_pool());
    assert!(rayon::current_thread_index().is_some());
    assert!(!join_pool(), "there is one pool");
    let here = std::thread::current().id();
    let alone = rayon::current_num_threads() == 1;
    let ids = || -> Vec<_> { (0..64).into_par_iter().with_max_len(1).map(|_| std::thread::current().id()).collect() };
    let threads = ids();
    assert!(threads.contains(&here), "the caller takes its part");
    assert!(!alone || threads.iter().all(|&thread| thread == here));

    // While the others watch, work is done, by more than this thread; after it they can be kept awake again, and sleep in between.
    for _ in 0..3 {
        let awake = keep_awake();
        assert_eq!(awake.is_some(), (2..=8).contains(&rayon::current_num_threads()));
        let begun = Instant::now();
        let mut seen = HashSet::new();
        while awake.is_some() && seen.len() < 2 && begun.elapsed() < Duration::from_secs(20) {
            seen.extend(ids());
        }
        assert!(awake.is_none() || seen.len() > 1, "nobody else took a part");
        assert_eq!((0..1000).into_par_iter().sum::<usize>(), 499_500);
        drop(awake);
    }
}
