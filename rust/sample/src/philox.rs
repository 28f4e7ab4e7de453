//! Philox4x32-10: random bits as a pure function of a key and a counter.
//!
//! Source: Salmon, Moraes, Dror, Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011; multipliers, Weyl
//! constants and test vectors as in its Random123 library.

const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
const ROUNDS: usize = 10;

/// Blocks that [`blocks`] computes side by side.
pub(crate) const WIDTH: usize = 16;

/// Four random words of one counter.
pub fn philox4x32_10(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let [mut c0, mut c1, mut c2, mut c3] = counter;
    let [mut k0, mut k1] = key;
    for _ in 0..ROUNDS {
        let p0 = u64::from(MULTIPLIERS[0]) * u64::from(c0);
        let p1 = u64::from(MULTIPLIERS[1]) * u64::from(c2);
        (c0, c1, c2, c3) = ((p1 >> 32) as u32 ^ c1 ^ k0, p1 as u32, (p0 >> 32) as u32 ^ c3 ^ k1, p0 as u32);
        k0 = k0.wrapping_add(WEYL[0]);
        k1 = k1.wrapping_add(WEYL[1]);
    }
    [c0, c1, c2, c3]
}

/// [`philox4x32_10`] for the counters whose first word is `first`, `first + 1`, ... and whose others are `rest`.
///
/// Word `j` of block `i` is `out[j][i]`. Written so that the compiler turns each line into vector instructions.
#[inline(always)]
pub(crate) fn blocks(first: u32, rest: [u32; 3], key: [u32; 2]) -> [[u32; WIDTH]; 4] {
    let mut c0 = [0u32; WIDTH];
    for (i, word) in c0.iter_mut().enumerate() {
        *word = first.wrapping_add(i as u32);
    }
    let [mut c1, mut c2, mut c3] = rest.map(|word| [word; WIDTH]);
    let [mut k0, mut k1] = key;
    for _ in 0..ROUNDS {
        for i in 0..WIDTH {
            let p0 = u64::from(MULTIPLIERS[0]) * u64::from(c0[i]);
            let p1 = u64::from(MULTIPLIERS[1]) * u64::from(c2[i]);
            c0[i] = (p1 >> 32) as u32 ^ c1[i] ^ k0;
            c1[i] = p1 as u32;
            c2[i] = (p0 >> 32) as u32 ^ c3[i] ^ k1;
            c3[i] = p0 as u32;
        }
        k0 = k0.wrapping_add(WEYL[0]);
        k1 = k1.wrapping_add(WEYL[1]);
    }
    [c0, c1, c2, c3]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agrees_with_the_published_vectors() {
        let vectors = [
            ([0; 4], [0; 2], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]),
            ([u32::MAX; 4], [u32::MAX; 2], [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]),
            (
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                [0xa409_3822, 0x299f_31d0],
                [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
            ),
        ];
        for (counter, key, expected) in vectors {
            assert_eq!(philox4x32_10(counter, key), expected, "counter {counter:x?}");
        }
    }

    #[test]
    fn wide_form_equals_the_single_one() {
        for first in [0, 7, u32::MAX - 3] {
            let (rest, key) = ([5, 0x8000_0001, u32::MAX], [0xdead_beef, 42]);
            let wide = blocks(first, rest, key);
            for (i, block) in (0..WIDTH).map(|i| [0, 1, 2, 3].map(|j: usize| wide[j][i])).enumerate() {
                let counter = [first.wrapping_add(i as u32), rest[0], rest[1], rest[2]];
                assert_eq!(block, philox4x32_10(counter, key));
            }
        }
    }
}
