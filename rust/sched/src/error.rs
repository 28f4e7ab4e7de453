//! Everything that can go wrong in this crate, with the values that explain it.

use pyrite_kv::KvError;

/// An error of the scheduler.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SchedError {
    /// A setting is out of range.
    #[error("{field}: got {got}, expected {expected}")]
    Config {
        /// Which setting.
        field: &'static str,
        /// Its value.
        got: u64,
        /// What it may be.
        expected: &'static str,
    },
    /// A sequence without tokens.
    #[error("the prompt is empty, expected at least one token")]
    EmptyPrompt,
    /// A prompt that leaves no room for output.
    #[error("the prompt has {got} tokens, expected at most {limit}")]
    PromptTooLong {
        /// Its tokens.
        got: usize,
        /// `max_model_len - 1`.
        limit: u32,
    },
    /// A sequence that may not generate anything.
    #[error("max_tokens: got 0, expected at least 1")]
    NoOutput,
    /// A negative token id.
    #[error("{field}[{index}]: got {got}, expected a token id of 0 or more")]
    NegativeToken {
        /// Where it was given.
        field: &'static str,
        /// Index of the token.
        index: usize,
        /// The id.
        got: i32,
    },
    /// The id is in use.
    #[error("sequence {id} exists already")]
    DuplicateId {
        /// The id.
        id: u64,
    },
    /// The pools cannot hold the sequence even when it is alone.
    #[error("the sequence needs {needed} blocks of KV group {group}, which has {total}")]
    CannotFit {
        /// The group.
        group: usize,
        /// Blocks needed at its full length.
        needed: u32,
        /// Blocks in the group's pool.
        total: u32,
    },
    /// The KV manager failed: a setting out of range, or a bug in pyrite.
    #[error(transparent)]
    Kv(#[from] KvError),
    /// A broken invariant: a bug in pyrite.
    #[error("broken scheduler invariant {invariant}: {detail}")]
    Broken {
        /// Its name, S1 to S6.
        invariant: &'static str,
        /// The values at fault.
        detail: String,
    },
}

/// A [`SchedError::Broken`].
pub(crate) fn broken<T>(invariant: &'static str, detail: String) -> Result<T, SchedError> {
    Err(SchedError::Broken { invariant, detail })
}
