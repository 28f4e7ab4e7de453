//! The kernel of blocks of tokens for codes of 4 bits in groups of which four share a scale.
//!
//! A span of a panel, whose codes become bytes times their multiples in the first cache, is passed by as many tokens
//! together as have registers for their sums of the whole span: integer sums never go to memory. That pays where spans are
//! long; of half as many columns, the [other kernel](super::block) is as fast. The order of operations of every output is
//! the same.
//!
//! With fewer tokens at a time there are registers enough to take codes apart beside the multiplications: those of a span
//! while the tokens pass the one before it. Few tokens gain most, since they do not hide that codes are taken apart.

#![allow(clippy::needless_range_loop, reason = "indices tie several arrays of registers together")]

use std::arch::x86_64::*;

use super::activations::{LARGE_TILE, LINE, MAX_TILE, SHARED_BLOCK_TILE, SHARED_HEAD_BYTES};
use super::avx512::{Vnni, Words};
use super::blocks::{Ahead, SPAN_BYTES, Waiting};
use super::kernel::Level;
use super::packed::{PANEL, STEP_BYTES};
use super::shared::{CODE_BYTES, GROUP, HEADER_BYTES};
use super::shared_apart::{Coming, WIDTH, factors_of, take_apart};
use super::tile::{Cut, Tile};
use crate::ops::broadcast::{dpbusd_at, dpbusd_both_at};
use crate::quant::GROUPS_PER_SCALE;

/// Most tokens that pass together: of 32 registers their sums take 24.
const TOGETHER: usize = 12;
/// Most tokens that pass while codes are taken apart beside them.
const TOGETHER_BESIDE: usize = 8;
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
            let headers = [0, 1].map(|part| Words::split(Vnni::load(block.add(4 * part * WIDTH))));
            for group in 0..here {
                between(tile.groups - left + group);
                let factors = factors_of(headers.map(|(_, multiples)| multiples[group]));
                let codes = block.add(HEADER_BYTES + group * CODE_BYTES);
                take_apart(codes, &factors, bytes.add(group * GROUP * PANEL));
            }
            let packed_bytes = HEADER_BYTES + here * CODE_BYTES;
            let scales = headers.map(|(scale, _)| scale);
            let span = Span { packed: block, packed_bytes, codes: bytes, groups: here, scales };
            pass_all::<false>(&cut, &span, ahead, asked, at, &mut Coming::none());
            at.ints = at.ints.wrapping_add(2 * line_stride);
            at.heads = at.heads.wrapping_add(tokens * SHARED_HEAD_BYTES);
            block = block.add(packed_bytes);
            left -= here;
        }
    }
}

/// [`shared_block`] of more than 8 tokens, with the next codes taken apart beside the multiplications.
///
/// # Safety
/// As there.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
pub(super) unsafe fn shared_beside(
    tokens: usize,
    tile: &Tile,
    ahead: Ahead,
    waiting: Waiting,
    mut between: impl FnMut(usize),
) {
    debug_assert!((MAX_TILE + 1..=SHARED_BLOCK_TILE).contains(&tokens), "{tokens} tokens in a block");
    let Waiting { sums, bytes, .. } = waiting;
    let (line_stride, cut) = (tokens * LINE, Cut::new(tokens, TOGETHER_BESIDE));
    let asked = (HEADER_BYTES + GROUPS_PER_SCALE * CODE_BYTES).div_ceil(cut.tiles).next_multiple_of(LINE);
    let mut at = Tokens { ints: tile.ints, line_stride, heads: tile.heads, sums };
    let (mut block, mut left) = (tile.panels[0].weights, tile.groups);
    let mut factors = [[(_mm512_setzero_si512(), _mm512_setzero_si512()); 2]; GROUPS_PER_SCALE];
    // SAFETY: as in `shared_block`; the bytes have room for two spans.
    unsafe {
        sums.write_bytes(0, tokens * PANEL);
        let (mut scales, mut coming) = Coming::new(block, left, bytes, &mut factors);
        while !coming.is_done() {
            coming.eighth::<0>();
            coming.eighth::<1>();
            coming.eighth::<2>();
            coming.eighth::<3>();
            coming.advance();
        }
        let mut turn = 0;
        while left > 0 {
            let here = left.min(GROUPS_PER_SCALE);
            (tile.groups - left..tile.groups - left + here).for_each(&mut between);
            let packed_bytes = HEADER_BYTES + here * CODE_BYTES;
            let codes = bytes.add(turn * SPAN_BYTES);
            let span = Span { packed: block, packed_bytes, codes, groups: here, scales };
            block = block.add(packed_bytes);
            left -= here;
            turn = 1 - turn;
            if left > 0 {
                (scales, coming) = Coming::new(block, left, bytes.add(turn * SPAN_BYTES), &mut factors);
            }
            pass_all::<true>(&cut, &span, ahead, asked, at, &mut coming);
            debug_assert!(coming.is_done(), "codes of the next span");
            at.ints = at.ints.wrapping_add(2 * line_stride);
            at.heads = at.heads.wrapping_add(tokens * SHARED_HEAD_BYTES);
        }
    }
}

