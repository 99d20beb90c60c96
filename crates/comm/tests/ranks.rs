//! Ranks as threads.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test may end by them

use std::thread;
use std::time::Duration;

use unif2ace_comm::{CommError, Communicator, Single, Threads};

/// Runs `work` once for each rank, the later ranks first.
fn on_ranks<R: Send>(world_size: usize, work: impl Fn(Threads) -> R + Sync) -> Vec<R> {
    thread::scope(|scope| {
        let start = |rank: Threads| {
            let work = &work;
            scope.spawn(move || {
                thread::sleep(Duration::from_millis(3 * (world_size - rank.rank()) as u64));
                work(rank)
            })
        };
        let threads: Vec<_> = Threads::ranks(world_size).into_iter().map(start).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

#[test]
fn sums_are_added_in_the_order_of_the_ranks_whoever_comes_first() {
    // In this order the small number is lost, in any other it is not.
    let values = [1e8f32, 1.0, -1e8];
    let sums = on_ranks(3, |rank| {
        let first = rank.start_sum(vec![values[rank.rank()], rank.rank() as f32]);
        let second = rank.start_sum(vec![1.0]);
        assert_eq!(second.wait().unwrap().values, [3.0]);
        first.wait().unwrap().values
    });
    assert_eq!(sums, vec![vec![(1e8f32 + 1.0) - 1e8, 3.0]; 3]);
}

#[test]
fn a_sum_of_many_values_has_each_in_its_place() {
    let value = |rank: usize, place: usize| (rank * 1000 + place % 999) as f32;
    let sums = on_ranks(2, |rank| rank.sum((0..200_001).map(|place| value(rank.rank(), place)).collect()).unwrap());
    let expected: Vec<f32> = (0..200_001).map(|place| value(0, place) + value(1, place)).collect();
    assert!(sums.iter().all(|sum| *sum == expected));
}

#[test]
fn messages_of_any_length_arrive_in_the_order_of_the_ranks() {
    for messages in on_ranks(3, |rank| rank.gather(&vec![7; rank.rank()]).unwrap()) {
        assert_eq!(messages, [vec![], vec![7], vec![7, 7]]);
    }
}

#[test]
fn who_waits_for_a_rank_that_left_is_told_its_number() {
    let results = on_ranks(3, |rank| if rank.rank() == 1 { Ok(vec![]) } else { rank.sum(vec![1.0]) });
    assert!(matches!(results[0], Err(CommError::Left { rank: 1 })), "{:?}", results[0]);
    assert!(matches!(results[2], Err(CommError::Left { rank: 1 })), "{:?}", results[2]);
}

#[test]
fn ranks_share_equally_or_not_at_all() {
    assert_eq!(on_ranks(3, |rank| rank.part_of(6).unwrap()), [0..2, 2..4, 4..6]);
    assert_eq!(on_ranks(3, |rank| rank.part_of(7)), [None, None, None]);
    assert_eq!(Single.part_of(7), Some(0..7));
    assert_eq!(Single.sum(vec![2.0]).unwrap(), [2.0]);
}
