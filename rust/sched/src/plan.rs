//! What a step is, as plain arrays: T tokens of S sequences, R of whose rows want logits.

/// One step. Everything a backend and a sampler need to know.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StepPlan {
    /// Number of the step. A plan can be committed once, and only before the next one is made.
    pub step: u64,
    /// `[S]` the sequences.
    pub seqs: Vec<SeqStep>,
    /// `[T]` token ids, sequence after sequence.
    pub token_ids: Vec<i32>,
    /// `[T]` positions of the tokens in their sequences.
    pub positions: Vec<i32>,
    /// `[S + 1]` first token of each sequence in this step, then T.
    pub cu_seqlens_q: Vec<i32>,
    /// `[S]` tokens in the KV cache after this step.
    pub seq_lens: Vec<i32>,
    /// `[R]` token rows that want logits, ascending. `positions[logit_rows[i]]` is the position whose successor row i
    /// predicts.
    pub logit_rows: Vec<i32>,
    /// One entry per KV group.
    pub groups: Vec<GroupPlan>,
}

/// One sequence's part of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SeqStep {
    /// The sequence.
    pub id: u64,
    /// Times it was preempted before; results carry it back.
    pub epoch: u32,
    /// Its first entry in `logit_rows`.
    pub first_row: u32,
    /// Its entries in `logit_rows`: the prompt positions whose logprobs are wanted, then the row to sample.
    pub num_rows: u32,
    /// Whether its last row, that of its last token, is to be sampled. False in the middle of a prompt.
    pub samples: bool,
    /// Draft tokens among its tokens in this step.
    pub num_draft_tokens: u32,
}

/// The block bookkeeping of one KV group in a step.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GroupPlan {
    /// `[S, max_blocks]` block of each `block_size` positions, absolute from position 0; -1 where there is none (past
    /// the sequence's end, or freed behind the window).
    pub block_tables: Vec<i32>,
    /// Columns of `block_tables`.
    pub max_blocks: u32,
    /// `[T]` block * block_size + offset where the token's key and value go.
    pub slot_mapping: Vec<i32>,
    /// `(source, destination)` blocks to copy, whole and in order, before anything else in the step.
    pub block_copies: Vec<(i32, i32)>,
}
