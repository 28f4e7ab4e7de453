//! The tokens that are still in the race, as the filters pass them on.

use crate::exp::exp_nonpositive;
use crate::key;
use crate::row::Row;
use crate::temperature::Temperature;

/// Survivors of the filters so far: the whole row, or a list once a filter has cut something off.
pub(crate) struct Candidates<'a> {
    /// The raw row; of a listed one only the largest logit counts.
    pub(crate) row: Row<'a>,
    /// How logits are scaled.
    pub(crate) temperature: Temperature,
    /// Keys of the survivors, best first; meaningful if `listed`.
    pub(crate) keys: &'a mut Vec<u64>,
    /// Whether `keys` rules; otherwise every finite token of the row survives.
    pub(crate) listed: bool,
}

impl Candidates<'_> {
    /// A token's probability relative to the most likely token's: `exp(x - x_max)`, in [0, 1].
    #[inline(always)]
    pub(crate) fn weight(&self, key: u64) -> f64 {
        self.weight_of(key::logit(key))
    }

    /// [`Self::weight`] of a logit.
    #[inline(always)]
    pub(crate) fn weight_of(&self, logit: f32) -> f64 {
        exp_nonpositive(self.temperature.scale(logit) - self.temperature.scale(self.row.max))
    }
}
