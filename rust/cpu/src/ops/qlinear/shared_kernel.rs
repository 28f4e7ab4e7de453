//! The tile kernel of all vector levels for codes of 4 bits in [groups of which four share a scale](super::shared).

#![allow(clippy::needless_range_loop, reason = "indices tie several arrays of registers together")]

use std::mem::MaybeUninit;

use super::activations::{HEAD_BYTES, LINE, SHARED_HEAD_BYTES};
use super::kernel::{Level, STEP_BY_STEP, store};
use super::packed::{PANEL, STEP_BYTES};
use super::shared::{CODE_BYTES, GROUP, HEADER_BYTES, STEPS};
use super::tile::Tile;
use super::wide::{WIDE_SCALE_BYTES, wide_header_bytes};
use crate::quant::{GROUPS_PER_SCALE, QuantFormat};

/// `T` tokens times `R` vectors of rows, from vector `first` on, of the tile's first `S` panels, which are wide if `WIDE`
/// (see [`super::wide`]).
///
/// # Safety
/// As [`super::tile::scalar`], inlined into a function compiled for the level.
#[inline(always)]
pub(super) unsafe fn shared_panels<
    L: Level,
    const WIDE: bool,
    const S: usize,
    const R: usize,
    const T: usize,
>(
    tile: &Tile,
    first: usize,
) {
    let row = first * L::WIDTH;
    let (header, code_bytes) = match WIDE {
        true => (wide_header_bytes(QuantFormat::SHARED), 2 * CODE_BYTES),
        false => (HEADER_BYTES, CODE_BYTES),
    };
    let (mut ints, mut heads) = (tile.ints, tile.heads);
    let (mut block, mut left) = (0, tile.groups);
    // SAFETY: blocks of the panels and the tile's activations one after another, promised by the caller; a prefetch may
    // point anywhere.
    unsafe {
        let mut acc = [[[L::zero(); R]; T]; S];
        while left > 0 {
            let here = left.min(GROUPS_PER_SCALE);
            let mut scales = [[L::zero(); R]; S];
            // `[group][s][part]`, to be read again and again.
            let mut multiples = MaybeUninit::<[[[L::Int; R]; S]; GROUPS_PER_SCALE]>::uninit();
            let multiples = multiples.as_mut_ptr().cast::<L::Int>();
            for s in 0..S {
                if !WIDE {
                    let to_come = tile.panels[s].weights.wrapping_add(block + tile.reach.ahead);
                    tile.reach.ask_for(to_come, HEADER_BYTES);
                }
                for part in 0..R {
                    let from = tile.panels[s].weights.add(block + 4 * (row + part * L::WIDTH));
                    let of_part;
                    (scales[s][part], of_part) = match WIDE {
                        true => (L::load_f32(from), {
                            let of = |group: usize| L::load(from.add((1 + group) * WIDE_SCALE_BYTES * PANEL));
                            [of(0), of(1), of(2), of(3)]
                        }),
                        false => L::split(L::load(from)),
                    };
                    for group in 0..GROUPS_PER_SCALE {
                        multiples.add((group * S + s) * R + part).write(of_part[group]);
                    }
                }
            }
            let head = |token: usize| heads.add(token * SHARED_HEAD_BYTES);
            let mut sums = [[[L::splat(0); R]; T]; S];
            for group in 0..here {
                let codes = block + header + group * code_bytes;
                let q = ints.add(group / 2 * (T * LINE) + group % 2 * GROUP);
                let mut of_group = [[[L::splat(0); R]; T]; S];
                for token in 0..T {
                    let start = head(token).add(HEAD_BYTES + 4 * group).cast::<i32>().read_unaligned();
                    let start = L::splat(start);
                    for s in 0..S {
                        of_group[s][token] = [start; R];
                    }
                }
                products::<L, WIDE, S, R, T>(tile, codes, row, q, &mut of_group);
                for s in 0..S {
                    for token in 0..T {
                        for part in 0..R {
                            let multiple = multiples.add((group * S + s) * R + part).read();
                            let sum = sums[s][token][part];
                            sums[s][token][part] = L::add_times(sum, of_group[s][token][part], multiple);
                        }
                    }
                }
            }
            for s in 0..S {
                for token in 0..T {
                    let x_scale = L::splat_float(head(token).cast::<f32>().read_unaligned());
                    for part in 0..R {
                        let factor = L::mul(x_scale, scales[s][part]);
                        let sum = L::to_float(sums[s][token][part]);
                        acc[s][token][part] = L::fma(sum, factor, acc[s][token][part]);
                    }
                }
            }
            ints = ints.add(2 * T * LINE);
            heads = heads.add(T * SHARED_HEAD_BYTES);
            block += header + here * code_bytes;
            left -= here;
        }
        store::<L, S, R, T>(tile, row, &acc);
    }
}

/// Add the products of one group, whose codes begin at byte `codes` of every panel, to `sums`.
///
/// # Safety
/// As [`shared_panels`].
#[inline(always)]
unsafe fn products<L: Level, const WIDE: bool, const S: usize, const R: usize, const T: usize>(
    tile: &Tile,
    codes: usize,
    row: usize,
    q: *const u8,
    sums: &mut [[[L::Int; R]; T]; S],
) {
    // SAFETY: the caller's duty; a prefetch may point anywhere.
    unsafe {
        if !WIDE && T > STEP_BY_STEP {
            tile.reach.ask_for(tile.panels[0].weights.wrapping_add(codes + tile.reach.ahead), CODE_BYTES);
        }
        for step in 0..STEPS {
            let mut of_step = [[L::codes::<4>(L::splat(0)); R]; S];
            for s in 0..S {
                let at = codes + step * if WIDE { 2 * STEP_BYTES } else { STEP_BYTES };
                let from = tile.panels[s].weights.add(at + 4 * row);
                if !WIDE && T <= STEP_BY_STEP {
                    let to_come = tile.panels[s].weights.wrapping_add(at + tile.reach.ahead);
                    tile.reach.ask_for(to_come, STEP_BYTES);
                }
                for part in 0..R {
                    let from = from.add(4 * part * L::WIDTH);
                    of_step[s][part] = match WIDE {
                        true => [0, STEP_BYTES].map(|piece| L::wide_codes(L::load(from.add(piece)))),
                        false => L::codes::<4>(L::load(from)),
                    };
                }
            }
            for piece in 0..2 {
                for token in 0..T {
                    let each = q.add(token * LINE + 8 * step + 4 * piece).cast::<i32>().read_unaligned();
                    let each = L::splat(each);
                    for s in 0..S {
                        for part in 0..R {
                            let sum = sums[s][token][part];
                            sums[s][token][part] = L::dot::<4>(sum, of_step[s][part][piece], each);
                        }
                    }
                }
            }
        }
    }
}
