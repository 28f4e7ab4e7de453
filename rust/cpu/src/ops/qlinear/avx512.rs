//! The kernels for AVX-512, with and without VPDPBUSD.

use std::arch::x86_64::*;

use super::activations::LARGE_TILE;
use super::block::{block, large_shared};
use super::blocks::{Ahead, Waiting};
use super::kernel::{Level, for_format, panels};
use super::shared::{EXPONENT, MULTIPLE_BITS, SCALE_BITS, SCALE_SHIFT};
use super::shared_block::{shared_beside, shared_block};
use super::shared_kernel::shared_panels;
use super::tile::Tile;
use super::tuning::Tuning;
use crate::ops::broadcast::dpbusd_at;
use crate::quant::GROUPS_PER_SCALE;

/// AVX-512 F, BW, VL and DQ: products of bytes by VPMADDUBSW, which adds two in 16 bits.
pub(super) struct Words;
/// The level above plus VNNI.
pub(super) struct Vnni;

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
        unsafe fn sub(x: __m512i, y: __m512i) -> __m512i {
            unsafe { _mm512_sub_epi32(x, y) }
        }
        #[inline(always)]
        unsafe fn split(header: __m512i) -> (__m512, [__m512i; GROUPS_PER_SCALE]) {
            const ABOVE: u32 = 16 - MULTIPLE_BITS;
            // From both halves of a dword, byte by byte: a negative one is zero.
            let [high, low, step] = match Self::NARROW {
                true => [0x0302_0302, 0x0100_0100, 0x0404_0404],
                false => [0x8080_0302u32.cast_signed(), 0x8080_0100u32.cast_signed(), 0x0404],
            };
            unsafe {
                let field = _mm512_and_si512(header, _mm512_set1_epi32((1 << SCALE_BITS) - 1));
                let exponent = _mm512_set1_epi32((EXPONENT << 23) as i32);
                let scale = _mm512_add_epi32(_mm512_slli_epi32::<SCALE_SHIFT>(field), exponent);
                let take = |bytes: i32| {
                    let bytes = _mm_setr_epi32(bytes, bytes + step, bytes + 2 * step, bytes + 3 * step);
                    _mm512_shuffle_epi8(header, _mm512_broadcast_i32x4(bytes))
                };
                let (high, low) = (take(high), take(low));
                let multiples = [
                    high,
                    _mm512_slli_epi16::<MULTIPLE_BITS>(high),
                    _mm512_slli_epi16::<{ 2 * MULTIPLE_BITS }>(high),
                    low,
                ];
                (_mm512_castsi512_ps(scale), multiples.map(|top| _mm512_srai_epi16::<ABOVE>(top)))
            }
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
        unsafe fn load_f32(from: *const u8) -> __m512 {
            unsafe { _mm512_loadu_ps(from.cast()) }
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
        unsafe fn store_ints(to: *mut i32, x: __m512i) {
            unsafe { _mm512_storeu_si512(to.cast(), x) }
        }
    };
}

/// Both halves of 4-bit codes.
#[inline(always)]
pub(super) unsafe fn halves(line: __m512i) -> [__m512i; 2] {
    // SAFETY: reached from AVX-512 code only.
    unsafe {
        let low = _mm512_set1_epi8(15);
        [_mm512_and_si512(line, low), _mm512_and_si512(_mm512_srli_epi16::<4>(line), low)]
    }
}

// The functions below are the trait's: their safety is the caller's duty.
#[allow(clippy::undocumented_unsafe_blocks)]
impl Level for Words {
    /// Codes of 4 bits, or magnitude and (in all bits of a byte) sign of codes of 8 bits less 128: with them no pair of
    /// products leaves 16 bits.
    type Codes = (__m512i, __m512i);
    const NARROW: bool = true;
    const OFFSET: i32 = 128;
    shared!();

    #[inline(always)]
    unsafe fn codes<const BITS: usize>(line: __m512i) -> [(__m512i, __m512i); 2] {
        unsafe {
            if BITS == 4 {
                return halves(line).map(|half| (half, half));
            }
            let signed = _mm512_xor_si512(line, _mm512_set1_epi8(-128));
            [(_mm512_abs_epi8(signed), _mm512_movm_epi8(_mm512_movepi8_mask(signed))); 2]
        }
    }

