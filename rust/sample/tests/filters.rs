//! The chain against its specification, token for token, and what it refuses.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test, helpers included")]

use proptest::prelude::*;
use pyrite_sample::naive;
use pyrite_sample::{SampleError, Sampler, SamplerConfig, Scratch, token_logprobs};

fn logit() -> impl Strategy<Value = f32> {
    prop_oneof![
        4 => -12.0f32..12.0,
        3 => (-3i8..4).prop_map(f32::from),
        1 => Just(-0.0f32),
        1 => Just(f32::NEG_INFINITY),
        1 => prop_oneof![Just(f32::MIN), Just(f32::MAX), Just(1e-40f32)],
    ]
}

fn ordinary_row() -> impl Strategy<Value = Vec<f32>> {
    proptest::collection::vec(prop_oneof![4 => -12.0f32..12.0, 3 => (-3i8..4).prop_map(f32::from)], 1..900)
}

fn config() -> impl Strategy<Value = SamplerConfig> {
    (
        prop_oneof![Just(0.0f32), Just(1.0), Just(1e-5), Just(1e30), 0.05f32..3.0],
        prop_oneof![3 => Just(0u32), 2 => 1u32..20, 1 => 20u32..1000],
        prop_oneof![2 => Just(1.0f32), 1 => Just(f32::MIN_POSITIVE), 3 => 0.01f32..1.0, 1 => Just(0.5)],
        prop_oneof![2 => Just(0.0f32), 1 => Just(1.0), 3 => 1e-6f32..0.5],
        (any::<u64>(), any::<u64>()),
        prop_oneof![3 => Just(usize::MAX), 1 => 1usize..200],
    )
        .prop_map(|(temperature, top_k, top_p, min_p, (seed, stream), vocab_limit)| SamplerConfig {
            temperature,
            top_k,
            top_p,
            min_p,
            seed,
            stream,
            vocab_limit,
            logprobs: None,
        })
}

