//! One test per rule of the scheduler.

use crate::{
    FinishReason, GroupConfig, NewSequence, Sampled, SchedError, Scheduler, SchedulerConfig, Stats, StepPlan,
};

fn config() -> SchedulerConfig {
    SchedulerConfig {
        groups: vec![GroupConfig { window: None, num_blocks: 64 }],
        block_size: 4,
        max_num_seqs: 4,
        max_num_batched_tokens: 16,
        max_num_mixed_prefill_tokens: 16,
        max_logit_rows: 16,
        max_model_len: 64,
        enable_prefix_caching: true,
        hash_key: 1,
    }
}

fn scheduler(change: impl FnOnce(&mut SchedulerConfig)) -> Scheduler {
    let mut config = config();
    change(&mut config);
    Scheduler::new(config).unwrap()
}

/// A prompt of `len` tokens that shares no prefix with those of other ids.
fn new(id: u64, len: i32, max_tokens: u32) -> NewSequence {
    let first = id as i32 * 1000;
    NewSequence { id, token_ids: (first..first + len).collect(), max_tokens, ..NewSequence::default() }
}

fn plan(scheduler: &mut Scheduler) -> StepPlan {
    let plan = scheduler.plan().unwrap().unwrap();
    scheduler.check().unwrap();
    plan
}

/// (id, tokens) of each part.
fn parts(plan: &StepPlan) -> Vec<(u64, i32)> {
    let tokens = plan.cu_seqlens_q.windows(2).map(|pair| pair[1] - pair[0]);
    plan.seqs.iter().map(|part| part.id).zip(tokens).collect()
}

fn commit(scheduler: &mut Scheduler, plan: &StepPlan, token: i32) -> Vec<(u64, FinishReason)> {
    let sampling = plan.seqs.iter().filter(|part| part.samples);
    let results: Vec<_> =
        sampling.map(|part| Sampled { id: part.id, epoch: part.epoch, tokens: vec![token] }).collect();
    let ended = scheduler.commit(plan, &results).unwrap();
    scheduler.check().unwrap();
    ended
}

fn step(scheduler: &mut Scheduler) -> Vec<(u64, i32)> {
    let plan = plan(scheduler);
    commit(scheduler, &plan, 5);
    parts(&plan)
}

#[test]
fn settings_out_of_range_are_refused() {
    let field = |change: fn(&mut SchedulerConfig)| {
        let mut config = config();
        change(&mut config);
        Scheduler::new(config).unwrap_err().to_string()
    };
    for message in [
        field(|config| config.max_num_seqs = 0),
        field(|config| config.max_num_batched_tokens = 0),
        field(|config| config.max_num_mixed_prefill_tokens = 0),
        field(|config| config.max_logit_rows = u32::MAX),
        field(|config| config.max_model_len = 1),
        field(|config| config.block_size = 0),
        field(|config| config.groups.clear()),
    ] {
        assert!(message.contains("expected"), "{message}");
    }
}

#[test]
fn admission_refuses_what_can_never_run() {
    let mut scheduler = scheduler(|config| config.groups[0].num_blocks = 5);
    let errors = [
        (NewSequence { token_ids: vec![], ..new(1, 1, 1) }, SchedError::EmptyPrompt),
        (new(1, 64, 1), SchedError::PromptTooLong { got: 64, limit: 63 }),
        (new(1, 3, 0), SchedError::NoOutput),
        (
            NewSequence { token_ids: vec![1, -2], ..new(1, 1, 1) },
            SchedError::NegativeToken { field: "token_ids", index: 1, got: -2 },
        ),
        (
            NewSequence { stop_token_ids: vec![-1], ..new(1, 1, 1) },
            SchedError::NegativeToken { field: "stop_token_ids", index: 0, got: -1 },
        ),
        (new(1, 10, 11), SchedError::CannotFit { group: 0, needed: 6, total: 5 }),
        (new(1, 10, u32::MAX), SchedError::CannotFit { group: 0, needed: 16, total: 5 }),
    ];
    for (new, error) in errors {
        assert_eq!(scheduler.add(new), Err(error));
    }
    assert!(!scheduler.has_work());
    scheduler.add(new(1, 10, 10)).unwrap();
    assert_eq!(scheduler.add(new(1, 10, 10)), Err(SchedError::DuplicateId { id: 1 }));
}

