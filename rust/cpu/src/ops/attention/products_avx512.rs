//! Integer sums with VPDPBUSD and VPDPWSSD, and with multiply-adds of pairs where AVX-512 lacks them.

use std::arch::x86_64::*;

use super::avx512::Avx512;
use super::products::{self, Integers, Products, integer_kernels, product_kernels};

/// Integers with AVX-512 F, BW, VL and DQ.
pub(super) struct MultiplyAdds;

/// Integers with VNNI as well.
pub(super) struct Vnni;

/// The parts of [`Products`] that both ways with integers share.
macro_rules! integers {
    () => {
        type Float = Avx512;
        type Sums = __m512i;
        type Dwords = __m512i;
        const ELEMENTS: usize = 4;
        const PAIR_BYTES: usize = 2;
        const SCALE_BYTES: usize = 4;

        #[inline(always)]
        unsafe fn splat(x: i32) -> __m512i {
            // SAFETY: the level is the caller's duty.
            unsafe { _mm512_set1_epi32(x) }
        }
        #[inline(always)]
        unsafe fn load(from: *const i32) -> __m512i {
            // SAFETY: the caller's duty.
            unsafe { _mm512_loadu_si512(from.cast()) }
        }
        #[inline(always)]
        unsafe fn store(to: *mut i32, x: __m512i) {
            // SAFETY: the caller's duty.
            unsafe { _mm512_storeu_si512(to.cast(), x) }
        }
        #[inline(always)]
        unsafe fn score(sums: __m512i, scales: *const f32) -> __m512 {
            // SAFETY: the caller's duty.
            unsafe { _mm512_mul_ps(_mm512_cvtepi32_ps(sums), _mm512_loadu_ps(scales)) }
        }
        #[inline(always)]
        unsafe fn load_keys(from: *const u8) -> __m512i {
            // SAFETY: the caller's duty.
            unsafe { _mm512_loadu_si512(from.cast()) }
        }
        #[inline(always)]
        unsafe fn load_values(from: *const u8) -> __m512i {
            // SAFETY: the caller's duty.
            unsafe { _mm512_cvtepi8_epi16(_mm256_loadu_si256(from.cast())) }
        }
    };
}

/// The parts of [`Integers`] that both share.
macro_rules! to_integers {
    () => {
        #[inline(always)]
        unsafe fn to_float(x: __m512i) -> __m512 {
            // SAFETY: the level is the caller's duty.
            unsafe { _mm512_cvtepi32_ps(x) }
        }
        #[inline(always)]
        unsafe fn store_words(to: *mut i16, x: __m512) {
            // SAFETY: the caller's duty.
            unsafe { _mm256_storeu_si256(to.cast(), _mm512_cvtsepi32_epi16(_mm512_cvtps_epi32(x))) }
        }
    };
}

impl Products for Vnni {
    integers!();
    const WORDS: usize = 1;

    #[inline(always)]
    unsafe fn add_keys(sums: __m512i, keys: __m512i, query: *const i32) -> __m512i {
        // SAFETY: the caller's duty.
        unsafe { _mm512_dpbusd_epi32(sums, keys, _mm512_set1_epi32(*query)) }
    }
    #[inline(always)]
    unsafe fn add_values(sums: __m512i, values: __m512i, p: *const i32) -> __m512i {
        // SAFETY: the caller's duty.
        unsafe { _mm512_dpwssd_epi32(sums, values, _mm512_set1_epi32(*p)) }
    }

    product_kernels!("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c");
}

impl Integers for Vnni {
    to_integers!();
    integer_kernels!("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c");
}

impl Products for MultiplyAdds {
    integers!();
    const WORDS: usize = 2;

    #[inline(always)]
    unsafe fn add_keys(sums: __m512i, keys: __m512i, query: *const i32) -> __m512i {
        // SAFETY: the caller's duty.
        unsafe {
            let even = _mm512_and_si512(keys, _mm512_set1_epi16(0xff));
            let odd = _mm512_srli_epi16::<8>(keys);
            let sums = _mm512_add_epi32(sums, _mm512_madd_epi16(even, _mm512_set1_epi32(*query)));
            _mm512_add_epi32(sums, _mm512_madd_epi16(odd, _mm512_set1_epi32(*query.add(1))))
        }
    }
    #[inline(always)]
    unsafe fn add_values(sums: __m512i, values: __m512i, p: *const i32) -> __m512i {
        // SAFETY: the caller's duty.
        unsafe { _mm512_add_epi32(sums, _mm512_madd_epi16(values, _mm512_set1_epi32(*p))) }
    }

    product_kernels!("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c");
}

impl Integers for MultiplyAdds {
    to_integers!();
    integer_kernels!("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c");
}
