//! Random lives of many requests: arrivals, shared prefixes, tiny pools, aborts, steps given up, stale and lost results.

mod world;

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

use world::run;

use crate::{GroupConfig, NewSequence, SchedulerConfig};

/// Planted bugs, to show that the checks find them.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Faults {
    pub(crate) starve_oldest: bool,
    pub(crate) accept_stale: bool,
    pub(crate) forget_rows: bool,
    pub(crate) early_commit: bool,
    pub(crate) lose_output: bool,
}

#[derive(Clone, Debug)]
struct Request {
    arrives: u64,
    new: NewSequence,
    /// Step at which it is aborted, and whether that happens between plan and commit.
    abort: Option<(u64, bool)>,
}

#[derive(Clone, Copy, Debug)]
enum Event {
    Plain,
    /// Plan, run, and plan again without a commit.
    GiveUp,
    /// Commit the plan before last, and this one twice.
    Stale,
    /// One sequence gets no result.
    Miss(usize),
    /// Results of several tokens.
    Several(usize),
    Reset,
}

#[derive(Clone, Debug)]
struct Life {
    config: SchedulerConfig,
    requests: Vec<Request>,
    events: Vec<Event>,
}

fn request() -> impl Strategy<Value = Request> {
    let prompt = (0..16i32, prop::collection::vec(0..3i32, 1..12), 0..2i32);
    let limits = (1..24u32, prop::collection::vec(0..40i32, 0..2), prop::bool::weighted(0.3), 0..2u8);
    let abort = prop::option::weighted(0.2, (0..40u64, any::<bool>()));
    (prompt, limits, 0..12u64, abort).prop_map(|((shared, tail, stream), limits, arrives, abort)| {
        let (max_tokens, stop_token_ids, prompt_logprobs, salt) = limits;
        let shared = (0..shared).map(|i| (i * i + stream * (i / 5)) % 3);
        let token_ids = shared.chain(tail).collect();
        let new =
            NewSequence { id: 0, token_ids, max_tokens, stop_token_ids, prompt_logprobs, salt: vec![salt] };
        Request { arrives, new, abort }
    })
}

fn life() -> impl Strategy<Value = Life> {
    let groups = prop::collection::vec((prop::option::of(1..10u32), 6..28u32), 1..4);
    let limits = (1..5u32, 2..7u32, (1..20u32, 1..20u32), 1..10u32, 8..48u32);
    let event = prop_oneof![
        10 => Just(Event::Plain),
        1 => Just(Event::GiveUp),
        1 => Just(Event::Stale),
        1 => any::<usize>().prop_map(Event::Miss),
        2 => (2..5usize).prop_map(Event::Several),
        1 => Just(Event::Reset),
    ];
    let lives = (groups, limits, prop::bool::weighted(0.8), any::<u64>());
    (lives, prop::collection::vec(request(), 1..12), prop::collection::vec(event, 1..40)).prop_map(
        |((groups, limits, enable_prefix_caching, hash_key), mut requests, events)| {
            let (block_size, max_num_seqs, budgets, max_logit_rows, max_model_len) = limits;
            let (max_num_batched_tokens, max_num_mixed_prefill_tokens) = budgets;
            let groups =
                groups.into_iter().map(|(window, num_blocks)| GroupConfig { window, num_blocks }).collect();
            let config = SchedulerConfig {
                groups,
                block_size,
                max_num_seqs,
                max_num_batched_tokens,
                max_num_mixed_prefill_tokens,
                max_logit_rows,
                max_model_len,
                enable_prefix_caching,
                hash_key,
            };
            requests.sort_by_key(|request| request.arrives);
            requests.iter_mut().enumerate().for_each(|(id, request)| request.new.id = id as u64);
            Life { config, requests, events }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn random_lives_give_every_request_its_own_tokens(life in life()) {
        prop_assert_eq!(run(&life, Faults::default()).err(), None);
    }
}

fn fixed_lives() -> Vec<Life> {
    let mut runner = TestRunner::deterministic();
    (0..300).map(|_| life().new_tree(&mut runner).unwrap().current()).collect()
}

#[test]
fn decisions_are_deterministic_and_the_lives_are_eventful() {
    let (mut preemptions, mut hits, mut decodes) = (0, 0, 0);
    for life in fixed_lives() {
        let first = run(&life, Faults::default()).unwrap();
        assert_eq!(first, run(&life, Faults::default()).unwrap());
        preemptions += first.1.preemptions;
        hits += first.1.prefix_hit_tokens;
        decodes += first.1.decode_tokens;
    }
    assert!(preemptions > 40 && hits > 500 && decodes > 1000, "{preemptions} {hits} {decodes}");
}

#[test]
fn planted_bugs_are_found() {
    let lives = fixed_lives();
    let planted = [
        ("starve_oldest", Faults { starve_oldest: true, ..Faults::default() }),
        ("accept_stale", Faults { accept_stale: true, ..Faults::default() }),
        ("forget_rows", Faults { forget_rows: true, ..Faults::default() }),
        ("early_commit", Faults { early_commit: true, ..Faults::default() }),
        ("lose_output", Faults { lose_output: true, ..Faults::default() }),
    ];
    for (name, faults) in planted {
        let failed = |life: &&Life| std::panic::catch_unwind(|| run(life, faults)).is_ok_and(|r| r.is_err());
        assert!(lives.iter().filter(failed).count() > 0, "{name} was not found");
    }
}
