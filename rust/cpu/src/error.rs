//! Everything that can go wrong in this crate, with the values that explain it.

use crate::checkpoint::CheckpointReason;

/// An error of the CPU backend or of reading a checkpoint.
#[derive(Debug, thiserror::Error)]
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
    /// The model with its KV blocks and activations is larger than the memory that is left.
    #[error(
        "out of memory: weights, KV blocks and scratch need {needed_bytes} bytes, {available_bytes} are available"
    )]
    DoesNotFit {
        /// Bytes needed.
        needed_bytes: usize,
        /// Bytes that the machine, or the process's control group, has left.
        available_bytes: usize,
    },
    /// A model folder that cannot be trusted, or a tensor that is not what the program needs.
    #[error("{file}{}: {reason}", .tensor.as_ref().map(|name| format!(", tensor {name}")).unwrap_or_default())]
    Checkpoint {
        /// Name of the file (of the folder where no file is at fault), without its path.
        file: String,
        /// The tensor at fault, where it is one.
        tensor: Option<String>,
        /// What is wrong.
        reason: CheckpointReason,
    },
    /// A program that breaks the contract of its ops.
    #[error("program{}: {what}", .op.map(|index| format!(", op {index}")).unwrap_or_default())]
    Program {
        /// Index of the op at fault, where it is one.
        op: Option<usize>,
        /// What is wrong, with the values.
        what: String,
    },
    /// A step that does not fit the executor.
    #[error("step: {field}: {what}")]
    Step {
        /// The array at fault.
        field: &'static str,
        /// What is wrong, with the values.
        what: String,
    },
    /// A setting that this machine or this program does not support.
    #[error("{field}: {what}")]
    Config {
        /// The setting.
        field: &'static str,
        /// What is wrong, with the values.
        what: String,
    },
    /// The caller asked to stop while a model was loading.
    #[error("interrupted")]
    Interrupted,
}
