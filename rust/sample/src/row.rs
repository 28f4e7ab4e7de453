//! One checked row of logits.

use crate::error::SampleError;

/// The part of a row below the vocabulary limit: no NaN, no +inf, at least one finite logit.
#[derive(Clone, Copy)]
pub(crate) struct Row<'a> {
    /// Logits by id.
    pub(crate) logits: &'a [f32],
    /// The largest of them.
    pub(crate) max: f32,
    /// No id before this one has it, and one within [`BLOCK`] from there does.
    pub(crate) near_max: usize,
}

/// Logits that are searched together for the largest.
const BLOCK: usize = 2048;
const LANES: usize = 16;

impl<'a> Row<'a> {
    /// Check a row.
    ///
    /// # Errors
    /// [`SampleError::NonFinite`] with the first id at NaN or +inf; [`SampleError::NoFiniteLogit`].
    pub(crate) fn new(logits: &'a [f32], vocab_limit: usize) -> Result<Self, SampleError> {
        let logits = &logits[..vocab_limit.min(logits.len())];
        let Scan { max, near_max, any_nan } = scan(logits);
        if any_nan || max == f32::INFINITY {
            for (id, &value) in logits.iter().enumerate() {
                if value.is_nan() || value == f32::INFINITY {
                    return Err(SampleError::NonFinite { token_id: id as u32, value });
                }
            }
        }
        if max == f32::NEG_INFINITY {
            return Err(SampleError::NoFiniteLogit { num_tokens: logits.len() });
        }
        Ok(Self { logits, max, near_max })
    }

    /// The lowest id with the largest logit.
    pub(crate) fn argmax(&self) -> u32 {
        let from = &self.logits[self.near_max..];
        (self.near_max + from.iter().position(|&logit| logit == self.max).unwrap_or(0)) as u32
    }
}

/// What one pass over a row finds.
struct Scan {
    max: f32,
    near_max: usize,
    any_nan: bool,
}

/// One pass, in lanes that the compiler vectorises, block by block: an id is looked for in one block alone.
fn scan(logits: &[f32]) -> Scan {
    let mut found = Scan { max: f32::NEG_INFINITY, near_max: 0, any_nan: false };
    for (first, block) in (0..).step_by(BLOCK).zip(logits.chunks(BLOCK)) {
        let mut max = [f32::NEG_INFINITY; LANES];
        let mut nan = [false; LANES];
        let (whole, rest) = block.as_chunks::<LANES>();
        for lanes in whole {
            for i in 0..LANES {
                max[i] = if lanes[i] > max[i] { lanes[i] } else { max[i] };
                nan[i] |= lanes[i].is_nan();
            }
        }
        for (i, &logit) in rest.iter().enumerate() {
            max[i] = if logit > max[i] { logit } else { max[i] };
            nan[i] |= logit.is_nan();
        }
        let max = max.into_iter().fold(f32::NEG_INFINITY, f32::max);
        found.any_nan |= nan.contains(&true);
        if max > found.max {
            (found.max, found.near_max) = (max, first);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_the_first_bad_logit() {
        for n in [1usize, 15, 16, 17, 100] {
            for at in [0, n / 2, n - 1] {
                for bad in [f32::NAN, f32::INFINITY] {
                    let mut row = vec![1.0; n];
                    row[at] = bad;
                    let Err(SampleError::NonFinite { token_id, .. }) = Row::new(&row, n).map(|_| ()) else {
                        panic!("{n} {at} {bad} was accepted");
                    };
                    assert_eq!(token_id, at as u32);
                }
            }
        }
    }

    #[test]
    fn a_bad_logit_beyond_the_limit_does_not_matter() {
        let row = Row::new(&[1.0, 2.0, f32::NAN], 2).unwrap();
        assert_eq!((row.max, row.argmax(), row.logits.len()), (2.0, 1, 2));
    }

    #[test]
    fn a_row_without_a_finite_logit_is_an_error() {
        let expected = SampleError::NoFiniteLogit { num_tokens: 3 };
        assert_eq!(Row::new(&[f32::NEG_INFINITY; 3], 9).map(|_| ()), Err(expected));
        assert_eq!(Row::new(&[], 9).map(|_| ()), Err(SampleError::NoFiniteLogit { num_tokens: 0 }));
    }
}
