//! The kernels for AVX2, FMA and F16C. One or two tokens take all 32 rows (four vectors) at once, more take them
//! in two halves of 16 so that the sums stay in the 16 registers.

#![allow(clippy::needless_range_loop, reason = "indices tie several arrays of registers together")]

use std::arch::x86_64::*;

use super::packed::PANEL;
use super::tile::{Chain, STEP, Tile, finish};
use crate::ops::prefetch::prefetch_outer;

/// Most tokens of one tile: 12 sums, two weights and one activation.
pub(super) const MAX_TOKENS: usize = 6;
/// Most tokens of one tile of bf16 weights, which need two more registers to be taken apart.
pub(super) const MAX_TOKENS_BF16: usize = 5;

const F32: u8 = 0;
const F16: u8 = 1;

macro_rules! by_tokens {
    ($tokens:expr, $kernel:ident, [$($kind:ident)?], $tile:expr) => {
        match $tokens {
            1 => $kernel::<$($kind,)? 4, 1>($tile, 0),
            2 => $kernel::<$($kind,)? 4, 2>($tile, 0),
            3 => halves!($kernel, [$($kind)?], 3, $tile),
            4 => halves!($kernel, [$($kind)?], 4, $tile),
            5 => halves!($kernel, [$($kind)?], 5, $tile),
            _ => halves!($kernel, [$($kind)?], 6, $tile),
        }
    };
}

macro_rules! halves {
    ($kernel:ident, [$($kind:ident)?], $count:literal, $tile:expr) => {{
        $kernel::<$($kind,)? 2, $count>($tile, 0);
        $kernel::<$($kind,)? 2, $count>(&Tile { next: $tile.weight, next_step: 0, ..*$tile }, 2);
    }};
}

/// `tokens` tokens times one panel.
///
/// # Safety
/// As [`super::tile::scalar`], and the processor has AVX2, FMA and F16C.
pub(super) unsafe fn run(chain: Chain, tokens: usize, tile: &Tile) {
    // SAFETY: the caller's duty, passed on.
    unsafe {
        match chain {
            Chain::F32 if tile.kept => by_tokens!(tokens, kept, [], tile),
            Chain::F32 => by_tokens!(tokens, single, [F32], tile),
            Chain::F16 => by_tokens!(tokens, single, [F16], tile),
            Chain::Bf16 | Chain::Dot => by_tokens!(tokens, pairs, [], tile),
        }
    }
}

type Sums<const R: usize, const T: usize> = [[__m256; R]; T];

/// Weights `[col][32]`, f32 or f16; `R` vectors of rows from vector `first` on.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn single<const KIND: u8, const R: usize, const T: usize>(tile: &Tile, first: usize) {
    let size = if KIND == F32 { 4 } else { 2 };
    let mut acc: Sums<R, T> = [[_mm256_setzero_ps(); R]; T];
    let mut next = tile.next;
    let (mut weight, mut x) = (tile.weight.wrapping_add(8 * size * first), tile.x.cast::<f32>());
    for _ in 0..tile.cols {
        // SAFETY: one column of weights and activations, promised by the caller.
        unsafe {
            tile.ask(weight, next, if KIND == F32 { 2 } else { 1 });
            let mut w = [_mm256_setzero_ps(); R];
            for part in 0..R {
                let from = weight.add(8 * size * part);
                w[part] = if KIND == F32 {
                    _mm256_loadu_ps(from.cast())
                } else {
                    _mm256_cvtph_ps(_mm_loadu_si128(from.cast()))
                };
            }
            for token in 0..T {
                let each = _mm256_broadcast_ss(&*x.add(token));
                for part in 0..R {
                    acc[token][part] = _mm256_fmadd_ps(w[part], each, acc[token][part]);
                }
            }
            weight = weight.wrapping_add(PANEL * size);
            x = x.add(T);
            next = next.wrapping_add(tile.next_step);
        }
    }
    // SAFETY: the caller's duty, passed on.
    unsafe { store(&acc, tile, first) };
}

