//! What runs in the next step: continuous batching over KV blocks, as a plain state machine over ids.
//!
//! The loop around it is plan, run, sample, [`Scheduler::commit`]. A sequence is *waiting* or *running*; running ones hold
//! blocks, waiting ones do not. A step takes, under a budget of tokens and of logits rows,
//! 1. every running sequence that has only its last token left (decodes), oldest first,
//! 2. the other running ones (prefill, in chunks), oldest first,
//! 3. waiting ones, oldest first and never past one that does not fit yet.
//!
//! The oldest running sequence always gets a token, whatever it is doing. When blocks run out, cached ones are evicted;
//! then the youngest running sequence is preempted: it gives up its blocks, returns to the head of the queue with its
//! epoch advanced, and recomputes its tokens later (often from the prefix cache). So running sequences are always older
//! than waiting ones, the oldest is never preempted, and every admitted sequence ends.
#![forbid(unsafe_code)]

mod admission;
mod check;
mod config;
mod error;
mod plan;
mod scheduler;
mod sequence;
mod step;

#[cfg(test)]
mod life_tests;
#[cfg(test)]
mod tests;

pub use config::{GroupConfig, SchedulerConfig};
pub use error::SchedError;
pub use plan::{GroupPlan, SeqStep, StepPlan};
pub use scheduler::{Scheduler, Stats};
pub use sequence::{FinishReason, NewSequence, Sampled};
