//! A fake backend whose next token is a hash of everything it reads through the block tables, and the checks of every
//! plan and commit against what the requests would give on their own.

use std::collections::{BTreeMap, BTreeSet};

use super::{Event, Faults, Life, Request};
use crate::{FinishReason, NewSequence, Sampled, SchedError, Scheduler, SchedulerConfig, Stats, StepPlan};

fn mix(hash: u64, value: u64) -> u64 {
    (hash ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(23)
}

/// Keys of one position: of its token and, where the window lets it be seen, of the position before.
fn key(salt: u8, before: Option<u64>, position: usize, token: i32, window: usize) -> u64 {
    let start = if window > 1 && position > 0 { before.unwrap() } else { mix(salt.into(), position as u64) };
    mix(start, token as u64)
}

/// The token after position `last`, from what each group's `read(group, position)` shows.
fn next_token(last: usize, windows: &[usize], mut read: impl FnMut(usize, usize) -> u64) -> i32 {
    let mut hash = 0;
    for (group, &window) in windows.iter().enumerate() {
        for position in (last + 1).saturating_sub(window)..=last {
            hash = mix(hash, read(group, position));
        }
    }
    (hash >> 32) as i32 % 40
}

/// The whole output of a request on its own, without any cache.
fn golden(new: &NewSequence, max_model_len: u32, windows: &[usize]) -> (Vec<i32>, FinishReason) {
    let mut tokens = new.token_ids.clone();
    loop {
        let mut keys = vec![Vec::new(); windows.len()];
        for (keys, &window) in keys.iter_mut().zip(windows) {
            for (position, &token) in tokens.iter().enumerate() {
                keys.push(key(new.salt[0], keys.last().copied(), position, token, window));
            }
        }
        let token = next_token(tokens.len() - 1, windows, |group, position| keys[group][position]).abs();
        tokens.push(token);
        let output = tokens.len() - new.token_ids.len();
        if new.stop_token_ids.contains(&token) {
            return (tokens, FinishReason::Stop);
        }
        if output == new.max_tokens as usize || tokens.len() == max_model_len as usize {
            return (tokens, FinishReason::Length);
        }
    }
}

/// Whether the pools hold a request that runs alone, by trying every alignment of what it keeps in a step.
fn fits_alone(config: &SchedulerConfig, new: &NewSequence) -> bool {
    let len = (new.token_ids.len() as u32 + new.max_tokens).min(config.max_model_len);
    let chunk = config.max_num_batched_tokens.min(len);
    config.groups.iter().all(|group| {
        let kept = group.window.map_or(len, |window| (window - 1 + chunk).min(len));
        let last = if kept == len { 0 } else { config.block_size - 1 };
        let blocks =
            |start: u32| (start + kept).div_ceil(config.block_size).min(len.div_ceil(config.block_size));
        (0..=last).map(blocks).max() <= Some(group.num_blocks)
    })
}

struct Live {
    new: NewSequence,
    tokens: Vec<i32>,
    golden: Vec<i32>,
    reason: FinishReason,
    /// Prompt positions whose rows were delivered.
    rows: Vec<i32>,
}

struct World<'a> {
    config: &'a SchedulerConfig,
    windows: Vec<usize>,
    scheduler: Scheduler,
    memory: Vec<Vec<u64>>,
    live: BTreeMap<u64, Live>,
    /// Ids and epochs that ran in an earlier plan.
    seen: BTreeSet<(u64, u32)>,
}

macro_rules! ensure {
    ($condition:expr, $($message:tt)*) => {
        if !$condition {
            return Err(format!($($message)*));
        }
    };
}

