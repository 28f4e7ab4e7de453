//! The tile kernel of all vector levels, written once.

#![allow(clippy::needless_range_loop, reason = "indices tie several arrays of registers together")]

use super::activations::{HEAD_BYTES, LINE};
use super::packed::{GROUPS_PER_BLOCK, PANEL, STEP_BYTES, block_header_bytes};
use super::tile::Tile;

/// Steps of 4-bit codes whose products fit a sum of 16 bits: 8 times 2 times 15 * 127.
const CHUNK_STEPS: usize = 4;

/// An instruction level: vectors of `WIDTH` dwords, a lane being one row of the panel.
///
/// # Safety
/// Every function needs a processor that has the level, and addresses good for as many elements as a vector has lanes.
pub(super) trait Level {
    /// Dwords: codes, products, sums.
    type Int: Copy;
    /// f32.
    type Float: Copy;
    /// Four codes per lane, ready to multiply.
    type Codes: Copy;
    /// Lanes.
    const WIDTH: usize;
    /// Whether [`dot`](Self::dot) of 4-bit codes makes pairs of 16-bit sums, which [`fold`](Self::fold) takes.
    const NARROW: bool;
    /// What [`codes`](Self::codes) takes away from codes of 8 bits.
    const OFFSET: i32;

    unsafe fn load(from: *const u8) -> Self::Int;
    unsafe fn splat(x: i32) -> Self::Int;
    /// Take a dword of codes per lane apart: two parts for 4 bits, else one.
    unsafe fn codes<const BITS: usize>(line: Self::Int) -> [Self::Codes; 2];
    /// Add the products of four codes and four activations, exactly.
    unsafe fn dot<const BITS: usize>(sum: Self::Int, codes: Self::Codes, x: Self::Int) -> Self::Int;
    /// Add both halves of `narrow` to `sum`.
    unsafe fn fold(sum: Self::Int, narrow: Self::Int) -> Self::Int;
    unsafe fn load_u8(from: *const u8) -> Self::Int;
    /// Products of lanes that fit 16 bits, the first not negative.
    unsafe fn mul16(x: Self::Int, y: Self::Int) -> Self::Int;
    unsafe fn sub(x: Self::Int, y: Self::Int) -> Self::Int;

    unsafe fn zero() -> Self::Float;
    unsafe fn splat_float(x: f32) -> Self::Float;
    unsafe fn load_f16(from: *const u8) -> Self::Float;
    unsafe fn to_float(x: Self::Int) -> Self::Float;
    unsafe fn mul(x: Self::Float, y: Self::Float) -> Self::Float;
    /// `x * y + z`, rounded once.
    unsafe fn fma(x: Self::Float, y: Self::Float, z: Self::Float) -> Self::Float;
    /// Store the first `rows` lanes at `to`, after adding the same lanes of `bias` unless it is null.
    unsafe fn store(to: *mut f32, rows: usize, bias: *const f32, x: Self::Float);
    /// Ask for a cache line, `ONCE` if it is read once and need not stay in any cache.
    unsafe fn prefetch<const ONCE: bool>(at: *const u8);
}

/// Ask for a cache line of weights.
///
/// # Safety
/// The processor has the level.
#[inline(always)]
unsafe fn prefetch<L: Level>(tile: &Tile, at: *const u8) {
    // SAFETY: the caller's duty.
    unsafe { if tile.once { L::prefetch::<true>(at) } else { L::prefetch::<false>(at) } }
}

/// Byte offsets in every panel of a tile.
#[derive(Clone, Copy)]
struct At {
    scales: usize,
    zeros: usize,
    codes: usize,
}

/// `T` tokens times `R` vectors of rows, from vector `first` on, of the tile's first `S` panels.
///
/// # Safety
/// As [`super::tile::scalar`], inlined into a function compiled for the level.
#[inline(always)]
pub(super) unsafe fn panels<L: Level, const BITS: usize, const S: usize, const R: usize, const T: usize>(
    tile: &Tile,
    first: usize,
) {
    let (format, row) = (tile.format, first * L::WIDTH);
    let (spans, code_bytes) = (format.group_size / format.span(), format.group_size * PANEL * BITS / 8);
    let (mut ints, mut heads) = (tile.ints, tile.heads);
    // From a span to the next one: another line of the tile, or the other half of this one.
    let mut hops = if format.span() == LINE { [T * LINE; 2] } else { [LINE / 2, T * LINE - LINE / 2] };
    let (mut block, mut left) = (0, tile.groups);
    // SAFETY: blocks of the panels and the tile's activations one after another, promised by the caller; a prefetch may
    // point anywhere.
    unsafe {
        let mut acc = [[[L::zero(); R]; T]; S];
        while left > 0 {
            let here = left.min(GROUPS_PER_BLOCK);
            let header = block_header_bytes(format, here);
            if tile.ahead > 0 {
                for line in (0..header).step_by(64) {
                    for panel in &tile.panels[..S] {
                        prefetch::<L>(tile, panel.weights.wrapping_add(block + line + tile.ahead));
                    }
                }
            }
            for group in 0..here {
                let mut at = At {
                    scales: block + 2 * (group * PANEL + row),
                    zeros: block + (2 * here + group) * PANEL + row,
                    codes: block + header + group * code_bytes,
                };
                for _ in 0..spans {
                    let sums = span::<L, BITS, S, R, T>(tile, &mut at, row, ints, heads);
                    for s in 0..S {
                        let mut scales = [L::zero(); R];
                        for part in 0..R {
                            let from = tile.panels[s].weights.add(at.scales + 2 * part * L::WIDTH);
                            scales[part] = L::load_f16(from);
                        }
                        for token in 0..T {
                            let x_scale = heads.add(token * tile.head_stride).cast::<f32>().read_unaligned();
                            let x_scale = L::splat_float(x_scale);
                            for part in 0..R {
                                let factor = L::mul(x_scale, scales[part]);
                                let sum = L::to_float(sums[s][token][part]);
                                acc[s][token][part] = L::fma(sum, factor, acc[s][token][part]);
                            }
                        }
                    }
                    ints = ints.add(hops[0]);
                    hops.swap(0, 1);
                    heads = heads.add(HEAD_BYTES);
                }
            }
            block += header + here * code_bytes;
            left -= here;
        }
        for (s, panel) in tile.panels[..S].iter().enumerate() {
            for token in 0..T {
                for part in 0..R {
                    let at = row + part * L::WIDTH;
                    let rows = panel.rows.saturating_sub(at).min(L::WIDTH);
                    let bias = if panel.bias.is_null() { panel.bias } else { panel.bias.wrapping_add(at) };
                    let to = panel.out.wrapping_add(token * tile.out_stride + at);
                    L::store(to, rows, bias, acc[s][token][part]);
                }
            }
        }
    }
}

