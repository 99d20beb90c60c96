//! The threads that compute.

/// Makes this thread one of those that compute, instead of one that waits for them. A kernel then starts at once with its first part and wakes
/// the others only for the rest; from a thread outside, it would hand everything over and sleep, which costs a short kernel more than its work.
/// True if the pool was not there yet. Call it once, at the start of the thread that runs the model.
///
/// The others count on this thread from then on: work that they hand over waits while it does something else. So it is for a process whose
/// other threads don't compute.
pub fn join_pool() -> bool {
    rayon::ThreadPoolBuilder::new().use_current_thread().build_global().is_ok()
}
