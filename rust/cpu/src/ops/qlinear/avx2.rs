//! The kernels for AVX2, FMA and F16C. One token takes all 32 rows (four vectors) of a panel at once, more take them in
//! two halves of 16 so that the sums stay in the 16 registers.

use std::arch::x86_64::*;

use super::kernel::{Level, for_format, panels};
use super::packed::PANEL;
use super::shared::{EXPONENT, MULTIPLE_BITS, SCALE_BITS, SCALE_SHIFT};
use super::shared_kernel::shared_panels;
use super::tile::Tile;
use super::tuning::Reach;
use crate::quant::GROUPS_PER_SCALE;

/// Products of bytes by VPMADDUBSW, which adds two in 16 bits.
struct Words;

// The functions below are the trait's: their safety is the caller's duty.
#[allow(clippy::undocumented_unsafe_blocks)]
impl Level for Words {
    type Int = __m256i;
    type Float = __m256;
    const WIDTH: usize = 8;
    /// Codes of 4 bits, or magnitude and value of codes of 8 bits less 128: with them no pair of products leaves 16 bits.
    type Codes = (__m256i, __m256i);
    const NARROW: bool = true;
    const OFFSET: i32 = 128;

    #[inline(always)]
    unsafe fn load(from: *const u8) -> __m256i {
        unsafe { _mm256_loadu_si256(from.cast()) }
    }
    #[inline(always)]
    unsafe fn splat(x: i32) -> __m256i {
        unsafe { _mm256_set1_epi32(x) }
    }
    #[inline(always)]
    unsafe fn codes<const BITS: usize>(line: __m256i) -> [(__m256i, __m256i); 2] {
        unsafe {
            if BITS == 4 {
                let low = _mm256_set1_epi8(15);
                let high = _mm256_and_si256(_mm256_srli_epi16::<4>(line), low);
                return [_mm256_and_si256(line, low), high].map(|half| (half, half));
            }
            let signed = _mm256_xor_si256(line, _mm256_set1_epi8(-128));
            [(_mm256_abs_epi8(signed), signed); 2]
        }
    }
    #[inline(always)]
    unsafe fn wide_codes(line: __m256i) -> (__m256i, __m256i) {
        (line, line)
    }
    #[inline(always)]
    unsafe fn dot<const BITS: usize>(sum: __m256i, codes: (__m256i, __m256i), x: __m256i) -> __m256i {
        unsafe {
            if BITS == 4 {
                return _mm256_add_epi16(sum, _mm256_maddubs_epi16(codes.0, x));
            }
            Self::fold(sum, _mm256_maddubs_epi16(codes.0, _mm256_sign_epi8(x, codes.1)))
        }
    }
    #[inline(always)]
    unsafe fn fold(sum: __m256i, narrow: __m256i) -> __m256i {
        unsafe { _mm256_add_epi32(sum, _mm256_madd_epi16(narrow, _mm256_set1_epi16(1))) }
    }
    #[inline(always)]
    unsafe fn load_u8(from: *const u8) -> __m256i {
        unsafe { _mm256_cvtepu8_epi32(_mm_loadl_epi64(from.cast())) }
    }
    #[inline(always)]
    unsafe fn mul16(x: __m256i, y: __m256i) -> __m256i {
        unsafe { _mm256_madd_epi16(x, y) }
    }
    #[inline(always)]
    unsafe fn sub(x: __m256i, y: __m256i) -> __m256i {
        unsafe { _mm256_sub_epi32(x, y) }
    }
    #[inline(always)]
    unsafe fn split(header: __m256i) -> (__m256, [__m256i; GROUPS_PER_SCALE]) {
        const SHIFT: i32 = SCALE_SHIFT as i32;
        const BITS: i32 = MULTIPLE_BITS as i32;
        unsafe {
            let field = _mm256_and_si256(header, _mm256_set1_epi32((1 << SCALE_BITS) - 1));
            let exponent = _mm256_set1_epi32((EXPONENT << 23) as i32);
            let scale = _mm256_add_epi32(_mm256_slli_epi32::<SHIFT>(field), exponent);
            let twice = |bytes: i32| {
                let bytes =
                    _mm_setr_epi32(bytes, bytes + 0x0404_0404, bytes + 0x0808_0808, bytes + 0x0c0c_0c0c);
                _mm256_shuffle_epi8(header, _mm256_broadcastsi128_si256(bytes))
            };
            let (high, low) = (twice(0x0302_0302), twice(0x0100_0100));
            let second = _mm256_slli_epi16::<BITS>(high);
            let multiples = [high, second, _mm256_slli_epi16::<BITS>(second), low];
            (_mm256_castsi256_ps(scale), multiples.map(|top| _mm256_srai_epi16::<{ 16 - BITS }>(top)))
        }
    }
    #[inline(always)]
    unsafe fn add_times(sum: __m256i, of_group: __m256i, multiple: __m256i) -> __m256i {
        unsafe { _mm256_add_epi32(sum, _mm256_madd_epi16(of_group, multiple)) }
    }
    #[inline(always)]
    unsafe fn zero() -> __m256 {
        unsafe { _mm256_setzero_ps() }
    }
    #[inline(always)]
    unsafe fn splat_float(x: f32) -> __m256 {
        unsafe { _mm256_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const u8) -> __m256 {
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(from.cast())) }
    }
    #[inline(always)]
    unsafe fn load_f32(from: *const u8) -> __m256 {
        unsafe { _mm256_loadu_ps(from.cast()) }
    }
    #[inline(always)]
    unsafe fn to_float(x: __m256i) -> __m256 {
        unsafe { _mm256_cvtepi32_ps(x) }
    }
    #[inline(always)]
    unsafe fn mul(x: __m256, y: __m256) -> __m256 {
        unsafe { _mm256_mul_ps(x, y) }
    }
    #[inline(always)]
    unsafe fn fma(x: __m256, y: __m256, z: __m256) -> __m256 {
        unsafe { _mm256_fmadd_ps(x, y, z) }
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, rows: usize, bias: *const f32, x: __m256) {
        unsafe {
            if rows == 8 {
                let x = if bias.is_null() { x } else { _mm256_add_ps(x, _mm256_loadu_ps(bias)) };
                return _mm256_storeu_ps(to, x);
            }
            let mut plain = [0f32; 8];
            _mm256_storeu_ps(plain.as_mut_ptr(), x);
            for (lane, value) in plain.into_iter().enumerate().take(rows) {
                *to.add(lane) = if bias.is_null() { value } else { value + *bias.add(lane) };
            }
        }
    }
    #[inline(always)]
    unsafe fn store_ints(to: *mut i32, x: __m256i) {
        unsafe { _mm256_storeu_si256(to.cast(), x) }
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn whole<const BITS: usize, const SPAN: usize, const SYM: bool, const S: usize>(tile: &Tile) {
    // SAFETY: the caller's duty.
    unsafe { panels::<Words, BITS, SPAN, SYM, false, S, { PANEL / 8 }, 1>(tile, 0) }
}

#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn halves<const BITS: usize, const SPAN: usize, const SYM: bool, const WIDE: bool, const T: usize>(
    tile: &Tile,
) {
    // SAFETY: the caller's duty.
    unsafe {
        panels::<Words, BITS, SPAN, SYM, WIDE, 1, 2, T>(tile, 0);
        panels::<Words, BITS, SPAN, SYM, WIDE, 1, 2, T>(&Tile { reach: Reach::NONE, ..*tile }, 2);
    }
}

