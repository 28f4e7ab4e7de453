//! Everything that can go wrong in this crate, with the values that explain it.

/// An error of sampling one row, of its settings, or of a set of stop strings.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum SampleError {
    /// A setting or argument is outside its range.
    #[error("{field}: got {got}, expected {expected}")]
    OutOfRange {
        /// Name of the setting, as the caller spells it.
        field: &'static str,
        /// The offending value.
        got: String,
        /// The values that are allowed.
        expected: &'static str,
    },
    /// A logit is NaN or +inf: the model's numbers broke down in this row.
    #[error("the logit of token {token_id} is {value}")]
    NonFinite {
        /// First id whose logit is at fault.
        token_id: u32,
        /// The logit.
        value: f32,
    },
    /// Every logit is -inf, or the row is empty: no token may be drawn.
    #[error("none of the {num_tokens} tokens has a finite logit")]
    NoFiniteLogit {
        /// Tokens of the row below the vocabulary limit.
        num_tokens: usize,
    },
    /// A row's candidates are not what they must be: the best tokens below the limit, best first.
    #[error("candidates: {what} at {index}")]
    BadCandidates {
        /// Place of the first one that is wrong.
        index: usize,
        /// What is wrong there.
        what: &'static str,
    },
    /// A stop string is empty: it would match everywhere.
    #[error("stop[{index}]: got an empty string, expected at least one character")]
    EmptyStop {
        /// Its place in the list.
        index: usize,
    },
    /// The stop strings are too many or too long.
    #[error(
        "stop: got {num_stops} strings of {num_bytes} bytes in all, expected at most {max_stops} of {max_bytes}"
    )]
    StopTooLarge {
        /// Strings given.
        num_stops: usize,
        /// Sum of their UTF-8 lengths.
        num_bytes: usize,
        /// Most strings allowed.
        max_stops: usize,
        /// Most bytes allowed.
        max_bytes: usize,
    },
}
