//! The kernels for AVX-512: a tile is 32 rows (two vectors) of `P` panels by `T` tokens.

#![allow(clippy::needless_range_loop, reason = "indices tie several arrays of registers together")]

use std::arch::x86_64::*;

use super::packed::PANEL;
use super::tile::{Chain, Tile};

/// Most tokens of one tile: 24 sums, two weights and one activation fit the 32 registers.
pub(super) const MAX_TOKENS: usize = 12;

const F32: u8 = 0;
const F16: u8 = 1;

macro_rules! by_tokens {
    ($tokens:expr, $kernel:ident, [$($kind:ident)?], $tile:expr) => {
        match $tokens {
            1 => $kernel::<$($kind,)? 1, 1>($tile),
            2 => $kernel::<$($kind,)? 1, 2>($tile),
            3 => $kernel::<$($kind,)? 1, 3>($tile),
            4 => $kernel::<$($kind,)? 1, 4>($tile),
            5 => $kernel::<$($kind,)? 1, 5>($tile),
            6 => $kernel::<$($kind,)? 1, 6>($tile),
            7 => $kernel::<$($kind,)? 1, 7>($tile),
            8 => $kernel::<$($kind,)? 1, 8>($tile),
            9 => $kernel::<$($kind,)? 1, 9>($tile),
            10 => $kernel::<$($kind,)? 1, 10>($tile),
            11 => $kernel::<$($kind,)? 1, 11>($tile),
            _ => $kernel::<$($kind,)? 1, 12>($tile),
        }
    };
}

macro_rules! by_panels {
    ($panels:expr, $kernel:ident, [$($kind:ident)?], $tile:expr) => {
        match $panels {
            2 => $kernel::<$($kind,)? 2, 1>($tile),
            _ => $kernel::<$($kind,)? 4, 1>($tile),
        }
    };
}

/// `tokens` tokens times `panels` panels; more than one panel (2 or 4) only with one token.
///
/// # Safety
/// As [`super::tile::scalar`], and the processor has AVX-512 F, BW, VL and DQ, for [`Chain::Dot`] also BF16.
pub(super) unsafe fn run(chain: Chain, panels: usize, tokens: usize, tile: &Tile) {
    // SAFETY: the caller's duty, passed on.
    unsafe {
        match (chain, panels) {
            (Chain::F32, 1) => by_tokens!(tokens, single, [F32], tile),
            (Chain::F16, 1) => by_tokens!(tokens, single, [F16], tile),
            (Chain::Bf16, 1) => by_tokens!(tokens, pairs, [], tile),
            (Chain::Dot, 1) => by_tokens!(tokens, dots, [], tile),
            (Chain::F32, _) => by_panels!(panels, single, [F32], tile),
            (Chain::F16, _) => by_panels!(panels, single, [F16], tile),
            (Chain::Bf16, _) => by_panels!(panels, pairs, [], tile),
            (Chain::Dot, _) => by_panels!(panels, dots, [], tile),
        }
    }
}

type Sums<const P: usize, const T: usize> = [[[__m512; 2]; T]; P];

/// Weights `[col][32]`, f32 or f16.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
unsafe fn single<const KIND: u8, const P: usize, const T: usize>(tile: &Tile) {
    let line = if KIND == F32 { 128 } else { 64 };
    let mut acc: Sums<P, T> = [[[_mm512_setzero_ps(); 2]; T]; P];
    let (mut weight, mut x) = (tile.weight, tile.x.cast::<f32>());
    for _ in 0..tile.cols {
        // SAFETY: one column of weights and activations, promised by the caller; a prefetch may point anywhere.
        unsafe {
            let mut w = [[_mm512_setzero_ps(); 2]; P];
            for (panel, w) in w.iter_mut().enumerate() {
                let from = weight.add(panel * tile.panel_bytes);
                _mm_prefetch::<_MM_HINT_T0>(from.wrapping_add(tile.ahead).cast());
                if KIND == F32 {
                    _mm_prefetch::<_MM_HINT_T0>(from.wrapping_add(tile.ahead + 64).cast());
                    *w = [_mm512_loadu_ps(from.cast()), _mm512_loadu_ps(from.add(64).cast())];
                } else {
                    let low = _mm256_loadu_si256(from.cast());
                    let high = _mm256_loadu_si256(from.add(32).cast());
                    *w = [_mm512_cvtph_ps(low), _mm512_cvtph_ps(high)];
                }
            }
            for token in 0..T {
                let each = _mm512_set1_ps(*x.add(token));
                for panel in 0..P {
                    for half in 0..2 {
                        let sum = &mut acc[panel][token][half];
                        *sum = _mm512_fmadd_ps(w[panel][half], each, *sum);
                    }
                }
            }
            weight = weight.add(line);
            x = x.add(T);
        }
    }
    // SAFETY: the caller's duty, passed on.
    unsafe { store(&acc, tile) };
}

