//! The kernels for AVX-512, with and without VPDPBUSD.

use std::arch::x86_64::*;

use super::kernel::{Level, panel};
use super::tile::Tile;

/// AVX-512 F, BW, VL and DQ: codes are widened to 16 bits and multiplied by VPMADDWD, which cannot saturate.
struct Words;
/// The level above plus VNNI.
struct Vnni;

macro_rules! shared {
    () => {
        type Int = __m512i;
        type Float = __m512;
        const WIDTH: usize = 16;

        #[inline(always)]
        unsafe fn load(from: *const u8) -> __m512i {
            unsafe { _mm512_loadu_si512(from.cast()) }
        }
        #[inline(always)]
        unsafe fn splat(x: i32) -> __m512i {
            unsafe { _mm512_set1_epi32(x) }
        }
        #[inline(always)]
        unsafe fn load_u8(from: *const u8) -> __m512i {
            unsafe { _mm512_cvtepu8_epi32(_mm_loadu_si128(from.cast())) }
        }
        #[inline(always)]
        unsafe fn mul16(x: __m512i, y: __m512i) -> __m512i {
            unsafe { _mm512_madd_epi16(x, y) }
        }
        #[inline(always)]
        unsafe fn zero() -> __m512 {
            unsafe { _mm512_setzero_ps() }
        }
        #[inline(always)]
        unsafe fn splat_float(x: f32) -> __m512 {
            unsafe { _mm512_set1_ps(x) }
        }
        #[inline(always)]
        unsafe fn load_f16(from: *const u8) -> __m512 {
            unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())) }
        }
        #[inline(always)]
        unsafe fn to_float(x: __m512i) -> __m512 {
            unsafe { _mm512_cvtepi32_ps(x) }
        }
        #[inline(always)]
        unsafe fn mul(x: __m512, y: __m512) -> __m512 {
            unsafe { _mm512_mul_ps(x, y) }
        }
        #[inline(always)]
        unsafe fn fma(x: __m512, y: __m512, z: __m512) -> __m512 {
            unsafe { _mm512_fmadd_ps(x, y, z) }
        }
        #[inline(always)]
        unsafe fn store(to: *mut f32, rows: usize, bias: *const f32, x: __m512) {
            let mask = ((1u32 << rows) - 1) as u16;
            unsafe {
                let x = if bias.is_null() { x } else { _mm512_add_ps(x, _mm512_maskz_loadu_ps(mask, bias)) };
                _mm512_mask_storeu_ps(to, mask, x);
            }
        }
        #[inline(always)]
        unsafe fn prefetch(at: *const u8) {
            unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
        }
    };
}

// The functions below are the trait's: their safety is the caller's duty.
#[allow(clippy::undocumented_unsafe_blocks)]
impl Level for Words {
    const PARTS: usize = 2;
    shared!();

    #[inline(always)]
    unsafe fn parts(codes: __m512i, bits: usize) -> [__m512i; 4] {
        unsafe {
            if bits == 8 {
                let even = _mm512_and_si512(codes, _mm512_set1_epi16(255));
                let odd = _mm512_srli_epi16::<8>(codes);
                return [even, odd, odd, odd];
            }
            let low = _mm512_set1_epi16(15);
            [
                _mm512_and_si512(codes, low),
                _mm512_and_si512(_mm512_srli_epi16::<8>(codes), low),
                _mm512_and_si512(_mm512_srli_epi16::<4>(codes), low),
                _mm512_srli_epi16::<12>(codes),
            ]
        }
    }

    #[inline(always)]
    unsafe fn dot(sum: __m512i, codes: __m512i, x: __m512i) -> __m512i {
        unsafe { _mm512_add_epi32(sum, _mm512_madd_epi16(codes, x)) }
    }
}

// As above.
#[allow(clippy::undocumented_unsafe_blocks)]
impl Level for Vnni {
    const PARTS: usize = 1;
    shared!();

    #[inline(always)]
    unsafe fn parts(codes: __m512i, bits: usize) -> [__m512i; 4] {
        unsafe {
            if bits == 8 {
                return [codes; 4];
            }
            let low = _mm512_set1_epi8(15);
            let high = _mm512_and_si512(_mm512_srli_epi16::<4>(codes), low);
            [_mm512_and_si512(codes, low), high, high, high]
        }
    }

    #[inline(always)]
    unsafe fn dot(sum: __m512i, codes: __m512i, x: __m512i) -> __m512i {
        unsafe { _mm512_dpbusd_epi32(sum, codes, x) }
    }
}

macro_rules! entry {
    ($(#[$doc:meta])* $name:ident, $inner:ident, $level:ty, $features:literal) => {
        #[target_feature(enable = $features)]
        unsafe fn $inner<const BITS: usize, const T: usize>(tile: &Tile) {
            // SAFETY: the caller's duty.
            unsafe { panel::<$level, BITS, 2, T>(tile, 0) }
        }

        $(#[$doc])*
        pub(super) unsafe fn $name(tokens: usize, tile: &Tile) {
            // SAFETY: the caller's duty.
            unsafe {
                match (tile.format.bits, tokens) {
                    (4, 1) => $inner::<4, 1>(tile),
                    (4, 2) => $inner::<4, 2>(tile),
                    (4, 3) => $inner::<4, 3>(tile),
                    (4, 4) => $inner::<4, 4>(tile),
                    (4, 5) => $inner::<4, 5>(tile),
                    (4, _) => $inner::<4, 6>(tile),
                    (_, 1) => $inner::<8, 1>(tile),
                    (_, 2) => $inner::<8, 2>(tile),
                    (_, 3) => $inner::<8, 3>(tile),
                    (_, 4) => $inner::<8, 4>(tile),
                    (_, 5) => $inner::<8, 5>(tile),
                    (_, _) => $inner::<8, 6>(tile),
                }
            }
        }
    };
}

entry!(
    /// At most 6 tokens times one panel, records in words.
    ///
    /// # Safety
    /// As [`super::tile::scalar`], and the processor has AVX-512 F, BW, VL and DQ.
    words, words_panel, Words, "avx512f,avx512bw,avx512vl,avx512dq"
);
entry!(
    /// At most 6 tokens times one panel, records in bytes.
    ///
    /// # Safety
    /// As [`super::tile::scalar`], and the processor has AVX-512 F, BW, VL, DQ and VNNI.
    vnni, vnni_panel, Vnni, "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni"
);
