//! The loops over [`pairs`](super::pairs), with VPDPBF16PS.

use std::arch::x86_64::*;

use super::avx512::Avx512;
use super::kernels::lanes;
use super::products::{self, Products};
use super::simd::{LANES, Simd};
use crate::math::exp2_avx512;

/// AVX-512 with BF16.
pub(super) struct Bf16Dots;

impl Products for Bf16Dots {
    type Float = Avx512;
    type Sums = __m512;
    type Dwords = __m512i;
    const ELEMENTS: usize = 2;
    const WORDS: usize = 1;
    const PAIR_BYTES: usize = 4;
    const SCALE_BYTES: usize = 0;

    #[inline(always)]
    unsafe fn splat(x: i32) -> __m512 {
        // SAFETY: the level is the caller's duty.
        unsafe { _mm512_castsi512_ps(_mm512_set1_epi32(x)) }
    }
    #[inline(always)]
    unsafe fn load(from: *const i32) -> __m512 {
        // SAFETY: the caller's duty.
        unsafe { _mm512_loadu_ps(from.cast()) }
    }
    #[inline(always)]
    unsafe fn store(to: *mut i32, x: __m512) {
        // SAFETY: the caller's duty.
        unsafe { _mm512_storeu_ps(to.cast(), x) }
    }
    #[inline(always)]
    unsafe fn score(sums: __m512, _: *const f32) -> __m512 {
        sums
    }
    #[inline(always)]
    unsafe fn load_keys(from: *const u8) -> __m512i {
        // SAFETY: the caller's duty.
        unsafe { _mm512_loadu_si512(from.cast()) }
    }
    #[inline(always)]
    unsafe fn add_keys(sums: __m512, keys: __m512i, query: *const i32) -> __m512 {
        // SAFETY: the caller's duty.
        unsafe { dot(sums, keys, _mm512_set1_epi32(*query)) }
    }
    #[inline(always)]
    unsafe fn load_values(from: *const u8) -> __m512i {
        // SAFETY: the caller's duty.
        unsafe { _mm512_loadu_si512(from.cast()) }
    }
    #[inline(always)]
    unsafe fn add_values(sums: __m512, values: __m512i, p: *const i32) -> __m512 {
        // SAFETY: the caller's duty.
        unsafe { dot(sums, values, _mm512_set1_epi32(*p)) }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma,f16c")]
    unsafe fn qk<const R: usize, const N: usize>(args: &products::QkArgs) {
        // SAFETY: the caller's duty.
        unsafe { products::qk::<Self, R, N>(args) }
    }
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma,f16c")]
    unsafe fn pv<const R: usize, const N: usize>(args: &products::PvArgs<'_>) {
        // SAFETY: the caller's duty.
        unsafe { products::pv::<Self, R, N>(args) }
    }
}

/// Add the products of sixteen pairs of bf16.
#[inline(always)]
unsafe fn dot(sums: __m512, x: __m512i, y: __m512i) -> __m512 {
    // SAFETY: the level is the caller's duty; the types are all 64 bytes of plain numbers.
    unsafe {
        let [x, y] = [x, y].map(|x| std::mem::transmute::<__m512i, __m512bh>(x));
        _mm512_dpbf16_ps(sums, x, y)
    }
}

/// `out += p * v` for the one key of a pair that is seen, the first or the second, over `vectors` vectors of the value.
///
/// # Safety
/// AVX-512 with BF16; `p` is a pair of probabilities, that of the other key zero.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
pub(super) unsafe fn add_half(p: *const i32, values: *const u8, second: bool, out: *mut f32, vectors: usize) {
    let seen = _mm512_set1_epi32(if second { !0xffff } else { 0xffff });
    // SAFETY: `vectors` vectors of pairs of values and of results are the caller's duty.
    unsafe {
        let p = _mm512_set1_epi32(*p);
        for (values, out) in (0..vectors).map(|index| (values.add(64 * index), out.add(16 * index))) {
            let value = _mm512_and_si512(_mm512_loadu_si512(values.cast()), seen);
            _mm512_storeu_ps(out, dot(_mm512_loadu_ps(out), value, p));
        }
    }
}

/// Sixteen f32 as bf16.
#[inline(always)]
unsafe fn rounded(x: __m512) -> __m256i {
    // SAFETY: the level is the caller's duty; both types are 32 bytes of plain numbers.
    unsafe { std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(x)) }
}

/// Softmax of scores `begin..end` of a row, in base two: their probabilities, over the largest one, become bf16 words in
/// place, word j that of score j; vectors `vectors` outside the range become zero. Returns the largest score and the sum
/// of the probabilities before they are rounded.
///
/// # Safety
/// AVX-512 with BF16; the row holds a whole split.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
pub(super) unsafe fn softmax(
    row: *mut f32,
    (begin, end): (usize, usize),
    vectors: (usize, usize),
) -> (f32, f32) {
    let seen = begin / LANES..end.div_ceil(LANES);
    // Of these, the vectors that need no mask.
    let first = begin.div_ceil(LANES).min(seen.end);
    let whole = first..(end / LANES).max(first);
    let (before, after) = (seen.start..whole.start, whole.end..seen.end);
    // SAFETY: the caller's duty; a word is written behind the floats that are still to be read.
    unsafe {
        let scores = |index: usize| _mm512_loadu_ps(row.add(index * LANES));
        let lowest = _mm512_set1_ps(f32::NEG_INFINITY);
        let some = |index: usize| _mm512_mask_blend_ps(lanes(index, begin, end), lowest, scores(index));
        let most = before.clone().fold(lowest, |most, index| _mm512_max_ps(most, some(index)));
        let most = whole.clone().fold(most, |most, index| _mm512_max_ps(most, scores(index)));
        let most = after.clone().fold(most, |most, index| _mm512_max_ps(most, some(index)));
        let max = Avx512::maximum(most);

        let shift = _mm512_set1_ps(max);
        let all = |index: usize| exp2_avx512(_mm512_sub_ps(scores(index), shift));
        let some = |index: usize| _mm512_maskz_mov_ps(lanes(index, begin, end), all(index));
        let store = |index: usize, p: __m512| {
            _mm256_storeu_si256(row.cast::<i16>().add(index * LANES).cast(), rounded(p));
            p
        };
        (vectors.0..seen.start).for_each(|index| _ = store(index, _mm512_setzero_ps()));
        let total = _mm512_setzero_ps();
        let total = before.fold(total, |total, index| _mm512_add_ps(total, store(index, some(index))));
        let total = whole.fold(total, |total, index| _mm512_add_ps(total, store(index, all(index))));
        let total = after.fold(total, |total, index| _mm512_add_ps(total, store(index, some(index))));
        (seen.end..vectors.1).for_each(|index| _ = store(index, _mm512_setzero_ps()));
        (max, Avx512::sum(total))
    }
}
