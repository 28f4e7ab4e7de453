//! Integer sums with VPDPBUSD and VPDPWSSD, and with multiply-adds of pairs where AVX-512 lacks them.

use std::arch::x86_64::*;

use super::avx512::Avx512;
use super::codes::Code;
use super::products::{self, IntegerLevel, Products, integer_kernels};
use crate::ops::broadcast::{dpbusd_at, dpwssd_at};

/// Integers with AVX-512 F, BW, VL and DQ.
pub(super) struct MultiplyAdds;

/// Integers with VNNI as well.
pub(super) struct Vnni;

/// The parts of [`IntegerLevel`] that both share.
macro_rules! integers {
    () => {
        type Float = Avx512;
        type Ints = __m512i;

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
        unsafe fn to_float(x: __m512i) -> __m512 {
            // SAFETY: the level is the caller's duty.
            unsafe { _mm512_cvtepi32_ps(x) }
        }
        #[inline(always)]
        unsafe fn load_widened(from: *const u8) -> __m512i {
            // SAFETY: the caller's duty.
            unsafe { _mm512_cvtepi8_epi16(_mm256_loadu_si256(from.cast())) }
        }
        #[inline(always)]
        unsafe fn store_words(to: *mut i16, x: __m512) {
            // SAFETY: the caller's duty.
            unsafe { _mm256_storeu_si256(to.cast(), _mm512_cvtsepi32_epi16(_mm512_cvtps_epi32(x))) }
        }
    };
}

impl IntegerLevel for Vnni {
    integers!();
    const WORDS: usize = 1;

    #[inline(always)]
    unsafe fn add_words(sums: __m512i, x: __m512i, pair: *const i32) -> __m512i {
        // SAFETY: the caller's duty.
        unsafe { _mm512_dpwssd_epi32(sums, x, _mm512_set1_epi32(*pair)) }
    }
    #[inline(always)]
    unsafe fn add_words_at<const AT: usize>(sums: __m512i, x: __m512i, pair: *const i32) -> __m512i {
        // SAFETY: the caller's duty.
        unsafe { dpwssd_at::<AT>(sums, x, pair.cast()) }
    }
    #[inline(always)]
    unsafe fn add_bytes_at<const AT: usize>(sums: __m512i, x: __m512i, four: *const i32) -> __m512i {
        // SAFETY: the caller's duty.
        unsafe { dpbusd_at::<AT>(sums, x, four.cast()) }
    }
    #[inline(always)]
    unsafe fn add_bytes(sums: __m512i, x: __m512i, four: *const i32) -> __m512i {
        // SAFETY: the caller's duty.
        unsafe { _mm512_dpbusd_epi32(sums, x, _mm512_set1_epi32(*four)) }
    }

    integer_kernels!("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c");
}

impl IntegerLevel for MultiplyAdds {
    integers!();
    const WORDS: usize = 2;

    #[inline(always)]
    unsafe fn add_words(sums: __m512i, x: __m512i, pair: *const i32) -> __m512i {
        // SAFETY: the caller's duty.
        unsafe { _mm512_add_epi32(sums, _mm512_madd_epi16(x, _mm512_set1_epi32(*pair))) }
    }
    #[inline(always)]
    unsafe fn add_bytes(sums: __m512i, x: __m512i, four: *const i32) -> __m512i {
        // SAFETY: the caller's duty.
        unsafe {
            let even = _mm512_and_si512(x, _mm512_set1_epi16(0xff));
            let odd = _mm512_srli_epi16::<8>(x);
            Self::add_words(Self::add_words(sums, even, four), odd, four.add(1))
        }
    }

    integer_kernels!("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c");
}
