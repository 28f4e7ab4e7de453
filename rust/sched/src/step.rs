//! A step while it is being put together, and its arrays.

use std::collections::HashMap;

use pyrite_kv::{BlockCopy, KvManager};

use crate::error::{SchedError, broken};
use crate::plan::{GroupPlan, SeqStep, StepPlan};
use crate::sequence::Sequence;

/// One sequence's part.
#[derive(Debug)]
pub(crate) struct Pick {
    pub(crate) id: u64,
    pub(crate) num_tokens: u32,
    pub(crate) num_rows: u32,
    pub(crate) copies: Vec<BlockCopy>,
}

/// What was picked, and what is left of the budgets.
#[derive(Debug)]
pub(crate) struct Draft {
    pub(crate) tokens_left: u32,
    pub(crate) rows_left: u32,
    pub(crate) picks: Vec<Pick>,
    /// A sequence was preempted for this step; nobody is admitted then.
    pub(crate) preempted: bool,
}

impl Draft {
    pub(crate) fn add(&mut self, pick: Pick) {
        self.tokens_left -= pick.num_tokens;
        self.rows_left -= pick.num_rows;
        self.picks.push(pick);
    }

    /// Take a sequence out again.
    pub(crate) fn remove(&mut self, id: u64) {
        if let Some(index) = self.picks.iter().position(|pick| pick.id == id) {
            let pick = self.picks.remove(index);
            self.tokens_left += pick.num_tokens;
            self.rows_left += pick.num_rows;
        }
    }

    /// Lay the step out as arrays.
    pub(crate) fn build(
        &self,
        step: u64,
        block_size: u32,
        sequences: &HashMap<u64, Sequence>,
        kv: &KvManager,
    ) -> Result<StepPlan, SchedError> {
        let groups = vec![GroupPlan::default(); kv.num_groups()];
        let mut plan = StepPlan { step, cu_seqlens_q: vec![0], groups, ..StepPlan::default() };
        for pick in &self.picks {
            let Some(seq) = sequences.get(&pick.id) else {
                return broken("S2", format!("sequence {} was picked but is unknown", pick.id));
            };
            let first_token = plan.token_ids.len() as u32;
            let first_row = plan.logit_rows.len() as u32;
            let positions = seq.computed..seq.computed + pick.num_tokens;
            plan.token_ids.extend(&seq.token_ids[positions.start as usize..positions.end as usize]);
            plan.positions.extend(positions.clone().map(|position| position as i32));
            plan.cu_seqlens_q.push((first_token + pick.num_tokens) as i32);
            plan.seq_lens.push(positions.end as i32);
            let (prompt, last) = seq.rows(pick.num_tokens);
            let rows = prompt.chain(last.then(|| positions.end - 1));
            plan.logit_rows.extend(rows.map(|position| (first_token + position - positions.start) as i32));
            plan.seqs.push(SeqStep {
                id: seq.id,
                epoch: seq.epoch,
                first_row,
                num_rows: plan.logit_rows.len() as u32 - first_row,
                samples: positions.end == seq.len(),
                num_draft_tokens: 0,
            });
            for (group, out) in plan.groups.iter_mut().enumerate() {
                let Some(table) = kv.table(seq.id, group) else {
                    return broken("S2", format!("sequence {} runs without a block table", seq.id));
                };
                out.max_blocks = out.max_blocks.max(table.len() as u32);
                out.slot_mapping.extend(positions.clone().map(|position| {
                    table[(position / block_size) as usize] * block_size as i32
                        + (position % block_size) as i32
                }));
            }
            for copy in &pick.copies {
                plan.groups[copy.group].block_copies.push((copy.src, copy.dst));
            }
        }
        for (group, out) in plan.groups.iter_mut().enumerate() {
            let max_blocks = out.max_blocks as usize;
            out.block_tables = vec![-1; max_blocks * self.picks.len()];
            for (row, pick) in out.block_tables.chunks_exact_mut(max_blocks).zip(&self.picks) {
                if let Some(table) = kv.table(pick.id, group) {
                    row[..table.len()].copy_from_slice(table);
                }
            }
        }
        Ok(plan)
    }
}
