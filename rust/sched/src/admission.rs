//! Which waiting sequences may start: in order of arrival, when the pools have room for all their tokens.

use crate::error::{SchedError, broken};
use crate::scheduler::Scheduler;
use crate::sequence::Sequence;
use crate::step::{Draft, Pick};

impl Scheduler {
    /// Let waiting sequences run, in order, while the pools have room for all their tokens.
    pub(crate) fn admit(&mut self, draft: &mut Draft) -> Result<(), SchedError> {
        while let Some(&id) = self.waiting.front() {
            if self.running.len() >= self.config.max_num_seqs as usize || draft.tokens_left == 0 {
                break;
            }
            let Some(seq) = self.sequences.get_mut(&id) else {
                return broken("S2", format!("sequence {id} waits but is unknown"));
            };
            seq.computed = self.kv.open(id, &seq.token_ids, seq.hit_limit(), &seq.salt)?;
            let num_tokens = seq.cut(draft.tokens_left, draft.rows_left);
            let pick = Pick { id, num_tokens, num_rows: seq.num_rows(num_tokens), copies: Vec::new() };
            let (hit, upto) = (seq.computed, seq.computed + num_tokens);
            if num_tokens == 0 || !self.has_room(id) {
                self.kv.release(id)?;
                self.sequences.entry(id).and_modify(|seq| seq.computed = 0);
                break;
            }
            let copies = self.kv.reserve(id, upto)?;
            draft.add(Pick { copies, ..pick });
            self.waiting.pop_front();
            self.running.push(id);
            self.count_admission(id, hit);
        }
        Ok(())
    }

    /// Whether the pools hold all tokens of an opened sequence, beside what the running ones still need for theirs and
    /// one more block for each.
    fn has_room(&self, id: u64) -> bool {
        let missing = |seq: &Sequence, group: usize, num_tokens: u32| {
            let chunk = seq.remaining().min(self.config.max_num_batched_tokens);
            let peak = self.kv.peak_blocks(group, num_tokens, chunk);
            u64::from(peak.saturating_sub(self.kv.held_blocks(seq.id, group)))
        };
        (0..self.kv.num_groups()).all(|group| {
            let own = self.sequences.get(&id).map_or(0, |seq| missing(seq, group, seq.len()));
            let others = self.running.iter().filter_map(|id| self.sequences.get(id));
            let others = others.map(|seq| {
                let grown = seq.len().saturating_add(self.config.block_size).min(seq.max_len);
                missing(seq, group, grown)
            });
            let available = self.kv.gauges(group).map_or(0, |gauges| gauges.free + gauges.cached);
            own + others.sum::<u64>() <= u64::from(available)
        })
    }

    fn count_admission(&mut self, id: u64, hit: u32) {
        let Some(seq) = self.sequences.get_mut(&id) else { return };
        let hit = hit.min(seq.prompt_len);
        if seq.cached.replace(hit).is_none() && self.config.enable_prefix_caching {
            self.counters.prefix_query_tokens += u64::from(seq.prompt_len);
            self.counters.prefix_hit_tokens += u64::from(hit);
        }
    }
}