    #[inline(always)]
    unsafe fn add_times(sum: __m512i, of_group: __m512i, multiple: __m512i) -> __m512i {
        unsafe { _mm512_add_epi32(sum, _mm512_madd_epi16(of_group, multiple)) }
    }

    #[inline(always)]
    unsafe fn wide_codes(line: __m512i) -> (__m512i, __m512i) {
        (line, line)
    }

    #[inline(always)]
    unsafe fn dot<const BITS: usize>(sum: __m512i, codes: (__m512i, __m512i), x: __m512i) -> __m512i {
        unsafe {
            if BITS == 4 {
                return _mm512_add_epi16(sum, _mm512_maddubs_epi16(codes.0, x));
            }
            let x = _mm512_sub_epi8(_mm512_xor_si512(x, codes.1), codes.1);
            Self::fold(sum, _mm512_maddubs_epi16(codes.0, x))
        }
    }

    #[inline(always)]
    unsafe fn fold(sum: __m512i, narrow: __m512i) -> __m512i {
        unsafe { _mm512_add_epi32(sum, _mm512_madd_epi16(narrow, _mm512_set1_epi16(1))) }
    }
}

// As above.
#[allow(clippy::undocumented_unsafe_blocks)]
impl Level for Vnni {
    type Codes = __m512i;
    const NARROW: bool = false;
    const OFFSET: i32 = 0;
    shared!();

    #[inline(always)]
    unsafe fn codes<const BITS: usize>(line: __m512i) -> [__m512i; 2] {
        unsafe { if BITS == 4 { halves(line) } else { [line; 2] } }
    }

    #[inline(always)]
    unsafe fn add_times(sum: __m512i, of_group: __m512i, multiple: __m512i) -> __m512i {
        unsafe { _mm512_dpwssd_epi32(sum, of_group, multiple) }
    }

    #[inline(always)]
    unsafe fn wide_codes(line: __m512i) -> __m512i {
        line
    }

    #[inline(always)]
    unsafe fn dot<const BITS: usize>(sum: __m512i, codes: __m512i, x: __m512i) -> __m512i {
        unsafe { _mm512_dpbusd_epi32(sum, codes, x) }
    }

    #[inline(always)]
    unsafe fn dot_at<const BITS: usize, const AT: usize>(
        sum: __m512i,
        codes: __m512i,
        x: *const u8,
    ) -> __m512i {
        // SAFETY: the caller's duty.
        unsafe { dpbusd_at::<AT>(sum, codes, x) }
    }

    #[inline(always)]
    unsafe fn fold(sum: __m512i, narrow: __m512i) -> __m512i {
        unsafe { _mm512_add_epi32(sum, narrow) }
    }
}

/// Most panels that a kernel of these levels takes with so many tokens; the others take one.
pub(super) fn streams(tokens: usize) -> usize {
    match tokens {
        1 => 4,
        2 => 2,
        _ => 1,
    }
}

/// Call `$inner::<$parameters.., WIDE, S, T>` for so many streams and tokens.
macro_rules! for_tile {
    ($level:ty, $inner:ident::<$($parameter:ident),*>, $may_be_wide:expr, $streams:expr, $tokens:expr, $tile:expr) => {
        match ($streams, $tokens) {
            (_, 6) if $may_be_wide && <$level>::NARROW && $tile.wide => $inner::<$($parameter,)* true, 1, 6>($tile),
            (_, 5) if $may_be_wide && <$level>::NARROW && $tile.wide => $inner::<$($parameter,)* true, 1, 5>($tile),
            (4, _) => $inner::<$($parameter,)* false, 4, 1>($tile),
            (2, 1) => $inner::<$($parameter,)* false, 2, 1>($tile),
            (2, _) => $inner::<$($parameter,)* false, 2, 2>($tile),
            (_, 1) => $inner::<$($parameter,)* false, 1, 1>($tile),
            (_, 2) => $inner::<$($parameter,)* false, 1, 2>($tile),
            (_, 3) => $inner::<$($parameter,)* false, 1, 3>($tile),
            (_, 4) => $inner::<$($parameter,)* false, 1, 4>($tile),
            (_, 5) => $inner::<$($parameter,)* false, 1, 5>($tile),
            (_, 6) => $inner::<$($parameter,)* false, 1, 6>($tile),
            (_, 7) => $inner::<$($parameter,)* false, 1, 7>($tile),
            (_, _) => $inner::<$($parameter,)* false, 1, 8>($tile),
        }
    };
}

