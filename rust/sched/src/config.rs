//! What a scheduler is built from.

pub use pyrite_kv::GroupConfig;

use crate::error::SchedError;

/// Settings of a [`crate::Scheduler`].
#[derive(Clone, Debug)]
pub struct SchedulerConfig {
    /// One entry per KV group.
    pub groups: Vec<GroupConfig>,
    /// Tokens per KV block.
    pub block_size: u32,
    /// Most sequences that run at a time.
    pub max_num_seqs: u32,
    /// Most tokens of a step.
    pub max_num_batched_tokens: u32,
    /// Most tokens of a step that do not decode, when others do: a long prompt is then cut into shorter pieces, so that
    /// the decodes beside it wait less.
    pub max_num_mixed_prefill_tokens: u32,
    /// Most logits rows of a step.
    pub max_logit_rows: u32,
    /// Most tokens of a sequence, prompt and output.
    pub max_model_len: u32,
    /// Whether full blocks are shared between sequences.
    pub enable_prefix_caching: bool,
    /// Keys the prefix hashes of this engine; should be random.
    pub hash_key: u64,
}

impl SchedulerConfig {
    /// Refuse values no scheduler can work with (the KV manager checks the rest).
    pub(crate) fn validate(&self) -> Result<(), SchedError> {
        let least = [
            ("max_num_seqs", self.max_num_seqs, 1),
            ("max_num_batched_tokens", self.max_num_batched_tokens, 1),
            ("max_num_mixed_prefill_tokens", self.max_num_mixed_prefill_tokens, 1),
            ("max_logit_rows", self.max_logit_rows, 1),
            ("max_model_len", self.max_model_len, 2),
        ];
        for (field, got, low) in least {
            if got < low || got > i32::MAX as u32 {
                return Err(SchedError::Config {
                    field,
                    got: got.into(),
                    expected: "a positive 31-bit number",
                });
            }
        }
        Ok(())
    }
}
