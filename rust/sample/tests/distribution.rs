//! Draws follow the exact distribution, depend on nothing but their arguments, and differ where they must.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test, helpers included")]

use pyrite_sample::{Sampler, SamplerConfig, Scratch, naive};

const DRAWS: u64 = 1_000_000;

fn draw(config: &SamplerConfig, row: &[f32], position: u64) -> u32 {
    Sampler::new(config.clone()).unwrap().sample(row, position, &mut Scratch::new()).unwrap().token_id
}

/// The chi-square statistic as a standard normal number (Wilson and Hilferty); cells expecting under 5 are pooled.
fn z_score(counts: &[u64], expected: &[f64]) -> f64 {
    let (mut statistic, mut cells) = (0.0, 0usize);
    let (mut rare, mut rare_expected) = (0.0, 0.0);
    for (&count, &p) in counts.iter().zip(expected) {
        let mean = p * DRAWS as f64;
        if p == 0.0 {
            assert_eq!(count, 0, "a token without probability was drawn");
        } else if mean < 5.0 {
            rare += count as f64;
            rare_expected += mean;
        } else {
            statistic += (count as f64 - mean).powi(2) / mean;
            cells += 1;
        }
    }
    if rare_expected >= 5.0 {
        statistic += (rare - rare_expected).powi(2) / rare_expected;
        cells += 1;
    }
    let freedom = (cells - 1) as f64;
    let spread = 2.0 / (9.0 * freedom);
    ((statistic / freedom).cbrt() - (1.0 - spread)) / spread.sqrt()
}

fn rows() -> Vec<(&'static str, Vec<f32>)> {
    vec![
        ("flat", vec![0.5; 37]),
        ("steep", (0..30).map(|i| -(i as f32) * 0.7).collect()),
        ("tied", (0..64).map(|i| (i % 5) as f32).collect()),
        (
            "masked",
            (0..50).map(|i| if i % 3 == 0 { f32::NEG_INFINITY } else { (i * 7 % 11) as f32 * 0.4 }).collect(),
        ),
        ("wide", (0..300).map(|i| ((i * 37 % 300) as f32).sqrt() * 0.3).collect()),
    ]
}

fn row(name: &str) -> Vec<f32> {
    rows().into_iter().find(|(other, _)| *other == name).unwrap().1
}

fn counts(row: &[f32], config: &SamplerConfig, vary_stream: bool) -> Vec<u64> {
    let mut scratch = Scratch::new();
    let mut counts = vec![0u64; row.len()];
    let sampler = Sampler::new(config.clone()).unwrap();
    for i in 0..DRAWS {
        let sample = if vary_stream {
            let sibling = Sampler::new(SamplerConfig { stream: i, ..config.clone() }).unwrap();
            sibling.sample(row, 17, &mut scratch)
        } else {
            sampler.sample(row, i, &mut scratch)
        };
        counts[sample.unwrap().token_id as usize] += 1;
    }
    counts
}

#[test]
fn a_million_draws_pass_chi_square() {
    let cases = [
        ("flat", (1.0, 0, 1.0, 0.0)),
        ("steep", (0.7, 0, 1.0, 0.0)),
        ("tied", (1.0, 23, 1.0, 0.0)),
        ("masked", (1.3, 0, 0.8, 0.0)),
        ("wide", (1.0, 0, 1.0, 0.05)),
        ("wide", (0.9, 100, 0.95, 0.02)),
    ];
    for (name, (temperature, top_k, top_p, min_p)) in cases {
        let row = row(name);
        let config =
            SamplerConfig { temperature, top_k, top_p, min_p, seed: 20_261_124, ..Default::default() };
        let z = z_score(&counts(&row, &config, false), &naive::distribution(&config, &row));
        assert!(z.abs() < 4.0, "{name} {config:?}: {z}");
    }
}

#[test]
fn siblings_at_one_position_pass_chi_square() {
    let row = row("steep");
    let config = SamplerConfig { seed: 5, ..Default::default() };
    let z = z_score(&counts(&row, &config, true), &naive::distribution(&config, &row));
    assert!(z.abs() < 4.0, "{z}");
}