#[test]
fn a_window_group_is_judged_by_window_and_chunk() {
    let groups = |window_blocks| {
        let window = GroupConfig { window: Some(9), num_blocks: window_blocks };
        vec![GroupConfig { window: None, num_blocks: 64 }, window]
    };
    // 8 positions before the chunk and 16 in it touch at most 7 blocks of 4.
    let mut small = scheduler(|config| config.groups = groups(6));
    assert_eq!(small.add(new(1, 63, 1)), Err(SchedError::CannotFit { group: 1, needed: 7, total: 6 }));
    small.add(new(1, 20, 4)).unwrap();
    let mut enough = scheduler(|config| config.groups = groups(7));
    enough.add(new(1, 43, 20)).unwrap();
    while enough.has_work() {
        step(&mut enough);
    }
    assert_eq!(enough.stats().preemptions, 0);
}

#[test]
fn decodes_go_first_then_prefills_then_admissions_within_the_budget() {
    let mut scheduler = scheduler(|config| config.max_num_batched_tokens = 8);
    scheduler.add(new(1, 3, 9)).unwrap();
    scheduler.add(new(2, 12, 9)).unwrap();
    scheduler.add(new(3, 4, 9)).unwrap();
    assert_eq!(step(&mut scheduler), [(1, 3), (2, 5)]);
    assert_eq!(step(&mut scheduler), [(1, 1), (2, 7)]);
    assert_eq!(step(&mut scheduler), [(1, 1), (2, 1), (3, 4)]);
    assert_eq!(step(&mut scheduler), [(1, 1), (2, 1), (3, 1)]);
    let stats = scheduler.stats();
    assert_eq!((stats.steps, stats.decode_steps, stats.decode_tokens, stats.prefill_tokens), (4, 3, 6, 19));
}

#[test]
fn prompts_come_in_smaller_pieces_while_others_decode() {
    let mut scheduler = scheduler(|config| {
        config.max_num_batched_tokens = 12;
        config.max_num_mixed_prefill_tokens = 4;
    });
    scheduler.add(new(1, 3, 4)).unwrap();
    scheduler.add(new(2, 20, 2)).unwrap();
    scheduler.add(new(3, 7, 2)).unwrap();
    assert_eq!(step(&mut scheduler), [(1, 3), (2, 9)]);
    assert_eq!(step(&mut scheduler), [(1, 1), (2, 4)]);
    assert_eq!(step(&mut scheduler), [(1, 1), (2, 4)]);
    assert_eq!(step(&mut scheduler), [(1, 1), (2, 3), (3, 1)]);
    assert_eq!(step(&mut scheduler), [(2, 1), (3, 4)]);
    assert_eq!(step(&mut scheduler), [(3, 2)]);
}

#[test]
fn at_most_max_num_seqs_run_and_nobody_overtakes() {
    let mut scheduler = scheduler(|config| config.max_num_seqs = 2);
    for id in 1..=3 {
        scheduler.add(new(id, 2, 2)).unwrap();
    }
    assert_eq!(step(&mut scheduler), [(1, 2), (2, 2)]);
    assert_eq!((scheduler.stats().num_running, scheduler.stats().num_waiting), (2, 1));
    assert_eq!(step(&mut scheduler), [(1, 1), (2, 1)]);
    assert_eq!(step(&mut scheduler), [(3, 2)]);
}

#[test]
fn the_arrays_say_what_the_step_is() {
    let mut scheduler = scheduler(|config| config.max_num_batched_tokens = 7);
    scheduler.add(new(1, 5, 3)).unwrap();
    scheduler.add(new(2, 6, 3)).unwrap();
    let first = plan(&mut scheduler);
    assert_eq!(first.token_ids, [1000, 1001, 1002, 1003, 1004, 2000, 2001]);
    assert_eq!(first.positions, [0, 1, 2, 3, 4, 0, 1]);
    assert_eq!((first.cu_seqlens_q.as_slice(), first.seq_lens.as_slice()), (&[0, 5, 7][..], &[5, 2][..]));
    assert_eq!(first.logit_rows, [4]);
    assert_eq!((first.seqs[0].samples, first.seqs[0].num_rows), (true, 1));
    assert_eq!((first.seqs[1].samples, first.seqs[1].num_rows), (false, 0));
    let group = &first.groups[0];
    assert_eq!((group.max_blocks, group.block_tables.as_slice()), (2, &[0, 1, 2, -1][..]));
    assert_eq!(group.slot_mapping, [0, 1, 2, 3, 4, 8, 9]);
    commit(&mut scheduler, &first, 7);
    let second = plan(&mut scheduler);
    assert_eq!((second.token_ids[0], second.positions[0], second.seq_lens[0]), (7, 5, 6));
    assert_eq!(second.groups[0].slot_mapping, [5, 10, 11, 12, 13]);
    assert_eq!(second.logit_rows, [0, 4]);
}