impl World<'_> {
    fn add(&mut self, new: &NewSequence) -> Result<(), String> {
        match self.scheduler.add(new.clone()) {
            Ok(()) => {
                ensure!(fits_alone(self.config, new), "S4: request {} was admitted", new.id);
                let (golden, reason) = golden(new, self.config.max_model_len, &self.windows);
                let live =
                    Live { new: new.clone(), tokens: new.token_ids.clone(), golden, reason, rows: vec![] };
                self.live.insert(new.id, live);
                Ok(())
            }
            Err(SchedError::CannotFit { .. }) if !fits_alone(self.config, new) => Ok(()),
            Err(SchedError::PromptTooLong { limit, .. }) if new.token_ids.len() > limit as usize => Ok(()),
            Err(error) => Err(error.to_string()),
        }
    }

    /// What a plan promises whatever the policy.
    fn check_plan(&self, plan: &StepPlan) -> Result<(), String> {
        let (tokens, rows) = (plan.token_ids.len(), plan.logit_rows.len());
        ensure!(tokens <= self.config.max_num_batched_tokens as usize, "S1: {tokens} tokens");
        ensure!(rows <= self.config.max_logit_rows as usize, "{rows} rows");
        ensure!(plan.seqs.len() <= self.config.max_num_seqs as usize, "{} sequences", plan.seqs.len());
        let oldest = self.live.keys().next().unwrap();
        ensure!(
            plan.seqs.iter().any(|part| part.id == *oldest),
            "S3: the oldest, {oldest}, does not progress"
        );
        let (mut order, mut decodes, mut others) = (Vec::new(), false, 0);
        for (index, part) in plan.seqs.iter().enumerate() {
            let live = &self.live[&part.id];
            let (first, end) = (plan.cu_seqlens_q[index] as usize, plan.cu_seqlens_q[index + 1] as usize);
            let after = plan.seq_lens[index] as usize;
            let before = after - (end - first);
            ensure!(first < end, "{part:?} has no tokens");
            ensure!(plan.token_ids[first..end] == live.tokens[before..after], "{part:?} has other tokens");
            ensure!(
                plan.positions[first..end].iter().map(|&p| p as usize).eq(before..after),
                "{part:?} is elsewhere"
            );
            ensure!(part.samples == (after == live.tokens.len()), "{part:?} samples at {after}");
            let seen = self.seen.contains(&(part.id, part.epoch));
            let class = if !seen { 2 } else { i32::from(before + 1 < live.tokens.len()) };
            order.push((class, part.id));
            decodes |= class == 0;
            others += if class == 0 { 0 } else { end - first };
            let rows = part.first_row as usize..(part.first_row + part.num_rows) as usize;
            let rows: Vec<i32> =
                plan.logit_rows[rows].iter().map(|&row| plan.positions[row as usize]).collect();
            let wanted = |position: &i32| {
                let prompt = live.new.prompt_logprobs && (*position as usize) < live.new.token_ids.len();
                let last = *position as usize + 1 == live.tokens.len();
                last || (prompt && !live.rows.contains(position))
            };
            ensure!(
                (before as i32..after as i32).filter(wanted).eq(rows.iter().copied()),
                "{part:?}: rows {rows:?}"
            );
            for group in &plan.groups {
                let table =
                    &group.block_tables[index * group.max_blocks as usize..][..group.max_blocks as usize];
                let columns = after.div_ceil(self.config.block_size as usize);
                ensure!(
                    table[columns - 1] >= 0 && table[columns..].iter().all(|&b| b == -1),
                    "{part:?}: {table:?}"
                );
            }
        }
        let most = self.config.max_num_mixed_prefill_tokens as usize;
        ensure!(!decodes || others <= most, "{others} prompt tokens beside decodes");
        Ok(())
    }

    /// Run a step on the memory; returns the token after each sequence's last row.
    fn run(&mut self, plan: &StepPlan) -> Result<BTreeMap<u64, i32>, String> {
        let size = self.config.block_size as usize;
        let mut next = BTreeMap::new();
        for (group, memory) in plan.groups.iter().zip(&mut self.memory) {
            for &(src, dst) in &group.block_copies {
                memory.copy_within(src as usize * size..(src as usize + 1) * size, dst as usize * size);
            }
        }
        for (index, part) in plan.seqs.iter().enumerate() {
            let salt = self.live[&part.id].new.salt[0];
            let slot = |group: usize, position: usize| {
                let group = &plan.groups[group];
                let block = group.block_tables[index * group.max_blocks as usize + position / size];
                block as usize * size + position % size
            };
            for row in plan.cu_seqlens_q[index] as usize..plan.cu_seqlens_q[index + 1] as usize {
                let position = plan.positions[row] as usize;
                for (group, &window) in self.windows.iter().enumerate() {
                    let before = (window > 1 && position > 0)
                        .then(|| self.memory[group].get(slot(group, position - 1)));
                    ensure!(before != Some(None), "position {} of {part:?} has no block", position - 1);
                    let written = plan.groups[group].slot_mapping[row] as usize;
                    ensure!(written == slot(group, position), "{part:?} writes to slot {written}");
                    self.memory[group][written] =
                        key(salt, before.flatten().copied(), position, plan.token_ids[row], window);
                }
            }
            let mut missing = false;
            let last = plan.seq_lens[index] as usize - 1;
            let token = next_token(last, &self.windows, |group, position| {
                let value = self.memory[group].get(slot(group, position)).copied();
                missing |= value.is_none();
                value.unwrap_or(0)
            });
            ensure!(!missing, "{part:?} cannot see its window");
            next.insert(part.id, token.abs());
        }
        Ok(next)
    }

    /// Commit with the tokens that the backend gave; `several` adds the golden ones that follow.
    fn commit(
        &mut self,
        plan: &StepPlan,
        next: &BTreeMap<u64, i32>,
        miss: Option<usize>,
        several: usize,
    ) -> Result<(), String> {
        let sampling: Vec<_> = plan.seqs.iter().filter(|part| part.samples).collect();
        let mut results = Vec::new();
        for (index, part) in sampling.iter().enumerate() {
            let Some(live) = self.live.get(&part.id) else {
                // Aborted: whatever comes must be dropped.
                results.push(Sampled { id: part.id, epoch: part.epoch, tokens: vec![1] });
                continue;
            };
            ensure!(
                next[&part.id] == live.golden[live.tokens.len()],
                "S6: sequence {} reads other keys",
                part.id
            );
            if miss.is_none_or(|miss| miss % sampling.len() != index) {
                let mut tokens: Vec<i32> =
                    live.golden[live.tokens.len()..].iter().copied().take(several).collect();
                // Beyond the end there is more that must be cut off.
                tokens.resize(several, 0);
                results.push(Sampled { id: part.id, epoch: part.epoch, tokens });
            }
        }
        results.push(Sampled { id: 1 << 40, epoch: 0, tokens: vec![1] });
        let ended = self.scheduler.commit(plan, &results).map_err(|error| error.to_string())?;
        for (index, part) in plan.seqs.iter().enumerate() {
            let Some(live) = self.live.get_mut(&part.id) else { continue };
            let result = results.iter().find(|result| result.id == part.id);
            let computed = plan.seq_lens[index] - i32::from(part.samples && result.is_none());
            let rows = &plan.logit_rows[part.first_row as usize..(part.first_row + part.num_rows) as usize];
            let rows = rows.iter().map(|&row| plan.positions[row as usize]);
            let prompt_len = live.new.token_ids.len() as i32;
            live.rows.extend(rows.filter(|&position| position < computed.min(prompt_len)));
            let known = live.tokens.len();
            let added = result.map_or(0, |result| result.tokens.len()).min(live.golden.len() - known);
            live.tokens.extend(&live.golden[known..known + added]);
            let finished = ended.iter().find(|(id, _)| *id == part.id).map(|(_, reason)| *reason);
            let expected = (live.tokens.len() == live.golden.len()).then_some(live.reason);
            ensure!(finished == expected, "sequence {} ended {finished:?}, expected {expected:?}", part.id);
            if finished.is_some() {
                let all = live.new.prompt_logprobs.then_some(0..prompt_len);
                let last = (!live.new.prompt_logprobs).then_some(prompt_len - 1);
                let rows: Vec<i32> = all.into_iter().flatten().chain(last).collect();
                ensure!(live.rows == rows, "sequence {}: rows {:?}", part.id, live.rows);
                self.live.remove(&part.id);
            }
        }
        Ok(())
    }

    fn check(&self) -> Result<(), String> {
        self.scheduler.check().map_err(|error| error.to_string())
    }

    fn plan(&mut self) -> Result<Option<StepPlan>, String> {
        let plan = self.scheduler.plan().map_err(|error| error.to_string())?;
        self.check()?;
        ensure!(plan.is_none() == self.live.is_empty(), "S3: no plan, but work");
        if let Some(plan) = &plan {
            self.check_plan(plan)?;
            self.seen.extend(plan.seqs.iter().map(|part| (part.id, part.epoch)));
        }
        Ok(plan)
    }

    fn abort(&mut self, requests: &[Request], at: (u64, bool)) -> Result<(), String> {
        for request in requests.iter().filter(|request| request.abort == Some(at)) {
            let known = self.live.remove(&request.new.id).is_some();
            ensure!(self.scheduler.finish(request.new.id) == known, "finish of {}", request.new.id);
            ensure!(!self.scheduler.finish(request.new.id), "the second finish is a no-op");
            self.check()?;
        }
        Ok(())
    }
}

