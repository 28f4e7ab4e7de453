//! One call of attention, with the bookkeeping that every level shares.

use super::cache::{KvPool, TileHead};
use super::scratch::AttentionScratchSpec;
use crate::isa::Isa;
use crate::step::{GroupView, StepView};
use crate::tensor::{Rows, RowsMut};

/// The arguments of a call, checked.
pub(super) struct Problem<'a> {
    pub(super) pool: &'a KvPool,
    pub(super) layer: usize,
    /// Query heads per kv head.
    pub(super) group_size: usize,
    pub(super) scale: f32,
    pub(super) window: Option<usize>,
    pub(super) step: &'a StepView<'a>,
    pub(super) group: &'a GroupView<'a>,
    pub(super) q: Rows<'a>,
    pub(super) out: RowsMut<'a>,
    /// Keys of a split.
    pub(super) split: usize,
    pub(super) isa: Isa,
}

/// A sequence's rows in the step.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sequence {
    pub(super) index: usize,
    /// First row in the step.
    pub(super) first_row: usize,
    /// Rows in the step.
    pub(super) tokens: usize,
    /// Tokens in the cache, those of the step included.
    pub(super) len: usize,
}

impl Sequence {
    /// Position of the first of its rows.
    pub(super) fn first_position(&self) -> usize {
        self.len - self.tokens
    }
}

impl<'a> Problem<'a> {
    pub(super) fn num_sequences(&self) -> usize {
        self.step.seq_lens.len()
    }

    pub(super) fn num_kv_heads(&self) -> usize {
        self.pool.num_kv_heads()
    }

    pub(super) fn head_dim(&self) -> usize {
        self.pool.head_dim()
    }

    pub(super) fn span_tokens(&self) -> usize {
        AttentionScratchSpec::span_tokens(self.group_size, self.head_dim())
    }

    /// Query rows of a prefill unit: no fewer than a kv head has in the decode form.
    pub(super) fn span_rows(&self) -> usize {
        self.span_tokens() * self.group_size
    }

    pub(super) fn sequence(&self, index: usize) -> Sequence {
        let (begin, end) = (self.step.cu_seqlens_q[index], self.step.cu_seqlens_q[index + 1]);
        let len = self.step.seq_lens[index];
        assert!(
            0 <= begin && begin <= end && end - begin <= len,
            "sequence {index}: rows {begin}..{end} of {len}"
        );
        assert!(end as usize <= self.q.rows(), "sequence {index}: row {end} outside the step");
        Sequence { index, first_row: begin as usize, tokens: (end - begin) as usize, len: len as usize }
    }

    /// Keys `begin..end` that a query at `position` sees.
    pub(super) fn keys_of(&self, position: usize) -> (usize, usize) {
        let begin = self.window.map_or(0, |window| (position + 1).saturating_sub(window));
        (begin, position + 1)
    }

    /// Tile of a sequence that holds `position`, for one kv head.
    pub(super) fn tile(&self, sequence: usize, position: usize, kv_head: usize) -> TileHead {
        let column = position / self.pool.block_size();
        assert!(column < self.group.max_blocks, "sequence {sequence}: position {position} outside its table");
        let block = self.group.block_tables[sequence * self.group.max_blocks + column];
        assert!(block >= 0, "sequence {sequence}: position {position} has no block");
        self.pool.at(self.layer, block as usize, kv_head, position % self.pool.block_size())
    }

    /// Query of one row and head.
    pub(super) fn query(&self, row: usize, head: usize) -> &[f32] {
        &self.q.row(row)[head * self.head_dim()..(head + 1) * self.head_dim()]
    }

    /// Result of one row and head.
    ///
    /// # Safety
    /// No other reference to it may be alive.
    pub(super) unsafe fn result(&self, row: usize, head: usize) -> &'a mut [f32] {
        // SAFETY: the caller's duty.
        unsafe { self.out.part(row, head * self.head_dim(), self.head_dim()) }
    }
}
