//! The tile kernel of many tokens, which takes a panel's codes apart once for all of them.
//!
//! The codes of 32 columns are 16 vectors. They stay in registers while the tokens pass, a few at a time; the f32 sums of
//! the tokens wait in the first cache, and so do the integer sums of a longer span between its parts. Where
//! [`panels`](super::kernel::panels) takes codes apart for every six tokens, and has no register left for what comes next,
//! here the multiplier has hardly anything to wait for. The order of operations of every output is the same.
//!
//! Blocks of groups that share a scale have [their own](super::shared_block).

#![allow(clippy::needless_range_loop, reason = "indices tie several arrays of registers together")]

use super::activations::{BLOCK_TILE, HEAD_BYTES, LINE, SHARED_HEAD_BYTES};
use super::blocks::{Ahead, Waiting};
use super::kernel::Level;
use super::packed::{PANEL, STEP_BYTES, block_header_bytes, groups_per_block};
use super::shared::{CODE_BYTES, HEADER_BYTES};
use super::tile::{Cut, Tile};
use crate::quant::{GROUPS_PER_SCALE, QuantFormat};

/// Most tokens that pass together, with their sums in registers beside the codes; all that pass are cut into nearly equal
/// tiles. With 6, an Emerald Rapids is 2 to 6 % faster than with 5 and what is left over (12 to 20 tokens), Zen 5 was
/// fastest with 5.
const TOGETHER: usize = 6;
/// Columns whose codes are in registers.
const PART: usize = LINE / 2;
/// The pieces of four columns in which they are multiplied.
const PIECES: usize = PART / 4;
/// Where a head has the negated sum of its span.
const SUM: usize = 4;

/// A part of a span of a panel, in registers: two vectors of rows.
struct Part<L: Level> {
    codes: [[L::Codes; 2]; PIECES],
    scales: [L::Float; 2],
    /// None when symmetric.
    zeros: Option<[L::Int; 2]>,
    /// What the products are multiplied by, which are those of one group; None when nothing.
    multiples: Option<[L::Int; 2]>,
}

/// Where the tokens of a block are: their integers and heads of a part, and their sums.
#[derive(Clone, Copy)]
struct Tokens {
    ints: *const u8,
    heads: *const u8,
    head_bytes: usize,
    /// Where a head has what sums start from, times the zeros of the panel if it has some.
    start: usize,
    waiting: Waiting,
}

impl Tokens {
    /// Those from token `count` on.
    #[inline(always)]
    fn after(self, count: usize) -> Self {
        Self {
            ints: self.ints.wrapping_add(count * LINE),
            heads: self.heads.wrapping_add(count * self.head_bytes),
            head_bytes: self.head_bytes,
            start: self.start,
            waiting: Waiting {
                sums: self.waiting.sums.wrapping_add(count * PANEL),
                ints: self.waiting.ints.wrapping_add(count * PANEL),
                ..self.waiting
            },
        }
    }
}

/// `tokens` tokens times the tile's first panel, of a format whose spans are `SPAN` long and that is symmetric if `SYM`,
/// at a level with VPDPBUSD whose vectors are half of a panel. The products, without bias, are left in `waiting.sums`. Before
/// each group comes a call of `between` with its number.
///
/// # Safety
/// As [`super::tile::scalar`], but there are no outputs; inlined into a function compiled for the level; at most
/// [`BLOCK_TILE`] tokens, for which `waiting` has room, and more than 8.
#[inline(always)]
pub(super) unsafe fn block<L: Level, const BITS: usize, const SPAN: usize, const SYM: bool>(
    tokens: usize,
    tile: &Tile,
    ahead: Ahead,
    waiting: Waiting,
    mut between: impl FnMut(usize),
) {
    // Only the longest span is shared by several sizes of groups.
    let group_size = if SPAN == LINE { tile.format.group_size } else { SPAN };
    let format = QuantFormat::new(BITS, group_size, SYM);
    let code_bytes = group_size * PANEL * BITS / 8;
    let (ints, heads) = (tile.ints, tile.heads);
    let mut at = Tokens { ints, heads, head_bytes: HEAD_BYTES, start: SUM, waiting };
    // From a span to the next one: another line of every token, or the other half of this one.
    let mut hops = if SPAN == LINE { [tokens * LINE; 2] } else { [PART, tokens * LINE - PART] };
    let (mut block, mut left) = (tile.panels[0].weights, tile.groups);
    debug_assert!(PANEL == 2 * L::WIDTH && tokens <= BLOCK_TILE && !L::NARROW && L::OFFSET == 0);
    // SAFETY: blocks of the panel and the tile's activations one after another, promised by the caller, who has the
    // level; the sums have room for all tokens.
    unsafe {
        clear::<L>(tokens, waiting);
        while left > 0 {
            let here = left.min(groups_per_block(format));
            let header = block_header_bytes(format, here);
            ahead.ask_for(block, header);
            for group in 0..here {
                between(tile.groups - left + group);
                let scales = [0, 1].map(|part| L::load_f16(block.add(2 * (group * PANEL + part * L::WIDTH))));
                let zeros = (!SYM).then(|| {
                    let zeros = block.add((2 * here + group) * PANEL);
                    [0, 1].map(|part| L::load_u8(zeros.add(part * L::WIDTH)))
                });
                let codes = block.add(header + group * code_bytes);
                for first in (0..group_size).step_by(SPAN) {
                    let of_span = codes.add(first * PANEL * BITS / 8);
                    span::<L, BITS, SPAN>(tokens, ahead, of_span, scales, zeros, at);
                    at.ints = at.ints.wrapping_add(hops[0]);
                    hops.swap(0, 1);
                    at.heads = at.heads.wrapping_add(tokens * HEAD_BYTES);
                }
            }
            block = block.add(header + here * code_bytes);
            left -= here;
        }
    }
}

