//! The tile kernel of all vector levels, written once.

#![allow(clippy::needless_range_loop, reason = "indices tie several arrays of registers together")]

use super::packed::{PANEL, STEP_BYTES};
use super::tile::Tile;

/// Most vectors that one vector of codes is taken apart into.
const MAX_PARTS: usize = 4;

/// An instruction level: vectors of `WIDTH` dwords, a lane being one row of the panel.
///
/// # Safety
/// Every function needs a processor that has the level, and addresses good for as many elements as a vector has lanes.
pub(super) trait Level {
    /// Dwords: codes, products, sums.
    type Int: Copy;
    /// f32.
    type Float: Copy;
    /// Lanes.
    const WIDTH: usize;
    /// Vectors that codes of 8 bits are taken apart into; twice as many for codes of 4 bits.
    const PARTS: usize;

    unsafe fn load(from: *const u8) -> Self::Int;
    unsafe fn splat(x: i32) -> Self::Int;
    /// Take a dword of codes per lane apart, into vectors that [`dot`](Self::dot) multiplies one after another.
    unsafe fn parts(codes: Self::Int, bits: usize) -> [Self::Int; MAX_PARTS];
    /// Add the products of one dword of codes and one of activations, exactly.
    unsafe fn dot(sum: Self::Int, codes: Self::Int, x: Self::Int) -> Self::Int;
    unsafe fn load_u8(from: *const u8) -> Self::Int;
    /// Products of lanes that fit 16 bits.
    unsafe fn mul16(x: Self::Int, y: Self::Int) -> Self::Int;

    unsafe fn zero() -> Self::Float;
    unsafe fn splat_float(x: f32) -> Self::Float;
    unsafe fn load_f16(from: *const u8) -> Self::Float;
    unsafe fn to_float(x: Self::Int) -> Self::Float;
    unsafe fn mul(x: Self::Float, y: Self::Float) -> Self::Float;
    /// `x * y + z`, rounded once.
    unsafe fn fma(x: Self::Float, y: Self::Float, z: Self::Float) -> Self::Float;
    /// Store the first `rows` lanes at `to`, after adding the same lanes of `bias` unless it is null.
    unsafe fn store(to: *mut f32, rows: usize, bias: *const f32, x: Self::Float);
    unsafe fn prefetch(at: *const u8);
}

/// `T` tokens times `R` vectors of rows of one panel, from vector `first` on.
///
/// # Safety
/// As [`super::tile::scalar`] with records of the level's form, inlined into a function compiled for the level.
#[inline(always)]
pub(super) unsafe fn panel<L: Level, const BITS: usize, const R: usize, const T: usize>(
    tile: &Tile,
    first: usize,
) {
    let span = tile.format.span();
    let (spans, steps) = (tile.format.group_size / span, span * BITS / 32);
    let parts = if BITS == 8 { L::PARTS } else { 2 * L::PARTS };
    let row = first * L::WIDTH;
    let (mut codes, mut x) = (tile.codes.wrapping_add(4 * row), tile.x);
    // SAFETY: the panel's groups and their records one after another, promised by the caller; a prefetch may point
    // anywhere.
    unsafe {
        let mut acc = [[L::zero(); R]; T];
        for group in 0..tile.groups {
            let mut scales = [L::zero(); R];
            for part in 0..R {
                let at = group * PANEL + row + part * L::WIDTH;
                scales[part] = L::load_f16(tile.scales.wrapping_add(2 * at));
            }
            for _ in 0..spans {
                let mut sums = start::<L, BITS, R, T>(tile, group, row, x.wrapping_add(4 * T));
                let mut q = x.wrapping_add(8 * T).cast::<i32>();
                for _ in 0..steps {
                    L::prefetch(codes.wrapping_add(tile.ahead));
                    if R * L::WIDTH > 16 {
                        L::prefetch(codes.wrapping_add(tile.ahead + 64));
                    }
                    let mut apart = [[L::splat(0); MAX_PARTS]; R];
                    for part in 0..R {
                        apart[part] = L::parts(L::load(codes.wrapping_add(4 * part * L::WIDTH)), BITS);
                    }
                    for piece in 0..parts {
                        for token in 0..T {
                            let each = L::splat(q.add(piece * T + token).read_unaligned());
                            for part in 0..R {
                                sums[token][part] = L::dot(sums[token][part], apart[part][piece], each);
                            }
                        }
                    }
                    codes = codes.wrapping_add(STEP_BYTES);
                    q = q.wrapping_add(parts * T);
                }
                for token in 0..T {
                    let each = L::splat_float(x.cast::<f32>().add(token).read_unaligned());
                    for part in 0..R {
                        let factor = L::mul(each, scales[part]);
                        acc[token][part] = L::fma(L::to_float(sums[token][part]), factor, acc[token][part]);
                    }
                }
                x = q.cast();
            }
        }
        for token in 0..T {
            for part in 0..R {
                let at = row + part * L::WIDTH;
                let rows = tile.rows.saturating_sub(at).min(L::WIDTH);
                let bias = if tile.bias.is_null() { tile.bias } else { tile.bias.wrapping_add(at) };
                L::store(tile.out.wrapping_add(token * tile.out_stride + at), rows, bias, acc[token][part]);
            }
        }
    }
}

/// `-zero * sum(q)`, which every sum of a span starts from.
///
/// # Safety
/// As [`panel`]; `minus_sums` are those of the span's record.
#[inline(always)]
unsafe fn start<L: Level, const BITS: usize, const R: usize, const T: usize>(
    tile: &Tile,
    group: usize,
    row: usize,
    minus_sums: *const u8,
) -> [[L::Int; R]; T] {
    let minus_sums = minus_sums.cast::<i32>();
    // SAFETY: the caller's duty.
    unsafe {
        let mut sums = [[L::splat(0); R]; T];
        if tile.format.symmetric {
            for token in 0..T {
                sums[token] = [L::splat(minus_sums.add(token).read_unaligned() << (BITS - 1)); R];
            }
            return sums;
        }
        for part in 0..R {
            let zeros = L::load_u8(tile.zeros.wrapping_add(group * PANEL + row + part * L::WIDTH));
            for token in 0..T {
                sums[token][part] = L::mul16(zeros, L::splat(minus_sums.add(token).read_unaligned()));
            }
        }
        sums
    }
}
