//! Draws from the best tokens against draws from the whole row: the same token, or none.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test, helpers included")]

use proptest::prelude::*;
use pyrite_sample::{BestTokens, Sample, SampleError, Sampler, SamplerConfig, Scratch};

/// The best `count` tokens below `limit` and the log-sum-exp, in f64, rounded once.
fn best_of(row: &[f32], count: usize, limit: usize) -> (Vec<i32>, Vec<f32>, f32) {
    let row = &row[..limit.min(row.len())];
    let mut ids: Vec<usize> = (0..row.len()).collect();
    ids.sort_by(|&a, &b| row[b].partial_cmp(&row[a]).unwrap().then(a.cmp(&b)));
    let max = f64::from(row[ids[0]]);
    let lse = max + row.iter().map(|&x| (f64::from(x) - max).exp()).sum::<f64>().ln();
    ids.truncate(count);
    (ids.iter().map(|&id| id as i32).collect(), ids.iter().map(|&id| row[id]).collect(), lse as f32)
}

/// What the best `count` tokens give, with the log-sum-exp off by `error`.
fn draw(config: &SamplerConfig, row: &[f32], count: usize, error: f32) -> Option<Sample> {
    let num_tokens = config.vocab_limit.min(row.len());
    let (ids, logits, lse) = best_of(row, count.min(num_tokens), num_tokens);
    let best = BestTokens::new(&ids, &logits, lse + error, num_tokens).unwrap();
    Sampler::new(config.clone()).unwrap().sample_best(&best, 11, &mut Scratch::new()).unwrap()
}

fn whole(config: &SamplerConfig, row: &[f32]) -> Sample {
    Sampler::new(config.clone()).unwrap().sample(row, 11, &mut Scratch::new()).unwrap()
}

fn row() -> impl Strategy<Value = Vec<f32>> {
    prop_oneof![
        proptest::collection::vec(-12.0f32..12.0, 1..600),
        proptest::collection::vec((-3i8..4).prop_map(f32::from), 1..600), // ties everywhere
        proptest::collection::vec(
            prop_oneof![
                6 => -9.0f32..0.0,
                1 => 0.0f32..14.0,
                1 => Just(-0.0f32),
                1 => Just(0.0f32),
                1 => Just(f32::NEG_INFINITY),
            ],
            1..600
        ),
    ]
    .prop_filter("a finite logit", |row| row.iter().any(|x| x.is_finite()))
}

fn config() -> impl Strategy<Value = SamplerConfig> {
    (
        prop_oneof![1 => Just(0.0f32), 2 => Just(1.0), 4 => 0.05f32..3.0, 1 => Just(1e-5), 1 => Just(1e30)],
        prop_oneof![4 => Just(0u32), 2 => 1u32..40, 1 => 40u32..1000],
        prop_oneof![2 => Just(1.0f32), 4 => 0.01f32..1.0, 1 => Just(0.5)],
        prop_oneof![3 => Just(0.0f32), 1 => Just(1.0), 3 => 1e-6f32..0.5],
        any::<u64>(),
        prop_oneof![3 => Just(usize::MAX), 1 => 1usize..200],
        proptest::option::of(0u32..8),
    )
        .prop_map(|(temperature, top_k, top_p, min_p, seed, vocab_limit, logprobs)| SamplerConfig {
            temperature,
            top_k,
            top_p,
            min_p,
            seed,
            stream: 3,
            vocab_limit,
            logprobs,
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(6000))]

    #[test]
    fn a_draw_is_that_of_the_whole_row(
        row in row(), config in config(), count in 1usize..80, error in -2e-5f32..2e-5,
    ) {
        let limit = config.vocab_limit.min(row.len());
        prop_assume!(row[..limit].iter().any(|x| x.is_finite()));
        let Some(got) = draw(&config, &row, count, error) else { return Ok(()) };
        let expected = whole(&config, &row);
        prop_assert_eq!((got.token_id, got.rank), (expected.token_id, expected.rank));
        let (got_ids, ids): (Vec<u32>, Vec<u32>) =
            (got.top.iter().map(|t| t.0).collect(), expected.top.iter().map(|t| t.0).collect());
        prop_assert_eq!(got_ids, ids);
        let pairs = got.top.iter().zip(&expected.top).map(|(a, b)| (a.1, b.1));
        for (a, b) in pairs.chain(got.logprob.zip(expected.logprob)) {
            prop_assert!(a <= 0.0 && (a - b).abs() <= 5e-5, "{} {}", a, b);
        }
    }
}

/// Logits as a model gives them: few likely tokens, a long tail.
fn peaked(n: usize) -> Vec<f32> {
    (0..n as u32).map(|i| 10.0 - 2.0 * ((i.wrapping_mul(2_654_435_761) % n as u32 + 1) as f32).ln()).collect()
}