/// Add the products of one span to the sums of all tokens.
///
/// # Safety
/// As [`block`]; `codes` is the span's first byte.
#[inline(always)]
unsafe fn span<L: Level, const BITS: usize, const SPAN: usize>(
    tokens: usize,
    ahead: Ahead,
    codes: *const u8,
    scales: [L::Float; 2],
    zeros: Option<[L::Int; 2]>,
    at: Tokens,
) {
    let bytes = PART * PANEL * BITS / 8;
    // SAFETY: the parts of the span, promised by the caller.
    unsafe {
        ahead.ask_for(codes, bytes);
        let part = Part::<L> { codes: take_apart::<L, BITS>(codes), scales, zeros, multiples: None };
        if SPAN == PART {
            return pass_all::<L, BITS, true, true>(tokens, &part, at);
        }
        pass_all::<L, BITS, true, false>(tokens, &part, at);
        let codes = codes.add(bytes);
        ahead.ask_for(codes, bytes);
        let part = Part::<L> { codes: take_apart::<L, BITS>(codes), scales, zeros, multiples: None };
        pass_all::<L, BITS, false, true>(tokens, &part, Tokens { ints: at.ints.add(PART), ..at });
    }
}

/// [`block`] of codes of 4 bits in groups of which four share a scale, for few tokens: multiples are multiplied by the sums
/// of their products.
///
/// # Safety
/// As [`block`].
#[inline(always)]
pub(super) unsafe fn large_shared<L: Level>(
    tokens: usize,
    tile: &Tile,
    ahead: Ahead,
    waiting: Waiting,
    mut between: impl FnMut(usize),
) {
    let (mut ints, mut heads) = (tile.ints, tile.heads);
    let (mut block, mut left) = (tile.panels[0].weights, tile.groups);
    debug_assert!(PANEL == 2 * L::WIDTH && tokens <= BLOCK_TILE && !L::NARROW && L::OFFSET == 0);
    // SAFETY: as in `block`.
    unsafe {
        clear::<L>(tokens, waiting);
        while left > 0 {
            let here = left.min(GROUPS_PER_SCALE);
            ahead.ask_for(block, HEADER_BYTES);
            let headers = [0, 1].map(|part| L::split(L::load(block.add(4 * part * L::WIDTH))));
            let scales = headers.map(|(scale, _)| scale);
            for group in 0..here {
                between(tile.groups - left + group);
                let codes = block.add(HEADER_BYTES + group * CODE_BYTES);
                ahead.ask_for(codes, CODE_BYTES);
                let multiples = Some(headers.map(|(_, multiples)| multiples[group]));
                let part = Part::<L> { codes: take_apart::<L, 4>(codes), scales, zeros: None, multiples };
                let ints = ints.wrapping_add(group / 2 * (tokens * LINE) + group % 2 * PART);
                let start = HEAD_BYTES + 4 * group;
                let at = Tokens { ints, heads, head_bytes: SHARED_HEAD_BYTES, start, waiting };
                match (group == 0, group + 1 == here) {
                    (true, true) => pass_all::<L, 4, true, true>(tokens, &part, at),
                    (true, false) => pass_all::<L, 4, true, false>(tokens, &part, at),
                    (false, false) => pass_all::<L, 4, false, false>(tokens, &part, at),
                    (false, true) => pass_all::<L, 4, false, true>(tokens, &part, at),
                }
            }
            ints = ints.wrapping_add(2 * tokens * LINE);
            heads = heads.wrapping_add(tokens * SHARED_HEAD_BYTES);
            block = block.add(HEADER_BYTES + here * CODE_BYTES);
            left -= here;
        }
    }
}

/// Let the sums of all tokens be zero.
///
/// # Safety
/// As [`block`].
#[inline(always)]
unsafe fn clear<L: Level>(tokens: usize, waiting: Waiting) {
    for vector in 0..2 * tokens {
        // SAFETY: the sums have room for all tokens.
        unsafe { L::store(waiting.sums.add(vector * L::WIDTH), L::WIDTH, std::ptr::null(), L::zero()) };
    }
}