unsafe fn of_format<const BITS: usize, const SPAN: usize, const SYM: bool>(
    streams: usize,
    tokens: usize,
    tile: &Tile,
) {
    // SAFETY: the caller's duty.
    unsafe {
        match tokens {
            3 if BITS == 4 && tile.wide => halves::<BITS, SPAN, SYM, true, 3>(tile),
            4 if BITS == 4 && tile.wide => halves::<BITS, SPAN, SYM, true, 4>(tile),
            1 if streams == 2 => whole::<BITS, SPAN, SYM, 2>(tile),
            1 => whole::<BITS, SPAN, SYM, 1>(tile),
            2 => halves::<BITS, SPAN, SYM, false, 2>(tile),
            3 => halves::<BITS, SPAN, SYM, false, 3>(tile),
            _ => halves::<BITS, SPAN, SYM, false, 4>(tile),
        }
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn shared_whole<const S: usize>(tile: &Tile) {
    // SAFETY: the caller's duty.
    unsafe { shared_panels::<Words, false, S, { PANEL / 8 }, 1>(tile, 0) }
}

#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn shared_halves<const WIDE: bool, const T: usize>(tile: &Tile) {
    // SAFETY: the caller's duty.
    unsafe {
        shared_panels::<Words, WIDE, 1, 2, T>(tile, 0);
        shared_panels::<Words, WIDE, 1, 2, T>(&Tile { reach: Reach::NONE, ..*tile }, 2);
    }
}

unsafe fn shared(streams: usize, tokens: usize, tile: &Tile) {
    // SAFETY: the caller's duty.
    unsafe {
        match tokens {
            3 if tile.wide => shared_halves::<true, 3>(tile),
            4 if tile.wide => shared_halves::<true, 4>(tile),
            1 if streams == 2 => shared_whole::<2>(tile),
            1 => shared_whole::<1>(tile),
            2 => shared_halves::<false, 2>(tile),
            3 => shared_halves::<false, 3>(tile),
            _ => shared_halves::<false, 4>(tile),
        }
    }
}

/// Most panels that the kernels take with so many tokens; the others take one.
pub(super) fn streams(tokens: usize) -> usize {
    if tokens == 1 { 2 } else { 1 }
}

/// At most 4 tokens times one panel, or as [`streams`] says several.
///
/// # Safety
/// As [`super::tile::scalar`], and the processor has AVX2, FMA and F16C.
pub(super) unsafe fn words(streams: usize, tokens: usize, tile: &Tile) {
    // SAFETY: the caller's duty.
    unsafe {
        if tile.format.is_shared() {
            return shared(streams, tokens, tile);
        }
        for_format!(tile.format, of_format(streams, tokens, tile));
    }
}
