//! Blocks of the KV cache, as ids: who owns which, what can be reused, what has to be copied.
//!
//! [`KvManager`] keeps one pool of fixed-size blocks per KV group (layers that keep the same positions: all of them, or
//! the last `window`), one block table per sequence and group, and an index of full blocks that later sequences may
//! share. It never sees a tensor: bytes and their layout belong to the backends.
//!
//! Vocabulary: a *column* is the index of a block in a sequence (position / block_size, absolute); a block is *free*
//! (in the free list), *used* (named by at least one table) or *cached* (named by none, but its content is indexed).
#![forbid(unsafe_code)]

mod check;
mod config;
mod error;
mod hash;
mod index;
#[cfg(test)]
mod life_tests;
mod manager;
mod pool;
mod table;
#[cfg(test)]
mod tests;

pub use config::{GroupConfig, KvConfig};
pub use error::KvError;
pub use manager::{BlockCopy, KvManager};
pub use pool::PoolGauges;
