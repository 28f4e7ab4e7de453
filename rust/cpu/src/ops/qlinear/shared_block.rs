//! The kernel of blocks of tokens for codes of 4 bits in groups of which four share a scale.
//!
//! A span of a panel, whose codes become bytes times their multiples in the first cache, is passed by as many tokens
//! together as have registers for their sums of the whole span: integer sums never go to memory. That pays where spans are
//! long; of half as many columns, the [other kernel](super::block) is as fast. The order of operations of every output is
//! the same.

#![allow(clippy::needless_range_loop, reason = "indices tie several arrays of registers together")]

use std::arch::x86_64::*;

use super::activations::{LARGE_TILE, LINE, SHARED_BLOCK_TILE, SHARED_HEAD_BYTES};
use super::avx512::{Vnni, halves};
use super::blocks::{Ahead, Waiting};
use super::kernel::Level;
use super::packed::{PANEL, STEP_BYTES};
use super::shared::{CODE_BYTES, GROUP, HEADER_BYTES, STEPS, ZERO};
use super::tile::{Cut, Tile};
use crate::ops::broadcast::dpbusd_at;
use crate::quant::GROUPS_PER_SCALE;

/// Most tokens that pass together: of 32 registers their sums take 24.
const TOGETHER: usize = 12;
/// Rows of a vector, of which a panel has two.
const WIDTH: usize = PANEL / 2;
/// Where a head has the negated sum of its span.
const SUM: usize = 4;

/// A span of a panel, ready to multiply.
struct Span {
    /// Where it was read, and how many bytes that is.
    packed: *const u8,
    packed_bytes: usize,
    /// `[groups][8][32][4]` u8.
    codes: *const u8,
    groups: usize,
    scales: [__m512; 2],
}

/// Where the tokens of a block have their integers and heads of a span, and their sums.
#[derive(Clone, Copy)]
struct Tokens {
    ints: *const u8,
    /// Bytes from the inputs of 64 columns to those of the next ones.
    line_stride: usize,
    heads: *const u8,
    /// `[tokens][32]`.
    sums: *mut f32,
}

impl Tokens {
    /// Those from token `count` on.
    fn after(self, count: usize) -> Self {
        Self {
            ints: self.ints.wrapping_add(count * LINE),
            heads: self.heads.wrapping_add(count * SHARED_HEAD_BYTES),
            sums: self.sums.wrapping_add(count * PANEL),
            ..self
        }
    }
}

/// `tokens` tokens, more than [`LARGE_TILE`], times the tile's first panel, of such a format. The products, without bias, are
/// left in `waiting.sums`. Before each group comes a call of `between` with its number.
///
/// # Safety
/// As [`super::tile::scalar`], but there are no outputs; the processor has AVX-512 F, BW, VL, DQ and VNNI; at most
/// [`SHARED_BLOCK_TILE`] tokens, for which `waiting` has room.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
pub(super) unsafe fn shared_block(
    tokens: usize,
    tile: &Tile,
    ahead: Ahead,
    waiting: Waiting,
    mut between: impl FnMut(usize),
) {
    debug_assert!((LARGE_TILE + 1..=SHARED_BLOCK_TILE).contains(&tokens), "{tokens} tokens in a block");
    let Waiting { sums, bytes, .. } = waiting;
    let (line_stride, cut) = (tokens * LINE, Cut::new(tokens, TOGETHER));
    let asked = (HEADER_BYTES + GROUPS_PER_SCALE * CODE_BYTES).div_ceil(cut.tiles).next_multiple_of(LINE);
    let mut at = Tokens { ints: tile.ints, line_stride, heads: tile.heads, sums };
    let (mut block, mut left) = (tile.panels[0].weights, tile.groups);
    // SAFETY: blocks of the panel and the tile's activations one after another, promised by the caller, who has the
    // level; the sums have room for all tokens.
    unsafe {
        sums.write_bytes(0, tokens * PANEL);
        while left > 0 {
            let here = left.min(GROUPS_PER_SCALE);
            let headers = [0, 1].map(|part| Vnni::split(Vnni::load(block.add(4 * part * WIDTH))));
            for group in 0..here {
                between(tile.groups - left + group);
                let multiples = headers.map(|(_, multiples)| multiples[group]);
                let codes = block.add(HEADER_BYTES + group * CODE_BYTES);
                take_apart(codes, multiples, bytes.add(group * GROUP * PANEL));
            }
            let packed_bytes = HEADER_BYTES + here * CODE_BYTES;
            let scales = headers.map(|(scale, _)| scale);
            let span = Span { packed: block, packed_bytes, codes: bytes, groups: here, scales };
            pass_all(&cut, &span, ahead, asked, at);
            at.ints = at.ints.wrapping_add(2 * line_stride);
            at.heads = at.heads.wrapping_add(tokens * SHARED_HEAD_BYTES);
            block = block.add(packed_bytes);
            left -= here;
        }
    }
}

