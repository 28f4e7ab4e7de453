//! Top-k: keep the `k` tokens with the largest logits.
//!
//! Exactly `k` survive when that many are finite: where the k-th logit is shared, the lowest ids stay.

use crate::candidates::Candidates;
use crate::key;

/// Keep the best `k`; 0 is off.
pub(crate) fn apply(candidates: &mut Candidates<'_>, k: u32) {
    let k = k as usize;
    if k == 0 || k >= candidates.row.logits.len() {
        return;
    }
    if candidates.listed {
        candidates.keys.truncate(k);
    } else {
        key::best(candidates.row.logits, k, candidates.keys);
        candidates.listed = true;
    }
}
