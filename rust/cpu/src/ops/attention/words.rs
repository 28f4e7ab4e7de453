//! Rows of floats as numbers of 16 bits, two of them in a dword, moved to where a cache or a tile of queries has them.
//! AVX-512; each user compiles these functions with the instructions of its own.

use std::arch::x86_64::*;

use super::simd::LANES;
use crate::ops::linear::transpose::transpose16;
use crate::ops::prefetch::prefetch;

/// How floats become numbers of 16 bits.
pub(super) trait Words {
    /// Thirty-two of them, the first sixteen from `low`.
    ///
    /// # Safety
    /// The processor must have the instructions.
    unsafe fn of(low: __m512, high: __m512) -> __m512i;
}

/// Thirty-two elements of a row from `first` on, times `factor`; zeros past its end, and everywhere when the factor is
/// zero.
#[inline(always)]
unsafe fn load<W: Words>(row: &[f32], first: usize, factor: f32) -> __m512i {
    let count = if factor == 0.0 { 0 } else { row.len() - first };
    let mask = if count >= 32 { u32::MAX } else { (1 << count) - 1 };
    let at = row.as_ptr().wrapping_add(first);
    // SAFETY: the masks leave out what lies past the end.
    unsafe {
        let factor = _mm512_set1_ps(factor);
        let low = _mm512_maskz_loadu_ps(mask as u16, at);
        let high = _mm512_maskz_loadu_ps((mask >> 16) as u16, at.wrapping_add(LANES));
        W::of(_mm512_mul_ps(factor, low), _mm512_mul_ps(factor, high))
    }
}

/// Store keys, each times its factor, in slots from `offset` on of `[head_dim / 2, tile, 2]`: sixteen tokens at a time are
/// transposed in registers, a last few go one by one.
///
/// # Safety
/// AVX-512 and what `W` needs; the slots lie in the tile and are nobody else's.
#[inline(always)]
pub(super) unsafe fn store_keys<'a, W: Words>(
    tile: usize,
    to: *mut u8,
    offset: usize,
    mut keys: impl ExactSizeIterator<Item = (&'a [f32], f32)>,
) {
    let mut to = to.cast::<i32>().wrapping_add(offset);
    while keys.len() >= LANES {
        let mut group = [(&[][..], 0.0); LANES];
        for (to, key) in group.iter_mut().zip(&mut keys) {
            *to = key;
        }
        let dim = group[0].0.len();
        for first in (0..dim).step_by(32) {
            let words = (dim - first).min(32).div_ceil(2);
            // SAFETY: sixteen slots of one dword of the keys.
            unsafe {
                let rows = transpose16(group.map(|(key, factor)| load::<W>(key, first, factor)));
                for (word, row) in rows.into_iter().enumerate().take(words) {
                    _mm512_storeu_si512(to.add((first / 2 + word) * tile).cast(), row);
                }
            }
        }
        to = to.wrapping_add(LANES);
    }
    for ((key, factor), to) in keys.zip((0..).map(|index| to.wrapping_add(index))) {
        let mut words = [0i32; LANES];
        for first in (0..key.len()).step_by(32) {
            let (to, count) = (to.wrapping_add(first / 2 * tile), (key.len() - first).div_ceil(2));
            // SAFETY: sixteen dwords; then the token's own slot of each dword of the keys.
            unsafe {
                _mm512_storeu_si512(words.as_mut_ptr().cast(), load::<W>(key, first, factor));
                let store = |word: usize| to.add(word * tile).write(words[word]);
                // Of a loop whose length is not known, compilers make vectors of addresses.
                if count >= LANES { (0..LANES).for_each(store) } else { (0..count).for_each(store) }
            }
        }
    }
}

/// Store values, each times its factor, in slots from `offset` on of `[tile / 2, head_dim, 2]`: two of a pair together, a
/// single one without touching the other half of its dwords, which may be somebody else's. Heads of an odd number of
/// elements have one more, zero.
///
/// # Safety
/// As [`store_keys`].
#[inline(always)]
pub(super) unsafe fn store_values<'a, W: Words>(
    to: *mut u8,
    offset: usize,
    mut values: impl ExactSizeIterator<Item = (&'a [f32], f32)>,
) {
    let mut offset = offset;
    while let Some(value) = values.next() {
        let dim = value.0.len().next_multiple_of(2);
        let pair = to.cast::<i32>().wrapping_add(offset / 2 * dim);
        let second = if offset.is_multiple_of(2) { values.next() } else { None };
        match second {
            Some(next) => {
                // SAFETY: both slots of the pair.
                unsafe { store_pair::<W>(value, next, pair) };
                offset += 2;
            }
            None => {
                // SAFETY: the value's own half of the pair's dwords.
                unsafe { store_half::<W>(value, pair, !offset.is_multiple_of(2)) };
                offset += 1;
            }
        }
    }
}

