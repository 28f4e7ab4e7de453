//! Draws from the best tokens of a row and its log-sum-exp, which a device picks so that the host need not see the row.
//!
//! A draw made here is the draw from the whole row, token for token; where the best tokens do not decide it, there is
//! none, and the caller gets the row. They decide it when no other token can survive the filters:
//! - greedy decoding takes the first one;
//! - top-k with k at most their number leaves only them;
//! - top-p: the mass of the others is known within bounds, from the log-sum-exp and from their being no better than the
//!   last one. When both ends of the bounds give one and the same nucleus, that is the nucleus;
//! - min-p: when the last one falls short, so do all behind it.
//!
//! Logprobs are then taken from the log-sum-exp, an f32: they differ from those of the whole row by some 1e-6.

use crate::candidates::Candidates;
use crate::error::SampleError;
use crate::exp::exp_nonpositive;
use crate::gumbel::{self, Noise};
use crate::key;
use crate::row::Row;
use crate::sampler::{Sample, Sampler, SamplerConfig};
use crate::temperature::{GREEDY_BELOW, Temperature};
use crate::{Scratch, min_p, top_p};

/// Relative error that bounds allow for the f64 sums of weights that they are compared with.
const SLACK: f64 = 1e-6;

/// The best tokens of one row.
#[derive(Clone, Copy, Debug)]
pub struct BestTokens<'a> {
    ids: &'a [i32],
    logits: &'a [f32],
    lse: f32,
    num_tokens: usize,
}

impl<'a> BestTokens<'a> {
    /// Check that they are in order: logit descending, then id ascending, -0.0 and 0.0 being the same, NaN the largest.
    ///
    /// Nothing can check here that no token is missing: that is the device's part.
    ///
    /// # Arguments
    /// `lse` is the natural log of the sum of exps of all logits, within a relative 1e-6 and 1e-4 more;
    /// `num_tokens` how many tokens the row has below the vocabulary limit.
    ///
    /// # Errors
    /// [`SampleError::BadCandidates`].
    pub fn new(ids: &'a [i32], logits: &'a [f32], lse: f32, num_tokens: usize) -> Result<Self, SampleError> {
        let bad = |index, what| Err(SampleError::BadCandidates { index, what });
        if ids.is_empty() || ids.len() != logits.len() || ids.len() > num_tokens {
            return bad(ids.len(), "a wrong number of them");
        }
        let readable = logits[0].is_finite();
        let mut before = u64::MAX;
        for (index, (&id, &logit)) in ids.iter().zip(logits).enumerate() {
            if usize::try_from(id).map_or(true, |id| id >= num_tokens) {
                return bad(index, "an id that does not exist");
            }
            if readable && (logit.is_nan() || key::key(logit, id as u32) >= before) {
                return bad(index, "a token out of order");
            }
            before = if readable { key::key(logit, id as u32) } else { before };
        }
        Ok(Self { ids, logits, lse, num_tokens })
    }

    /// Bounds of the sum over the whole row of `exp((logit - max) / temperature)`.
    ///
    /// With w the others' weights at temperature 1, m their number, e the largest they can be and a = 1 / temperature:
    /// the sum of w^a is at most e^(a-1) sum(w) and at least m (sum(w) / m)^a for a >= 1, by convexity, and the other way
    /// round below.
    fn mass(&self, listed: &Candidates<'_>, complete: bool) -> (f64, f64) {
        let own: f64 = listed.keys.iter().map(|&key| listed.weight(key)).sum();
        let (mut least, mut most) = (0.0, 0.0);
        if let (false, Some(&last)) = (complete, listed.keys.last()) {
            let max = f64::from(listed.row.max);
            let raw = |key: u64| exp_nonpositive(f64::from(key::logit(key)) - max);
            let (others, edge) = ((self.num_tokens - self.ids.len()) as f64, raw(last));
            let known: f64 = listed.keys.iter().map(|&key| raw(key)).sum();
            let whole = (f64::from(self.lse) - max).exp();
            let error = whole * (1e-4 + 1e-6 * f64::from(self.lse.abs()));
            let low = (whole - error - known).max(0.0);
            let high = (whole + error - known).clamp(0.0, others * edge);
            let power = 1.0 / listed.temperature.0;
            let (steep, flat) = (edge.powf(power - 1.0), |sum: f64| others * (sum / others).powf(power));
            (least, most) = if power >= 1.0 { (flat(low), high * steep) } else { (low * steep, flat(high)) };
            most = most.min(others * listed.weight(last));
            if !(least <= most && edge > 0.0) {
                return (0.0, f64::INFINITY); // the log-sum-exp contradicts the logits, or they are too far apart
            }
        }
        ((own + least) * (1.0 - SLACK), (own + most) * (1.0 + SLACK))
    }

