//! What an executor is told about one step: plain borrowed arrays, filled by the binding from the scheduler's plan.

/// One step over `T` tokens of `S` sequences, `R` of whose rows want logits.
#[derive(Clone, Copy, Debug)]
pub struct StepView<'a> {
    /// `[T]` token ids, sequence after sequence.
    pub token_ids: &'a [i32],
    /// `[T]` positions of the tokens in their sequences.
    pub positions: &'a [i32],
    /// `[S + 1]` first token of each sequence in this step, then `T`.
    pub cu_seqlens_q: &'a [i32],
    /// `[S]` tokens in the KV cache after this step.
    pub seq_lens: &'a [i32],
    /// `[R]` token rows (ascending indices into `T`) that want logits.
    pub logit_rows: &'a [i32],
    /// One entry per KV group of the program.
    pub groups: &'a [GroupView<'a>],
}

/// The block bookkeeping of one KV group in a step.
#[derive(Clone, Copy, Debug)]
pub struct GroupView<'a> {
    /// `[S, max_blocks]` block of each `block_size` positions, absolute from position 0; -1 where the sequence has
    /// none (past its end, or freed behind the window).
    pub block_tables: &'a [i32],
    /// Columns of `block_tables`.
    pub max_blocks: usize,
    /// `[T]` block * block_size + offset where the token's key and value go.
    pub slot_mapping: &'a [i32],
    /// `(source, destination)` blocks to copy, whole, before anything else in the step.
    pub block_copies: &'a [(i32, i32)],
}
