//! The AVX2 level (with FMA and F16C): two ymm registers per vector.

use std::arch::x86_64::*;

use super::codes::Code;
use super::kernels;
use super::products::{self, IntegerLevel, Products, integer_kernels};
use super::simd::{Element, LANES, PvArgs, QkArgs, Simd, Widen};
use super::store;
use crate::math;

/// See [`Simd`].
pub(super) struct Avx2;

/// Sixteen f32: lanes 0-7 and 8-15.
#[derive(Clone, Copy)]
pub(super) struct Pair(__m256, __m256);

/// Round eight f32 to bfloat16 in the low halves of dwords.
#[inline(always)]
unsafe fn bf16_of(x: __m256) -> __m256i {
    // SAFETY: the level is the caller's duty.
    unsafe {
        let bits = _mm256_castps_si256(x);
        let top = _mm256_srli_epi32::<16>(bits);
        let odd = _mm256_and_si256(top, _mm256_set1_epi32(1));
        let round = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
        let rounded = _mm256_srli_epi32::<16>(round);
        let nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(x, x));
        _mm256_blendv_epi8(rounded, _mm256_or_si256(top, _mm256_set1_epi32(0x40)), nan)
    }
}

/// Lane i of vector j becomes lane j of vector i.
#[inline(always)]
unsafe fn transpose8(x: [__m256; 8]) -> [__m256; 8] {
    // SAFETY: the level is the caller's duty.
    unsafe {
        let mut quads = x;
        for four in 0..2 {
            let [a, b, c, d] = [0, 1, 2, 3].map(|index| x[4 * four + index]);
            let (low, high) = (_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
            let (next_low, next_high) = (_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d));
            quads[4 * four] = _mm256_shuffle_ps::<0x44>(low, next_low);
            quads[4 * four + 1] = _mm256_shuffle_ps::<0xee>(low, next_low);
            quads[4 * four + 2] = _mm256_shuffle_ps::<0x44>(high, next_high);
            quads[4 * four + 3] = _mm256_shuffle_ps::<0xee>(high, next_high);
        }
        let mut out = x;
        for lane in 0..4 {
            let (a, b) = (quads[lane], quads[lane + 4]);
            out[lane] = _mm256_permute2f128_ps::<0x20>(a, b);
            out[lane + 4] = _mm256_permute2f128_ps::<0x31>(a, b);
        }
        out
    }
}

impl Simd for Avx2 {
    type V = Pair;
    const TILE_ROWS: usize = 6;
    const ACCUMULATORS: usize = 6;

    fn panel_tile() -> (usize, usize) {
        (Self::TILE_ROWS, 1)
    }

