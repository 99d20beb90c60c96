//! The pool of threads is one of a process, so this test has a process of its own.
#![allow(clippy::unwrap_used)]

use rayon::prelude::*;
use unif2ace_kernels::pool::{join_pool, keep_awake};

#[test]
fn this_thread_computes_from_then_on() {
    assert!(rayon::current_thread_index().is_none());
    assert!(keep_awake().is_none(), "this thread is not of the pool yet");
    assert!(join_pool());
    assert!(rayon::current_thread_index().is_some());
    assert!(!join_pool(), "there is one pool");
    let here = std::thread::current().id();
    let alone = rayon::current_num_threads() == 1;
    let _awake = keep_awake();
    let threads: Vec<_> = (0..64).into_par_iter().with_max_len(1).map(|_| std::thread::current().id()).collect();
    assert!(threads.contains(&here), "the caller takes its part");
    assert!(!alone || threads.iter().all(|&thread| thread == here));
}
