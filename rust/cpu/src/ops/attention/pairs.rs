//! Keys and values as bf16, two of them in a dword, for VPDPBF16PS.
//!
//! In a tile and head: the keys as `[head_dim / 2, tile, 2]`, then the values as `[tile / 2, head_dim, 2]`;
//! `head_dim` is even. A dword of the keys meets two elements of the query, a dword of the values two probabilities,
//! all rounded to bf16.
//!
//! Everything here treats subnormal numbers as zero, as the instruction does.

use super::cache::TileHead;
use super::codes::PackedQueries;
use super::simd::LANES;
use crate::isa::Isa;

/// `x` with a subnormal number replaced by zero.
fn flushed(x: f32) -> f32 {
    if x.is_subnormal() { 0f32.copysign(x) } else { x }
}

/// The bf16 nearest to `x`, ties to even.
pub(super) fn round(x: f32) -> f32 {
    half::bf16::from_f32(flushed(x)).to_f32()
}

/// `sum` plus the products of two pairs of bf16, the second first: VPDPBF16PS.
pub(super) fn dot(sum: f32, x: [f32; 2], y: [f32; 2]) -> f32 {
    let [x, y] = [x, y].map(|pair| pair.map(flushed));
    let sum = flushed(x[1].mul_add(y[1], flushed(sum)));
    flushed(x[0].mul_add(y[0], sum))
}

/// Place of element `d` of the key of token `offset` in its tile, in elements.
pub(super) fn key_at(tile: usize, offset: usize, d: usize) -> usize {
    2 * (d / 2 * tile + offset) + d % 2
}

/// The same of its value.
pub(super) fn value_at(head_dim: usize, offset: usize, d: usize) -> usize {
    2 * (offset / 2 * head_dim + d) + offset % 2
}

/// Round and store the keys and values of a run of tokens, one head each, in slots from `offset` on.
///
/// # Safety
/// The slots must lie inside the tile, nobody else may touch them, and `isa` must be supported.
pub(super) unsafe fn store<'a>(
    isa: Isa,
    tile: usize,
    at: TileHead,
    offset: usize,
    k: impl ExactSizeIterator<Item = &'a [f32]> + Clone,
    v: impl ExactSizeIterator<Item = &'a [f32]> + Clone,
) {
    #[cfg(target_arch = "x86_64")]
    if isa == Isa::Avx512Bf16 {
        // SAFETY: the caller's duty.
        unsafe {
            x86::store_keys(tile, at.keys, offset, k);
            x86::store_values(at.values, offset, v);
        }
        return;
    }
    let _ = isa;
    let bits = |x: f32| half::bf16::from_f32(round(x)).to_bits();
    for ((k, v), offset) in k.zip(v).zip(offset..) {
        for (d, (key, value)) in k.iter().zip(v).enumerate() {
            // SAFETY: elements of the tokens' slots in this tile and head.
            unsafe {
                at.keys.cast::<u16>().add(key_at(tile, offset, d)).write(bits(*key));
                at.values.cast::<u16>().add(value_at(v.len(), offset, d)).write(bits(*value));
            }
        }
    }
}