    #[inline(always)]
    unsafe fn splat(x: f32) -> Pair {
        // SAFETY: the level is the caller's duty.
        let x = unsafe { _mm256_set1_ps(x) };
        Pair(x, x)
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Pair {
        // SAFETY: the caller's duty.
        unsafe { Pair(_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))) }
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const u8) -> Pair {
        // SAFETY: the caller's duty.
        unsafe {
            let (low, high) = (_mm_loadu_si128(from.cast()), _mm_loadu_si128(from.add(16).cast()));
            Pair(_mm256_cvtph_ps(low), _mm256_cvtph_ps(high))
        }
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const u8) -> Pair {
        // SAFETY: the caller's duty.
        unsafe {
            let low = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
            let high = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.add(16).cast()));
            Pair(
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(low)),
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(high)),
            )
        }
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, x: Pair) {
        // SAFETY: the caller's duty.
        unsafe {
            _mm256_storeu_ps(to, x.0);
            _mm256_storeu_ps(to.add(8), x.1);
        }
    }
    #[inline(always)]
    unsafe fn store_f16(to: *mut u8, x: Pair) {
        // SAFETY: the caller's duty.
        unsafe {
            _mm_storeu_si128(to.cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(x.0));
            _mm_storeu_si128(to.add(16).cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(x.1));
        }
    }
    #[inline(always)]
    unsafe fn store_bf16(to: *mut u8, x: Pair) {
        // SAFETY: the caller's duty.
        unsafe {
            // The pack works within 128-bit halves; the permutation puts the quarters back in order.
            let packed = _mm256_packus_epi32(bf16_of(x.0), bf16_of(x.1));
            _mm256_storeu_si256(to.cast(), _mm256_permute4x64_epi64::<0b11_01_10_00>(packed));
        }
    }
    #[inline(always)]
    unsafe fn add(x: Pair, y: Pair) -> Pair {
        // SAFETY: the level is the caller's duty.
        unsafe { Pair(_mm256_add_ps(x.0, y.0), _mm256_add_ps(x.1, y.1)) }
    }
    #[inline(always)]
    unsafe fn sub(x: Pair, y: Pair) -> Pair {
        // SAFETY: the level is the caller's duty.
        unsafe { Pair(_mm256_sub_ps(x.0, y.0), _mm256_sub_ps(x.1, y.1)) }
    }
    #[inline(always)]
    unsafe fn mul(x: Pair, y: Pair) -> Pair {
        // SAFETY: the level is the caller's duty.
        unsafe { Pair(_mm256_mul_ps(x.0, y.0), _mm256_mul_ps(x.1, y.1)) }
    }
    #[inline(always)]
    unsafe fn max(x: Pair, y: Pair) -> Pair {
        // SAFETY: the level is the caller's duty.
        unsafe { Pair(_mm256_max_ps(x.0, y.0), _mm256_max_ps(x.1, y.1)) }
    }
    #[inline(always)]
    unsafe fn fma(x: Pair, y: Pair, z: Pair) -> Pair {
        // SAFETY: the level is the caller's duty.
        unsafe { Pair(_mm256_fmadd_ps(x.0, y.0, z.0), _mm256_fmadd_ps(x.1, y.1, z.1)) }
    }
    #[inline(always)]
    unsafe fn exp(x: Pair) -> Pair {
        // SAFETY: the level is the caller's duty.
        unsafe { Pair(math::exp_avx2(x.0), math::exp_avx2(x.1)) }
    }
    #[inline(always)]
    unsafe fn exp2(x: Pair) -> Pair {
        // SAFETY: the level is the caller's duty.
        unsafe { Pair(math::exp2_avx2(x.0), math::exp2_avx2(x.1)) }
    }
    #[inline(always)]
    unsafe fn select(mask: u16, x: Pair, y: Pair) -> Pair {
        // SAFETY: the level is the caller's duty.
        unsafe {
            let bits = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
            let low = _mm256_and_si256(_mm256_set1_epi32(i32::from(mask)), bits);
            let high = _mm256_and_si256(_mm256_set1_epi32(i32::from(mask >> 8)), bits);
            let low = _mm256_castsi256_ps(_mm256_cmpeq_epi32(low, bits));
            let high = _mm256_castsi256_ps(_mm256_cmpeq_epi32(high, bits));
            Pair(_mm256_blendv_ps(y.0, x.0, low), _mm256_blendv_ps(y.1, x.1, high))
        }
    }
    #[inline(always)]
    unsafe fn sum(x: Pair) -> f32 {
        // SAFETY: the level is the caller's duty.
        unsafe {
            let x = _mm256_add_ps(x.0, x.1);
            let x = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
            let x = _mm_add_ps(x, _mm_movehl_ps(x, x));
            _mm_cvtss_f32(_mm_add_ss(x, _mm_shuffle_ps::<1>(x, x)))
        }
    }
    #[inline(always)]
    unsafe fn maximum(x: Pair) -> f32 {
        // SAFETY: the level is the caller's duty.
        unsafe {
            let x = _mm256_max_ps(x.0, x.1);
            let x = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
            let x = _mm_max_ps(x, _mm_movehl_ps(x, x));
            _mm_cvtss_f32(_mm_max_ss(x, _mm_shuffle_ps::<1>(x, x)))
        }
    }
    #[inline(always)]
    unsafe fn first(x: Pair) -> f32 {
        // SAFETY: the level is the caller's duty.
        unsafe { _mm256_cvtss_f32(x.0) }
    }

    #[inline(always)]
    unsafe fn transpose(x: [Pair; LANES]) -> [Pair; LANES] {
        // SAFETY: the level is the caller's duty.
        unsafe {
            let mut out = x;
            for (from, eight) in [(0, [0, 1, 2, 3, 4, 5, 6, 7]), (8, [8, 9, 10, 11, 12, 13, 14, 15])] {
                let low = transpose8(eight.map(|index: usize| x[index].0));
                let high = transpose8(eight.map(|index: usize| x[index].1));
                for lane in 0..8 {
                    if from == 0 {
                        (out[lane].0, out[lane + 8].0) = (low[lane], high[lane]);
                    } else {
                        (out[lane].1, out[lane + 8].1) = (low[lane], high[lane]);
                    }
                }
            }
            out
        }
    }

    super::levels::level_kernels!("avx2,fma,f16c");
}