/// Bring the codes of a group times their multiples, whose zero is [`ZERO`], to `to`, a byte each. To multiply codes is more
/// work than to multiply sums, but once for all tokens.
///
/// # Safety
/// The codes are there, and as much room as they take; the processor has AVX-512 F and BW.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn take_apart(codes: *const u8, multiples: [__m512i; 2], to: *mut u8) {
    // Two bytes at once: none is above 255 in the end, so that in 16 bits they keep apart.
    let factors = multiples.map(|multiple| {
        let multiple = _mm512_or_si512(multiple, _mm512_slli_epi32::<16>(multiple));
        let minus_eight = _mm512_mullo_epi16(multiple, _mm512_set1_epi16(8 * 0x101));
        (multiple, _mm512_sub_epi16(_mm512_set1_epi16((ZERO * 0x101) as i16), minus_eight))
    });
    for step in 0..STEPS {
        for (part, (multiple, zero)) in factors.into_iter().enumerate() {
            // SAFETY: the caller's duty.
            unsafe {
                let line = Vnni::load(codes.add(step * STEP_BYTES + part * LINE));
                for (piece, codes) in halves(line).into_iter().enumerate() {
                    let to = to.add((2 * step + piece) * STEP_BYTES + part * LINE);
                    let codes = _mm512_add_epi16(_mm512_mullo_epi16(codes, multiple), zero);
                    _mm512_storeu_si512(to.cast(), codes);
                }
            }
        }
    }
}

/// Let all tokens pass a span. What is read after it is asked for a little with every tile, `asked` bytes, as the memory
/// does not take more at once.
///
/// # Safety
/// As [`shared_block`]; the span is in the panel, and `at` the first token's.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
unsafe fn pass_all(cut: &Cut, span: &Span, ahead: Ahead, asked: usize, mut at: Tokens) {
    for tile in 0..cut.tiles {
        let now = cut.tokens(tile);
        let first = span.packed_bytes.min(tile * asked);
        ahead.ask_for(span.packed.wrapping_add(first), asked.min(span.packed_bytes - first));
        // SAFETY: the caller's duty.
        unsafe {
            match now {
                12 => pass::<12>(span, at),
                11 => pass::<11>(span, at),
                10 => pass::<10>(span, at),
                9 => pass::<9>(span, at),
                8 => pass::<8>(span, at),
                _ => unreachable!("{now} of more than 24 tokens"),
            }
        }
        at = at.after(now);
    }
}

/// Add the products of a span to the sums of the first `T` tokens.
///
/// # Safety
/// As [`pass_all`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
unsafe fn pass<const T: usize>(span: &Span, at: Tokens) {
    let head = |token: usize| at.heads.wrapping_add(token * SHARED_HEAD_BYTES);
    // SAFETY: what belongs to the tokens, promised by the caller.
    unsafe {
        let mut products = [[_mm512_setzero_si512(); 2]; T];
        for token in 0..T {
            let start = _mm512_set1_epi32(head(token).add(SUM).cast::<i32>().read_unaligned());
            products[token] = [start; 2];
        }
        let (mut codes, mut ints) = (span.codes, at.ints);
        // Activations that both vectors of a piece meet are read once for both, or by each of the two multiplications:
        // these are fewer instructions, for which a core that shares its front end is grateful, and more reads. Two of three
        // tokens go the second way.
        macro_rules! piece {
            ($piece:literal: $($token:literal)*) => {
                let of_piece = [0, 1].map(|part| Vnni::load(codes.add($piece * STEP_BYTES + part * LINE)));
                $(if $token < T {
                    const AT: usize = $token * LINE + 4 * $piece;
                    let each = match $token % 3 {
                        0 => Some(_mm512_set1_epi32(ints.add(AT).cast::<i32>().read_unaligned())),
                        _ => None,
                    };
                    for part in 0..2 {
                        let sum = products[$token][part];
                        products[$token][part] = match each {
                            Some(each) => _mm512_dpbusd_epi32(sum, of_piece[part], each),
                            None => dpbusd_at::<AT>(sum, of_piece[part], ints),
                        };
                    }
                })*
            };
        }
        for group in 0..span.groups {
            piece!(0: 0 1 2 3 4 5 6 7 8 9 10 11);
            piece!(1: 0 1 2 3 4 5 6 7 8 9 10 11);
            piece!(2: 0 1 2 3 4 5 6 7 8 9 10 11);
            piece!(3: 0 1 2 3 4 5 6 7 8 9 10 11);
            piece!(4: 0 1 2 3 4 5 6 7 8 9 10 11);
            piece!(5: 0 1 2 3 4 5 6 7 8 9 10 11);
            piece!(6: 0 1 2 3 4 5 6 7 8 9 10 11);
            piece!(7: 0 1 2 3 4 5 6 7 8 9 10 11);
            codes = codes.wrapping_add(GROUP * PANEL);
            ints = ints.wrapping_add(if group % 2 == 0 { GROUP } else { at.line_stride - GROUP });
        }
        for token in 0..T {
            let x_scale = _mm512_set1_ps(head(token).cast::<f32>().read_unaligned());
            for part in 0..2 {
                let sum = at.sums.add(token * PANEL + part * WIDTH);
                let factor = _mm512_mul_ps(x_scale, span.scales[part]);
                let products = _mm512_cvtepi32_ps(products[token][part]);
                _mm512_storeu_ps(sum, _mm512_fmadd_ps(products, factor, _mm512_loadu_ps(sum)));
            }
        }
    }
}
