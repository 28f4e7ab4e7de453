//! The scheduler's own invariants, verified from scratch.

use crate::error::{SchedError, broken};
use crate::scheduler::Scheduler;
use crate::sequence::Sequence;

impl Scheduler {
    /// Verify every invariant of pools, tables and states.
    ///
    /// # Errors
    /// [`SchedError::Broken`] or [`KvError::Broken`] names the broken one.
    pub fn check(&self) -> Result<(), SchedError> {
        self.report_fault()?;
        self.kv.check()?;
        let listed: Vec<&Sequence> =
            self.running.iter().chain(&self.waiting).filter_map(|id| self.sequences.get(id)).collect();
        let each_once = listed.len() == self.sequences.len()
            && listed.len() == self.running.len() + self.waiting.len()
            && listed.windows(2).all(|pair| pair[0].arrival < pair[1].arrival);
        if !each_once || self.running.len() > self.config.max_num_seqs as usize {
            return broken("S2", format!("running {:?}, waiting {:?}", self.running, self.waiting));
        }
        for (index, seq) in listed.into_iter().enumerate() {
            let table = (index < self.running.len()).then_some(seq.computed);
            if self.kv.computed(seq.id) != table || seq.computed >= seq.len() || seq.len() >= seq.max_len {
                return broken("S2", format!("{seq:?}, its table has {:?} tokens", self.kv.computed(seq.id)));
            }
            if table.is_some() {
                self.kv.check_tokens(seq.id, &seq.token_ids)?;
            }
        }
        Ok(())
    }
}
