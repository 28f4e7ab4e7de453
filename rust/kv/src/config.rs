//! What a KV manager is built from, and the arithmetic of windows.

use crate::error::KvError;

/// One KV group: layers that keep the same positions, and the blocks they share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupConfig {
    /// Keys a query sees, itself included; `None` keeps everything.
    pub window: Option<u32>,
    /// Blocks in the group's pool.
    pub num_blocks: u32,
}

/// Settings of a [`crate::KvManager`].
#[derive(Clone, Debug)]
pub struct KvConfig {
    /// One entry per KV group.
    pub groups: Vec<GroupConfig>,
    /// Tokens per block.
    pub block_size: u32,
    /// Tokens a sequence may take back after they were computed; windows keep that many positions more.
    pub longest_draft: u32,
    /// Whether full blocks are indexed and shared.
    pub enable_prefix_caching: bool,
    /// Keys the prefix hashes, so that a caller cannot construct collisions.
    pub hash_key: u64,
}

impl KvConfig {
    /// Refuse values no manager can work with.
    pub(crate) fn validate(&self) -> Result<(), KvError> {
        let refuse = |field, got: u64, expected| Err(KvError::Config { field, got, expected });
        if self.groups.is_empty() {
            return refuse("groups", 0, "at least one KV group");
        }
        if self.block_size == 0 {
            return refuse("block_size", 0, "at least 1");
        }
        for group in &self.groups {
            let slots = u64::from(group.num_blocks) * u64::from(self.block_size);
            if group.num_blocks == 0 || slots > i32::MAX as u64 {
                return refuse(
                    "num_blocks",
                    group.num_blocks.into(),
                    "1 or more, and below 2^31 slots in all",
                );
            }
            if group.window == Some(0) {
                return refuse("window", 0, "at least 1, or none");
            }
        }
        Ok(())
    }

    /// Columns that hold `num_tokens` tokens.
    pub(crate) fn columns(&self, num_tokens: u32) -> usize {
        num_tokens.div_ceil(self.block_size) as usize
    }

    /// First column a query at position `computed` can see, `slack` positions further back included. Everything
    /// before it is dead: its last position p has p + window <= computed - slack.
    pub(crate) fn first_column(&self, group: usize, computed: u32, slack: u32) -> usize {
        let Some(window) = self.groups[group].window else { return 0 };
        let first = (u64::from(computed) + 1).saturating_sub(u64::from(window) + u64::from(slack));
        (first / u64::from(self.block_size)) as usize
    }

    /// Most blocks a sequence of at most `num_tokens` tokens names at a time in a group, when at most `chunk` tokens
    /// are computed per step.
    pub(crate) fn peak_blocks(&self, group: usize, num_tokens: u32, chunk: u32) -> u32 {
        let all = num_tokens.div_ceil(self.block_size);
        let Some(window) = self.groups[group].window else { return all };
        // Live positions in a step: window - 1 before the first query, the slack, and the chunk; any alignment.
        let span = u64::from(window - 1) + u64::from(self.longest_draft) + u64::from(chunk.max(1));
        let aligned = (span - 1).div_ceil(u64::from(self.block_size)) + 1;
        all.min(u32::try_from(aligned).unwrap_or(u32::MAX))
    }
}
