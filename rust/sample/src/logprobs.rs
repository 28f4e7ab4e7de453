//! Logprobs of the raw distribution: what the model said, before temperature and filters.

use crate::Scratch;
use crate::error::SampleError;
use crate::exp::sum_exp;
use crate::key;
use crate::row::Row;

/// Where a token stands in the raw distribution of its row.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenLogprobs {
    /// Natural-log probability, at most 0; -inf when the token's logit is.
    pub logprob: f32,
    /// 1 for the most likely token: one more than the number of tokens with a strictly larger logit.
    pub rank: u32,
    /// The most likely tokens with their logprobs, by logit descending, then id ascending; finite ones only.
    pub top: Vec<(u32, f32)>,
}

/// The logprob and rank of `token_id`, and the `top` most likely tokens of the row.
///
/// # Errors
/// [`SampleError::OutOfRange`] when `token_id` is not below the limit, and the errors of a bad row.
pub fn token_logprobs(
    logits: &[f32],
    vocab_limit: usize,
    token_id: u32,
    top: u32,
    scratch: &mut Scratch,
) -> Result<TokenLogprobs, SampleError> {
    of_row(Row::new(logits, vocab_limit)?, token_id, top, scratch)
}

/// [`token_logprobs`] of a checked row.
pub(crate) fn of_row(
    row: Row<'_>,
    token_id: u32,
    top: u32,
    scratch: &mut Scratch,
) -> Result<TokenLogprobs, SampleError> {
    let Some(&logit) = row.logits.get(token_id as usize) else {
        return Err(SampleError::OutOfRange {
            field: "token_id",
            got: token_id.to_string(),
            expected: "an id below the vocabulary limit",
        });
    };
    let log_total = sum_exp(row.logits, row.max, 1.0).ln();
    let logprob = |logit: f32| logprob(logit, row.max, log_total);
    key::best(row.logits, top as usize, &mut scratch.keys);
    let top = scratch.keys.iter().map(|&key| {
        let id = key::token_id(key);
        (id, logprob(row.logits[id as usize]))
    });
    Ok(TokenLogprobs {
        logprob: logprob(logit),
        rank: 1 + row.logits.iter().map(|&other| u32::from(other > logit)).sum::<u32>(),
        top: top.collect(),
    })
}

/// `logit - max - log_total`, computed in f64 and kept inside f32's finite range unless the logit is -inf.
fn logprob(logit: f32, max: f32, log_total: f64) -> f32 {
    let exact = (f64::from(logit) - f64::from(max)) - log_total;
    if exact == f64::NEG_INFINITY { f32::NEG_INFINITY } else { exact.max(f64::from(f32::MIN)) as f32 }
}