    /// The chain of [`Sampler::sample`] on these tokens; `None` where they do not decide it.
    fn choose(&self, config: &SamplerConfig, noise: Noise, scratch: &mut Scratch) -> Option<u32> {
        if config.temperature < GREEDY_BELOW {
            return Some(self.ids[0] as u32);
        }
        let finite = self.ids.iter().zip(self.logits).filter(|(_, logit)| logit.is_finite());
        scratch.keys.clear();
        scratch.keys.extend(finite.map(|(&id, &logit)| key::key(logit, id as u32)));
        let complete = scratch.keys.len() < self.ids.len() || self.ids.len() == self.num_tokens;
        let row = Row { logits: &[], max: self.logits[0], near_max: 0 };
        let temperature = Temperature(f64::from(config.temperature));
        let mut candidates = Candidates { row, temperature, keys: &mut scratch.keys, listed: true };

        if config.top_k > 0 && (config.top_k as usize) < self.num_tokens {
            candidates.keys.truncate(config.top_k as usize); // no more than there are: `may_use_candidates`
            top_p::apply(&mut candidates, config.top_p);
        } else if config.top_p < 1.0 {
            let (least, most) = self.mass(&candidates, complete);
            let p = f64::from(config.top_p);
            let kept = top_p::nucleus(&candidates, p * least)?;
            if top_p::nucleus(&candidates, p * most) != Some(kept) {
                return None;
            }
            candidates.keys.truncate(kept);
        } else if !complete {
            let &last = candidates.keys.last()?;
            if candidates.weight(last) >= f64::from(config.min_p) * (1.0 - SLACK) {
                return None;
            }
        }
        min_p::apply(&mut candidates, config.min_p);
        Some(gumbel::draw(&candidates, noise))
    }

    /// The sample of a token among these, with its logprob and the `top` best ones.
    fn with_logprobs(&self, token_id: u32, top: u32) -> Sample {
        let logprob =
            |logit: f32| (f64::from(logit) - f64::from(self.lse)).clamp(f64::from(f32::MIN), 0.0) as f32;
        let logit =
            self.ids.iter().position(|&id| id as u32 == token_id).map_or(f32::MIN, |at| self.logits[at]);
        let best = self.ids.iter().zip(self.logits).filter(|(_, logit)| logit.is_finite());
        Sample {
            token_id,
            logprob: Some(logprob(logit)),
            rank: Some(1 + self.logits.iter().map(|&other| u32::from(other > logit)).sum::<u32>()),
            top: best.take(top as usize).map(|(&id, &logit)| (id as u32, logprob(logit))).collect(),
        }
    }
}

impl Sampler {
    /// Whether the best `num_candidates` tokens of a row may do for a draw: where not, they are not worth asking for.
    ///
    /// A filter that can lift a token, or that looks at more than the best ones, belongs in here.
    pub fn may_use_candidates(&self, num_candidates: usize) -> bool {
        let config = self.config();
        let enough = |count: u32| count as usize <= num_candidates;
        let filtered =
            if config.top_k > 0 { enough(config.top_k) } else { config.top_p < 1.0 || config.min_p > 0.0 };
        config.logprobs.is_none_or(enough) && (config.temperature < GREEDY_BELOW || filtered)
    }

    /// Draw the token at `position` of the sequence from the best tokens of its row; `None` where it takes the whole row.
    ///
    /// # Errors
    /// [`SampleError::OutOfRange`] for a position of 2^32 or more; [`SampleError::BadCandidates`] for tokens beyond the
    /// sampler's vocabulary limit.
    pub fn sample_best(
        &self,
        best: &BestTokens<'_>,
        position: u64,
        scratch: &mut Scratch,
    ) -> Result<Option<Sample>, SampleError> {
        let config = self.config();
        let noise = Noise::new(config.seed, config.stream, position)?;
        if config.vocab_limit < best.num_tokens {
            return Err(SampleError::BadCandidates {
                index: config.vocab_limit,
                what: "a limit that was not heeded",
            });
        }
        // A row that cannot be sampled is the whole row's to tell.
        let readable = best.logits[0].is_finite() && best.lse.is_finite();
        if !readable || !self.may_use_candidates(best.ids.len()) {
            return Ok(None);
        }
        Ok(best.choose(config, noise, scratch).map(|token_id| match config.logprobs {
            Some(top) => best.with_logprobs(token_id, top),
            None => Sample { token_id, logprob: None, rank: None, top: Vec::new() },
        }))
    }
}
