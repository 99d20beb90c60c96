//! An output that tasks share.

use std::mem::MaybeUninit;

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
    let mut out = Vec::with_capacity(len);
    out.spare_capacity_mut()[..len].par_chunks_mut(chunk.max(1)).enumerate().for_each(|(index, values)| {
        values.fill(MaybeUninit::new(0.0));
        // SAFETY: they have just been written.
        write(index, unsafe { values.assume_init_mut() });
    });
    // SAFETY: there is room for `len` values, and all of them have been written.
    unsafe { out.set_len(len) };
    out
}

#[cfg(test)]
mod tests {
    #[test]
    fn chunks_are_zeros_until_they_are_written() {
        let found = super::in_chunks(10, 4, |index, values| {
            assert!(values.iter().all(|value| *value == 0.0));
            values[0] = index as f32 + 1.0;
        });
        assert_eq!(found, [1.0, 0.0, 0.0, 0.0, 2.0, 0.0, 0.0, 0.0, 3.0, 0.0]);
        assert!(super::in_chunks(0, 0, |_, _| {}).is_empty());
    }
}
