//! The scheduler's states and transitions.

use std::collections::{HashMap, VecDeque};

use pyrite_kv::{KvConfig, KvError, KvManager, PoolGauges};

use crate::config::SchedulerConfig;
use crate::error::{SchedError, broken};
use crate::plan::StepPlan;
use crate::sequence::{FinishReason, InFlight, NewSequence, Sampled, Sequence};
use crate::step::{Draft, Pick};

/// Counters since the start, and gauges.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Sequences without blocks.
    pub num_waiting: u32,
    /// Sequences with blocks.
    pub num_running: u32,
    /// Times a sequence lost its blocks.
    pub preemptions: u64,
    /// Prompt tokens looked up in the prefix cache, at each sequence's first admission.
    pub prefix_query_tokens: u64,
    /// Those that it answered.
    pub prefix_hit_tokens: u64,
    /// Steps planned.
    pub steps: u64,
    /// Steps with at least one decode: a sequence with output that computes its last token only.
    pub decode_steps: u64,
    /// Decodes of all steps.
    pub decode_tokens: u64,
    /// All other tokens of all steps.
    pub prefill_tokens: u64,
    /// Blocks per KV group.
    pub groups: Vec<PoolGauges>,
}

/// Continuous batching over KV blocks. See the crate's page for the policy.
#[derive(Debug)]
pub struct Scheduler {
    pub(crate) config: SchedulerConfig,
    pub(crate) kv: KvManager,
    pub(crate) sequences: HashMap<u64, Sequence>,
    /// Oldest first.
    pub(crate) running: Vec<u64>,
    /// Oldest first, and all younger than the running ones.
    pub(crate) waiting: VecDeque<u64>,
    arrivals: u64,
    /// The plan that may be committed.
    open_step: Option<u64>,
    pub(crate) counters: Stats,
    /// A broken invariant met where no error can be returned; reported by the next call that can.
    fault: Option<KvError>,
    #[cfg(test)]
    pub(crate) faults: crate::life_tests::Faults,
}

impl Scheduler {
    /// Build an idle scheduler with empty pools.
    ///
    /// # Errors
    /// [`SchedError::Config`] or [`KvError::Config`] names a setting that is out of range.
    pub fn new(config: SchedulerConfig) -> Result<Self, SchedError> {
        config.validate()?;
        let kv = KvManager::new(KvConfig {
            groups: config.groups.clone(),
            block_size: config.block_size,
            longest_draft: 0,
            enable_prefix_caching: config.enable_prefix_caching,
            hash_key: config.hash_key,
        })?;
        Ok(Self {
            config,
            kv,
            sequences: HashMap::new(),
            running: Vec::new(),
            waiting: VecDeque::new(),
            arrivals: 0,
            open_step: None,
            counters: Stats::default(),
            fault: None,
            #[cfg(test)]
            faults: Default::default(),
        })
    }

    /// Queue a sequence.
    ///
    /// # Errors
    /// Every error but [`SchedError::Kv`] and [`SchedError::Broken`]; nothing changes then.
    pub fn add(&mut self, new: NewSequence) -> Result<(), SchedError> {
        let limit = self.config.max_model_len - 1;
        if new.token_ids.is_empty() {
            return Err(SchedError::EmptyPrompt);
        }
        if new.token_ids.len() > limit as usize {
            return Err(SchedError::PromptTooLong { got: new.token_ids.len(), limit });
        }
        if new.max_tokens == 0 {
            return Err(SchedError::NoOutput);
        }
        check_ids("token_ids", &new.token_ids)?;
        check_ids("stop_token_ids", &new.stop_token_ids)?;
        if self.sequences.contains_key(&new.id) {
            return Err(SchedError::DuplicateId { id: new.id });
        }
        let seq = Sequence::new(new, self.arrivals, self.config.max_model_len);
        for (group, config) in self.config.groups.iter().enumerate() {
            let chunk = self.config.max_num_batched_tokens.min(seq.max_len);
            let needed = self.kv.peak_blocks(group, seq.max_len, chunk);
            if needed > config.num_blocks {
                return Err(SchedError::CannotFit { group, needed, total: config.num_blocks });
            }
        }
        self.arrivals += 1;
        self.waiting.push_back(seq.id);
        self.sequences.insert(seq.id, seq);
        Ok(())
    }

