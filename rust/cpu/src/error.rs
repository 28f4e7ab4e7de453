//! Everything that can go wrong in this crate, with the values that explain it.

/// An error of the CPU backend or of reading a checkpoint.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CpuError {
    /// The system refused to start a worker thread.
    #[error("cannot start {wanted} worker threads: {source}")]
    Threads {
        /// Threads asked for.
        wanted: usize,
        /// What the system said.
        source: std::io::Error,
    },
    /// A worker panicked while it ran a step: a bug in pyrite.
    #[error("a worker panicked: {message}")]
    Panicked {
        /// The panic's message.
        message: String,
    },
    /// The system has no memory block of that size.
    #[error("out of memory: a block of {needed_bytes} bytes was refused")]
    OutOfMemory {
        /// Size of the block.
        needed_bytes: usize,
    },
}
