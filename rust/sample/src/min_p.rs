//! Min-p: keep the tokens at least `min_p` times as likely as the most likely one.
//!
//! Source: Nguyen et al., "Turning Up the Heat: Min-p Sampling", arXiv 2407.01082.

use crate::candidates::Candidates;
use crate::key;

/// Keep tokens with `exp(x - x_max) >= min_p`, 0 <= min_p <= 1; 0 is off. The most likely token always stays.
pub(crate) fn apply(candidates: &mut Candidates<'_>, min_p: f32) {
    if min_p <= 0.0 {
        return;
    }
    let least = f64::from(min_p);
    let mut keys = std::mem::take(candidates.keys);
    if candidates.listed {
        keys.retain(|&key| candidates.weight(key) >= least);
    } else {
        keys.clear();
        let cutoff = candidates.temperature.cutoff(candidates.row.max, 0.1 - least.ln());
        for (id, &logit) in candidates.row.logits.iter().enumerate() {
            if logit >= cutoff && candidates.weight_of(logit) >= least {
                keys.push(key::key(logit, id as u32));
            }
        }
        candidates.listed = true;
    }
    *candidates.keys = keys;
}