/// Sixteen dwords: lanes 0-7 and 8-15.
#[derive(Clone, Copy)]
pub(super) struct IntPair(__m256i, __m256i);

impl IntegerLevel for Avx2 {
    type Float = Self;
    type Ints = IntPair;
    const WORDS: usize = 2;

    #[inline(always)]
    unsafe fn splat(x: i32) -> IntPair {
        // SAFETY: the level is the caller's duty.
        let x = unsafe { _mm256_set1_epi32(x) };
        IntPair(x, x)
    }
    #[inline(always)]
    unsafe fn load(from: *const i32) -> IntPair {
        // SAFETY: the caller's duty.
        unsafe { IntPair(_mm256_loadu_si256(from.cast()), _mm256_loadu_si256(from.add(8).cast())) }
    }
    #[inline(always)]
    unsafe fn store(to: *mut i32, x: IntPair) {
        // SAFETY: the caller's duty.
        unsafe {
            _mm256_storeu_si256(to.cast(), x.0);
            _mm256_storeu_si256(to.add(8).cast(), x.1);
        }
    }
    #[inline(always)]
    unsafe fn to_float(x: IntPair) -> Pair {
        // SAFETY: the level is the caller's duty.
        unsafe { Pair(_mm256_cvtepi32_ps(x.0), _mm256_cvtepi32_ps(x.1)) }
    }
    #[inline(always)]
    unsafe fn load_widened(from: *const u8) -> IntPair {
        // SAFETY: the caller's duty.
        unsafe {
            let (low, high) = (_mm_loadu_si128(from.cast()), _mm_loadu_si128(from.add(16).cast()));
            IntPair(_mm256_cvtepi8_epi16(low), _mm256_cvtepi8_epi16(high))
        }
    }
    #[inline(always)]
    unsafe fn store_words(to: *mut i16, x: Pair) {
        // SAFETY: the caller's duty. The pack works within 128-bit halves; the permutation puts the quarters back.
        unsafe {
            let packed = _mm256_packs_epi32(_mm256_cvtps_epi32(x.0), _mm256_cvtps_epi32(x.1));
            _mm256_storeu_si256(to.cast(), _mm256_permute4x64_epi64::<0b11_01_10_00>(packed));
        }
    }
    #[inline(always)]
    unsafe fn add_words(sums: IntPair, x: IntPair, pair: *const i32) -> IntPair {
        // SAFETY: the caller's duty.
        unsafe {
            let pair = _mm256_set1_epi32(*pair);
            let add = |sum: __m256i, x: __m256i| _mm256_add_epi32(sum, _mm256_madd_epi16(x, pair));
            IntPair(add(sums.0, x.0), add(sums.1, x.1))
        }
    }
    #[inline(always)]
    unsafe fn add_bytes(sums: IntPair, x: IntPair, four: *const i32) -> IntPair {
        // Not VPMADDUBSW, which saturates.
        // SAFETY: the caller's duty.
        unsafe {
            let even = |x: __m256i| _mm256_and_si256(x, _mm256_set1_epi16(0xff));
            let odd = |x: __m256i| _mm256_srli_epi16::<8>(x);
            let sums = Self::add_words(sums, IntPair(even(x.0), even(x.1)), four);
            Self::add_words(sums, IntPair(odd(x.0), odd(x.1)), four.add(1))
        }
    }

    integer_kernels!("avx2,fma,f16c");
}