    /// Decide the next step; `None` when no sequence is left. A plan that was not committed is given up: its tokens
    /// are planned again.
    ///
    /// # Errors
    /// [`SchedError::Broken`] and [`SchedError::Kv`] after a bug.
    pub fn plan(&mut self) -> Result<Option<StepPlan>, SchedError> {
        self.report_fault()?;
        self.open_step = None;
        for id in &self.running {
            if let Some(seq) = self.sequences.get_mut(id) {
                seq.in_flight = None;
            }
        }
        if !self.has_work() {
            return Ok(None);
        }
        let mut draft = Draft {
            tokens_left: self.config.max_num_batched_tokens,
            rows_left: self.config.max_logit_rows,
            picks: Vec::new(),
            preempted: false,
        };
        self.pick_running(&mut draft, true)?;
        if !draft.picks.is_empty() {
            draft.tokens_left = draft.tokens_left.min(self.config.max_num_mixed_prefill_tokens);
        }
        self.pick_running(&mut draft, false)?;
        if !draft.preempted {
            self.admit(&mut draft)?;
        }
        if draft.picks.is_empty() {
            return broken("S3", format!("nothing can run: {:?}", self.stats()));
        }
        self.counters.steps += 1;
        let plan = draft.build(self.counters.steps, self.config.block_size, &self.sequences, &self.kv)?;
        self.open_step = Some(plan.step);
        self.launch(&draft);
        Ok(Some(plan))
    }

    /// Pick the running sequences that are decodes, or those that are not, oldest first.
    fn pick_running(&mut self, draft: &mut Draft, decodes: bool) -> Result<(), SchedError> {
        // A prefill that is the oldest sequence must not starve behind decodes.
        let held_back = u32::from(decodes && self.running.first().is_some_and(|&id| !self.is_decode(id)));
        #[cfg(test)]
        let held_back = if self.faults.starve_oldest { 0 } else { held_back };
        let mut index = 0;
        // Preemption shortens the list at its end.
        while let Some(&id) = self.running.get(index) {
            index += 1;
            if self.is_decode(id) != decodes {
                continue;
            }
            let seq = self.sequence(id)?;
            let num_tokens = seq
                .cut(draft.tokens_left.saturating_sub(held_back), draft.rows_left.saturating_sub(held_back));
            if num_tokens == 0 {
                continue;
            }
            let pick = Pick { id, num_tokens, num_rows: seq.num_rows(num_tokens), copies: Vec::new() };
            self.pick_or_preempt(draft, pick)?;
        }
        Ok(())
    }

