//! The kernels for AVX-512: a tile is 32 rows (two vectors) by at most twelve tokens.

#![allow(clippy::needless_range_loop, reason = "indices tie several arrays of registers together")]

use std::arch::x86_64::*;

use super::packed::PANEL;
use super::tile::{Chain, STEP, Tile};
use crate::ops::broadcast::fma_at;
use crate::ops::prefetch::prefetch_outer;

/// Most tokens of one tile: 24 sums, two weights and one activation fit the 32 registers.
pub(super) const MAX_TOKENS: usize = 12;

const F32: u8 = 0;
const F16: u8 = 1;

macro_rules! by_tokens {
    ($tokens:expr, $kernel:ident, [$($kind:ident)?], $tile:expr) => {
        match $tokens {
            1 => $kernel::<$($kind,)? 1>($tile),
            2 => $kernel::<$($kind,)? 2>($tile),
            3 => $kernel::<$($kind,)? 3>($tile),
            4 => $kernel::<$($kind,)? 4>($tile),
            5 => $kernel::<$($kind,)? 5>($tile),
            6 => $kernel::<$($kind,)? 6>($tile),
            7 => $kernel::<$($kind,)? 7>($tile),
            8 => $kernel::<$($kind,)? 8>($tile),
            9 => $kernel::<$($kind,)? 9>($tile),
            10 => $kernel::<$($kind,)? 10>($tile),
            11 => $kernel::<$($kind,)? 11>($tile),
            _ => $kernel::<$($kind,)? 12>($tile),
        }
    };
}

/// `tokens` tokens times one panel.
///
/// # Safety
/// As [`super::tile::scalar`], and the processor has AVX-512 F, BW, VL and DQ, for [`Chain::Dot`] also BF16.
pub(super) unsafe fn run(chain: Chain, tokens: usize, tile: &Tile) {
    // SAFETY: the caller's duty, passed on.
    unsafe {
        match chain {
            Chain::F32 if tile.kept => by_tokens!(tokens, kept, [], tile),
            Chain::F32 => by_tokens!(tokens, single, [F32], tile),
            Chain::F16 => by_tokens!(tokens, single, [F16], tile),
            Chain::Bf16 => by_tokens!(tokens, pairs, [], tile),
            Chain::Dot => by_tokens!(tokens, dots, [], tile),
        }
    }
}

type Sums<const T: usize> = [[__m512; 2]; T];

/// Weights `[col][32]`, f32 or f16.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
unsafe fn single<const KIND: u8, const T: usize>(tile: &Tile) {
    let line = if KIND == F32 { 128 } else { 64 };
    let mut acc: Sums<T> = [[_mm512_setzero_ps(); 2]; T];
    let (mut weight, mut x, mut next) = (tile.weight, tile.x.cast::<f32>(), tile.next);
    for _ in 0..tile.cols {
        // SAFETY: one column of weights and activations, promised by the caller.
        unsafe {
            tile.ask(weight, next, if KIND == F32 { 2 } else { 1 });
            let w = if KIND == F32 {
                [_mm512_loadu_ps(weight.cast()), _mm512_loadu_ps(weight.add(64).cast())]
            } else {
                let low = _mm256_loadu_si256(weight.cast());
                let high = _mm256_loadu_si256(weight.add(32).cast());
                [_mm512_cvtph_ps(low), _mm512_cvtph_ps(high)]
            };
            for token in 0..T {
                let each = _mm512_set1_ps(*x.add(token));
                for half in 0..2 {
                    acc[token][half] = _mm512_fmadd_ps(w[half], each, acc[token][half]);
                }
            }
            weight = weight.add(line);
            x = x.add(T);
            next = next.wrapping_add(tile.next_step);
        }
    }
    // SAFETY: the caller's duty, passed on.
    unsafe { store(&acc, tile) };
}

/// Weights `[col][32]` f32 that wait in the second cache.
///
/// Of the activations, which both halves of the rows meet, two of three are read by each of the two multiplications: these
/// are fewer instructions, for which a core that shares its front end is grateful, and not yet too many reads.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
unsafe fn kept<const T: usize>(tile: &Tile) {
    let mut acc: Sums<T> = [[_mm512_setzero_ps(); 2]; T];
    let (mut weight, mut x, mut next) = (tile.weight.cast::<f32>(), tile.x.cast::<f32>(), tile.next);
    macro_rules! column {
        () => { column!(0 1 2, 3 4 5, 6 7 8, 9 10 11,) };
        ($($apart:literal $($within:literal)*,)*) => {{
            let w = [_mm512_loadu_ps(weight), _mm512_loadu_ps(weight.add(16))];
            $(
                if $apart < T {
                    let each = _mm512_set1_ps(*x.add($apart));
                    for half in 0..2 {
                        acc[$apart][half] = _mm512_fmadd_ps(w[half], each, acc[$apart][half]);
                    }
                }
                $(if $within < T {
                    for half in 0..2 {
                        acc[$within][half] = fma_at::<{ 4 * $within }>(acc[$within][half], w[half], x);
                    }
                })*
            )*
            weight = weight.add(PANEL);
            x = x.add(T);
        }};
    }
    // SAFETY: columns of weights and activations, promised by the caller.
    unsafe {
        for _ in 0..tile.cols / STEP {
            prefetch_outer(next, 1);
            next = next.wrapping_add(tile.next_step);
            column!();
            column!();
            column!();
            column!();
        }
        for _ in 0..tile.cols % STEP {
            column!();
        }
    }
    // SAFETY: the caller's duty, passed on.
    unsafe { store(&acc, tile) };
}

