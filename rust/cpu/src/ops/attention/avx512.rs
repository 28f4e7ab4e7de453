//! The AVX-512 level (F, BW, VL, DQ): one zmm register per vector.

use std::arch::x86_64::*;

use super::kernels;
use super::simd::{Element, LANES, PvArgs, QkArgs, Simd, WIDE_TILE_ROWS, Widen};
use super::store;
use crate::math;
use crate::processor::{Processor, Vendor};

/// See [`Simd`].
pub(super) struct Avx512;

impl Simd for Avx512 {
    type V = __m512;
    const TILE_ROWS: usize = 12;
    const ACCUMULATORS: usize = 24;

    /// Both have 24 sums. 6 rows and 64 keys take 10 loads a step, 12 rows and 32 keys take 14, and while an Emerald Rapids
    /// gives half of its front end to the core's other thread, these are not free: a tile alone is 4 to 8 % faster with
    /// fewer. Where the core is its own both reach 98 % of the peak. Zen was tuned with 12 rows.
    fn panel_tile() -> (usize, usize) {
        if Processor::own().vendor == Vendor::Amd { (Self::TILE_ROWS, 2) } else { (WIDE_TILE_ROWS, 4) }
    }

    #[inline(always)]
    unsafe fn splat(x: f32) -> __m512 {
        // SAFETY: the level is the caller's duty.
        unsafe { _mm512_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> __m512 {
        // SAFETY: the caller's duty.
        unsafe { _mm512_loadu_ps(from) }
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const u8) -> __m512 {
        // SAFETY: the caller's duty.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())) }
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const u8) -> __m512 {
        // SAFETY: the caller's duty.
        unsafe {
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
        }
    }
    #[inline(always)]
    unsafe fn load_bf16_pair(from: *const u8) -> [__m512; 2] {
        // SAFETY: the caller's duty.
        unsafe {
            // Even elements, then odd ones: no permutation, which takes the port of half the multiply-adds.
            let both = _mm512_loadu_si512(from.cast());
            let odd = _mm512_and_si512(both, _mm512_set1_epi32(!0xffff));
            [_mm512_slli_epi32::<16>(both), odd].map(|x| _mm512_castsi512_ps(x))
        }
    }
    #[inline(always)]
    unsafe fn bf16_pair_in_order([even, odd]: [__m512; 2]) -> [__m512; 2] {
        // SAFETY: the level is the caller's duty.
        unsafe {
            let low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
            let high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
            [low, high].map(|places| _mm512_permutex2var_ps(even, places, odd))
        }
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, x: __m512) {
        // SAFETY: the caller's duty.
        unsafe { _mm512_storeu_ps(to, x) }
    }
    #[inline(always)]
    unsafe fn store_f16(to: *mut u8, x: __m512) {
        // SAFETY: the caller's duty.
        unsafe {
            let half = _mm512_cvtps_ph::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x);
            _mm256_storeu_si256(to.cast(), half);
        }
    }
    #[inline(always)]
    unsafe fn store_bf16(to: *mut u8, x: __m512) {
        // Not vcvtneps2bf16: it flushes subnormal numbers.
        // SAFETY: the caller's duty.
        unsafe {
            let bits = _mm512_castps_si512(x);
            let top = _mm512_srli_epi32::<16>(bits);
            let odd = _mm512_and_si512(top, _mm512_set1_epi32(1));
            let round = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
            let rounded = _mm512_srli_epi32::<16>(round);
            let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(x, x);
            let quiet = _mm512_or_si512(top, _mm512_set1_epi32(0x40));
            let out = _mm512_mask_blend_epi32(nan, rounded, quiet);
            _mm256_storeu_si256(to.cast(), _mm512_cvtepi32_epi16(out));
        }
    }
    #[inline(always)]
    unsafe fn add(x: __m512, y: __m512) -> __m512 {
        // SAFETY: the level is the caller's duty.
        unsafe { _mm512_add_ps(x, y) }
    }
    #[inline(always)]
    unsafe fn sub(x: __m512, y: __m512) -> __m512 {
        // SAFETY: the level is the caller's duty.
        unsafe { _mm512_sub_ps(x, y) }
    }
    #[inline(always)]
    unsafe fn mul(x: __m512, y: __m512) -> __m512 {
        // SAFETY: the level is the caller's duty.
        unsafe { _mm512_mul_ps(x, y) }
    }
    #[inline(always)]
    unsafe fn max(x: __m512, y: __m512) -> __m512 {
        // SAFETY: the level is the caller's duty.
        unsafe { _mm512_max_ps(x, y) }
    }
    #[inline(always)]
    unsafe fn fma(x: __m512, y: __m512, z: __m512) -> __m512 {
        // SAFETY: the level is the caller's duty.
        unsafe { _mm512_fmadd_ps(x, y, z) }
    }
    #[inline(always)]
    unsafe fn exp(x: __m512) -> __m512 {
        // SAFETY: the level is the caller's duty.
        unsafe { math::exp_avx512(x) }
    }
    #[inline(always)]
    unsafe fn exp2(x: __m512) -> __m512 {
        // SAFETY: the level is the caller's duty.
        unsafe { math::exp2_avx512(x) }
    }
    #[inline(always)]
    unsafe fn select(mask: u16, x: __m512, y: __m512) -> __m512 {
        // SAFETY: the level is the caller's duty.
        unsafe { _mm512_mask_blend_ps(mask, y, x) }
    }
    #[inline(always)]
    unsafe fn sum(x: __m512) -> f32 {
        // SAFETY: the level is the caller's duty.
        unsafe {
            let x = _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps::<1>(x));
            let x = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
            let x = _mm_add_ps(x, _mm_movehl_ps(x, x));
            _mm_cvtss_f32(_mm_add_ss(x, _mm_shuffle_ps::<1>(x, x)))
        }
    }
    #[inline(always)]
    unsafe fn maximum(x: __m512) -> f32 {
        // SAFETY: the level is the caller's duty.
        unsafe { _mm512_reduce_max_ps(x) }
    }
    #[inline(always)]
    unsafe fn first(x: __m512) -> f32 {
        // SAFETY: the level is the caller's duty.
        unsafe { _mm512_cvtss_f32(x) }
    }