/// Round `factor` times the queries of a tile to `[head_dim / 2, rows, 2]`, and let their sums start from zero.
///
/// # Safety
/// The processor must have BF16, and `to` room for the tile.
#[cfg(target_arch = "x86_64")]
pub(super) unsafe fn pack_queries(queries: &[&[f32]], factor: f32, to: PackedQueries) {
    // SAFETY: the caller's duty.
    unsafe {
        std::slice::from_raw_parts_mut(to.starts, queries.len()).fill(0);
        x86::pack(queries, factor, to.words);
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::LANES;
    use crate::ops::linear::transpose::transpose16;
    use crate::ops::prefetch::prefetch;

    /// Thirty-two elements of a row from `first` on, times `factor` and rounded; zeros past its end.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
    fn load_times(row: &[f32], first: usize, factor: f32) -> __m512i {
        let count = row.len() - first;
        let mask = if count >= 32 { u32::MAX } else { (1 << count) - 1 };
        let at = row.as_ptr().wrapping_add(first);
        // SAFETY: the masks leave out what lies past the end; both types are 64 bytes of plain numbers.
        unsafe {
            let factor = _mm512_set1_ps(factor);
            let low = _mm512_mul_ps(factor, _mm512_maskz_loadu_ps(mask as u16, at));
            let high =
                _mm512_mul_ps(factor, _mm512_maskz_loadu_ps((mask >> 16) as u16, at.wrapping_add(LANES)));
            std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low))
        }
    }

    /// The same, just rounded.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
    fn load(row: &[f32], first: usize) -> __m512i {
        load_times(row, first, 1.0)
    }

    /// Store keys in slots from `offset` on of `[head_dim / 2, tile, 2]`: sixteen tokens at a time are transposed in
    /// registers, a last few go one by one.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
    pub(super) unsafe fn store_keys<'a>(
        tile: usize,
        to: *mut u8,
        offset: usize,
        mut keys: impl ExactSizeIterator<Item = &'a [f32]>,
    ) {
        let mut to = to.cast::<i32>().wrapping_add(offset);
        while keys.len() >= LANES {
            let mut group = [&[][..]; LANES];
            for (to, key) in group.iter_mut().zip(&mut keys) {
                *to = key;
            }
            for first in (0..group[0].len()).step_by(32) {
                let words = (group[0].len() - first).min(32) / 2;
                let rows = transpose16(group.map(|key| load(key, first)));
                for (word, row) in rows.into_iter().enumerate().take(words) {
                    // SAFETY: sixteen slots of one dword of the keys.
                    unsafe { _mm512_storeu_si512(to.add((first / 2 + word) * tile).cast(), row) };
                }
            }
            to = to.wrapping_add(LANES);
        }
        for (key, to) in keys.zip((0..).map(|index| to.wrapping_add(index))) {
            let mut words = [0i32; LANES];
            for first in (0..key.len()).step_by(32) {
                // SAFETY: sixteen dwords; then the token's own slot of each dword of the keys.
                unsafe {
                    _mm512_storeu_si512(words.as_mut_ptr().cast(), load(key, first));
                    for (word, from) in words.iter().enumerate().take((key.len() - first).min(32) / 2) {
                        to.add((first / 2 + word) * tile).write(*from);
                    }
                }
            }
        }
    }

    /// Store values in slots from `offset` on of `[tile / 2, head_dim, 2]`: two of a pair together, a single one
    /// element by element, since the other half of its dwords may be somebody else's.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
    pub(super) unsafe fn store_values<'a>(
        to: *mut u8,
        offset: usize,
        mut values: impl ExactSizeIterator<Item = &'a [f32]>,
    ) {
        let mut offset = offset;
        while let Some(value) = values.next() {
            let pair = to.cast::<u16>().wrapping_add(offset / 2 * 2 * value.len());
            let second = if offset.is_multiple_of(2) { values.next() } else { None };
            match second {
                Some(next) => {
                    // SAFETY: both slots of the pair.
                    unsafe { store_pair(value, next, pair.cast()) };
                    offset += 2;
                }
                None => {
                    // SAFETY: the value's own half of the dwords.
                    unsafe { store_half(value, pair.wrapping_add(offset % 2)) };
                    offset += 1;
                }
            }
        }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
    unsafe fn store_pair(first: &[f32], second: &[f32], to: *mut i32) {
        for d in (0..first.len()).step_by(32) {
            let (low, high) = (load(first, d), load(second, d));
            // Thirty-two words of each, taken in turn.
            let spread = |x: __m256i| _mm512_cvtepu16_epi32(x);
            let halves = [
                (_mm512_castsi512_si256(low), _mm512_castsi512_si256(high)),
                (_mm512_extracti64x4_epi64::<1>(low), _mm512_extracti64x4_epi64::<1>(high)),
            ];
            for (half, (low, high)) in halves.into_iter().enumerate() {
                let begin = d + half * LANES;
                let count = first.len().saturating_sub(begin).min(LANES);
                let mask = ((1u32 << count) - 1) as u16;
                let both = _mm512_or_si512(spread(low), _mm512_slli_epi32::<16>(spread(high)));
                // SAFETY: the mask leaves out what lies past the end.
                unsafe { _mm512_mask_storeu_epi32(to.wrapping_add(begin), mask, both) };
            }
        }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
    unsafe fn store_half(value: &[f32], to: *mut u16) {
        let mut words = [0u16; 32];
        for d in (0..value.len()).step_by(32) {
            // SAFETY: thirty-two words; then the value's own half of each dword.
            unsafe {
                _mm512_storeu_si512(words.as_mut_ptr().cast(), load(value, d));
                for (index, word) in words.iter().enumerate().take(value.len() - d) {
                    to.add(2 * (d + index)).write(*word);
                }
            }
        }
    }

    /// Pack the queries of a tile as `[head_dim / 2, rows, 2]`.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
    pub(super) unsafe fn pack(queries: &[&[f32]], factor: f32, to: *mut i32) {
        let (rows, dim) = (queries.len(), queries[0].len());
        let mask = ((1u32 << rows) - 1) as u16;
        // Rows lie far apart: ask for all of them at once.
        for query in queries {
            prefetch(query.as_ptr().cast(), size_of_val(*query));
        }
        for first in (0..dim).step_by(32) {
            let words = (dim - first).min(32) / 2;
            let to = to.wrapping_add(first / 2 * rows);
            let mut words_of = [_mm512_setzero_si512(); LANES];
            for (row, query) in words_of.iter_mut().zip(queries) {
                *row = load_times(query, first, factor);
            }
            if rows == 1 {
                // SAFETY: `words` dwords of one query.
                unsafe { _mm512_mask_storeu_epi32(to, ((1u32 << words) - 1) as u16, words_of[0]) };
                continue;
            }
            for (word, row) in transpose16(words_of).into_iter().enumerate().take(words) {
                // SAFETY: a dword of each query.
                unsafe { _mm512_mask_storeu_epi32(to.add(word * rows), mask, row) };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_dot_product_adds_the_second_product_first_and_flushes() {
        let small = f32::MIN_POSITIVE / 2.0;
        assert_eq!(dot(1.0, [1.0, -1.0], [1e-9, 1.0]), 1e-9);
        assert_eq!(dot(small, [small, 0.0], [1e30, 0.0]), 0.0);
        assert_eq!(dot(0.0, [f32::MIN_POSITIVE, 0.0], [0.5, 0.0]), 0.0);
        assert_eq!(round(small), 0.0);
        assert_eq!(round(1.0 + 1.0 / 256.0), 1.0);
    }
}
