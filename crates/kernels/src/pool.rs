//! The threads that compute.

/// Makes this thread one of those that compute, instead of one that waits for them. A kernel then starts at once with its first part and wakes
/// the others only for the rest; from a thread outside, it would hand everything over and sleep.
/// True if it joined; false, and nothing changed, if the pool was there already or its threads could not be started. Call it once, at the start of
/// the thread that runs the model.
///
/// The pool has as many threads as before, and this is one of them: while it waits for something else the pool has one less. A thread from outside
/// that hands work to a pool of one waits for this thread, so it is for a process whose other threads don't compute.
pub fn join_pool() -> bool {
    rayon::ThreadPoolBuilder::new().use_current_thread().build_global().is_ok()
}