#[test]
fn a_sequence_ends_by_stop_token_or_length() {
    let ended = |max_tokens, stop_token_ids, tokens: &[i32]| {
        let mut scheduler = scheduler(|config| config.max_model_len = 8);
        scheduler.add(NewSequence { stop_token_ids, ..new(1, 4, max_tokens) }).unwrap();
        let plan = plan(&mut scheduler);
        let result = Sampled { id: 1, epoch: 0, tokens: tokens.to_vec() };
        let ended = scheduler.commit(&plan, &[result]).unwrap();
        scheduler.check().unwrap();
        assert_eq!(scheduler.has_work(), ended.is_empty());
        ended.first().map(|(_, reason)| *reason)
    };
    assert_eq!(ended(3, vec![], &[1, 2]), None);
    assert_eq!(ended(3, vec![], &[1, 2, 3]), Some(FinishReason::Length));
    assert_eq!(ended(3, vec![2], &[1, 2, 3]), Some(FinishReason::Stop));
    assert_eq!(ended(3, vec![3], &[1, 2, 3]), Some(FinishReason::Stop));
    assert_eq!(ended(2, vec![3], &[1, 2, 3]), Some(FinishReason::Length));
    assert_eq!(ended(9, vec![], &[1, 2, 3, 4, 5]), Some(FinishReason::Length));
}

#[test]
fn several_tokens_at_once_are_all_computed_next() {
    let mut scheduler = scheduler(|_| ());
    scheduler.add(new(1, 4, 9)).unwrap();
    let first = plan(&mut scheduler);
    scheduler.commit(&first, &[Sampled { id: 1, epoch: 0, tokens: vec![7, 8, 9] }]).unwrap();
    let second = plan(&mut scheduler);
    assert_eq!((second.token_ids, second.positions), (vec![7, 8, 9], vec![4, 5, 6]));
    assert_eq!(second.logit_rows, [2]);
}

#[test]
fn a_hit_skips_the_prefix_and_is_counted() {
    let mut scheduler = scheduler(|_| ());
    scheduler.add(new(1, 10, 1)).unwrap();
    assert_eq!(scheduler.num_cached_tokens(1), None);
    // Blocks are shared once they are committed, not before.
    scheduler.add(NewSequence { id: 2, ..new(1, 6, 1) }).unwrap();
    assert_eq!(step(&mut scheduler), [(1, 10), (2, 6)]);
    scheduler.add(NewSequence { id: 3, ..new(1, 10, 1) }).unwrap();
    scheduler.add(NewSequence { id: 4, salt: vec![1], ..new(1, 8, 1) }).unwrap();
    let plan = plan(&mut scheduler);
    assert_eq!(parts(&plan), [(3, 2), (4, 8)]);
    assert_eq!((scheduler.num_cached_tokens(3), scheduler.num_cached_tokens(4)), (Some(8), Some(0)));
    let stats = scheduler.stats();
    assert_eq!((stats.prefix_query_tokens, stats.prefix_hit_tokens), (34, 8));
    commit(&mut scheduler, &plan, 5);
    assert_eq!(scheduler.stats().groups[0].used, 0);
    assert_eq!(scheduler.reset_prefix_cache(), 4);
    assert_eq!(scheduler.reset_prefix_cache(), 0);
}

#[test]
fn a_full_pool_preempts_the_youngest_and_it_resumes() {
    // FAULTS 98: 7 blocks of 16, two requests of 34 + 35 tokens.
    let mut scheduler = scheduler(|config| {
        config.groups[0].num_blocks = 7;
        config.block_size = 16;
        config.max_num_batched_tokens = 128;
        config.max_model_len = 128;
    });
    scheduler.add(new(1, 34, 35)).unwrap();
    scheduler.add(new(2, 34, 35)).unwrap();
    let (mut order, mut epochs, mut recomputed) = (Vec::new(), 0, Vec::new());
    while scheduler.has_work() {
        let plan = plan(&mut scheduler);
        for (part, count) in plan.seqs.iter().zip(plan.cu_seqlens_q.windows(2)) {
            assert!(part.id == 2 || part.epoch == 0, "the oldest is never preempted");
            if part.epoch > epochs {
                epochs = part.epoch;
                recomputed.push(count[1] - count[0]);
            }
        }
        order.extend(commit(&mut scheduler, &plan, 5));
    }
    assert_eq!(order, [(1, FinishReason::Length), (2, FinishReason::Length)]);
    assert!(epochs >= 1 && scheduler.stats().preemptions == u64::from(epochs));
    // Two full blocks of the second stayed cached, so that only the rest was computed again.
    assert!(recomputed.iter().all(|&count| count <= 64 - 32), "{recomputed:?}");
}

