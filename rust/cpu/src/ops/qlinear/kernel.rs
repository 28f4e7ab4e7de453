//! The tile kernel of all vector levels, written once.

#![allow(clippy::needless_range_loop, reason = "indices tie several arrays of registers together")]

use super::activations::{HEAD_BYTES, LINE};
use super::packed::{PANEL, STEP_BYTES, block_header_bytes, groups_per_block};
use super::tile::Tile;
use super::wide::{WIDE_SCALE_BYTES, wide_header_bytes};
use crate::quant::{GROUPS_PER_SCALE, QuantFormat};

/// Steps of 4-bit codes whose products fit a sum of 16 bits: 8 times 2 times 15 * 127.
const CHUNK_STEPS: usize = 4;
/// Most tokens that ask for codes of 4 bits ahead step by step, since memory is what they wait for. More ask for those of
/// a span at once, to keep the steps short. Of 8 bits a span has twice the lines, too many to ask for at once.
pub(super) const STEP_BY_STEP: usize = 4;

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
    /// Codes of 4 bits that are bytes already.
    unsafe fn wide_codes(line: Self::Int) -> Self::Codes;
    /// Add the products of four codes and four activations, exactly.
    unsafe fn dot<const BITS: usize>(sum: Self::Int, codes: Self::Codes, x: Self::Int) -> Self::Int;
    /// [`dot`](Self::dot) with the four activations `AT` bytes behind `x`, read by the instruction itself where it can.
    #[inline(always)]
    unsafe fn dot_at<const BITS: usize, const AT: usize>(
        sum: Self::Int,
        codes: Self::Codes,
        x: *const u8,
    ) -> Self::Int {
        // SAFETY: the caller's duty.
        unsafe { Self::dot::<BITS>(sum, codes, Self::splat(x.add(AT).cast::<i32>().read_unaligned())) }
    }
    /// Add both halves of `narrow` to `sum`.
    unsafe fn fold(sum: Self::Int, narrow: Self::Int) -> Self::Int;
    unsafe fn load_u8(from: *const u8) -> Self::Int;
    /// Products of lanes that fit 16 bits, the first not negative.
    unsafe fn mul16(x: Self::Int, y: Self::Int) -> Self::Int;
    unsafe fn sub(x: Self::Int, y: Self::Int) -> Self::Int;
    /// The scale that groups share (see [`super::shared`]), and of each group the multiple: in both halves of a lane where
    /// [`dot`](Self::dot) makes [pairs of sums](Self::NARROW), else in the low one alone.
    unsafe fn split(header: Self::Int) -> (Self::Float, [Self::Int; GROUPS_PER_SCALE]);
    /// Add a group's sums, of [`dot`](Self::dot) of 4-bit codes, times their multiples.
    unsafe fn add_times(sum: Self::Int, of_group: Self::Int, multiple: Self::Int) -> Self::Int;

    unsafe fn zero() -> Self::Float;
    unsafe fn splat_float(x: f32) -> Self::Float;
    unsafe fn load_f16(from: *const u8) -> Self::Float;
    unsafe fn load_f32(from: *const u8) -> Self::Float;
    unsafe fn to_float(x: Self::Int) -> Self::Float;
    unsafe fn mul(x: Self::Float, y: Self::Float) -> Self::Float;
    /// `x * y + z`, rounded once.
    unsafe fn fma(x: Self::Float, y: Self::Float, z: Self::Float) -> Self::Float;
    /// Store the first `rows` lanes at `to`, after adding the same lanes of `bias` unless it is null.
    unsafe fn store(to: *mut f32, rows: usize, bias: *const f32, x: Self::Float);
    unsafe fn store_ints(to: *mut i32, x: Self::Int);
}

/// Byte offsets in every panel of a tile.
#[derive(Clone, Copy)]
struct At {
    scales: usize,
    zeros: usize,
    codes: usize,
}