/// Let all tokens pass a span, and if `BESIDE` take apart `coming` meanwhile, which has at most as many groups. What is read
/// after it is asked for a little with every tile, `asked` bytes, as the memory does not take more at once.
///
/// # Safety
/// As [`shared_block`]; the span is in the panel, and `at` the first token's.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
unsafe fn pass_all<const BESIDE: bool>(
    cut: &Cut,
    span: &Span,
    ahead: Ahead,
    asked: usize,
    mut at: Tokens,
    coming: &mut Coming,
) {
    for tile in 0..cut.tiles {
        let now = cut.tokens(tile);
        let first = span.packed_bytes.min(tile * asked);
        ahead.ask_for(span.packed.wrapping_add(first), asked.min(span.packed_bytes - first));
        // SAFETY: the caller's duty.
        unsafe {
            match (BESIDE, now) {
                (false, 12) => pass::<12, false>(span, at, coming),
                (false, 11) => pass::<11, false>(span, at, coming),
                (false, 10) => pass::<10, false>(span, at, coming),
                (false, 9) => pass::<9, false>(span, at, coming),
                (false, 8) => pass::<8, false>(span, at, coming),
                (true, 8) => pass::<8, true>(span, at, coming),
                (true, 7) => pass::<7, true>(span, at, coming),
                (true, 6) => pass::<6, true>(span, at, coming),
                (true, 5) => pass::<5, true>(span, at, coming),
                (true, 4) => pass::<4, true>(span, at, coming),
                _ => unreachable!("{now} tokens of a tile"),
            }
        }
        at = at.after(now);
    }
}