#[test]
fn ordinary_settings_are_decided() {
    let row = peaked(5000);
    let plain = SamplerConfig { seed: 5, ..SamplerConfig::default() };
    for config in [
        SamplerConfig { temperature: 0.0, ..plain.clone() },
        SamplerConfig { top_k: 64, ..plain.clone() },
        SamplerConfig { top_k: 20, top_p: 0.95, temperature: 0.6, ..plain.clone() },
        SamplerConfig { top_p: 0.9, ..plain.clone() },
        SamplerConfig { top_p: 0.9, temperature: 0.7, ..plain.clone() },
        SamplerConfig { top_p: 0.8, temperature: 1.1, ..plain.clone() },
        SamplerConfig { min_p: 0.05, temperature: 1.3, ..plain.clone() },
    ] {
        assert_eq!(
            draw(&config, &row, 64, 0.0).map(|s| s.token_id),
            Some(whole(&config, &row).token_id),
            "{config:?}"
        );
    }
}

#[test]
fn what_the_best_tokens_cannot_tell_takes_the_row() {
    let row = peaked(5000);
    let plain = SamplerConfig { seed: 5, ..SamplerConfig::default() };
    for config in [
        plain.clone(),
        SamplerConfig { top_k: 65, ..plain.clone() },
        SamplerConfig { top_p: 0.999, ..plain.clone() },
        SamplerConfig { top_p: 0.9, temperature: 2.5, ..plain.clone() },
        SamplerConfig { min_p: 1e-9, ..plain.clone() },
        SamplerConfig { temperature: 0.0, logprobs: Some(65), ..plain.clone() },
    ] {
        assert_eq!(draw(&config, &row, 64, 0.0), None, "{config:?}");
    }
}

/// The nucleus ends just where the last candidate's mass does: inside the bounds, so the row must decide.
#[test]
fn a_nucleus_within_the_error_of_the_sum_takes_the_row() {
    let row: Vec<f32> = vec![1.0; 100];
    let at = |top_p| draw(&SamplerConfig { top_p, seed: 5, ..SamplerConfig::default() }, &row, 64, 0.0);
    assert_eq!(at(0.5), None);
    assert!(at(0.505).is_some());
    assert_eq!(at(0.64), None);
    assert_eq!(at(0.7), None);
}

#[test]
fn rows_that_cannot_be_sampled_are_left_to_the_row() {
    let greedy = Sampler::new(SamplerConfig { temperature: 0.0, ..SamplerConfig::default() }).unwrap();
    for (first, lse) in [(f32::NAN, f32::NAN), (f32::INFINITY, f32::INFINITY), (1.0, f32::NAN)] {
        let logits = [first, 0.5];
        let best = BestTokens::new(&[4, 2], &logits, lse, 9).unwrap();
        assert_eq!(greedy.sample_best(&best, 0, &mut Scratch::new()), Ok(None));
    }
    let nothing = BestTokens::new(&[0, 1], &[f32::NEG_INFINITY; 2], f32::NEG_INFINITY, 9).unwrap();
    assert_eq!(greedy.sample_best(&nothing, 0, &mut Scratch::new()), Ok(None));
}

#[test]
fn candidates_out_of_order_are_refused() {
    let refused = |ids: &[i32], logits: &[f32], num_tokens| {
        matches!(BestTokens::new(ids, logits, 1.0, num_tokens), Err(SampleError::BadCandidates { .. }))
    };
    assert!(refused(&[1, 2], &[0.5, 0.6], 9));
    assert!(refused(&[2, 1], &[0.5, 0.5], 9));
    assert!(refused(&[2, 2], &[0.5, 0.5], 9));
    assert!(refused(&[2, 1], &[0.0, -0.0], 9));
    assert!(refused(&[1, 9], &[0.5, 0.4], 9));
    assert!(refused(&[-1], &[0.5], 9));
    assert!(refused(&[1, 2], &[0.5, f32::NAN], 9));
    assert!(refused(&[1, 2], &[0.5], 9));
    assert!(refused(&[], &[], 9));
    assert!(refused(&[0, 1], &[0.5, 0.4], 1));
    assert!(!refused(&[1, 2], &[-0.0, 0.0], 9));
    let best = BestTokens::new(&[7, 1], &[0.5, 0.4], 1.0, 9).unwrap();
    let limited =
        Sampler::new(SamplerConfig { temperature: 0.0, vocab_limit: 5, ..SamplerConfig::default() }).unwrap();
    assert!(limited.sample_best(&best, 0, &mut Scratch::new()).is_err());
}
