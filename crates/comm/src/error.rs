/// What can go wrong between ranks.
#[derive(Debug, thiserror::Error)]
pub enum CommError {
    /// Another rank ended while this one waited for it.
    #[error(
        "rank {rank} has left the job: its own message says why\nhint: the last checkpoint is whole; start all ranks again with --resume"
    )]
    Left {
        /// The rank that is gone.
        rank: usize,
    },
    /// The thread that talks to MPI has ended.
    #[error(
        "the connection to the other ranks is closed\nhint: the last checkpoint is whole; start all ranks again with --resume"
    )]
    Closed,
    /// MPI would not start.
    #[error("MPI: {reason}\nhint: start the ranks with the mpirun of the MPI library that this program was built with")]
    Start {
        /// What it said.
        reason: String,
    },
    /// A launcher started several ranks of a program that can't talk to the others.
    #[error(
        "{variable} is set: this process is one of several ranks, but it was built without MPI\n\
         hint: build with `cargo build --release --features mpi`, or start one process without mpirun or srun"
    )]
    NotBuilt {
        /// The launcher's environment variable.
        variable: &'static str,
    },
}

/// Result of an exchange with other ranks.
pub type Result<T> = std::result::Result<T, CommError>;