/// Weights `[col][32]` f32 that wait in the second cache; `R` vectors of rows from vector `first` on.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn kept<const R: usize, const T: usize>(tile: &Tile, first: usize) {
    let mut acc: Sums<R, T> = [[_mm256_setzero_ps(); R]; T];
    let mut next = tile.next;
    let (mut weight, mut x) = (tile.weight.cast::<f32>().wrapping_add(8 * first), tile.x.cast::<f32>());
    let mut column = || {
        // SAFETY: one column of weights and activations, promised by the caller.
        unsafe {
            let mut w = [_mm256_setzero_ps(); R];
            for part in 0..R {
                w[part] = _mm256_loadu_ps(weight.add(8 * part));
            }
            for token in 0..T {
                let each = _mm256_broadcast_ss(&*x.add(token));
                for part in 0..R {
                    acc[token][part] = _mm256_fmadd_ps(w[part], each, acc[token][part]);
                }
            }
        }
        weight = weight.wrapping_add(PANEL);
        x = x.wrapping_add(T);
    };
    for _ in 0..tile.cols / STEP {
        prefetch_outer(next, 1);
        next = next.wrapping_add(tile.next_step);
        for _ in 0..STEP {
            column();
        }
    }
    for _ in 0..tile.cols % STEP {
        column();
    }
    // SAFETY: the caller's duty, passed on.
    unsafe { store(&acc, tile, first) };
}

/// Weights `[col / 2][32][2]` bf16; `R` vectors of rows from vector `first` on.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn pairs<const R: usize, const T: usize>(tile: &Tile, first: usize) {
    let mut acc: Sums<R, T> = [[_mm256_setzero_ps(); R]; T];
    let mut next = tile.next;
    let (mut weight, mut x) = (tile.weight.wrapping_add(32 * first), tile.x.cast::<f32>());
    let keep = _mm256_set1_epi32(0xffff_0000_u32 as i32);
    for pair in 0..tile.cols.div_ceil(2) {
        // SAFETY: one or two columns of weights and activations, promised by the caller.
        unsafe {
            tile.ask(weight, next, 2);
            let mut both = [_mm256_setzero_si256(); R];
            for part in 0..R {
                both[part] = _mm256_loadu_si256(weight.add(32 * part).cast());
            }
            for token in 0..T {
                let each = _mm256_broadcast_ss(&*x.add(token));
                for part in 0..R {
                    let w = _mm256_castsi256_ps(_mm256_slli_epi32::<16>(both[part]));
                    acc[token][part] = _mm256_fmadd_ps(w, each, acc[token][part]);
                }
            }
            if 2 * pair + 1 < tile.cols {
                for token in 0..T {
                    let each = _mm256_broadcast_ss(&*x.add(T + token));
                    for part in 0..R {
                        let w = _mm256_castsi256_ps(_mm256_and_si256(both[part], keep));
                        acc[token][part] = _mm256_fmadd_ps(w, each, acc[token][part]);
                    }
                }
            }
            weight = weight.wrapping_add(128);
            x = x.wrapping_add(2 * T);
            next = next.wrapping_add(tile.next_step);
        }
    }
    // SAFETY: the caller's duty, passed on.
    unsafe { store(&acc, tile, first) };
}

/// Add the sums to the outputs. Always inlined into kernels of this level: sums whose address leaves the kernel
/// would be written to the stack at every step.
#[inline(always)]
unsafe fn store<const R: usize, const T: usize>(acc: &Sums<R, T>, tile: &Tile, first: usize) {
    for token in 0..T {
        if tile.rows < 8 * (first + R) {
            let mut plain = [0f32; PANEL];
            for part in 0..R {
                // SAFETY: eight of 32 values of a local array.
                unsafe { _mm256_storeu_ps(plain.as_mut_ptr().add(8 * (first + part)), acc[token][part]) };
            }
            // SAFETY: the caller's duty, passed on.
            unsafe { finish(&plain, tile, token, 8 * first..8 * (first + R)) };
            continue;
        }
        for part in 0..R {
            let at = 8 * (first + part);
            // SAFETY: these rows exist, promised by the caller.
            unsafe {
                let to = tile.out.add(token * tile.out_stride + at);
                let mut total = acc[token][part];
                if !tile.first {
                    total = _mm256_add_ps(_mm256_loadu_ps(to), total);
                }
                if !tile.bias.is_null() {
                    total = _mm256_add_ps(total, _mm256_loadu_ps(tile.bias.add(at)));
                }
                _mm256_storeu_ps(to, total);
            }
        }
    }
}
