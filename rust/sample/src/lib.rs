//! From one row of logits to one token: filters, a seeded draw, logprobs, and stop strings.
//!
//! The chain has one order: temperature, top-k, top-p, min-p, draw. A draw is a pure function of the row, the settings,
//! the seed, the stream and the position ([`gumbel`]); nothing is carried from one draw to the next, so batching,
//! preemption and speculation cannot change a token. [`naive`] says the same in a few slow lines and is the
//! specification that the fast path is tested against. Where a device has picked the best tokens of a row, a draw may
//! need no more than those ([`BestTokens`]); it is the draw from the whole row or none.
//!
//! Rules that hold everywhere in this crate:
//! - Ties go to the lowest id: in greedy decoding, at the boundary of top-k and top-p, in the draw, and in lists.
//! - Ids from `vocab_limit` on do not exist: they are never drawn or listed, and the normaliser of a logprob leaves
//!   them out. A limit beyond the row is the row's length.
//! - An id whose logit is -inf has probability zero; NaN and +inf fail the row.

mod best;
mod candidates;
pub mod error;
mod exp;
pub mod gumbel;
mod key;
mod logprobs;
mod min_p;
pub mod naive;
pub mod philox;
mod row;
mod sampler;
mod stop;
mod temperature;
mod top_k;
mod top_p;

pub use best::BestTokens;
pub use error::SampleError;
pub use logprobs::{TokenLogprobs, token_logprobs};
pub use sampler::{Sample, Sampler, SamplerConfig};
pub use stop::{MAX_STOP_BYTES, MAX_STOPS, Push, StopMatcher};

/// Buffers that a draw works in. Keep one per thread: reuse saves allocations and changes no result.
#[derive(Debug, Default)]
pub struct Scratch {
    keys: Vec<u64>,
}

impl Scratch {
    /// Empty buffers; they grow to what the rows need.
    pub fn new() -> Self {
        Self::default()
    }
}