/// Live it, and check after every call.
pub(super) fn run(life: &Life, faults: Faults) -> Result<(Vec<StepPlan>, Stats), String> {
    let config = &life.config;
    let mut scheduler = Scheduler::new(config.clone()).map_err(|error| error.to_string())?;
    scheduler.faults = faults;
    let memory =
        config.groups.iter().map(|g| vec![u64::MAX; (g.num_blocks * config.block_size) as usize]).collect();
    let windows =
        config.groups.iter().map(|g| g.window.map_or(usize::MAX, |window| window as usize)).collect();
    let mut world =
        World { config, windows, scheduler, memory, live: BTreeMap::new(), seen: BTreeSet::new() };
    let mut arrivals = life.requests.iter().peekable();
    let mut plans = Vec::new();
    // In each step the oldest request computes a token, but for events in the first 100 steps.
    let mut bound = 200;
    for step in 0.. {
        while let Some(request) = arrivals.next_if(|request| request.arrives <= step) {
            world.add(&request.new)?;
            bound += config.max_model_len as usize;
        }
        world.check()?;
        world.abort(&life.requests, (step, false))?;
        // Events end, so that everything else can.
        let event = if step < 100 { life.events[step as usize % life.events.len()] } else { Event::Plain };
        if matches!(event, Event::Reset) {
            world.scheduler.reset_prefix_cache();
            world.check()?;
        }
        let Some(mut plan) = world.plan()? else {
            if arrivals.peek().is_none() {
                break;
            }
            continue;
        };
        let mut next = world.run(&plan)?;
        if matches!(event, Event::GiveUp) {
            plans.push(plan);
            plan = world.plan()?.ok_or("work vanished")?;
            next = world.run(&plan)?;
        }
        world.abort(&life.requests, (step, true))?;
        if matches!(event, Event::Stale)
            && let Some(old) = plans.last()
        {
            stale_commit(&mut world.scheduler, old)?;
            world.check()?;
        }
        let miss = if let Event::Miss(index) = event { Some(index) } else { None };
        let several = if let Event::Several(count) = event { count } else { 1 };
        world.commit(&plan, &next, miss, several)?;
        if matches!(event, Event::Stale) {
            stale_commit(&mut world.scheduler, &plan)?;
        }
        world.check()?;
        plans.push(plan);
        ensure!(plans.len() <= bound, "S3: {} steps and still not done", plans.len());
    }
    for gauges in world.scheduler.stats().groups {
        ensure!(gauges.free + gauges.cached == gauges.total, "idle, but {gauges:?}");
    }
    let stats = world.scheduler.stats();
    let cached: u32 = stats.groups.iter().map(|gauges| gauges.cached).sum();
    ensure!(world.scheduler.reset_prefix_cache() == cached, "the reset missed blocks");
    world.check()?;
    Ok((plans, stats))
}

fn stale_commit(scheduler: &mut Scheduler, plan: &StepPlan) -> Result<(), String> {
    let results = plan.seqs.iter().map(|part| Sampled { id: part.id, epoch: part.epoch, tokens: vec![39] });
    let ended = scheduler.commit(plan, &results.collect::<Vec<_>>()).map_err(|error| error.to_string())?;
    ensure!(ended.is_empty(), "S5: a stale result ended {ended:?}");
    Ok(())
}