/// Sixteen of thirty-two words, and the other sixteen.
#[inline(always)]
unsafe fn halves(words: __m512i) -> [__m256i; 2] {
    // SAFETY: the level is the caller's duty.
    unsafe { [_mm512_castsi512_si256(words), _mm512_extracti64x4_epi64::<1>(words)] }
}

#[inline(always)]
unsafe fn store_pair<W: Words>(first: (&[f32], f32), second: (&[f32], f32), to: *mut i32) {
    let dim = first.0.len();
    for d in (0..dim).step_by(32) {
        // SAFETY: the masks leave out what lies past the end.
        unsafe {
            let (low, high) = (load::<W>(first.0, d, first.1), load::<W>(second.0, d, second.1));
            // Thirty-two words of each, taken in turn.
            let spread = |x: __m256i| _mm512_cvtepu16_epi32(x);
            for (half, (low, high)) in halves(low).into_iter().zip(halves(high)).enumerate() {
                let begin = d + half * LANES;
                let count = dim.next_multiple_of(2).saturating_sub(begin).min(LANES);
                let mask = ((1u32 << count) - 1) as u16;
                let both = _mm512_or_si512(spread(low), _mm512_slli_epi32::<16>(spread(high)));
                _mm512_mask_storeu_epi32(to.wrapping_add(begin), mask, both);
            }
        }
    }
}

#[inline(always)]
unsafe fn store_half<W: Words>((value, factor): (&[f32], f32), to: *mut i32, second: bool) {
    let own = if second { 0xaaaa_aaaa } else { 0x5555_5555 };
    for d in (0..value.len()).step_by(32) {
        // SAFETY: the masks leave out the other value's half of each dword and what lies past the end.
        unsafe {
            for (half, words) in halves(load::<W>(value, d, factor)).into_iter().enumerate() {
                let begin = d + half * LANES;
                let count = value.len().next_multiple_of(2).saturating_sub(begin).min(LANES);
                let mask = own & ((1u64 << (2 * count)) - 1) as u32;
                let words = _mm512_cvtepu16_epi32(words);
                let both = _mm512_or_si512(words, _mm512_slli_epi32::<16>(words));
                _mm512_mask_storeu_epi16(to.wrapping_add(begin).cast(), mask, both);
            }
        }
    }
}

/// Pack the queries of a tile, each times its factor, as `[head_dim / 2, rows, 2]`.
///
/// # Safety
/// As [`store_keys`]; `to` has room for the tile.
#[inline(always)]
pub(super) unsafe fn pack<W: Words>(queries: &[&[f32]], factor: impl Fn(usize) -> f32, to: *mut i32) {
    let (rows, dim) = (queries.len(), queries[0].len());
    let mask = ((1u32 << rows) - 1) as u16;
    // Rows lie far apart: ask for all of them at once.
    for query in queries {
        prefetch(query.as_ptr().cast(), size_of_val(*query));
    }
    for first in (0..dim).step_by(32) {
        let words = (dim - first).min(32).div_ceil(2);
        let to = to.wrapping_add(first / 2 * rows);
        // SAFETY: dwords of each query, within the tile.
        unsafe {
            let mut words_of = [_mm512_setzero_si512(); LANES];
            for (row, (to, query)) in words_of.iter_mut().zip(queries).enumerate() {
                *to = load::<W>(query, first, factor(row));
            }
            if rows == 1 {
                _mm512_mask_storeu_epi32(to, ((1u32 << words) - 1) as u16, words_of[0]);
                continue;
            }
            for (word, row) in transpose16(words_of).into_iter().enumerate().take(words) {
                _mm512_mask_storeu_epi32(to.add(word * rows), mask, row);
            }
        }
    }
}