macro_rules! entry {
    (
        $(#[$doc:meta])* $name:ident, $inner:ident, $of_format:ident, $shared:ident, $level:ty, $features:literal
    ) => {
        #[target_feature(enable = $features)]
        unsafe fn $inner<
            const BITS: usize,
            const SPAN: usize,
            const SYM: bool,
            const WIDE: bool,
            const S: usize,
            const T: usize,
        >(
            tile: &Tile,
        ) {
            // SAFETY: the caller's duty.
            unsafe { panels::<$level, BITS, SPAN, SYM, WIDE, S, 2, T>(tile, 0) }
        }

        #[target_feature(enable = $features)]
        unsafe fn $shared<const WIDE: bool, const S: usize, const T: usize>(tile: &Tile) {
            // SAFETY: the caller's duty.
            unsafe { shared_panels::<$level, WIDE, S, 2, T>(tile, 0) }
        }

        unsafe fn $of_format<const BITS: usize, const SPAN: usize, const SYM: bool>(
            streams: usize,
            tokens: usize,
            tile: &Tile,
        ) {
            // SAFETY: the caller's duty.
            unsafe { for_tile!($level, $inner::<BITS, SPAN, SYM>, BITS == 4, streams, tokens, tile) }
        }

        $(#[$doc])*
        pub(super) unsafe fn $name(streams: usize, tokens: usize, tile: &Tile) {
            // SAFETY: the caller's duty.
            unsafe {
                if tile.format.is_shared() {
                    return for_tile!($level, $shared::<>, true, streams, tokens, tile);
                }
                for_format!(tile.format, $of_format(streams, tokens, tile));
            }
        }
    };
}

entry!(
    /// At most 8 tokens times one panel, or as [`streams`] says several.
    ///
    /// # Safety
    /// As [`super::tile::scalar`], and the processor has AVX-512 F, BW, VL and DQ.
    words, words_panels, words_of_format, words_shared, Words, "avx512f,avx512bw,avx512vl,avx512dq"
);
entry!(
    /// At most 8 tokens times one panel, or as [`streams`] says several.
    ///
    /// # Safety
    /// As [`super::tile::scalar`], and the processor has AVX-512 F, BW, VL, DQ and VNNI.
    vnni, vnni_panels, vnni_of_format, vnni_shared, Vnni, "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni"
);

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
unsafe fn block_of_format<const BITS: usize, const SPAN: usize, const SYM: bool>(
    tokens: usize,
    tile: &Tile,
    ahead: Ahead,
    waiting: Waiting,
    between: impl FnMut(usize),
) {
    // SAFETY: the caller's duty.
    unsafe { block::<Vnni, BITS, SPAN, SYM>(tokens, tile, ahead, waiting, between) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
pub(super) unsafe fn large_tile_of_shared(
    tokens: usize,
    tile: &Tile,
    ahead: Ahead,
    waiting: Waiting,
    between: impl FnMut(usize),
) {
    // SAFETY: the caller's duty.
    unsafe { large_shared::<Vnni>(tokens, tile, ahead, waiting, between) }
}

/// The tokens of a block times the tile's first panel, see [`block`].
///
/// # Safety
/// As [`block`], and the processor has AVX-512 F, BW, VL, DQ and VNNI.
pub(super) unsafe fn block_of_tokens(
    tokens: usize,
    tile: &Tile,
    ahead: Ahead,
    waiting: Waiting,
    between: impl FnMut(usize),
) {
    // SAFETY: the caller's duty.
    unsafe {
        if tile.format.is_shared() && Tuning::get().apart_beside {
            return shared_beside(tokens, tile, ahead, waiting, between);
        }
        if tile.format.is_shared() && tokens > LARGE_TILE {
            return shared_block(tokens, tile, ahead, waiting, between);
        }
        if tile.format.is_shared() {
            return large_tile_of_shared(tokens, tile, ahead, waiting, between);
        }
        for_format!(tile.format, block_of_format(tokens, tile, ahead, waiting, between));
    }
}