fn check(
    config: &SamplerConfig,
    row: &[f32],
    position: u32,
    scratch: &mut Scratch,
) -> Result<(), TestCaseError> {
    let got = Sampler::new(config.clone()).unwrap().sample(row, u64::from(position), scratch);
    match naive::draw(config, row, u64::from(position)).unwrap() {
        Some(expected) => prop_assert_eq!(got.map(|s| s.token_id), Ok(expected)),
        None => prop_assert!(matches!(got, Err(SampleError::NoFiniteLogit { .. })), "{:?}", got),
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    #[test]
    fn every_draw_equals_the_naive_one(
        config in config(),
        row in proptest::collection::vec(logit(), 1..900),
        position in any::<u32>(),
    ) {
        check(&config, &row, position, &mut Scratch::new())?;
    }

    #[test]
    fn ordinary_rows_too(config in config(), row in ordinary_row(), position in any::<u32>()) {
        let mut scratch = Scratch::new();
        for step in 0..4 {
            check(&config, &row, position.wrapping_add(step), &mut scratch)?;
        }
    }

    #[test]
    fn a_drawn_token_survives_every_filter(config in config(), row in ordinary_row(), position in any::<u32>()) {
        let sampler = Sampler::new(config.clone()).unwrap();
        let drawn = sampler.sample(&row, u64::from(position), &mut Scratch::new()).unwrap().token_id;
        let alive = naive::survivors(&config, &row);
        prop_assert!(alive.contains(&drawn));
        prop_assert!((drawn as usize) < config.vocab_limit);
        if config.top_k > 0 {
            prop_assert!(alive.len() <= config.top_k as usize);
        }
    }

    #[test]
    fn temperature_zero_and_top_k_one_are_the_argmax(row in proptest::collection::vec(logit(), 1..200), seed in any::<u64>()) {
        prop_assume!(row.iter().any(|&l| l > f32::NEG_INFINITY));
        let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let expected = row.iter().position(|&l| l == max).unwrap() as u32;
        for (temperature, top_k) in [(0.0, 0), (1e-30, 7), (1.0, 1), (2.0, 1)] {
            let sampler = Sampler::new(SamplerConfig { temperature, top_k, seed, ..Default::default() }).unwrap();
            prop_assert_eq!(sampler.sample(&row, 3, &mut Scratch::new()).unwrap().token_id, expected);
        }
    }

    #[test]
    fn logprobs_are_those_of_the_raw_distribution(
        row in proptest::collection::vec(logit(), 1..600),
        limit in prop_oneof![Just(usize::MAX), 1usize..600],
        top in 0u32..30,
        config in config(),
    ) {
        let cut = &row[..limit.min(row.len())];
        prop_assume!(cut.iter().any(|&l| l > f32::NEG_INFINITY));
        let mut order: Vec<u32> = (0..cut.len() as u32).filter(|&i| cut[i as usize] > f32::NEG_INFINITY).collect();
        order.sort_by(|&a, &b| cut[b as usize].partial_cmp(&cut[a as usize]).unwrap().then(a.cmp(&b)));
        let max = f64::from(cut[order[0] as usize]);
        let log_total = cut.iter().map(|&l| (f64::from(l) - max).exp()).sum::<f64>().ln();
        let mut scratch = Scratch::new();
        for id in [0, cut.len() as u32 - 1, order[0]] {
            let got = token_logprobs(&row, limit, id, top, &mut scratch).unwrap();
            let logit = cut[id as usize];
            let expected = (f64::from(logit) - max - log_total).max(f64::from(f32::MIN));
            if logit == f32::NEG_INFINITY {
                prop_assert_eq!(got.logprob, f32::NEG_INFINITY);
            } else {
                prop_assert!(got.logprob.is_finite() && got.logprob <= 0.0);
                prop_assert!((f64::from(got.logprob) - expected).abs() <= 1e-6 * expected.abs().max(1.0));
            }
            prop_assert_eq!(got.rank as usize, 1 + cut.iter().filter(|&&other| other > logit).count());
            prop_assert_eq!(got.top.iter().map(|&(id, _)| id).collect::<Vec<_>>(), &order[..order.len().min(top as usize)]);
            prop_assert!(got.top.is_sorted_by(|a, b| a.1 >= b.1));
            for &(id, logprob) in &got.top {
                prop_assert_eq!(logprob, token_logprobs(&row, limit, id, 0, &mut scratch).unwrap().logprob);
            }
        }
        // A sample reports the same numbers, whatever its filters do.
        let sampler = Sampler::new(SamplerConfig { logprobs: Some(top), vocab_limit: limit, ..config }).unwrap();
        let sample = sampler.sample(&row, 1, &mut scratch).unwrap();
        let raw = token_logprobs(&row, limit, sample.token_id, top, &mut scratch).unwrap();
        prop_assert_eq!((sample.logprob, sample.rank, sample.top), (Some(raw.logprob), Some(raw.rank), raw.top));
    }
}

#[test]
fn large_vocabularies_equal_the_naive_draw() {
    let mut scratch = Scratch::new();
    for shape in 0..3u32 {
        let row: Vec<f32> = (0..40_003u32)
            .map(|i| {
                let hash = (i ^ shape).wrapping_mul(2_654_435_761) ^ (i << 7);
                match shape {
                    0 => (hash >> 8) as f32 / (1 << 24) as f32 * 20.0,
                    1 => 0.0,
                    _ => i as f32 / 5000.0,
                }
            })
            .collect();
        for (top_k, top_p, min_p) in
            [(0, 1.0, 0.0), (0, 0.9, 0.0), (5000, 0.99, 1e-3), (0, 1.0, 0.02), (64, 0.95, 0.0)]
        {
            for position in 0..3 {
                let config = SamplerConfig { top_k, top_p, min_p, seed: 11, ..Default::default() };
                let expected = naive::draw(&config, &row, position).unwrap();
                let got = Sampler::new(config).unwrap().sample(&row, position, &mut scratch).unwrap();
                assert_eq!(Some(got.token_id), expected, "shape {shape}, {top_k} {top_p} {min_p}");
            }
        }
    }
}

#[test]
fn ties_at_a_boundary_keep_the_lowest_ids() {
    let row = [1.0, 2.0, 1.0, 2.0, 1.0];
    let alive = |config: SamplerConfig| naive::survivors(&config, &row);
    assert_eq!(alive(SamplerConfig { top_k: 3, ..Default::default() }), [1, 3, 0]);
    // Four equal tokens, half the mass: the second reaches it exactly and is the last.
    assert_eq!(naive::survivors(&SamplerConfig { top_p: 0.5, ..Default::default() }, &[0.0; 4]), [0, 1]);
    assert_eq!(alive(SamplerConfig { min_p: 1.0, ..Default::default() }), [1, 3]);
    assert_eq!(alive(SamplerConfig { top_p: f32::MIN_POSITIVE, ..Default::default() }), [1]);
}

#[test]
fn settings_out_of_range_name_the_field() {
    let base = SamplerConfig::default;
    let cases = [
        ("temperature", SamplerConfig { temperature: f32::NAN, ..base() }),
        ("temperature", SamplerConfig { temperature: f32::INFINITY, ..base() }),
        ("temperature", SamplerConfig { temperature: -1.0, ..base() }),
        ("top_p", SamplerConfig { top_p: 0.0, ..base() }),
        ("top_p", SamplerConfig { top_p: -0.1, ..base() }),
        ("top_p", SamplerConfig { top_p: 1.000_001, ..base() }),
        ("top_p", SamplerConfig { top_p: f32::NAN, ..base() }),
        ("min_p", SamplerConfig { min_p: -0.1, ..base() }),
        ("min_p", SamplerConfig { min_p: 1.1, ..base() }),
        ("min_p", SamplerConfig { min_p: f32::NAN, ..base() }),
        ("vocab_limit", SamplerConfig { vocab_limit: 0, ..base() }),
    ];
    for (expected, config) in cases {
        match Sampler::new(config.clone()).map(|_| ()) {
            Err(SampleError::OutOfRange { field, .. }) => assert_eq!(field, expected),
            other => panic!("{config:?}: {other:?}"),
        }
    }
    let error = Sampler::new(SamplerConfig { top_p: 1.5, ..base() }).unwrap_err();
    assert_eq!(error.to_string(), "top_p: got 1.5, expected a number in (0, 1]");
}

#[test]
fn bad_rows_are_typed_errors_and_the_next_row_is_fine() {
    let sampler = Sampler::new(SamplerConfig { logprobs: Some(2), ..Default::default() }).unwrap();
    let mut scratch = Scratch::new();
    let good = [0.0, 3.0, 1.0];
    let expected = sampler.sample(&good, 5, &mut scratch);
    for bad in [[0.0, f32::NAN, 1.0], [f32::INFINITY, 0.0, 0.0]] {
        assert!(matches!(sampler.sample(&bad, 5, &mut scratch), Err(SampleError::NonFinite { .. })));
        assert_eq!(sampler.sample(&good, 5, &mut scratch), expected);
    }
    let none = [f32::NEG_INFINITY; 3];
    assert_eq!(sampler.sample(&none, 5, &mut scratch), Err(SampleError::NoFiniteLogit { num_tokens: 3 }));
    assert_eq!(sampler.sample(&[], 5, &mut scratch), Err(SampleError::NoFiniteLogit { num_tokens: 0 }));
    assert_eq!(sampler.sample(&good, 5, &mut scratch), expected);
    assert!(matches!(
        token_logprobs(&good, 2, 2, 1, &mut scratch),
        Err(SampleError::OutOfRange { field: "token_id", .. })
    ));
}
