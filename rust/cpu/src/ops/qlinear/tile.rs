//! What every tile kernel is told, and the portable kernel that defines the numbers.

use super::packed::{PANEL, STEP_BYTES};
use crate::quant::QuantFormat;

/// One panel times the activations of `T` tokens.
#[derive(Clone, Copy)]
pub(super) struct Tile {
    pub(super) format: QuantFormat,
    /// Groups of a row.
    pub(super) groups: usize,
    /// `[groups][32]` f16.
    pub(super) scales: *const u8,
    /// `[groups][32]` u8, not read when symmetric.
    pub(super) zeros: *const u8,
    /// `[steps][32]` dwords.
    pub(super) codes: *const u8,
    /// How far ahead to prefetch codes, 0 when they lie in the cache.
    pub(super) ahead: usize,
    /// The tile's records, see [`activations`](super::activations).
    pub(super) x: *const u8,
    /// First token's output of the panel's first row.
    pub(super) out: *mut f32,
    /// Elements from a token's outputs to the next token's.
    pub(super) out_stride: usize,
    /// Rows that exist from the panel's first row on.
    pub(super) rows: usize,
    /// Bias of the panel's first row; null for none.
    pub(super) bias: *const f32,
}

/// `tokens` tokens times one panel, in plain Rust, from records of [`Form::Bytes`](super::activations::Form::Bytes).
///
/// # Safety
/// The pointers of `tile` are good for what they describe and nobody else touches these outputs.
pub(super) unsafe fn scalar(tokens: usize, tile: &Tile) {
    let QuantFormat { bits, group_size, symmetric } = tile.format;
    let span = tile.format.span();
    let record = tokens * (8 + span);
    for token in 0..tokens {
        for lane in 0..PANEL.min(tile.rows) {
            let mut acc = 0f32;
            for index in 0..tile.groups * (group_size / span) {
                let (group, x) = (index * span / group_size, tile.x.wrapping_add(index * record));
                let at = group * PANEL + lane;
                // SAFETY: a span of the panel and its record, promised by the caller.
                let (scale, zero, x_scale, minus_sum, dot) = unsafe {
                    let scale = half::f16::from_bits(tile.scales.cast::<u16>().add(at).read()).to_f32();
                    let zero = if symmetric {
                        i32::from(tile.format.middle())
                    } else {
                        i32::from(tile.zeros.add(at).read())
                    };
                    let x_scale = x.cast::<f32>().add(token).read_unaligned();
                    let minus_sum = x.cast::<i32>().add(tokens + token).read_unaligned();
                    let codes = tile.codes.add(index * span * bits / 32 * STEP_BYTES + 4 * lane);
                    (
                        scale,
                        zero,
                        x_scale,
                        minus_sum,
                        dot(bits, span, codes, x.add(8 * tokens + 4 * token), tokens),
                    )
                };
                acc = ((dot + zero * minus_sum) as f32).mul_add(x_scale * scale, acc);
            }
            // SAFETY: a row and a token that exist, promised by the caller.
            unsafe {
                if !tile.bias.is_null() {
                    acc += *tile.bias.add(lane);
                }
                *tile.out.add(token * tile.out_stride + lane) = acc;
            }
        }
    }
}

/// Sum of the products of one span of one row and one token.
///
/// # Safety
/// `codes` is the row's first dword of the span, `x` the token's first of the record.
unsafe fn dot(bits: usize, span: usize, codes: *const u8, x: *const u8, tokens: usize) -> i32 {
    let mut sum = 0;
    for col in 0..span {
        let (step, index) = (col * bits / 32, col % (32 / bits));
        // SAFETY: inside the span on both sides, promised by the caller.
        let (byte, q) = unsafe {
            let byte = codes.add(step * STEP_BYTES + index % 4).read();
            (byte, x.add(col / 4 * 4 * tokens + col % 4).cast::<i8>().read())
        };
        let code = if bits == 8 { byte } else { byte >> (index / 4 * 4) & 15 };
        sum += i32::from(code) * i32::from(q);
    }
    sum
}
