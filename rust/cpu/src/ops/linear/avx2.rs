//! The kernels for AVX2, FMA and F16C: a tile is 32 rows (four vectors) by at most three tokens.

#![allow(clippy::needless_range_loop, reason = "indices tie several arrays of registers together")]

use std::arch::x86_64::*;

use super::packed::PANEL;
use super::tile::{Chain, Tile, finish};

/// Most tokens of one tile.
pub(super) const MAX_TOKENS: usize = 3;

const F32: u8 = 0;
const F16: u8 = 1;

/// `tokens` tokens times one panel.
///
/// # Safety
/// As [`super::tile::scalar`], and the processor has AVX2, FMA and F16C.
pub(super) unsafe fn run(chain: Chain, tokens: usize, tile: &Tile) {
    // SAFETY: the caller's duty, passed on.
    unsafe {
        match (chain, tokens) {
            (Chain::F32, 1) => single::<F32, 1>(tile),
            (Chain::F32, 2) => single::<F32, 2>(tile),
            (Chain::F32, _) => single::<F32, 3>(tile),
            (Chain::F16, 1) => single::<F16, 1>(tile),
            (Chain::F16, 2) => single::<F16, 2>(tile),
            (Chain::F16, _) => single::<F16, 3>(tile),
            (Chain::Bf16 | Chain::Dot, 1) => pairs::<1>(tile),
            (Chain::Bf16 | Chain::Dot, 2) => pairs::<2>(tile),
            (Chain::Bf16 | Chain::Dot, _) => pairs::<3>(tile),
        }
    }
}

type Sums<const T: usize> = [[__m256; 4]; T];

/// Weights `[col][32]`, f32 or f16.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn single<const KIND: u8, const T: usize>(tile: &Tile) {
    let line = if KIND == F32 { 128 } else { 64 };
    let mut acc: Sums<T> = [[_mm256_setzero_ps(); 4]; T];
    let (mut weight, mut x) = (tile.weight, tile.x.cast::<f32>());
    for _ in 0..tile.cols {
        // SAFETY: one column of weights and activations, promised by the caller; a prefetch may point anywhere.
        unsafe {
            _mm_prefetch::<_MM_HINT_T0>(weight.wrapping_add(tile.ahead).cast());
            if KIND == F32 {
                _mm_prefetch::<_MM_HINT_T0>(weight.wrapping_add(tile.ahead + 64).cast());
            }
            let mut each = [_mm256_setzero_ps(); T];
            for token in 0..T {
                each[token] = _mm256_broadcast_ss(&*x.add(token));
            }
            for part in 0..4 {
                let w = if KIND == F32 {
                    _mm256_loadu_ps(weight.add(32 * part).cast())
                } else {
                    _mm256_cvtph_ps(_mm_loadu_si128(weight.add(16 * part).cast()))
                };
                for token in 0..T {
                    acc[token][part] = _mm256_fmadd_ps(w, each[token], acc[token][part]);
                }
            }
            weight = weight.add(line);
            x = x.add(T);
        }
    }
    // SAFETY: the caller's duty, passed on.
    unsafe { store(&acc, tile) };
}

/// Weights `[col / 2][32][2]` bf16.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn pairs<const T: usize>(tile: &Tile) {
    let mut acc: Sums<T> = [[_mm256_setzero_ps(); 4]; T];
    let (mut weight, mut x) = (tile.weight, tile.x.cast::<f32>());
    let high = _mm256_set1_epi32(0xffff_0000_u32 as i32);
    for pair in 0..tile.cols.div_ceil(2) {
        // SAFETY: one or two columns of weights and activations, promised by the caller; a prefetch may point anywhere.
        unsafe {
            _mm_prefetch::<_MM_HINT_T0>(weight.wrapping_add(tile.ahead).cast());
            _mm_prefetch::<_MM_HINT_T0>(weight.wrapping_add(tile.ahead + 64).cast());
            for part in 0..4 {
                let both = _mm256_loadu_si256(weight.add(32 * part).cast());
                let w = _mm256_castsi256_ps(_mm256_slli_epi32::<16>(both));
                for token in 0..T {
                    let each = _mm256_broadcast_ss(&*x.add(token));
                    acc[token][part] = _mm256_fmadd_ps(w, each, acc[token][part]);
                }
            }
            if 2 * pair + 1 < tile.cols {
                for part in 0..4 {
                    let both = _mm256_loadu_si256(weight.add(32 * part).cast());
                    let w = _mm256_castsi256_ps(_mm256_and_si256(both, high));
                    for token in 0..T {
                        let each = _mm256_broadcast_ss(&*x.add(T + token));
                        acc[token][part] = _mm256_fmadd_ps(w, each, acc[token][part]);
                    }
                }
            }
            weight = weight.wrapping_add(128);
            x = x.wrapping_add(2 * T);
        }
    }
    // SAFETY: the caller's duty, passed on.
    unsafe { store(&acc, tile) };
}

/// Add the sums to the outputs. Always inlined into kernels of this level: sums whose address leaves the
/// kernel would be written to the stack at every step.
#[inline(always)]
unsafe fn store<const T: usize>(acc: &Sums<T>, tile: &Tile) {
    for (token, sums) in acc.iter().enumerate() {
        if tile.rows < PANEL {
            let mut plain = [0f32; PANEL];
            for (part, &sum) in sums.iter().enumerate() {
                // SAFETY: eight of 32 values of a local array.
                unsafe { _mm256_storeu_ps(plain.as_mut_ptr().add(8 * part), sum) };
            }
            // SAFETY: the caller's duty, passed on.
            unsafe { finish(&plain, tile, token) };
            continue;
        }
        for (part, &sum) in sums.iter().enumerate() {
            // SAFETY: 32 rows exist, promised by the caller.
            unsafe {
                let to = tile.out.add(token * tile.out_stride + 8 * part);
                let mut total = if tile.first { sum } else { _mm256_add_ps(_mm256_loadu_ps(to), sum) };
                if !tile.bias.is_null() {
                    total = _mm256_add_ps(total, _mm256_loadu_ps(tile.bias.add(8 * part)));
                }
                _mm256_storeu_ps(to, total);
            }
        }
    }
}

/// Widen `cols` columns of f16 or bf16 weights to f32 `[col][32]`.
///
/// # Safety
/// `from` holds the columns, `to` has room for them (`cols` rounded up to even for bf16); the processor has
/// AVX2, FMA and F16C.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn widen(chain: Chain, from: *const u8, cols: usize, to: *mut f32) {
    let steps = if chain == Chain::F16 { cols } else { cols.div_ceil(2) };
    let high = _mm256_set1_epi32(0xffff_0000_u32 as i32);
    for step in 0..steps {
        for part in 0..4 {
            // SAFETY: inside both buffers, promised by the caller.
            unsafe {
                if chain == Chain::F16 {
                    let narrow = _mm_loadu_si128(from.add(step * 64 + 16 * part).cast());
                    _mm256_storeu_ps(to.add(step * PANEL + 8 * part), _mm256_cvtph_ps(narrow));
                } else {
                    let both = _mm256_loadu_si256(from.add(step * 128 + 32 * part).cast());
                    let even = _mm256_castsi256_ps(_mm256_slli_epi32::<16>(both));
                    let odd = _mm256_castsi256_ps(_mm256_and_si256(both, high));
                    _mm256_storeu_ps(to.add(2 * step * PANEL + 8 * part), even);
                    _mm256_storeu_ps(to.add((2 * step + 1) * PANEL + 8 * part), odd);
                }
            }
        }
    }
}
