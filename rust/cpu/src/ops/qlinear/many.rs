//! The tile kernel of many tokens for 4-bit codes in groups of 32, which takes a panel's codes apart once for all of them.
//!
//! The codes of a group are 16 vectors. They stay in registers while the tokens pass, a few at a time; the f32 sums of the
//! tokens wait in the first cache. So a panel that comes from memory is read once, where two tiles of 8 tokens would read
//! it twice. The order of operations of every output is that of [`panels`](super::kernel::panels).

#![allow(clippy::needless_range_loop, reason = "indices tie several arrays of registers together")]

use std::mem::MaybeUninit;

use super::activations::{HEAD_BYTES, LARGE_TILE, LINE};
use super::kernel::Level;
use super::packed::{GROUPS_PER_BLOCK, PANEL, STEP_BYTES, block_header_bytes};
use super::tile::{Panel, Tile};
use crate::quant::QuantFormat;

/// Tokens that pass together: their sums and the codes of a group nearly fill the registers.
const TOGETHER: usize = 4;
/// Columns of a group.
const SPAN: usize = LINE / 2;
/// Steps of a group, and the pieces of four columns in which they are multiplied.
const STEPS: usize = SPAN / 8;
const PIECES: usize = 2 * STEPS;
/// Bytes of the codes of a group.
const CODE_BYTES: usize = STEPS * STEP_BYTES;

/// One group of a panel, in registers: two vectors of rows.
struct Group<L: Level> {
    codes: [[L::Codes; 2]; PIECES],
    scales: [L::Float; 2],
    /// None when symmetric.
    zeros: Option<[L::Int; 2]>,
}

/// Where the tokens of a tile are: of a group their first integers and heads, and the first token's sums.
#[derive(Clone, Copy)]
struct Tokens {
    ints: *const u8,
    heads: *const u8,
    sums: *mut f32,
}

impl Tokens {
    /// Those from token `count` on.
    fn after(self, count: usize) -> Self {
        Self {
            ints: self.ints.wrapping_add(count * LINE),
            heads: self.heads.wrapping_add(count * HEAD_BYTES),
            sums: self.sums.wrapping_add(count * PANEL),
        }
    }
}

/// `tokens` tokens times the tile's first panel, of a level whose vectors are half of one; `next` is the first byte of
/// what is read after it.
///
/// # Safety
/// As [`super::tile::scalar`], inlined into a function compiled for the level; 4-bit codes in groups of 32, at most
/// [`LARGE_TILE`] tokens.
#[inline(always)]
pub(super) unsafe fn many<L: Level, const SYM: bool>(tokens: usize, tile: &Tile, next: *const u8) {
    #[repr(align(64))]
    struct Aligned<T>(MaybeUninit<T>);
    let mut sums = Aligned(MaybeUninit::<[f32; LARGE_TILE * PANEL]>::uninit());
    let format = QuantFormat { bits: 4, group_size: SPAN, symmetric: SYM };
    let panel = &tile.panels[0];
    let bytes = tile.groups / GROUPS_PER_BLOCK * block_bytes(format, GROUPS_PER_BLOCK)
        + block_bytes(format, tile.groups % GROUPS_PER_BLOCK);
    let mut at = Tokens { ints: tile.ints, heads: tile.heads, sums: sums.0.as_mut_ptr().cast() };
    // From a group to the next one: the other half of this line, or the next line.
    let mut hops = [LINE / 2, tokens * LINE - LINE / 2];
    let (mut block, mut left) = (0, tile.groups);
    debug_assert!(PANEL == 2 * L::WIDTH && tokens <= LARGE_TILE);
    // SAFETY: blocks of the panel and the tile's activations one after another, promised by the caller, who has the
    // level; the sums have room for all tokens; a prefetch may point anywhere.
    unsafe {
        for vector in 0..2 * tokens {
            L::store(at.sums.add(vector * L::WIDTH), L::WIDTH, std::ptr::null(), L::zero());
        }
        while left > 0 {
            let here = left.min(GROUPS_PER_BLOCK);
            let coming = coming(tile, next, block, bytes);
            let header = block_header_bytes(format, here);
            tile.reach.ask_for(coming, header);
            for group in 0..here {
                let codes = header + group * CODE_BYTES;
                tile.reach.ask_for(coming.wrapping_add(codes), CODE_BYTES);
                let from = panel.weights.add(block);
                let group = Group::<L> {
                    codes: take_apart::<L>(from.add(codes)),
                    scales: [0, 1].map(|part| L::load_f16(from.add(2 * (group * PANEL + part * L::WIDTH)))),
                    zeros: (!SYM).then(|| {
                        let zeros = from.add((2 * here + group) * PANEL);
                        [0, 1].map(|part| L::load_u8(zeros.add(part * L::WIDTH)))
                    }),
                };
                let whole = tokens - tokens % TOGETHER;
                for first in (0..whole).step_by(TOGETHER) {
                    pass::<L, TOGETHER>(&group, at.after(first));
                }
                match tokens % TOGETHER {
                    1 => pass::<L, 1>(&group, at.after(whole)),
                    2 => pass::<L, 2>(&group, at.after(whole)),
                    3 => pass::<L, 3>(&group, at.after(whole)),
                    _ => {}
                }
                at.ints = at.ints.wrapping_add(hops[0]);
                hops.swap(0, 1);
                at.heads = at.heads.wrapping_add(tokens * HEAD_BYTES);
            }
            block += block_bytes(format, here);
            left -= here;
        }
        store::<L>(panel, tile.out_stride, tokens, at.sums);
    }
}

