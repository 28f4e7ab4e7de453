//! One sequence: its tokens, how far they are computed, and when it ends.

/// A sequence to be queued.
#[derive(Clone, Debug, Default)]
pub struct NewSequence {
    /// Must not be in use.
    pub id: u64,
    /// The prompt.
    pub token_ids: Vec<i32>,
    /// Most tokens to generate, at least 1.
    pub max_tokens: u32,
    /// Tokens that end the sequence (the stop token is its last one).
    pub stop_token_ids: Vec<i32>,
    /// Whether every prompt position wants a logits row.
    pub prompt_logprobs: bool,
    /// Only sequences of equal salt share cached blocks.
    pub salt: Vec<u8>,
}

/// What a sequence's last row gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sampled {
    /// The sequence.
    pub id: u64,
    /// The epoch of its [`crate::SeqStep`].
    pub epoch: u32,
    /// The new tokens, usually one.
    pub tokens: Vec<i32>,
}

/// Why a sequence ended by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// A stop token.
    Stop,
    /// `max_tokens` or `max_model_len`.
    Length,
}

/// A sequence's tokens of a step that is not committed yet.
#[derive(Clone, Copy, Debug)]
pub(crate) struct InFlight {
    pub(crate) num_tokens: u32,
    pub(crate) samples: bool,
}

#[derive(Clone, Debug)]
pub(crate) struct Sequence {
    pub(crate) id: u64,
    /// Order of arrival.
    pub(crate) arrival: u64,
    pub(crate) epoch: u32,
    pub(crate) token_ids: Vec<i32>,
    pub(crate) prompt_len: u32,
    /// Length at which it ends.
    pub(crate) max_len: u32,
    pub(crate) stop_token_ids: Vec<i32>,
    pub(crate) prompt_logprobs: bool,
    pub(crate) salt: Vec<u8>,
    /// Tokens whose keys and values are in the cache.
    pub(crate) computed: u32,
    /// Prompt positions whose logits rows were delivered; they are not asked for again.
    pub(crate) delivered: u32,
    /// Prompt tokens answered by the prefix cache at the last admission.
    pub(crate) cached: Option<u32>,
    pub(crate) in_flight: Option<InFlight>,
}

impl Sequence {
    pub(crate) fn new(new: NewSequence, arrival: u64, max_model_len: u32) -> Self {
        let prompt_len = new.token_ids.len() as u32;
        Self {
            id: new.id,
            arrival,
            epoch: 0,
            prompt_len,
            max_len: prompt_len.saturating_add(new.max_tokens).min(max_model_len),
            token_ids: new.token_ids,
            stop_token_ids: new.stop_token_ids,
            prompt_logprobs: new.prompt_logprobs,
            salt: new.salt,
            computed: 0,
            delivered: 0,
            cached: None,
            in_flight: None,
        }
    }

    pub(crate) fn len(&self) -> u32 {
        self.token_ids.len() as u32
    }

    /// Tokens that are not computed yet.
    pub(crate) fn remaining(&self) -> u32 {
        self.len() - self.computed
    }

    /// Whether only the last token is left to compute.
    pub(crate) fn is_decode(&self) -> bool {
        self.remaining() == 1
    }

    /// Longest prefix that may come from the cache: positions whose rows are still wanted must be computed.
    pub(crate) fn hit_limit(&self) -> u32 {
        if self.prompt_logprobs && self.delivered < self.prompt_len { self.delivered } else { u32::MAX }
    }

    /// The prompt positions whose rows are wanted among the next `num_tokens`, and whether the last token's row is
    /// wanted besides.
    pub(crate) fn rows(&self, num_tokens: u32) -> (std::ops::Range<u32>, bool) {
        let end = self.computed + num_tokens;
        let first = if self.prompt_logprobs { self.computed.max(self.delivered) } else { self.prompt_len };
        let last = end.min(self.prompt_len);
        let prompt = first.min(last)..last;
        let samples = end == self.len() && num_tokens > 0;
        let covered = !prompt.is_empty() && prompt.end == end;
        (prompt, samples && !covered)
    }

    /// Logits rows of the next `num_tokens`.
    pub(crate) fn num_rows(&self, num_tokens: u32) -> u32 {
        let (prompt, last) = self.rows(num_tokens);
        prompt.len() as u32 + u32::from(last)
    }

    /// The most tokens that fit a budget of tokens and of logits rows.
    pub(crate) fn cut(&self, num_tokens: u32, num_rows: u32) -> u32 {
        let mut cut = self.remaining().min(num_tokens);
        while cut > 0 && self.num_rows(cut) > num_rows {
            cut -= 1;
        }
        cut
    }

    /// Append new tokens up to the one that ends the sequence.
    pub(crate) fn append(&mut self, tokens: &[i32]) -> Option<FinishReason> {
        for &token in tokens {
            self.token_ids.push(token);
            if self.stop_token_ids.contains(&token) {
                return Some(FinishReason::Stop);
            }
            if self.len() >= self.max_len {
                return Some(FinishReason::Length);
            }
        }
        None
    }
}