/// `T` tokens times `R` vectors of rows, from vector `first` on, of the tile's first `S` panels, which are wide if `WIDE`
/// (see [`super::wide`]), of a format whose spans are `SPAN` long and that is symmetric if `SYM`.
///
/// # Safety
/// As [`super::tile::scalar`], inlined into a function compiled for the level.
#[inline(always)]
pub(super) unsafe fn panels<
    L: Level,
    const BITS: usize,
    const SPAN: usize,
    const SYM: bool,
    const WIDE: bool,
    const S: usize,
    const R: usize,
    const T: usize,
>(
    tile: &Tile,
    first: usize,
) {
    let row = first * L::WIDTH;
    // Only the longest span is shared by several sizes of groups.
    let group_size = if SPAN == LINE { tile.format.group_size } else { SPAN };
    let format = QuantFormat::new(BITS, group_size, SYM);
    let (code_bits, scale_bytes, per_block) =
        if WIDE { (8, WIDE_SCALE_BYTES, 1) } else { (BITS, 2, groups_per_block(format)) };
    let (spans, code_bytes) = (group_size / SPAN, group_size * PANEL * code_bits / 8);
    let (mut ints, mut heads) = (tile.ints, tile.heads);
    // From a span to the next one: another line of the tile, or the other half of this one.
    let mut hops = if SPAN == LINE { [T * LINE; 2] } else { [LINE / 2, T * LINE - LINE / 2] };
    let (mut block, mut left) = (0, tile.groups);
    // SAFETY: blocks of the panels and the tile's activations one after another, promised by the caller; a prefetch may
    // point anywhere.
    unsafe {
        let mut acc = [[[L::zero(); R]; T]; S];
        while left > 0 {
            let here = left.min(per_block);
            let header = if WIDE { wide_header_bytes(format) } else { block_header_bytes(format, here) };
            if tile.reach.ahead > 0 {
                for line in (0..header).step_by(LINE) {
                    for panel in &tile.panels[..S] {
                        tile.reach.ask(panel.weights.wrapping_add(block + line + tile.reach.ahead));
                    }
                }
            }
            for group in 0..here {
                let mut at = At {
                    scales: block + scale_bytes * (group * PANEL + row),
                    zeros: block + (scale_bytes * here + group) * PANEL + row,
                    codes: block + header + group * code_bytes,
                };
                for _ in 0..spans {
                    let sums = span::<L, BITS, SPAN, SYM, WIDE, S, R, T>(tile, &mut at, row, ints, heads);
                    for s in 0..S {
                        let mut scales = [L::zero(); R];
                        for part in 0..R {
                            let from = tile.panels[s].weights.add(at.scales + scale_bytes * part * L::WIDTH);
                            scales[part] = if WIDE { L::load_f32(from) } else { L::load_f16(from) };
                        }
                        for token in 0..T {
                            let x_scale = heads.add(token * HEAD_BYTES).cast::<f32>().read_unaligned();
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
                    heads = heads.add(T * HEAD_BYTES);
                }
            }
            block += header + here * code_bytes;
            left -= here;
        }
        store::<L, S, R, T>(tile, row, &acc);
    }
}

/// Bring sums of rows from `row` on to the outputs, the bias added.
///
/// # Safety
/// As [`panels`].
#[inline(always)]
pub(super) unsafe fn store<L: Level, const S: usize, const R: usize, const T: usize>(
    tile: &Tile,
    row: usize,
    sums: &[[[L::Float; R]; T]; S],
) {
    for (s, panel) in tile.panels[..S].iter().enumerate() {
        for token in 0..T {
            for part in 0..R {
                let at = row + part * L::WIDTH;
                let rows = panel.rows.saturating_sub(at).min(L::WIDTH);
                let bias = if panel.bias.is_null() { panel.bias } else { panel.bias.wrapping_add(at) };
                let to = panel.out.wrapping_add(token * tile.out_stride + at);
                // SAFETY: the caller's duty.
                unsafe { L::store(to, rows, bias, sums[s][token][part]) };
            }
        }
    }
}

/// `sum(code * q) - zero * sum(q)` of one span; `at.codes` moves to the next one.
///
/// # Safety
/// As [`panels`].
#[inline(always)]
unsafe fn span<
    L: Level,
    const BITS: usize,
    const SPAN: usize,
    const SYM: bool,
    const WIDE: bool,
    const S: usize,
    const R: usize,
    const T: usize,
>(
    tile: &Tile,
    at: &mut At,
    row: usize,
    ints: *const u8,
    heads: *const u8,
) -> [[[L::Int; R]; T]; S] {
    let steps = SPAN * BITS / 32;
    let narrow = L::NARROW && BITS == 4;
    let chunk_steps = if narrow { CHUNK_STEPS } else { steps };
    let mut q = ints;
    // SAFETY: the caller's duty.
    unsafe {
        let mut sums = start::<L, BITS, SYM, S, R, T>(tile, at, heads);
        if BITS == 4 && T > STEP_BY_STEP && tile.reach.ahead > 0 {
            for line in (0..SPAN * PANEL * BITS / 8).step_by(LINE) {
                tile.reach.ask(tile.panels[0].weights.wrapping_add(at.codes + tile.reach.ahead + line));
            }
        }
        for _ in 0..steps / chunk_steps {
            let mut chunk = if narrow { [[[L::splat(0); R]; T]; S] } else { sums };
            for _ in 0..chunk_steps {
                if (BITS == 8 || T <= STEP_BY_STEP) && tile.reach.ahead > 0 {
                    for panel in &tile.panels[..S] {
                        let offset = if BITS == 8 { at.codes >> tile.spread } else { at.codes };
                        let ahead = panel.weights.wrapping_add(offset + tile.reach.ahead);
                        tile.reach.ask(ahead);
                        tile.reach.ask(ahead.wrapping_add(64));
                    }
                }
                let mut codes = [[L::codes::<BITS>(L::splat(0)); R]; S];
                for s in 0..S {
                    let from = tile.panels[s].weights.add(at.codes + 4 * row);
                    for part in 0..R {
                        let from = from.add(4 * part * L::WIDTH);
                        codes[s][part] = if WIDE {
                            [0, STEP_BYTES].map(|piece| L::wide_codes(L::load(from.add(piece))))
                        } else {
                            L::codes::<BITS>(L::load(from))
                        };
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
                at.codes += if WIDE { 8 / BITS * STEP_BYTES } else { STEP_BYTES };
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
unsafe fn start<
    L: Level,
    const BITS: usize,
    const SYM: bool,
    const S: usize,
    const R: usize,
    const T: usize,
>(
    tile: &Tile,
    at: &At,
    heads: *const u8,
) -> [[[L::Int; R]; T]; S] {
    let offset = if BITS == 8 { L::OFFSET } else { 0 };
    // SAFETY: the caller's duty.
    unsafe {
        let minus_sum = |token: usize| heads.add(token * HEAD_BYTES + 4).cast::<i32>().read_unaligned();
        let mut sums = [[[L::splat(0); R]; T]; S];
        if SYM {
            // The zero of 8 bits is the offset.
            for token in 0..T {
                let one = if offset == 0 { L::splat(minus_sum(token)) } else { L::splat(0) };
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

/// Call `$call::<BITS, SPAN, SYM>(..)` with the parameters of a format.
macro_rules! for_format {
    ($format:expr, $call:ident($($argument:expr),*)) => {
        match ($format.bits, $format.span(), $format.symmetric) {
            (4, 32, true) => $call::<4, 32, true>($($argument),*),
            (4, 32, false) => $call::<4, 32, false>($($argument),*),
            (4, _, true) => $call::<4, 64, true>($($argument),*),
            (4, _, false) => $call::<4, 64, false>($($argument),*),
            (_, 32, true) => $call::<8, 32, true>($($argument),*),
            (_, 32, false) => $call::<8, 32, false>($($argument),*),
            (_, _, true) => $call::<8, 64, true>($($argument),*),
            (_, _, false) => $call::<8, 64, false>($($argument),*),
        }
    };
}
pub(super) use for_format;
