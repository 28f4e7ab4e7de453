//! The specification: sampling in a few plain lines, a full sort and no shortcut.

use crate::error::SampleError;
use crate::gumbel::{Noise, gumbel};
use crate::sampler::SamplerConfig;
use crate::temperature::GREEDY_BELOW;

/// The ids that survive temperature, top-k, top-p and min-p, best first.
///
/// `logits` has no NaN and no +inf. Greedy decoding leaves one id; a row at -inf throughout leaves none.
pub fn survivors(config: &SamplerConfig, logits: &[f32]) -> Vec<u32> {
    let limit = config.vocab_limit.min(logits.len());
    let mut ids: Vec<usize> = (0..limit).filter(|&id| logits[id] > f32::NEG_INFINITY).collect();
    ids.sort_by(|&a, &b| {
        logits[b].partial_cmp(&logits[a]).unwrap_or(std::cmp::Ordering::Equal).then(a.cmp(&b))
    });
    if config.temperature < GREEDY_BELOW {
        ids.truncate(1);
    }
    let Some(&best) = ids.first() else { return Vec::new() };
    let temperature = f64::from(config.temperature.max(GREEDY_BELOW));
    let weight =
        |id: usize| (f64::from(logits[id]) / temperature - f64::from(logits[best]) / temperature).exp();

    if config.top_k > 0 {
        ids.truncate(config.top_k as usize);
    }
    if config.top_p < 1.0 {
        let target = f64::from(config.top_p) * ids.iter().map(|&id| weight(id)).sum::<f64>();
        let mut before = 0.0;
        ids.retain(|&id| {
            let keep = before < target;
            before += weight(id);
            keep
        });
    }
    ids.retain(|&id| weight(id) >= f64::from(config.min_p));
    ids.into_iter().map(|id| id as u32).collect()
}

/// The probability of each id under the settings: zero unless it survives.
pub fn distribution(config: &SamplerConfig, logits: &[f32]) -> Vec<f64> {
    let mut probabilities = vec![0.0; logits.len()];
    let ids = survivors(config, logits);
    let Some(&best) = ids.first() else { return probabilities };
    let temperature = f64::from(config.temperature.max(GREEDY_BELOW));
    for &id in &ids {
        let id = id as usize;
        let top = f64::from(logits[best as usize]) / temperature;
        probabilities[id] = (f64::from(logits[id]) / temperature - top).exp();
    }
    let total: f64 = probabilities.iter().sum();
    probabilities.iter_mut().for_each(|p| *p /= total);
    probabilities
}

/// The token that [`crate::Sampler::sample`] must draw; `None` for a row without a finite logit.
///
/// # Errors
/// [`SampleError::OutOfRange`] for a position of 2^32 or more.
pub fn draw(config: &SamplerConfig, logits: &[f32], position: u64) -> Result<Option<u32>, SampleError> {
    let noise = Noise::new(config.seed, config.stream, position)?;
    let temperature = f64::from(config.temperature.max(GREEDY_BELOW));
    let score = |id: u32| f64::from(logits[id as usize]) / temperature + gumbel(noise.bits(id));
    let mut winner: Option<u32> = None;
    for id in survivors(config, logits) {
        let better = match winner {
            None => true,
            Some(other) => score(id) > score(other) || (score(id) == score(other) && id < other),
        };
        if better {
            winner = Some(id);
        }
    }
    Ok(winner)
}