/// Bytes of a block of `groups` groups.
const fn block_bytes(format: QuantFormat, groups: usize) -> usize {
    block_header_bytes(format, groups) + groups * CODE_BYTES
}

/// What is read [`Reach::ahead`](super::tuning::Reach) after the panel's byte `at`: a part of the panel of `bytes` bytes, of
/// the one that is read next, or, where that is further away than a panel is long, of those behind it.
fn coming(tile: &Tile, next: *const u8, at: usize, bytes: usize) -> *const u8 {
    let (panel, place) = (&tile.panels[0], at + tile.reach.ahead);
    if place < bytes || tile.reach.ahead >= bytes {
        panel.weights.wrapping_add(place)
    } else {
        next.wrapping_add(place - bytes)
    }
}

/// The codes of a group, ready to multiply.
///
/// # Safety
/// `from` is the first step's; the processor has the level.
#[inline(always)]
unsafe fn take_apart<L: Level>(from: *const u8) -> [[L::Codes; 2]; PIECES] {
    // SAFETY: the steps of a group, promised by the caller.
    unsafe {
        let mut codes = [[L::codes::<4>(L::splat(0))[0]; 2]; PIECES];
        for step in 0..STEPS {
            for part in 0..2 {
                let line = L::load(from.add(step * STEP_BYTES + 4 * part * L::WIDTH));
                let [low, high] = L::codes::<4>(line);
                (codes[2 * step][part], codes[2 * step + 1][part]) = (low, high);
            }
        }
        codes
    }
}

/// Add the products of a group to the sums of the first `T` tokens.
///
/// # Safety
/// There are so many tokens; the processor has the level.
#[inline(always)]
unsafe fn pass<L: Level, const T: usize>(group: &Group<L>, at: Tokens) {
    // SAFETY: parts of the tokens, promised by the caller.
    unsafe {
        let mut products = [[L::splat(0); 2]; T];
        for token in 0..T {
            let minus_sum = L::splat(at.heads.add(token * HEAD_BYTES + 4).cast::<i32>().read_unaligned());
            for part in 0..2 {
                products[token][part] = match group.zeros {
                    // The head has it already.
                    None => minus_sum,
                    Some(zeros) => L::mul16(zeros[part], minus_sum),
                };
            }
        }
        for piece in 0..PIECES {
            for token in 0..T {
                let each = at.ints.add(token * LINE + 4 * piece).cast::<i32>().read_unaligned();
                let each = L::splat(each);
                for part in 0..2 {
                    products[token][part] =
                        L::dot::<4>(products[token][part], group.codes[piece][part], each);
                }
            }
        }
        for token in 0..T {
            let x_scale = L::splat_float(at.heads.add(token * HEAD_BYTES).cast::<f32>().read_unaligned());
            for part in 0..2 {
                let sum = at.sums.add(token * PANEL + part * L::WIDTH);
                let factor = L::mul(x_scale, group.scales[part]);
                let new = L::fma(L::to_float(products[token][part]), factor, L::load_f32(sum.cast()));
                L::store(sum, L::WIDTH, std::ptr::null(), new);
            }
        }
    }
}

/// Bring the sums of all tokens to the panel's outputs, the bias added.
///
/// # Safety
/// As [`many`].
#[inline(always)]
unsafe fn store<L: Level>(panel: &Panel, out_stride: usize, tokens: usize, sums: *const f32) {
    for token in 0..tokens {
        for part in 0..2 {
            let at = part * L::WIDTH;
            let rows = panel.rows.saturating_sub(at).min(L::WIDTH);
            let bias = if panel.bias.is_null() { panel.bias } else { panel.bias.wrapping_add(at) };
            let to = panel.out.wrapping_add(token * out_stride + at);
            // SAFETY: outputs and sums of a token, promised by the caller.
            unsafe { L::store(to, rows, bias, L::load_f32(sums.add(token * PANEL + at).cast())) };
        }
    }
}
