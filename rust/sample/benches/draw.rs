//! Time of one draw from a vocabulary of 151,936 tokens, by shape of the row and filters.

#![allow(clippy::unwrap_used, missing_docs, reason = "a bench is a test of speed")]

use criterion::{Criterion, criterion_group, criterion_main};
use pyrite_sample::philox::philox4x32_10;
use pyrite_sample::{Sampler, SamplerConfig, Scratch, StopMatcher, naive};
use std::hint::black_box;

const VOCAB: u32 = 151_936;

/// A standard normal number of each id, times `spread`; the first id gets `peak`.
fn row(spread: f32, peak: f32) -> Vec<f32> {
    let uniform = |word: u32| (f64::from(word) + 0.5) / 4_294_967_296.0;
    let mut row: Vec<f32> = (0..VOCAB)
        .map(|id| {
            let [a, b, ..] = philox4x32_10([id, 0, 0, 0], [1, 2]);
            let radius = (-2.0 * uniform(a).ln()).sqrt();
            (radius * (std::f64::consts::TAU * uniform(b)).cos()) as f32 * spread
        })
        .collect();
    row[0] = peak;
    row
}

fn draws(criterion: &mut Criterion) {
    let rows = [("peaked", row(2.5, 25.0)), ("typical", row(3.0, 14.0)), ("flat", row(0.01, 0.0))];
    let filters = [
        ("none", SamplerConfig::default()),
        ("greedy", SamplerConfig { temperature: 0.0, ..Default::default() }),
        ("logprobs5", SamplerConfig { logprobs: Some(5), ..Default::default() }),
        ("top_k64_top_p0.95", SamplerConfig { top_k: 64, top_p: 0.95, ..Default::default() }),
        ("top_p0.95", SamplerConfig { top_p: 0.95, ..Default::default() }),
        ("min_p0.05", SamplerConfig { min_p: 0.05, ..Default::default() }),
    ];
    for (shape, row) in &rows {
        for (name, config) in &filters {
            let sampler = Sampler::new(config.clone()).unwrap();
            let mut scratch = Scratch::new();
            for position in 0..3 {
                let token = sampler.sample(row, position, &mut scratch).unwrap().token_id;
                assert_eq!(Some(token), naive::draw(config, row, position).unwrap(), "{shape} {name}");
            }
            let mut position = 0;
            criterion.bench_function(&format!("draw/{shape}/{name}"), |bencher| {
                bencher.iter(|| {
                    position += 1;
                    sampler.sample(black_box(row), position, &mut scratch)
                });
            });
        }
    }
}

fn stops(criterion: &mut Criterion) {
    let stops: Vec<String> = ["\n\n", "User:", "<|end|>", "```"].map(String::from).into();
    let text: Vec<&str> = "The quick brown fox jumps over the lazy dog.\n".split_inclusive(' ').collect();
    criterion.bench_function("stop/push", |bencher| {
        let mut matcher = StopMatcher::new(&stops).unwrap();
        let mut at = 0;
        bencher.iter(|| {
            at = (at + 1) % text.len();
            matcher.push(black_box(text[at]))
        });
    });
}

criterion_group!(benches, draws, stops);
criterion_main!(benches);