#[test]
fn the_chi_square_test_notices_a_small_bias() {
    let row = row("steep");
    let config = SamplerConfig { seed: 20_261_124, ..Default::default() };
    let biased = SamplerConfig { temperature: 1.01, ..config.clone() };
    assert!(z_score(&counts(&row, &config, false), &naive::distribution(&biased, &row)) > 4.0);
}

/// Whether a set of draws gives the same tokens in every order. `draw` takes (row, position).
fn is_order_independent(mut draw: impl FnMut(&[f32], u64) -> u32) -> bool {
    let rows: Vec<Vec<f32>> =
        (0..16u32).map(|r| (0..200u32).map(|i| (i * (r + 3) % 17) as f32 * 0.3).collect()).collect();
    let mut expected = vec![0; rows.len()];
    for (i, row) in rows.iter().enumerate() {
        expected[i] = draw(row, 100 + i as u64);
    }
    [3, 5, 7, 15].into_iter().all(|stride| {
        (0..rows.len())
            .map(|i| i * stride % rows.len())
            .all(|i| draw(&rows[i], 100 + i as u64) == expected[i])
    })
}

#[test]
fn permuting_a_batch_permutes_its_tokens_and_a_stream_rng_is_caught() {
    let sampler = Sampler::new(SamplerConfig { seed: 1, ..Default::default() }).unwrap();
    let mut scratch = Scratch::new();
    assert!(is_order_independent(|row, position| sampler
        .sample(row, position, &mut scratch)
        .unwrap()
        .token_id));

    // The breach: a generator that counts its calls instead of taking the position.
    let (mut calls, mut scratch) = (0u64, Scratch::new());
    assert!(!is_order_independent(|row, _| {
        calls += 1;
        sampler.sample(row, calls, &mut scratch).unwrap().token_id
    }));
}

#[test]
fn scratch_reuse_changes_nothing() {
    let mut used = Scratch::new();
    for (_, row) in rows() {
        for (top_k, top_p, min_p) in
            [(0, 1.0, 0.0), (5, 1.0, 0.0), (0, 0.7, 0.0), (0, 1.0, 0.1), (20, 0.9, 0.01)]
        {
            let config = SamplerConfig { top_k, top_p, min_p, logprobs: Some(4), ..Default::default() };
            let sampler = Sampler::new(config).unwrap();
            for position in 0..50 {
                let fresh = sampler.sample(&row, position, &mut Scratch::new()).unwrap();
                assert_eq!(sampler.sample(&row, position, &mut used).unwrap(), fresh);
            }
        }
    }
}

#[test]
fn seeds_streams_and_positions_each_change_the_draws() {
    let row = vec![0.0; 1000];
    let base = SamplerConfig { seed: 7, stream: 1, ..Default::default() };
    let tokens = |config: &SamplerConfig, from: u64| {
        (from..from + 32).map(|p| draw(config, &row, p)).collect::<Vec<_>>()
    };
    let reference = tokens(&base, 0);
    assert_eq!(reference, tokens(&base, 0));
    let changed = [
        (SamplerConfig { seed: 8, ..base.clone() }, 0),
        (SamplerConfig { seed: 7 | 1 << 40, ..base.clone() }, 0),
        (SamplerConfig { stream: 2, ..base.clone() }, 0),
        (SamplerConfig { stream: 1 | 1 << 40, ..base.clone() }, 0),
        (base.clone(), 32),
    ];
    for (config, from) in changed {
        let other = tokens(&config, from);
        assert!(reference.iter().zip(&other).filter(|(a, b)| a == b).count() <= 1, "{config:?}");
    }
}

#[test]
fn a_filter_does_not_disturb_the_survivors_numbers() {
    // With the drawn token still allowed, cutting off others must leave it the winner.
    let row: Vec<f32> = (0..100).map(|i| (i % 10) as f32 * 0.2).collect();
    for position in 0..200 {
        let token = draw(&SamplerConfig::default(), &row, position);
        let mut masked = row.clone();
        for (id, logit) in masked.iter_mut().enumerate() {
            if id as u32 != token && id % 2 == 0 {
                *logit = f32::NEG_INFINITY;
            }
        }
        assert_eq!(draw(&SamplerConfig::default(), &masked, position), token);
    }
}
