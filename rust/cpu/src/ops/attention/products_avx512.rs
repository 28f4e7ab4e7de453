//! Integer sums with VPDPBUSD and VPDPWSSD, and with multiply-adds of pairs where AVX-512 lacks them; sums of bf16 with
//! VPDPBF16PS.

use std::arch::x86_64::*;

use super::avx512::Avx512;
use super::products::{self, Products, product_kernels};

/// Integers with AVX-512 F, BW, VL and DQ.
pub(super) struct MultiplyAdds;

/// Integers with VNNI as well.
pub(super) struct Vnni;

/// Pairs of bf16.
pub(super) struct Bf16Dots;

/// What both ways with integers share.
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
        unsafe fn to_float(x: __m512i) -> __m512 {
            // SAFETY: the level is the caller's duty.
            unsafe { _mm512_cvtepi32_ps(x) }
        }
        #[inline(always)]
        unsafe fn score(sums: __m512i, scales: *const f32) -> __m512 {
            // SAFETY: the caller's duty.
            unsafe { _mm512_mul_ps(_mm512_cvtepi32_ps(sums), _mm512_loadu_ps(scales)) }
        }
        #[inline(always)]
        unsafe fn store_words(to: *mut i16, x: __m512) {
            // SAFETY: the caller's duty.
            unsafe { _mm256_storeu_si256(to.cast(), _mm512_cvtsepi32_epi16(_mm512_cvtps_epi32(x))) }
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
    unsafe fn to_float(x: __m512) -> __m512 {
        x
    }
    #[inline(always)]
    unsafe fn score(sums: __m512, _: *const f32) -> __m512 {
        sums
    }
    #[inline(always)]
    unsafe fn store_words(to: *mut i16, x: __m512) {
        // SAFETY: the caller's duty.
        unsafe {
            _mm256_storeu_si256(to.cast(), std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(x)))
        }
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

    product_kernels!("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma,f16c");
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