/// `sum(code * q) - zero * sum(q)` of one span; `at.codes` moves to the next one.
///
/// # Safety
/// As [`panels`].
#[inline(always)]
unsafe fn span<L: Level, const BITS: usize, const S: usize, const R: usize, const T: usize>(
    tile: &Tile,
    at: &mut At,
    row: usize,
    ints: *const u8,
    heads: *const u8,
) -> [[[L::Int; R]; T]; S] {
    let steps = tile.format.span() * BITS / 32;
    let narrow = L::NARROW && BITS == 4;
    let chunk_steps = if narrow { CHUNK_STEPS } else { steps };
    let mut q = ints;
    // SAFETY: the caller's duty.
    unsafe {
        let mut sums = start::<L, BITS, S, R, T>(tile, at, heads);
        for _ in 0..steps / chunk_steps {
            let mut chunk = if narrow { [[[L::splat(0); R]; T]; S] } else { sums };
            for _ in 0..chunk_steps {
                if tile.ahead > 0 {
                    for panel in &tile.panels[..S] {
                        let ahead = panel.weights.wrapping_add(at.codes + tile.ahead);
                        prefetch::<L>(tile, ahead);
                        prefetch::<L>(tile, ahead.wrapping_add(64));
                    }
                }
                let mut codes = [[L::codes::<BITS>(L::splat(0)); R]; S];
                for s in 0..S {
                    let from = tile.panels[s].weights.add(at.codes + 4 * row);
                    for part in 0..R {
                        codes[s][part] = L::codes::<BITS>(L::load(from.add(4 * part * L::WIDTH)));
                    }
                }
                for piece in 0..8 / BITS {
                    for token in 0..T {
                        let each = q.add(token * LINE + 4 * piece).cast::<i32>().read_unaligned();
                        let each = L::splat(each);
                        for s in 0..S {
                            for part in 0..R {
                                let sum = chunk[s][token][part];
                                chunk[s][token][part] = L::dot::<BITS>(sum, codes[s][part][piece], each);
                            }
                        }
                    }
                }
                at.codes += STEP_BYTES;
                q = q.add(32 / BITS);
            }
            for s in 0..S {
                for token in 0..T {
                    for part in 0..R {
                        let of_chunk = chunk[s][token][part];
                        let sum = sums[s][token][part];
                        sums[s][token][part] = if narrow { L::fold(sum, of_chunk) } else { of_chunk };
                    }
                }
            }
        }
        sums
    }
}

/// What every sum of a span starts from: the offset that the level's codes have, less the zero, times `sum(q)`.
///
/// # Safety
/// As [`panels`].
#[inline(always)]
unsafe fn start<L: Level, const BITS: usize, const S: usize, const R: usize, const T: usize>(
    tile: &Tile,
    at: &At,
    heads: *const u8,
) -> [[[L::Int; R]; T]; S] {
    let offset = if BITS == 8 { L::OFFSET } else { 0 };
    // SAFETY: the caller's duty.
    unsafe {
        let minus_sum = |token: usize| heads.add(token * tile.head_stride + 4).cast::<i32>().read_unaligned();
        let mut sums = [[[L::splat(0); R]; T]; S];
        if tile.format.symmetric {
            let middle = (1 << (BITS - 1)) - offset;
            for token in 0..T {
                let one = L::splat(middle * minus_sum(token));
                for s in 0..S {
                    sums[s][token] = [one; R];
                }
            }
            return sums;
        }
        for s in 0..S {
            for part in 0..R {
                let zeros = L::load_u8(tile.panels[s].weights.add(at.zeros + part * L::WIDTH));
                for token in 0..T {
                    let product = L::mul16(zeros, L::splat(minus_sum(token)));
                    sums[s][token][part] = match offset {
                        0 => product,
                        _ => L::sub(product, L::splat(offset * minus_sum(token))),
                    };
                }
            }
        }
        sums
    }
}
