//! Everything that can go wrong in this crate, with the values that explain it.

/// An error of the KV manager. Only [`KvError::NoBlocks`] is part of normal life; the rest are misuse or bugs.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KvError {
    /// A setting is out of range.
    #[error("{field}: got {got}, expected {expected}")]
    Config {
        /// Which setting.
        field: &'static str,
        /// Its value.
        got: u64,
        /// What it may be.
        expected: &'static str,
    },
    /// A pool has too few free and cached blocks. Nothing was allocated.
    #[error("KV group {group} needs {needed} more blocks, {available} are free or cached")]
    NoBlocks {
        /// The group.
        group: usize,
        /// Blocks the call needed.
        needed: u32,
        /// Free and cached blocks.
        available: u32,
    },
    /// A block without an owner was released.
    #[error("block {block} of KV group {group} was freed twice")]
    DoubleFree {
        /// The group.
        group: usize,
        /// The block.
        block: i64,
    },
    /// A block id that the pool never handed out.
    #[error("block {block} does not belong to KV group {group} of {total} blocks")]
    ForeignBlock {
        /// The group.
        group: usize,
        /// The block.
        block: i64,
        /// Blocks in the pool.
        total: u32,
    },
    /// No table has this id.
    #[error("sequence {id} has no block table")]
    UnknownSequence {
        /// The id.
        id: u64,
    },
    /// A table has this id already.
    #[error("sequence {id} has a block table already")]
    SequenceExists {
        /// The id.
        id: u64,
    },
    /// A sequence is forked while a step writes its blocks.
    #[error("sequence {id} cannot be forked before the running step is committed")]
    WritesPending {
        /// The id.
        id: u64,
    },
    /// A token count is outside of what the sequence allows.
    #[error("sequence {id}: got {got} tokens, expected {low} to {high}")]
    Range {
        /// The id.
        id: u64,
        /// The count.
        got: u32,
        /// Least allowed count.
        low: u32,
        /// Largest allowed count.
        high: u32,
    },
    /// A broken invariant: a bug in pyrite.
    #[error("broken KV invariant {invariant}: {detail}")]
    Broken {
        /// Its name, B1 to B6.
        invariant: &'static str,
        /// The values at fault.
        detail: String,
    },
}