    #[inline(always)]
    unsafe fn transpose(x: [__m512; LANES]) -> [__m512; LANES] {
        // Pairs of lanes, then of pairs, then of quarters, each within or across 128-bit quarters.
        // SAFETY: the level is the caller's duty.
        unsafe {
            let mut quads = x;
            for four in 0..4 {
                let [a, b, c, d] = [0, 1, 2, 3].map(|index| x[4 * four + index]);
                let low = _mm512_castps_pd(_mm512_unpacklo_ps(a, b));
                let high = _mm512_castps_pd(_mm512_unpackhi_ps(a, b));
                let next_low = _mm512_castps_pd(_mm512_unpacklo_ps(c, d));
                let next_high = _mm512_castps_pd(_mm512_unpackhi_ps(c, d));
                quads[4 * four] = _mm512_castpd_ps(_mm512_unpacklo_pd(low, next_low));
                quads[4 * four + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(low, next_low));
                quads[4 * four + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(high, next_high));
                quads[4 * four + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(high, next_high));
            }
            let mut out = x;
            for lane in 0..4 {
                let [a, b, c, d] = [0, 4, 8, 12].map(|index| quads[index + lane]);
                let (even, odd) = (_mm512_shuffle_f32x4::<0x88>(a, b), _mm512_shuffle_f32x4::<0xdd>(a, b));
                let (next_even, next_odd) =
                    (_mm512_shuffle_f32x4::<0x88>(c, d), _mm512_shuffle_f32x4::<0xdd>(c, d));
                out[lane] = _mm512_shuffle_f32x4::<0x88>(even, next_even);
                out[lane + 4] = _mm512_shuffle_f32x4::<0x88>(odd, next_odd);
                out[lane + 8] = _mm512_shuffle_f32x4::<0xdd>(even, next_even);
                out[lane + 12] = _mm512_shuffle_f32x4::<0xdd>(odd, next_odd);
            }
            out
        }
    }

    super::levels::level_kernels!("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c");
}
