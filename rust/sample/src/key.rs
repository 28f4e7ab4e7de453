//! A token's place in the row as one integer: larger logit first, then lower id.

/// The rank key of a token: keys compare as (logit ascending, id descending), so the largest key is the best token.
///
/// -0.0 and 0.0 are the same logit. `logit` is not NaN.
#[inline(always)]
pub(crate) fn key(logit: f32, token_id: u32) -> u64 {
    let bits = (logit + 0.0).to_bits();
    let ordered = if bits >> 31 == 1 { !bits } else { bits | 1 << 31 };
    u64::from(ordered) << 32 | u64::from(!token_id)
}

/// The id that a key was made of.
#[inline(always)]
pub(crate) fn token_id(key: u64) -> u32 {
    !(key as u32)
}

/// The logit that a key was made of; 0.0 for -0.0.
#[inline(always)]
pub(crate) fn logit(key: u64) -> f32 {
    let ordered = (key >> 32) as u32;
    f32::from_bits(if ordered >> 31 == 1 { ordered & 0x7FFF_FFFF } else { !ordered })
}

/// Fill `keys` with the best `count` tokens of the row, best first; tokens at -inf are left out.
///
/// One pass over the row with a buffer of at most `2 * count + 1024` keys; linear in the row plus the sort of `count`.
pub(crate) fn best(row: &[f32], count: usize, keys: &mut Vec<u64>) {
    keys.clear();
    if count == 0 {
        return;
    }
    let count = count.min(row.len());
    let capacity = 2 * count + 1024;
    // Ids only grow, so a later token with the logit of the last kept one ranks behind it and may be skipped.
    let mut threshold = f32::NEG_INFINITY;
    for (id, &logit) in row.iter().enumerate() {
        if logit > threshold {
            keys.push(key(logit, id as u32));
            if keys.len() == capacity {
                let (_, last, _) = keys.select_nth_unstable_by(count - 1, |a, b| b.cmp(a));
                threshold = row[token_id(*last) as usize];
                keys.truncate(count);
            }
        }
    }
    if keys.len() > count {
        keys.select_nth_unstable_by(count - 1, |a, b| b.cmp(a));
        keys.truncate(count);
    }
    keys.sort_unstable_by(|a, b| b.cmp(a));
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn best_equals_a_full_sort(
            row in proptest::collection::vec(prop_oneof![
                4 => (-3i8..3).prop_map(f32::from),
                2 => -9.0f32..9.0,
                1 => Just(-0.0f32),
                1 => Just(f32::NEG_INFINITY),
            ], 0..4000),
            count in 0usize..200,
        ) {
            let mut expected: Vec<u32> = (0..row.len() as u32).filter(|&i| row[i as usize] > f32::NEG_INFINITY).collect();
            expected.sort_by(|&a, &b| row[b as usize].partial_cmp(&row[a as usize]).unwrap().then(a.cmp(&b)));
            expected.truncate(count);
            let mut keys = vec![7];
            best(&row, count, &mut keys);
            prop_assert_eq!(keys.into_iter().map(token_id).collect::<Vec<_>>(), expected);
        }
    }

    #[test]
    fn a_key_gives_back_its_logit_and_id() {
        for value in [0.0f32, 1.5, -1.5, 1e-40, -1e-40, f32::MAX, f32::MIN, f32::NEG_INFINITY] {
            let made = key(value, 77);
            assert_eq!((logit(made).to_bits(), token_id(made)), (value.to_bits(), 77));
        }
        assert_eq!(logit(key(-0.0, 3)).to_bits(), 0);
    }

    #[test]
    fn best_of_a_rising_row_keeps_the_end() {
        let row: Vec<f32> = (0..50_000).map(|i| i as f32).collect();
        let mut keys = Vec::new();
        best(&row, 3, &mut keys);
        assert_eq!(keys.into_iter().map(token_id).collect::<Vec<_>>(), [49_999, 49_998, 49_997]);
    }
}