/// Weights `[col / 2][32][2]` bf16, one fused multiply-add per column.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
unsafe fn pairs<const P: usize, const T: usize>(tile: &Tile) {
    let mut acc: Sums<P, T> = [[[_mm512_setzero_ps(); 2]; T]; P];
    let (mut weight, mut x) = (tile.weight, tile.x.cast::<f32>());
    let keep = _mm512_set1_epi32(0xffff_0000_u32 as i32);
    for pair in 0..tile.cols.div_ceil(2) {
        // SAFETY: one or two columns of weights and activations, promised by the caller; a prefetch may point anywhere.
        unsafe {
            let mut both = [[_mm512_setzero_si512(); 2]; P];
            for (panel, both) in both.iter_mut().enumerate() {
                let from = weight.add(panel * tile.panel_bytes);
                _mm_prefetch::<_MM_HINT_T0>(from.wrapping_add(tile.ahead).cast());
                _mm_prefetch::<_MM_HINT_T0>(from.wrapping_add(tile.ahead + 64).cast());
                *both = [_mm512_loadu_si512(from.cast()), _mm512_loadu_si512(from.add(64).cast())];
            }
            for token in 0..T {
                let each = _mm512_set1_ps(*x.add(token));
                for panel in 0..P {
                    for half in 0..2 {
                        let w = _mm512_castsi512_ps(_mm512_slli_epi32::<16>(both[panel][half]));
                        let sum = &mut acc[panel][token][half];
                        *sum = _mm512_fmadd_ps(w, each, *sum);
                    }
                }
            }
            if 2 * pair + 1 < tile.cols {
                for token in 0..T {
                    let each = _mm512_set1_ps(*x.add(T + token));
                    for panel in 0..P {
                        for half in 0..2 {
                            let w = _mm512_castsi512_ps(_mm512_and_si512(both[panel][half], keep));
                            let sum = &mut acc[panel][token][half];
                            *sum = _mm512_fmadd_ps(w, each, *sum);
                        }
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

/// Weights `[col / 2][32][2]` bf16 and activations in bf16, one VPDPBF16PS per pair of columns.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
unsafe fn dots<const P: usize, const T: usize>(tile: &Tile) {
    let mut acc: Sums<P, T> = [[[_mm512_setzero_ps(); 2]; T]; P];
    let (mut weight, mut x) = (tile.weight, tile.x.cast::<i32>());
    for _ in 0..tile.cols.div_ceil(2) {
        // SAFETY: a pair of columns of weights and activations, promised by the caller; a prefetch may point anywhere.
        unsafe {
            let mut w = [[_mm512_setzero_si512(); 2]; P];
            for (panel, w) in w.iter_mut().enumerate() {
                let from = weight.add(panel * tile.panel_bytes);
                _mm_prefetch::<_MM_HINT_T0>(from.wrapping_add(tile.ahead).cast());
                _mm_prefetch::<_MM_HINT_T0>(from.wrapping_add(tile.ahead + 64).cast());
                *w = [_mm512_loadu_si512(from.cast()), _mm512_loadu_si512(from.add(64).cast())];
            }
            for token in 0..T {
                let each = _mm512_set1_epi32(*x.add(token));
                for panel in 0..P {
                    for half in 0..2 {
                        let sum = &mut acc[panel][token][half];
                        *sum = _mm512_dpbf16_ps(*sum, as_bf16(w[panel][half]), as_bf16(each));
                    }
                }
            }
            weight = weight.add(128);
            x = x.add(T);
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
unsafe fn store<const P: usize, const T: usize>(acc: &Sums<P, T>, tile: &Tile) {
    for panel in 0..P {
        let rows = tile.rows.saturating_sub(panel * PANEL).min(PANEL);
        let all = if rows == PANEL { u32::MAX } else { (1 << rows) - 1 };
        let masks = [all as u16, (all >> 16) as u16];
        for token in 0..T {
            for half in 0..2 {
                let at = panel * PANEL + 16 * half;
                let to = tile.out.wrapping_add(token * tile.out_stride + at);
                let mut total = acc[panel][token][half];
                // SAFETY: tokens that exist, and the masks leave out rows that do not.
                unsafe {
                    if !tile.first {
                        total = _mm512_add_ps(_mm512_maskz_loadu_ps(masks[half], to), total);
                    }
                    if !tile.bias.is_null() {
                        let bias = _mm512_maskz_loadu_ps(masks[half], tile.bias.wrapping_add(at));
                        total = _mm512_add_ps(total, bias);
                    }
                    _mm512_mask_storeu_ps(to, masks[half], total);
                }
            }
        }
    }
}

/// Widen `cols` columns of f16 or bf16 weights to f32 `[col][32]`.
///
/// # Safety
/// `from` holds the columns, `to` has room for them (`cols` rounded up to even for bf16); the processor has
/// AVX-512 F, BW, VL and DQ.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
pub(super) unsafe fn widen(chain: Chain, from: *const u8, cols: usize, to: *mut f32) {
    let steps = if chain == Chain::F16 { cols } else { cols.div_ceil(2) };
    let keep = _mm512_set1_epi32(0xffff_0000_u32 as i32);
    for step in 0..steps {
        for half in 0..2 {
            // SAFETY: inside both buffers, promised by the caller.
            unsafe {
                if chain == Chain::F16 {
                    let narrow = _mm256_loadu_si256(from.add(step * 64 + 32 * half).cast());
                    _mm512_storeu_ps(to.add(step * PANEL + 16 * half), _mm512_cvtph_ps(narrow));
                } else {
                    let both = _mm512_loadu_si512(from.add(step * 128 + 64 * half).cast());
                    let even = _mm512_castsi512_ps(_mm512_slli_epi32::<16>(both));
                    let odd = _mm512_castsi512_ps(_mm512_and_si512(both, keep));
                    _mm512_storeu_ps(to.add(2 * step * PANEL + 16 * half), even);
                    _mm512_storeu_ps(to.add((2 * step + 1) * PANEL + 16 * half), odd);
                }
            }
        }
    }
}
