//! Top-p (nucleus): keep the most likely tokens until their mass reaches `p`.
//!
//! With the survivors of the filters before in order (logit descending, id ascending), a token stays when the mass
//! strictly before it is less than `p` of the survivors' total. So at least one stays, and the token that crosses `p`
//! is the last. Masses are f64; the total runs in the fixed order of [`crate::exp`] or, over a list, in rank order.
//!
//! Source: Holtzman et al., "The Curious Case of Neural Text Degeneration", arXiv 1904.09751.

use crate::candidates::Candidates;
use crate::exp::sum_exp;
use crate::key;

/// How many tokens are ranked at first, and by what the number grows until they hold the nucleus.
const FIRST: usize = 256;
const GROWTH: usize = 8;

/// Keep the nucleus of mass `p`, 0 < p <= 1; 1 is off.
pub(crate) fn apply(candidates: &mut Candidates<'_>, p: f32) {
    if p >= 1.0 {
        return;
    }
    let p = f64::from(p);
    if candidates.listed {
        let total: f64 = candidates.keys.iter().map(|&key| candidates.weight(key)).sum();
        if let Some(kept) = nucleus(candidates, p * total) {
            candidates.keys.truncate(kept);
        }
        return;
    }
    let logits = candidates.row.logits;
    let target = p * sum_exp(logits, candidates.row.max, candidates.temperature.0);
    candidates.listed = true;
    let mut count = FIRST;
    loop {
        key::best(logits, count, candidates.keys);
        if let Some(kept) = nucleus(candidates, target) {
            candidates.keys.truncate(kept);
            return;
        }
        if count >= logits.len() {
            return;
        }
        count = count.saturating_mul(GROWTH);
    }
}

/// How many listed tokens, best first, reach the mass `target`; `None` when all of them together do not.
pub(crate) fn nucleus(candidates: &Candidates<'_>, target: f64) -> Option<usize> {
    let mut mass = 0.0;
    for (before, &key) in candidates.keys.iter().enumerate() {
        mass += candidates.weight(key);
        if mass >= target {
            return Some(before + 1);
        }
    }
    None
}
