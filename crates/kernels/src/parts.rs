//! An output that tasks share.

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
