//! An output that tasks share.

use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicUsize, Ordering};

use rayon::prelude::*;

/// Start of an output whose parts are written by different tasks.
#[derive(Clone, Copy)]
pub(crate) struct Parts(pub(crate) *mut f32);

// SAFETY: tasks write disjoint parts of memory that outlives them.
unsafe impl Send for Parts {}
// SAFETY: as above.
unsafe impl Sync for Parts {}

impl Parts {
    /// The address of a value; reading and writing there is the caller's to justify.
    pub(crate) fn at(self, place: usize) -> *mut f32 {
        self.0.wrapping_add(place)
    }
}

/// `len` values, written by tasks: `write(i, chunk)` of chunk i of as many as `chunk` values, which are zeros then. A chunk is zeroed by the
/// thread that writes it, just before: filling all at once would be one thread's work, and out of the caches before it is used.
pub(crate) fn in_chunks(len: usize, chunk: usize, write: impl Fn(usize, &mut [f32]) + Sync) -> Vec<f32> {
    let chunk = chunk.max(1);
    in_pieces((0..len).step_by(chunk).map(|start| chunk.min(len - start)), write)
}

/// As [`in_chunks`], in pieces of these lengths one after the other.
pub(crate) fn in_pieces(lengths: impl Iterator<Item = usize>, write: impl Fn(usize, &mut [f32]) + Sync) -> Vec<f32> {
    let lengths: Vec<usize> = lengths.collect();
    let len = lengths.iter().sum();
    let mut out = Vec::with_capacity(len);
    let mut rest = &mut out.spare_capacity_mut()[..len];
    let pieces: Vec<&mut [MaybeUninit<f32>]> =
        lengths.iter().map(|&length| rest.split_off_mut(..length).unwrap_or_default()).collect();
    assert!(rest.is_empty(), "pieces that are as long as all together");
    pieces.into_par_iter().enumerate().for_each(|(index, values)| {
        values.fill(MaybeUninit::new(0.0));
        // SAFETY: they have just been written.
        write(index, unsafe { values.assume_init_mut() });
    });
    // SAFETY: there is room for `len` values, and all of them have been written: the pieces left nothing over.
    unsafe { out.set_len(len) };
    out
}

/// `work(i)` for each i below `count`, which each thread takes one by one: where pieces are short and of equal size, nobody waits for the
/// last one longer than that takes, and a thread that wakes up late takes fewer.
pub(crate) fn in_turn(count: usize, work: impl Fn(usize) + Sync) {
    let next = AtomicUsize::new(0);
    (0..rayon::current_num_threads().min(count)).into_par_iter().for_each(|_| {
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            if index >= count {
                break;
            }
            work(index);
        }
    });
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn what_is_taken_in_turn_is_done_once() {
        for count in [0, 1, 3, 100] {
            let done: Vec<AtomicUsize> = (0..count).map(|_| AtomicUsize::new(0)).collect();
            super::in_turn(count, |index| _ = done[index].fetch_add(1, Ordering::Relaxed));
            assert!(done.iter().all(|done| done.load(Ordering::Relaxed) == 1));
        }
    }

    #[test]
    fn chunks_are_zeros_until_they_are_written() {
        let found = super::in_chunks(10, 4, |index, values| {
            assert!(values.iter().all(|value| *value == 0.0));
            values[0] = index as f32 + 1.0;
        });
        assert_eq!(found, [1.0, 0.0, 0.0, 0.0, 2.0, 0.0, 0.0, 0.0, 3.0, 0.0]);
        assert!(super::in_chunks(0, 0, |_, _| {}).is_empty());
    }

    #[test]
    fn pieces_follow_one_another() {
        let found = super::in_pieces([3, 0, 2].into_iter(), |index, values| values.fill(10.0 + index as f32));
        assert_eq!(found, [10.0, 10.0, 10.0, 12.0, 12.0]);
    }
}