#[test]
fn stale_results_are_dropped() {
    let mut scheduler = scheduler(|_| ());
    scheduler.add(new(1, 4, 9)).unwrap();
    let first = plan(&mut scheduler);
    let given_up = first.clone();
    let first = StepPlan { step: first.step + 1, ..first };
    assert_eq!(plan(&mut scheduler), first, "what was not committed is planned again");
    assert_eq!(commit(&mut scheduler, &given_up, 5), []);
    // Unknown ids and old epochs beside a good result.
    let result = |id, epoch| Sampled { id, epoch, tokens: vec![5] };
    scheduler.commit(&first, &[result(9, 0), result(1, 7), result(1, 0)]).unwrap();
    commit(&mut scheduler, &first, 6);
    let second = plan(&mut scheduler);
    assert_eq!((second.token_ids.as_slice(), second.positions.as_slice()), (&[5][..], &[4][..]));
    let bad = Sampled { id: 1, epoch: 0, tokens: vec![-1] };
    assert_eq!(
        scheduler.commit(&second, &[bad]),
        Err(SchedError::NegativeToken { field: "sampled", index: 0, got: -1 })
    );
    // Without a result the last token is planned again.
    scheduler.commit(&second, &[]).unwrap();
    assert_eq!(plan(&mut scheduler).token_ids, [5]);
}

#[test]
fn a_sequence_can_be_finished_at_any_moment() {
    let mut scheduler = scheduler(|config| config.max_num_batched_tokens = 8);
    for id in 1..=3 {
        scheduler.add(new(id, 6, 9)).unwrap();
    }
    let first = plan(&mut scheduler);
    assert_eq!(parts(&first), [(1, 6), (2, 2)]);
    assert!(scheduler.finish(1) && !scheduler.finish(1));
    assert!(scheduler.finish(3), "still waiting");
    // A newcomer of the same id does not get the old one's result.
    scheduler.add(new(1, 3, 9)).unwrap();
    assert_eq!(commit(&mut scheduler, &first, 5), []);
    assert_eq!(step(&mut scheduler), [(2, 4), (1, 3)]);
    assert!(scheduler.finish(2) && scheduler.finish(1));
    assert_eq!(scheduler.plan(), Ok(None));
    let gauges = scheduler.stats().groups[0];
    assert_eq!((gauges.used, gauges.free + gauges.cached), (0, gauges.total));
}

#[test]
fn prompt_logprobs_want_each_prompt_row_once_and_no_hit() {
    let mut scheduler = scheduler(|config| config.max_logit_rows = 4);
    scheduler.add(new(1, 9, 1)).unwrap();
    while scheduler.has_work() {
        step(&mut scheduler);
    }
    scheduler.add(NewSequence { id: 2, prompt_logprobs: true, ..new(1, 9, 3) }).unwrap();
    let mut rows = Vec::new();
    while scheduler.has_work() {
        let plan = plan(&mut scheduler);
        assert!(plan.logit_rows.len() <= 4);
        rows.push(plan.logit_rows.iter().map(|&row| plan.positions[row as usize]).collect::<Vec<_>>());
        commit(&mut scheduler, &plan, 5);
    }
    assert_eq!(rows, [vec![0, 1, 2, 3], vec![4, 5, 6, 7], vec![8], vec![9], vec![10]]);
}

#[test]
fn the_oldest_prefill_does_not_starve_behind_decodes() {
    let mut scheduler = scheduler(|config| config.max_logit_rows = 2);
    scheduler.add(NewSequence { prompt_logprobs: true, ..new(1, 12, 2) }).unwrap();
    scheduler.add(new(2, 2, 30)).unwrap();
    scheduler.add(new(3, 2, 30)).unwrap();
    for _ in 0..12 {
        let plan = plan(&mut scheduler);
        assert!(plan.seqs.iter().any(|part| part.id == 1));
        commit(&mut scheduler, &plan, 5);
    }
    assert_eq!(scheduler.stats().num_waiting, 0);
}

#[test]
fn an_idle_scheduler_has_nothing_to_do() {
    let mut scheduler = scheduler(|_| ());
    assert_eq!(scheduler.plan(), Ok(None));
    assert!(!scheduler.has_work() && !scheduler.finish(1));
    assert_eq!(scheduler.num_cached_tokens(1), None);
    let groups = scheduler.stats().groups;
    assert_eq!(scheduler.stats(), Stats { groups, ..Stats::default() });
}
