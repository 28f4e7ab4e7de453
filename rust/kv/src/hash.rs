//! The keyed hash that chains full blocks: SipHash-2-4 with 128 bits of output.
//!
//! Source: Aumasson and Bernstein, "SipHash: a fast short-input PRF" (2012), and the 128-bit variant of its reference code.

/// Hashes blocks under a secret key.
#[derive(Clone, Debug)]
pub(crate) struct Hasher {
    k0: u64,
    k1: u64,
    /// Keeps only these bits, so that tests can force collisions.
    #[cfg(test)]
    pub(crate) mask: u128,
}

impl Hasher {
    /// A hasher keyed by `key` (its second half is derived with SplitMix64).
    pub(crate) fn new(key: u64) -> Self {
        let mut z = key.wrapping_add(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        Self {
            k0: key,
            k1: z ^ (z >> 31),
            #[cfg(test)]
            mask: u128::MAX,
        }
    }

    /// Hash of a full block: its parent's hash (0 for the first block), its tokens, and extra keys.
    pub(crate) fn block(&self, parent: u128, token_ids: &[i32], extra: &[u8]) -> u128 {
        let mut bytes = Vec::with_capacity(24 + 4 * token_ids.len() + extra.len());
        bytes.extend_from_slice(&parent.to_le_bytes());
        bytes.extend_from_slice(&(token_ids.len() as u64).to_le_bytes());
        for token in token_ids {
            bytes.extend_from_slice(&token.to_le_bytes());
        }
        bytes.extend_from_slice(extra);
        let hash = sip128(self.k0, self.k1, &bytes);
        #[cfg(test)]
        let hash = hash & self.mask;
        hash
    }
}

fn round(v: &mut [u64; 4]) {
    v[0] = v[0].wrapping_add(v[1]);
    v[1] = v[1].rotate_left(13) ^ v[0];
    v[0] = v[0].rotate_left(32);
    v[2] = v[2].wrapping_add(v[3]);
    v[3] = v[3].rotate_left(16) ^ v[2];
    v[0] = v[0].wrapping_add(v[3]);
    v[3] = v[3].rotate_left(21) ^ v[0];
    v[2] = v[2].wrapping_add(v[1]);
    v[1] = v[1].rotate_left(17) ^ v[2];
    v[2] = v[2].rotate_left(32);
}

fn absorb(v: &mut [u64; 4], word: u64) {
    v[3] ^= word;
    round(v);
    round(v);
    v[0] ^= word;
}

fn sip128(k0: u64, k1: u64, bytes: &[u8]) -> u128 {
    let mut v = [
        k0 ^ 0x736f_6d65_7073_6575,
        k1 ^ 0x646f_7261_6e64_6f6d ^ 0xee,
        k0 ^ 0x6c79_6765_6e65_7261,
        k1 ^ 0x7465_6462_7974_6573,
    ];
    let word = |chunk: &[u8]| chunk.iter().rev().fold(0u64, |word, &byte| word << 8 | u64::from(byte));
    let chunks = bytes.chunks_exact(8);
    let tail = word(chunks.remainder()) | (bytes.len() as u64) << 56;
    for chunk in chunks {
        absorb(&mut v, word(chunk));
    }
    absorb(&mut v, tail);
    let mut half = |tweak: (usize, u64)| {
        v[tweak.0] ^= tweak.1;
        for _ in 0..4 {
            round(&mut v);
        }
        v[0] ^ v[1] ^ v[2] ^ v[3]
    };
    let low = half((2, 0xee));
    let high = half((1, 0xdd));
    u128::from(high) << 64 | u128::from(low)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matches_the_published_vectors() {
        let half = |from: u8| u64::from_le_bytes(std::array::from_fn(|i| from + i as u8));
        let digest = |bytes: &[u8]| sip128(half(0), half(8), bytes).to_le_bytes();
        assert_eq!(
            digest(&[]),
            [0xa3, 0x81, 0x7f, 0x04, 0xba, 0x25, 0xa8, 0xe6, 0x6d, 0xf6, 0x72, 0x14, 0xc7, 0x55, 0x02, 0x93]
        );
        assert_eq!(
            digest(&[0]),
            [0xda, 0x87, 0xc1, 0xd8, 0x6b, 0x99, 0xaf, 0x44, 0x34, 0x76, 0x59, 0x11, 0x9b, 0x22, 0xfc, 0x45]
        );
    }

    #[test]
    fn every_input_matters() {
        let hash = |key, parent, tokens: &[i32], extra: &[u8]| Hasher::new(key).block(parent, tokens, extra);
        let base = hash(1, 0, &[1, 2], b"");
        assert_eq!(base, hash(1, 0, &[1, 2], b""));
        for other in [
            hash(2, 0, &[1, 2], b""),
            hash(1, 1, &[1, 2], b""),
            hash(1, 0, &[2, 1], b""),
            hash(1, 0, &[1], &2i32.to_le_bytes()),
            hash(1, 0, &[1, 2], b"x"),
        ] {
            assert_ne!(base, other);
        }
    }
}