/// Add the products of a span to the sums of the first `T` tokens, and if `BESIDE` take apart half a group of `coming` with each
/// group of the span.
///
/// # Safety
/// As [`pass_all`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
unsafe fn pass<const T: usize, const BESIDE: bool>(span: &Span, at: Tokens, coming: &mut Coming) {
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
        // tokens go the second way, or none where taking apart reads beside them.
        macro_rules! piece {
            ($piece:literal: $($token:literal)*) => {
                let of_piece = [0, 1].map(|part| Vnni::load(codes.add($piece * STEP_BYTES + part * LINE)));
                $(if $token < T {
                    const AT: usize = $token * LINE + 4 * $piece;
                    let sums = products[$token];
                    products[$token] = if BESIDE {
                        dpbusd_both_at::<AT>(sums, of_piece, ints)
                    } else if $token % 3 == 0 {
                        let each = _mm512_set1_epi32(ints.add(AT).cast::<i32>().read_unaligned());
                        [0, 1].map(|part| _mm512_dpbusd_epi32(sums[part], of_piece[part], each))
                    } else {
                        [0, 1].map(|part| dpbusd_at::<AT>(sums[part], of_piece[part], ints))
                    };
                })*
            };
        }
        for group in 0..span.groups {
            let beside = BESIDE && !coming.is_done();
            piece!(0: 0 1 2 3 4 5 6 7 8 9 10 11);
            piece!(1: 0 1 2 3 4 5 6 7 8 9 10 11);
            if beside {
                coming.eighth::<0>();
            }
            piece!(2: 0 1 2 3 4 5 6 7 8 9 10 11);
            piece!(3: 0 1 2 3 4 5 6 7 8 9 10 11);
            if beside {
                coming.eighth::<1>();
            }
            piece!(4: 0 1 2 3 4 5 6 7 8 9 10 11);
            piece!(5: 0 1 2 3 4 5 6 7 8 9 10 11);
            if beside {
                coming.eighth::<2>();
            }
            piece!(6: 0 1 2 3 4 5 6 7 8 9 10 11);
            piece!(7: 0 1 2 3 4 5 6 7 8 9 10 11);
            if beside {
                coming.eighth::<3>();
                coming.advance();
            }
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;
    use crate::isa::Isa;
    use crate::ops::qlinear::activations::Tiles;
    use crate::ops::qlinear::avx512::large_tile_of_shared;
    use crate::ops::qlinear::packed::QuantizedMatrix;
    use crate::ops::qlinear::tile::{MAX_STREAMS, Panel, scalar};
    use crate::ops::qlinear::tuning::Reach;
    use crate::quant::QuantFormat;

    /// Codes, multiples and scales of many values.
    fn matrix(cols: usize) -> QuantizedMatrix {
        let (format, groups) = (QuantFormat::SHARED, cols / GROUP);
        let codes: Vec<u8> = (0..PANEL * cols).map(|at| (at * 7 + at / 13) as u8 & 15).collect();
        let scale = |at: usize| half::f16::from_f32((1 + at % 7) as f32 / 512.0).to_bits();
        let scales: Vec<u16> = (0..PANEL * format.num_scales(cols)).map(scale).collect();
        let multiples: Vec<u8> =
            (0..PANEL * groups).map(|at| ((at * 5 % 31) as i8 - 15).cast_unsigned()).collect();
        QuantizedMatrix::from_canonical(PANEL, cols, format, &codes, &scales, Some(&multiples)).unwrap()
    }

    /// A processor takes one of two kernels for so many tokens: here both run, on whole spans and parts of one.
    #[test]
    fn both_kernels_have_the_bits_of_the_scalar_one() {
        let isa = Isa::Avx512Vnni;
        if !isa.is_supported() {
            return;
        }
        let few = [(32, 9), (96, 16), (128, 11), (160, 24), (224, 10), (640, 17), (256, 12)];
        let many = [(32, 25), (160, 96), (384, 41)];
        for (cols, tokens) in few.into_iter().chain(many) {
            let matrix = matrix(cols);
            let tiles = Tiles::new(isa, tokens, cols, QuantFormat::SHARED);
            let mut activations = vec![0u8; tiles.bytes()];
            for token in 0..tokens {
                let x: Vec<f32> = (0..cols).map(|col| ((token * 37 + col * 11) % 97) as f32 - 48.0).collect();
                // SAFETY: the bytes of all tokens; the level is supported.
                unsafe { tiles.store(isa, &x, token, activations.as_mut_ptr()) };
            }
            let (ints, heads) = tiles.offsets(0);
            let mut expected = vec![0f32; tokens * PANEL];
            let panel = Panel {
                weights: matrix.panel(0),
                out: expected.as_mut_ptr(),
                rows: PANEL,
                bias: std::ptr::null(),
            };
            let tile = Tile {
                format: QuantFormat::SHARED,
                groups: matrix.groups(),
                panels: [panel; MAX_STREAMS],
                wide: false,
                reach: Reach::NONE,
                spread: 0,
                ints: activations[ints..].as_ptr(),
                heads: activations[heads..].as_ptr(),
                out_stride: PANEL,
            };
            // SAFETY: what the tile describes.
            unsafe { scalar(tokens, &tile, &panel) };
            for beside in [true, false] {
                let (mut sums, mut ints) = (vec![f32::NAN; tokens * PANEL], vec![0; tokens * PANEL]);
                let mut bytes = vec![0; 2 * SPAN_BYTES];
                let (sums_at, ints) = (sums.as_mut_ptr(), ints.as_mut_ptr());
                let waiting = Waiting { sums: sums_at, ints, bytes: bytes.as_mut_ptr() };
                let mut seen = Vec::new();
                // SAFETY: as above, with room for what waits; the level is supported.
                unsafe {
                    let between = |group| seen.push(group);
                    match (beside, tokens > LARGE_TILE) {
                        (true, _) => shared_beside(tokens, &tile, Ahead::NONE, waiting, between),
                        (false, true) => shared_block(tokens, &tile, Ahead::NONE, waiting, between),
                        (false, false) => large_tile_of_shared(tokens, &tile, Ahead::NONE, waiting, between),
                    }
                }
                assert_eq!(seen, (0..matrix.groups()).collect::<Vec<_>>());
                let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
                assert!(bits(&sums) == bits(&expected), "{tokens} tokens of {cols} columns");
            }
        }
    }
}
