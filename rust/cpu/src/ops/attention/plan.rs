//! How a call is cut into units of work. No result depends on it: every unit computes its rows' splits alone.
//!
//! A sequence with few query rows takes the decode form, a unit per (kv head, split); the partial results of a
//! round are folded after a barrier. A longer one takes the prefill form, a unit per (kv head, span of tokens).

use super::problem::Problem;
use super::scratch::AttentionScratchSpec;

/// A sequence's part of a round.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Segment {
    pub(super) sequence: usize,
    /// First unit of the segment in the round.
    pub(super) first_item: usize,
    /// First kv head, of those in this round.
    pub(super) kv_head: usize,
    /// How many of them (decode form): the units of a split follow each other, since the heads of a block do in memory.
    pub(super) heads: usize,
    /// Splits (decode form) or spans (prefill form) per kv head.
    pub(super) per_head: usize,
    /// First split (decode form).
    pub(super) first_split: usize,
    /// First partial result (decode form).
    pub(super) first_slot: usize,
    /// First row to fold; rows of a single split need no folding.
    pub(super) first_fold: usize,
    /// Query rows of a kv head in the decode form; 0 in the prefill form.
    pub(super) rows: usize,
}

/// Where the next round begins.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Cursor {
    prefill_done: bool,
    sequence: usize,
    kv_head: usize,
}

/// One round: units, then rows to fold.
#[derive(Clone, Copy, Debug)]
pub(super) struct Round {
    pub(super) segments: usize,
    pub(super) items: usize,
    pub(super) folds: usize,
    /// Nothing is left after this round.
    pub(super) last: bool,
}

/// Whether a sequence with that many query tokens takes the decode form.
fn takes_decode_form(tokens: usize, group_size: usize) -> bool {
    tokens * group_size <= AttentionScratchSpec::decode_rows(group_size)
}

/// Fill `segments` with the next round and move `cursor` behind it. Every worker computes the same.
pub(super) fn next_round(
    problem: &Problem<'_>,
    slots: usize,
    cursor: &mut Cursor,
    segments: &mut [Segment],
) -> Round {
    let mut round = Round { segments: 0, items: 0, folds: 0, last: true };
    if !cursor.prefill_done {
        cursor.prefill_done = true;
        plan_prefill(problem, &mut round, segments);
    }
    let mut free = slots;
    while cursor.sequence < problem.num_sequences() {
        let sequence = problem.sequence(cursor.sequence);
        if sequence.tokens == 0 || !takes_decode_form(sequence.tokens, problem.group_size) {
            *cursor = Cursor { sequence: cursor.sequence + 1, kv_head: 0, ..*cursor };
            continue;
        }
        let first_split = problem.keys_of(sequence.first_position()).0 / problem.split;
        let splits = (sequence.len - 1) / problem.split - first_split + 1;
        let rows = sequence.tokens * problem.group_size;
        let left = problem.num_kv_heads() - cursor.kv_head;
        let (heads, needed) = match splits {
            1 => (left, 0),
            _ => (left.min(free / (rows * splits)), rows * splits),
        };
        if heads == 0 {
            assert!(round.segments > 0, "the scratch is too small for a sequence of {}", sequence.len);
            round.last = false;
            return round;
        }
        segments[round.segments] = Segment {
            sequence: cursor.sequence,
            first_item: round.items,
            kv_head: cursor.kv_head,
            heads,
            per_head: splits,
            first_split,
            first_slot: slots - free,
            first_fold: round.folds,
            rows,
        };
        round.segments += 1;
        round.items += heads * splits;
        round.folds += if splits > 1 { heads * rows } else { 0 };
        free -= heads * needed;
        *cursor = match heads == left {
            true => Cursor { sequence: cursor.sequence + 1, kv_head: 0, ..*cursor },
            false => Cursor { kv_head: cursor.kv_head + heads, ..*cursor },
        };
    }
    round
}

fn plan_prefill(problem: &Problem<'_>, round: &mut Round, segments: &mut [Segment]) {
    let span = problem.span_tokens();
    for index in 0..problem.num_sequences() {
        let tokens = problem.sequence(index).tokens;
        if tokens == 0 || takes_decode_form(tokens, problem.group_size) {
            continue;
        }
        let spans = tokens.div_ceil(span);
        segments[round.segments] =
            Segment { sequence: index, first_item: round.items, per_head: spans, ..Segment::default() };
        round.segments += 1;
        round.items += spans * problem.num_kv_heads();
    }
}
