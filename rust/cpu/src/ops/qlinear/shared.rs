//! Four groups of 32 columns of 4-bit codes that share a scale: their headers, and the portable kernel.
//!
//! The header of a row's groups is a dword. Its high half has the multiples of the first three groups, five bits each from
//! the top, in two's complement; the low half the fourth's, likewise, then eleven bits of the scale: the exponent, less
//! [`EXPONENT`], and six bits of mantissa. A span of 128 columns is one exact sum of integers, of each group's sum times its
//! multiple: `acc = fma(f32(sum), x_scale * scale, acc)`, over ascending spans.
//!
//! A group's sum starts from what takes the zero of its codes away, and so fits 16 bits, or two of them where products are
//! added in pairs: times the multiple it is one more product of words. For a block of many tokens there is a shorter way:
//! codes become bytes `code * multiple + (ZERO - 8 * multiple)` when they are taken apart, and so codes of 8 bits whose zero
//! is [`ZERO`].

#![allow(clippy::needless_range_loop, reason = "indices tie several arrays of registers together")]

use super::activations::{LINE, SHARED_HEAD_BYTES};
use super::packed::{PANEL, STEP_BYTES, block_header_bytes};
use super::tile::{Panel, Tile, dot};
use crate::quant::{GROUPS_PER_SCALE, LARGEST_MULTIPLE, QuantFormat};

/// The zero of codes times their multiples.
pub(super) const ZERO: i32 = 128;
/// Biased f32 exponent of the smallest scale, 2^-18.
pub(super) const EXPONENT: u32 = 109;
/// Bits of a scale, and those that a multiple has.
pub(super) const SCALE_BITS: u32 = 11;
pub(super) const MULTIPLE_BITS: u32 = 5;
/// Bits of the mantissa of f32 that a scale has not.
pub(super) const SCALE_SHIFT: u32 = 17;
/// Columns of a group, and the steps of eight columns of which a dword has the codes.
pub(super) const GROUP: usize = QuantFormat::SHARED.group_size;
pub(super) const STEPS: usize = GROUP / 8;
/// Bytes of a group's codes.
pub(super) const CODE_BYTES: usize = STEPS * STEP_BYTES;
/// Bytes of a block's header.
pub(super) const HEADER_BYTES: usize = block_header_bytes(QuantFormat::SHARED, GROUPS_PER_SCALE);
/// Bit from which the multiple of a group lies in the header.
const MULTIPLE_AT: [u32; GROUPS_PER_SCALE] = [27, 22, 17, 11];

/// The header of a scale (bits of f16) and at most four multiples, i8; those of missing groups are zero.
///
/// # Panics
/// When it is no scale or no multiple that the search finds.
pub(super) fn join(scale: u16, multiples: &[u8]) -> u32 {
    let value = half::f16::from_bits(scale).to_f32();
    let field = (value.to_bits() >> SCALE_SHIFT).wrapping_sub(EXPONENT << (23 - SCALE_SHIFT));
    let exact = value.to_bits().trailing_zeros() >= SCALE_SHIFT;
    assert!(field >> SCALE_BITS == 0 && exact, "a shared scale of {value}");
    let multiples = multiples.iter().zip(MULTIPLE_AT).map(|(multiple, at)| {
        let multiple = multiple.cast_signed();
        assert!(multiple.unsigned_abs() <= LARGEST_MULTIPLE.unsigned_abs(), "a multiple of {multiple}");
        (i32::from(multiple).cast_unsigned() & ((1 << MULTIPLE_BITS) - 1)) << at
    });
    field | multiples.fold(0, |all, one| all | one)
}

/// Scale and multiples of a header.
pub(super) fn split(header: u32) -> (f32, [i32; GROUPS_PER_SCALE]) {
    let field = header & ((1 << SCALE_BITS) - 1);
    let top = 32 - MULTIPLE_BITS;
    let multiples = MULTIPLE_AT.map(|at| (header << (top - at)).cast_signed() >> top);
    (f32::from_bits((field << SCALE_SHIFT) + (EXPONENT << 23)), multiples)
}

/// `tokens` tokens times one panel, in plain Rust.
///
/// # Safety
/// As [`super::tile::scalar`].
pub(super) unsafe fn scalar(tokens: usize, tile: &Tile, panel: &Panel) {
    for token in 0..tokens {
        for lane in 0..PANEL.min(panel.rows) {
            let (mut acc, mut block) = (0f32, panel.weights);
            for span in 0..tile.groups.div_ceil(GROUPS_PER_SCALE) {
                let here = (tile.groups - span * GROUPS_PER_SCALE).min(GROUPS_PER_SCALE);
                let mut sum = 0;
                // SAFETY: a span of the panel and of the token, promised by the caller.
                unsafe {
                    let (scale, multiples) = split(block.cast::<u32>().add(lane).read_unaligned());
                    for group in 0..here {
                        let codes = block.add(HEADER_BYTES + group * CODE_BYTES + 4 * lane);
                        let line = (2 * span + group / 2) * tokens + token;
                        let ints = tile.ints.add(line * LINE + group % 2 * GROUP).cast::<i8>();
                        let q = |col: usize| i32::from(ints.add(col).read());
                        let less_zero = dot(4, GROUP, codes, ints) - 8 * (0..GROUP).map(q).sum::<i32>();
                        sum += multiples[group] * less_zero;
                    }
                    let head = tile.heads.add((span * tokens + token) * SHARED_HEAD_BYTES);
                    acc = (sum as f32).mul_add(head.cast::<f32>().read_unaligned() * scale, acc);
                    block = block.add(HEADER_BYTES + here * CODE_BYTES);
                }
            }
            // SAFETY: a row and a token that exist, promised by the caller.
            unsafe { panel.put(lane, token * tile.out_stride, acc) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_come_back() {
        for scale in (0x0040..0x6c00).map(half::f16::from_bits).filter(|scale| {
            let value = scale.to_f32();
            (3.9e-6..=4064.0).contains(&value) && value.to_bits().trailing_zeros() >= SCALE_SHIFT
        }) {
            for first in -15i8..=15 {
                let multiples = [first, -first, 15 - first.abs(), -15];
                let header = join(scale.to_bits(), &multiples.map(i8::cast_unsigned));
                assert_eq!(split(header), (scale.to_f32(), multiples.map(i32::from)));
            }
        }
    }
}
