//! How one completion's tokens are drawn: its settings, and the chain of filters in its one order.

use crate::candidates::Candidates;
use crate::error::SampleError;
use crate::gumbel::{self, Noise};
use crate::row::Row;
use crate::temperature::{GREEDY_BELOW, Temperature};
use crate::{Scratch, logprobs, min_p, top_k, top_p};

/// The settings of a [`Sampler`].
#[derive(Debug, Clone, PartialEq)]
pub struct SamplerConfig {
    /// Finite, >= 0. Below 1e-5 decoding is greedy: filters, seed and stream then have no effect.
    pub temperature: f32,
    /// Tokens kept by rank; 0 is off, and so is any number from the vocabulary's size on.
    pub top_k: u32,
    /// Mass kept, 0 < top_p <= 1; 1 is off.
    pub top_p: f32,
    /// Least probability relative to the most likely token, 0 <= min_p <= 1; 0 is off.
    pub min_p: f32,
    /// Key of the random numbers.
    pub seed: u64,
    /// Which of a request's completions or forks this is; each has random numbers of its own.
    pub stream: u64,
    /// Ids from here on do not exist, >= 1.
    pub vocab_limit: usize,
    /// Report the drawn token's logprob and this many of the most likely tokens; `None` reports neither.
    pub logprobs: Option<u32>,
}

impl Default for SamplerConfig {
    /// Temperature 1, no filter, seed and stream 0, no limit, no logprobs.
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            seed: 0,
            stream: 0,
            vocab_limit: usize::MAX,
            logprobs: None,
        }
    }
}

impl SamplerConfig {
    /// Check every range.
    fn validate(&self) -> Result<(), SampleError> {
        let bad = |field, got: String, expected| Err(SampleError::OutOfRange { field, got, expected });
        if !(self.temperature.is_finite() && self.temperature >= 0.0) {
            return bad("temperature", self.temperature.to_string(), "a finite number >= 0");
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return bad("top_p", self.top_p.to_string(), "a number in (0, 1]");
        }
        if !(self.min_p >= 0.0 && self.min_p <= 1.0) {
            return bad("min_p", self.min_p.to_string(), "a number in [0, 1]");
        }
        if self.vocab_limit == 0 {
            return bad("vocab_limit", "0".into(), "at least 1");
        }
        Ok(())
    }
}

/// One drawn token.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// Its id, below the vocabulary limit.
    pub token_id: u32,
    /// Its natural-log probability in the raw distribution; `None` unless logprobs were asked for.
    pub logprob: Option<f32>,
    /// 1 for the most likely token; `None` unless logprobs were asked for.
    pub rank: Option<u32>,
    /// The most likely tokens with their logprobs, best first; empty unless asked for.
    pub top: Vec<(u32, f32)>,
}

/// Draws the tokens of one completion. Immutable: what it draws depends on its arguments only.
#[derive(Debug, Clone)]
pub struct Sampler {
    config: SamplerConfig,
}

impl Sampler {
    /// Check the settings.
    ///
    /// # Errors
    /// [`SampleError::OutOfRange`] naming the field.
    pub fn new(config: SamplerConfig) -> Result<Self, SampleError> {
        config.validate()?;
        Ok(Self { config })
    }

    /// The settings.
    pub fn config(&self) -> &SamplerConfig {
        &self.config
    }

    /// Draw the token at `position` of the sequence from its row of logits.
    ///
    /// # Errors
    /// [`SampleError::NonFinite`] and [`SampleError::NoFiniteLogit`] for a row that cannot be sampled;
    /// [`SampleError::OutOfRange`] for a position of 2^32 or more.
    pub fn sample(
        &self,
        logits: &[f32],
        position: u64,
        scratch: &mut Scratch,
    ) -> Result<Sample, SampleError> {
        let row = Row::new(logits, self.config.vocab_limit)?;
        let noise = Noise::new(self.config.seed, self.config.stream, position)?;
        let token_id = self.choose(row, noise, scratch);
        let Some(top) = self.config.logprobs else {
            return Ok(Sample { token_id, logprob: None, rank: None, top: Vec::new() });
        };
        let raw = logprobs::of_row(row, token_id, top, scratch)?;
        Ok(Sample { token_id, logprob: Some(raw.logprob), rank: Some(raw.rank), top: raw.top })
    }

    /// The chain. Its order is part of the contract.
    fn choose(&self, row: Row<'_>, noise: Noise, scratch: &mut Scratch) -> u32 {
        let config = &self.config;
        if config.temperature < GREEDY_BELOW {
            return row.argmax();
        }
        let temperature = Temperature(f64::from(config.temperature));
        let mut candidates = Candidates { row, temperature, keys: &mut scratch.keys, listed: false };
        top_k::apply(&mut candidates, config.top_k);
        top_p::apply(&mut candidates, config.top_p);
        min_p::apply(&mut candidates, config.min_p);
        gumbel::draw(&candidates, noise)
    }
}
