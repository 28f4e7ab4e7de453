//! The checks of a step: after them no kernel can meet an index that is out of range, or two writers of one place.

use super::Limits;
use crate::error::CpuError;
use crate::step::{GroupView, StepView};

/// Number of tokens, sequences and logits rows of a checked step.
#[derive(Clone, Copy, Debug)]
pub(super) struct StepSize {
    pub(super) tokens: usize,
    pub(super) rows: usize,
}

/// What is known about one KV group, and marks that find a slot or block named twice in a step.
pub(super) struct GroupLimits {
    pub(super) window: Option<usize>,
    pub(super) num_blocks: usize,
    /// Per slot, the last step that wrote to it.
    pub(super) slot_marks: Vec<u32>,
    /// Per block, the last step that copied into or out of it, times two, plus one for into.
    pub(super) block_marks: Vec<u32>,
}

type Check = Result<(), CpuError>;

fn expect(field: &'static str, holds: bool, what: impl FnOnce() -> String) -> Check {
    if holds { Ok(()) } else { Err(CpuError::Step { field, what: what() }) }
}

fn length(field: &'static str, got: usize, expected: usize) -> Check {
    expect(field, got == expected, || format!("got {got} entries, expected {expected}"))
}

fn in_range(field: &'static str, index: usize, got: i32, end: usize) -> Check {
    let inside = usize::try_from(got).is_ok_and(|got| got < end);
    expect(field, inside, || format!("got {got} at {index}, expected 0 to {}", end as i64 - 1))
}

/// Check everything; `step_mark` differs from that of the steps before.
pub(super) fn check(
    limits: &Limits,
    groups: &mut [GroupLimits],
    step_mark: u32,
    step: &StepView<'_>,
    logits_len: usize,
) -> Result<StepSize, CpuError> {
    let (tokens, sequences, rows) = (step.token_ids.len(), step.seq_lens.len(), step.logit_rows.len());
    let most = |field, got, most| {
        expect(field, (1..=most).contains(&got), || format!("got {got} entries, expected 1 to {most}"))
    };
    most("token_ids", tokens, limits.max_tokens)?;
    most("seq_lens", sequences, limits.max_seqs)?;
    expect("logit_rows", rows <= limits.max_rows, || {
        format!("got {rows} entries, expected at most {}", limits.max_rows)
    })?;
    length("positions", step.positions.len(), tokens)?;
    length("cu_seqlens_q", step.cu_seqlens_q.len(), sequences + 1)?;
    length("groups", step.groups.len(), groups.len())?;
    let needed = rows * limits.vocab_size;
    expect("logits", logits_len >= needed, || format!("got {logits_len} elements, expected {needed}"))?;
    for (index, &id) in step.token_ids.iter().enumerate() {
        in_range("token_ids", index, id, limits.num_token_ids)?;
    }
    for (index, &row) in step.logit_rows.iter().enumerate() {
        in_range("logit_rows", index, row, tokens)?;
    }
    check_sequences(limits, step)?;
    for (group, view) in groups.iter_mut().zip(step.groups) {
        check_slots(limits, group, view, step_mark, tokens)?;
        check_tables(limits, group, view, step)?;
        check_copies(group, view, step_mark)?;
    }
    Ok(StepSize { tokens, rows })
}

/// Each sequence has at least one token, and its tokens are the last ones of its `seq_len`.
fn check_sequences(limits: &Limits, step: &StepView<'_>) -> Check {
    let cu = step.cu_seqlens_q;
    let whole = cu[0] == 0 && cu[cu.len() - 1] as usize == step.token_ids.len();
    let ascending = cu.windows(2).all(|pair| pair[0] < pair[1]);
    expect("cu_seqlens_q", whole && ascending, || {
        "expected to ascend from 0 to the number of tokens".into()
    })?;
    for (sequence, (bounds, &seq_len)) in cu.windows(2).zip(step.seq_lens).enumerate() {
        let count = bounds[1] - bounds[0];
        let fits = seq_len >= count && seq_len as usize <= limits.max_len;
        expect("seq_lens", fits, || {
            format!("got {seq_len} at {sequence}, expected {count} to {}", limits.max_len)
        })?;
        for (offset, token) in (bounds[0]..bounds[1]).enumerate() {
            let (got, expected) = (step.positions[token as usize], seq_len - count + offset as i32);
            expect("positions", got == expected, || format!("got {got} at {token}, expected {expected}"))?;
        }
    }
    Ok(())
}

fn check_slots(
    limits: &Limits,
    group: &mut GroupLimits,
    view: &GroupView<'_>,
    step_mark: u32,
    tokens: usize,
) -> Check {
    length("slot_mapping", view.slot_mapping.len(), tokens)?;
    let slots = group.num_blocks * limits.block_size;
    for (index, &slot) in view.slot_mapping.iter().enumerate() {
        if slot == -1 {
            continue;
        }
        in_range("slot_mapping", index, slot, slots)?;
        let before = std::mem::replace(&mut group.slot_marks[slot as usize], step_mark);
        expect("slot_mapping", before != step_mark, || format!("slot {slot} is written twice"))?;
    }
    Ok(())
}

/// Every position that a token of the step attends to has a block.
fn check_tables(limits: &Limits, group: &GroupLimits, view: &GroupView<'_>, step: &StepView<'_>) -> Check {
    let columns = view.max_blocks;
    length("block_tables", view.block_tables.len(), step.seq_lens.len().saturating_mul(columns))?;
    for (sequence, &seq_len) in step.seq_lens.iter().enumerate() {
        let seq_len = seq_len as usize;
        let used = seq_len.div_ceil(limits.block_size);
        expect("block_tables", used <= columns, || {
            format!(
                "sequence {sequence} of {seq_len} tokens needs {used} blocks, the table has {columns} columns"
            )
        })?;
        let first_token = step.cu_seqlens_q[sequence] as usize;
        let first_position = step.positions[first_token] as usize;
        let first_seen = group.window.map_or(0, |window| (first_position + 1).saturating_sub(window));
        let row = &view.block_tables[sequence * columns..][..columns];
        for (index, &block) in row.iter().enumerate() {
            let needed = (first_seen / limits.block_size..used).contains(&index);
            if needed || block != -1 {
                in_range("block_tables", sequence * columns + index, block, group.num_blocks)?;
            }
        }
    }
    Ok(())
}

/// Copies do not depend on their order: no block is copied into twice, nor into and out of.
fn check_copies(group: &mut GroupLimits, view: &GroupView<'_>, step_mark: u32) -> Check {
    let (out_of, into) = (2 * step_mark, 2 * step_mark + 1);
    for (index, &(source, destination)) in view.block_copies.iter().enumerate() {
        in_range("block_copies", index, source, group.num_blocks)?;
        in_range("block_copies", index, destination, group.num_blocks)?;
        let before = std::mem::replace(&mut group.block_marks[destination as usize], into);
        expect("block_copies", before != into && before != out_of, || {
            format!("block {destination} is copied into twice, or into and out of")
        })?;
        let source_mark = &mut group.block_marks[source as usize];
        expect("block_copies", *source_mark != into, || format!("block {source} is copied into and out of"))?;
        *source_mark = out_of;
    }
    Ok(())
}