/// The codes of a part, ready to multiply.
///
/// # Safety
/// `from` is the first step's; the processor has the level.
#[inline(always)]
unsafe fn take_apart<L: Level, const BITS: usize>(from: *const u8) -> [[L::Codes; 2]; PIECES] {
    let per_step = 8 / BITS;
    // SAFETY: the steps of a part, promised by the caller.
    unsafe {
        let mut codes = [[L::codes::<BITS>(L::splat(0))[0]; 2]; PIECES];
        for step in 0..PIECES / per_step {
            for part in 0..2 {
                let line = L::load(from.add(step * STEP_BYTES + 4 * part * L::WIDTH));
                let pieces = L::codes::<BITS>(line);
                for piece in 0..per_step {
                    codes[step * per_step + piece][part] = pieces[piece];
                }
            }
        }
        codes
    }
}

/// Let all tokens pass a part, the `FIRST` or the `LAST` of its span.
///
/// # Safety
/// As [`block`].
#[inline(always)]
unsafe fn pass_all<L: Level, const BITS: usize, const FIRST: bool, const LAST: bool>(
    tokens: usize,
    part: &Part<L>,
    at: Tokens,
) {
    let (cut, mut first) = (Cut::new(tokens, TOGETHER), 0);
    for tile in 0..cut.tiles {
        let now = cut.tokens(tile);
        // SAFETY: the caller's duty.
        unsafe {
            match now {
                6 => pass::<L, BITS, FIRST, LAST, 6>(part, at.after(first)),
                5 => pass::<L, BITS, FIRST, LAST, 5>(part, at.after(first)),
                4 => pass::<L, BITS, FIRST, LAST, 4>(part, at.after(first)),
                _ => unreachable!("{now} of more than 8 tokens"),
            }
        }
        first += now;
    }
}

/// Add the products of a part to the sums of the first `T` tokens.
///
/// # Safety
/// There are so many tokens; the processor has the level.
#[inline(always)]
unsafe fn pass<L: Level, const BITS: usize, const FIRST: bool, const LAST: bool, const T: usize>(
    of_panel: &Part<L>,
    at: Tokens,
) {
    // SAFETY: what belongs to the tokens, promised by the caller.
    unsafe {
        let mut products = [[L::splat(0); 2]; T];
        for token in 0..T {
            let waiting = at.waiting.ints.add(token * PANEL);
            let start = at.heads.add(token * at.head_bytes + at.start).cast::<i32>().read_unaligned();
            for part in 0..2 {
                products[token][part] = match (of_panel.multiples, of_panel.zeros) {
                    (None, _) if !FIRST => L::load(waiting.add(part * L::WIDTH).cast()),
                    (None, Some(zeros)) => L::mul16(zeros[part], L::splat(start)),
                    // The head has the zero already.
                    _ => L::splat(start),
                };
            }
        }
        // Activations that both vectors of a piece meet are read once for both, or by each of the two multiplications:
        // these are fewer instructions, for which a core that shares its front end is grateful, and more reads. Half of
        // the pieces go either way.
        macro_rules! pieces {
            ($($apart:literal $within:literal: $($token:literal)*,)*) => {
                $(
                    for token in 0..T {
                        let each = at.ints.add(token * LINE + 4 * $apart).cast::<i32>().read_unaligned();
                        let each = L::splat(each);
                        for part in 0..2 {
                            let (sum, codes) = (products[token][part], of_panel.codes[$apart][part]);
                            products[token][part] = L::dot::<BITS>(sum, codes, each);
                        }
                    }
                    $(if $token < T {
                        for part in 0..2 {
                            let (sum, codes) = (products[$token][part], of_panel.codes[$within][part]);
                            products[$token][part] =
                                L::dot_at::<BITS, { $token * LINE + 4 * $within }>(sum, codes, at.ints);
                        }
                    })*
                )*
            };
        }
        pieces!(0 1: 0 1 2 3 4 5, 2 3: 0 1 2 3 4 5, 4 5: 0 1 2 3 4 5, 6 7: 0 1 2 3 4 5,);
        for token in 0..T {
            let waiting = at.waiting.ints.add(token * PANEL);
            if let Some(multiples) = of_panel.multiples {
                for part in 0..2 {
                    let before =
                        if FIRST { L::splat(0) } else { L::load(waiting.add(part * L::WIDTH).cast()) };
                    products[token][part] = L::add_times(before, products[token][part], multiples[part]);
                }
            }
            if !LAST {
                for part in 0..2 {
                    L::store_ints(waiting.add(part * L::WIDTH), products[token][part]);
                }
                continue;
            }
            let x_scale = L::splat_float(at.heads.add(token * at.head_bytes).cast::<f32>().read_unaligned());
            for part in 0..2 {
                let sum = at.waiting.sums.add(token * PANEL + part * L::WIDTH);
                let factor = L::mul(x_scale, of_panel.scales[part]);
                let new = L::fma(L::to_float(products[token][part]), factor, L::load_f32(sum.cast()));
                L::store(sum, L::WIDTH, std::ptr::null(), new);
            }
        }
    }
}