    /// Get the blocks for a running sequence's tokens, preempting the youngest ones, at worst itself.
    fn pick_or_preempt(&mut self, draft: &mut Draft, mut pick: Pick) -> Result<(), SchedError> {
        let upto = self.sequence(pick.id)?.computed + pick.num_tokens;
        loop {
            match self.kv.reserve(pick.id, upto) {
                Ok(copies) => {
                    pick.copies = copies;
                    draft.add(pick);
                    return Ok(());
                }
                Err(KvError::NoBlocks { .. }) if self.running.len() > 1 => {
                    let youngest = self.preempt_youngest(draft)?;
                    if youngest == pick.id {
                        return Ok(());
                    }
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn preempt_youngest(&mut self, draft: &mut Draft) -> Result<u64, SchedError> {
        let Some(id) = self.running.pop() else { return broken("S3", "nothing to preempt".to_owned()) };
        self.kv.release(id)?;
        draft.remove(id);
        draft.preempted = true;
        self.waiting.push_front(id);
        self.counters.preemptions += 1;
        if let Some(seq) = self.sequences.get_mut(&id) {
            seq.epoch += 1;
            seq.computed = 0;
            #[cfg(test)]
            if self.faults.lose_output {
                seq.token_ids.truncate(seq.prompt_len as usize);
            }
        }
        Ok(id)
    }

    /// Mark the picked tokens as in flight, and count them.
    fn launch(&mut self, draft: &Draft) {
        let before = self.counters.decode_tokens;
        for pick in &draft.picks {
            let Some(seq) = self.sequences.get_mut(&pick.id) else { continue };
            let samples = pick.num_tokens == seq.remaining();
            seq.in_flight = Some(InFlight { num_tokens: pick.num_tokens, samples });
            if seq.is_decode() && seq.len() > seq.prompt_len {
                self.counters.decode_tokens += 1;
            } else {
                self.counters.prefill_tokens += u64::from(pick.num_tokens);
            }
        }
        self.counters.decode_steps += u64::from(self.counters.decode_tokens > before);
    }

    /// Take what a step produced: a result for every sequence that sampled. Returns the sequences that ended; they are
    /// gone. In a result of several tokens, those after the one that ends the sequence are dropped.
    ///
    /// Results of unknown ids, old epochs or old plans are dropped. A sequence that should have sampled but has no
    /// result stays where it was, and its last token is planned again.
    ///
    /// # Errors
    /// [`SchedError::NegativeToken`], with nothing changed; [`SchedError::Kv`] after a bug.
    pub fn commit(
        &mut self,
        plan: &StepPlan,
        sampled: &[Sampled],
    ) -> Result<Vec<(u64, FinishReason)>, SchedError> {
        self.report_fault()?;
        for result in sampled {
            check_ids("sampled", &result.tokens)?;
        }
        let stale = self.open_step != Some(plan.step);
        #[cfg(test)]
        let stale = stale && !self.faults.accept_stale;
        if stale {
            return Ok(Vec::new());
        }
        self.open_step = None;
        let results: HashMap<(u64, u32), &[i32]> =
            sampled.iter().map(|result| ((result.id, result.epoch), &*result.tokens)).collect();
        let mut ended = Vec::new();
        for part in &plan.seqs {
            let Some(seq) = self.sequences.get_mut(&part.id).filter(|seq| seq.epoch == part.epoch) else {
                continue;
            };
            let Some(flight) = seq.in_flight.take() else { continue };
            let tokens = results.get(&(part.id, part.epoch)).copied().unwrap_or_default();
            let tokens = if flight.samples { tokens } else { &[] };
            let repeat = u32::from(flight.samples && tokens.is_empty());
            #[cfg(test)]
            let repeat = if self.faults.early_commit { 0 } else { repeat };
            seq.computed += flight.num_tokens - repeat;
            seq.delivered = seq.delivered.max(seq.computed.min(seq.prompt_len));
            #[cfg(test)]
            if self.faults.forget_rows {
                seq.delivered = 0;
            }
            self.kv.commit(seq.id, &seq.token_ids, seq.computed)?;
            if let Some(reason) = seq.append(tokens) {
                ended.push((part.id, reason));
            }
        }
        for (id, _) in &ended {
            self.finish(*id);
        }
        self.report_fault()?;
        Ok(ended)
    }

    /// End a sequence from outside, at any moment; a step in flight drops its part. Its full blocks stay cached. False
    /// when it is unknown: it ended before.
    pub fn finish(&mut self, id: u64) -> bool {
        if self.sequences.remove(&id).is_none() {
            return false;
        }
        self.running.retain(|&other| other != id);
        self.waiting.retain(|&other| other != id);
        let released = self.kv.release(id);
        self.note(released);
        true
    }

    /// Whether any sequence is left.
    pub fn has_work(&self) -> bool {
        !self.sequences.is_empty()
    }

    /// Prompt tokens that the prefix cache answered at the sequence's last admission; `None` when it is unknown or was
    /// never admitted.
    pub fn num_cached_tokens(&self, id: u64) -> Option<u32> {
        self.sequences.get(&id)?.cached
    }

    /// Counters and gauges.
    pub fn stats(&self) -> Stats {
        Stats {
            num_waiting: self.waiting.len() as u32,
            num_running: self.running.len() as u32,
            groups: (0..self.kv.num_groups()).filter_map(|group| self.kv.gauges(group)).collect(),
            ..self.counters.clone()
        }
    }

    /// Forget cached blocks that no sequence uses; returns how many.
    pub fn reset_prefix_cache(&mut self) -> u32 {
        let forgotten = self.kv.reset_prefix_cache();
        self.note(forgotten).unwrap_or_default()
    }

    fn sequence(&self, id: u64) -> Result<&Sequence, SchedError> {
        self.sequences.get(&id).map_or_else(|| broken("S2", format!("sequence {id} runs but is unknown")), Ok)
    }

    fn is_decode(&self, id: u64) -> bool {
        self.sequences.get(&id).is_some_and(Sequence::is_decode)
    }

    fn note<T>(&mut self, result: Result<T, KvError>) -> Option<T> {
        result.map_err(|error| self.fault = Some(error)).ok()
    }

    pub(crate) fn report_fault(&self) -> Result<(), SchedError> {
        self.fault.clone().map_or(Ok(()), |fault| Err(fault.into()))
    }
}

fn check_ids(field: &'static str, ids: &[i32]) -> Result<(), SchedError> {
    match ids.iter().position(|&id| id < 0) {
        Some(index) => Err(SchedError::NegativeToken { field, index, got: ids[index] }),
        None => Ok(()),
    }
}