/// Weights `[col / 2][32][2]` bf16, one fused multiply-add per column.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
unsafe fn pairs<const T: usize>(tile: &Tile) {
    let mut acc: Sums<T> = [[_mm512_setzero_ps(); 2]; T];
    let (mut weight, mut x, mut next) = (tile.weight, tile.x.cast::<f32>(), tile.next);
    let keep = _mm512_set1_epi32(0xffff_0000_u32 as i32);
    for pair in 0..tile.cols.div_ceil(2) {
        // SAFETY: one or two columns of weights and activations, promised by the caller.
        unsafe {
            tile.ask(weight, next, 2);
            let both = [_mm512_loadu_si512(weight.cast()), _mm512_loadu_si512(weight.add(64).cast())];
            for token in 0..T {
                let each = _mm512_set1_ps(*x.add(token));
                for half in 0..2 {
                    let w = _mm512_castsi512_ps(_mm512_slli_epi32::<16>(both[half]));
                    acc[token][half] = _mm512_fmadd_ps(w, each, acc[token][half]);
                }
            }
            if 2 * pair + 1 < tile.cols {
                for token in 0..T {
                    let each = _mm512_set1_ps(*x.add(T + token));
                    for half in 0..2 {
                        let w = _mm512_castsi512_ps(_mm512_and_si512(both[half], keep));
                        acc[token][half] = _mm512_fmadd_ps(w, each, acc[token][half]);
                    }
                }
            }
            weight = weight.wrapping_add(128);
            x = x.wrapping_add(2 * T);
            next = next.wrapping_add(tile.next_step);
        }
    }
    // SAFETY: the caller's duty, passed on.
    unsafe { store(&acc, tile) };
}

/// Weights `[col / 2][32][2]` bf16 and activations in bf16, one VPDPBF16PS per pair of columns.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
unsafe fn dots<const T: usize>(tile: &Tile) {
    let mut acc: Sums<T> = [[_mm512_setzero_ps(); 2]; T];
    let (mut weight, mut x, mut next) = (tile.weight, tile.x.cast::<i32>(), tile.next);
    for _ in 0..tile.cols.div_ceil(2) {
        // SAFETY: a pair of columns of weights and activations, promised by the caller.
        unsafe {
            tile.ask(weight, next, 2);
            let w = [_mm512_loadu_si512(weight.cast()), _mm512_loadu_si512(weight.add(64).cast())];
            for token in 0..T {
                let each = as_bf16(_mm512_set1_epi32(*x.add(token)));
                for half in 0..2 {
                    acc[token][half] = _mm512_dpbf16_ps(acc[token][half], as_bf16(w[half]), each);
                }
            }
            weight = weight.add(128);
            x = x.add(T);
            next = next.wrapping_add(tile.next_step);
        }
    }
    // SAFETY: the caller's duty, passed on.
    unsafe { store(&acc, tile) };
}

#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
fn as_bf16(bits: __m512i) -> __m512bh {
    // SAFETY: both are 64 bytes of plain numbers.
    unsafe { std::mem::transmute(bits) }
}

/// Add the sums to the outputs. Always inlined into kernels of this level: sums whose address leaves the kernel
/// would be written to the stack at every step.
#[inline(always)]
unsafe fn store<const T: usize>(acc: &Sums<T>, tile: &Tile) {
    let all = if tile.rows >= PANEL { u32::MAX } else { (1 << tile.rows) - 1 };
    let masks = [all as u16, (all >> 16) as u16];
    for token in 0..T {
        for half in 0..2 {
            let to = tile.out.wrapping_add(token * tile.out_stride + 16 * half);
            let mut total = acc[token][half];
            // SAFETY: tokens that exist, and the masks leave out rows that do not.
            unsafe {
                if !tile.first {
                    total = _mm512_add_ps(_mm512_maskz_loadu_ps(masks[half], to), total);
                }
                if !tile.bias.is_null() {
                    let bias = _mm512_maskz_loadu_ps(masks[half], tile.bias.wrapping_add(16 * half));
                    total = _mm512_add_ps(total, bias);
                }
                _mm512_mask_storeu_ps(to, masks[half], total);
            }
        }
    }
}
