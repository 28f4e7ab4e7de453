//! What every tile kernel is told, and the portable kernel that defines the numbers.

use super::activations::{HEAD_BYTES, LINE};
use super::packed::{PANEL, STEP_BYTES, block_header_bytes, groups_per_block};
use super::shared;
use super::tuning::Reach;
use crate::quant::QuantFormat;

/// Most panels that advance together.
pub(super) const MAX_STREAMS: usize = 4;

/// How tokens are cut into tiles of nearly equal size.
#[derive(Clone, Copy)]
pub(super) struct Cut {
    pub(super) tiles: usize,
    /// Tokens of the last tiles; the first `longer` have one more.
    size: usize,
    longer: usize,
}

impl Cut {
    /// As few tiles as there can be of at most `most` of so many tokens.
    #[inline(always)]
    pub(super) fn new(tokens: usize, most: usize) -> Self {
        let tiles = tokens.div_ceil(most);
        Self { tiles, size: tokens / tiles, longer: tokens % tiles }
    }

    /// Tokens of a tile.
    #[inline(always)]
    pub(super) fn tokens(&self, tile: usize) -> usize {
        self.size + usize::from(tile < self.longer)
    }

    /// First token of a tile.
    #[inline(always)]
    pub(super) fn begin(&self, tile: usize) -> usize {
        tile * self.size + tile.min(self.longer)
    }

    /// The tile of a token.
    pub(super) fn tile_of(&self, token: usize) -> usize {
        let in_longer = self.longer * (self.size + 1);
        match token {
            _ if token < in_longer => token / (self.size + 1),
            _ => self.longer + (token - in_longer) / self.size,
        }
    }
}

/// Some panels times the activations of some tokens.
#[derive(Clone, Copy)]
pub(super) struct Tile {
    pub(super) format: QuantFormat,
    /// Groups of a row.
    pub(super) groups: usize,
    /// The panels.
    pub(super) panels: [Panel; MAX_STREAMS],
    /// Whether the panels are wide, see [`wide`](super::wide).
    pub(super) wide: bool,
    /// How to prefetch weights.
    pub(super) reach: Reach,
    /// Of codes of 8 bits, prefetches advance by one byte where the weights advance by `1 << spread`.
    pub(super) spread: u32,
    /// The tile's integers, see [`activations`](super::activations).
    pub(super) ints: *const u8,
    /// The tile's heads.
    pub(super) heads: *const u8,
    /// Elements from a token's outputs to the next token's.
    pub(super) out_stride: usize,
}

/// One panel of a tile.
#[derive(Clone, Copy)]
pub(super) struct Panel {
    /// Its first byte.
    pub(super) weights: *const u8,
    /// First token's output of the panel's first row.
    pub(super) out: *mut f32,
    /// Rows that exist from the panel's first row on.
    pub(super) rows: usize,
    /// Bias of the panel's first row; null for none.
    pub(super) bias: *const f32,
}

impl Panel {
    /// In place of a panel that is not there.
    pub(super) const NONE: Self =
        Self { weights: std::ptr::null(), out: std::ptr::null_mut(), rows: 0, bias: std::ptr::null() };

    /// Store a row's sum, after adding its bias, for the token whose outputs begin `token` elements on.
    ///
    /// # Safety
    /// The output is there, and nobody else touches it.
    pub(super) unsafe fn put(&self, row: usize, token: usize, sum: f32) {
        // SAFETY: the caller's duty; a bias has as many rows.
        unsafe {
            let sum = if self.bias.is_null() { sum } else { sum + *self.bias.add(row) };
            *self.out.add(token + row) = sum;
        }
    }
}

/// `tokens` tokens times one panel, in plain Rust.
///
/// # Safety
/// The pointers of `tile` and `panel` are good for what they describe and nobody else touches these outputs.
pub(super) unsafe fn scalar(tokens: usize, tile: &Tile, panel: &Panel) {
    if tile.format.is_shared() {
        // SAFETY: the caller's duty.
        return unsafe { shared::scalar(tokens, tile, panel) };
    }
    let QuantFormat { bits, group_size, symmetric, .. } = tile.format;
    let span = tile.format.span();
    for token in 0..tokens {
        for lane in 0..PANEL.min(panel.rows) {
            let mut acc = 0f32;
            for index in 0..tile.groups * (group_size / span) {
                let place = GroupPlace::new(tile.format, tile.groups, index * span / group_size);
                // SAFETY: a span of the panel and of the token, promised by the caller.
                let (scale, zero, x_scale, minus_sum, dot) = unsafe {
                    let scale = panel.weights.add(place.scales + 2 * lane).cast::<u16>().read_unaligned();
                    // The head of a symmetric format has it already.
                    let zero =
                        if symmetric { 1 } else { i32::from(panel.weights.add(place.zeros + lane).read()) };
                    let head = tile.heads.add((index * tokens + token) * HEAD_BYTES);
                    let first = place.codes + index * span % group_size * bits / 32 * STEP_BYTES;
                    let codes = panel.weights.add(first + 4 * lane);
                    let col = index * span;
                    let ints = tile.ints.add((col / LINE * tokens + token) * LINE + col % LINE);
                    (
                        half::f16::from_bits(scale).to_f32(),
                        zero,
                        head.cast::<f32>().read_unaligned(),
                        head.add(4).cast::<i32>().read_unaligned(),
                        dot(bits, span, codes, ints.cast()),
                    )
                };
                acc = ((dot + zero * minus_sum) as f32).mul_add(x_scale * scale, acc);
            }
            // SAFETY: a row and a token that exist, promised by the caller.
            unsafe { panel.put(lane, token * tile.out_stride, acc) };
        }
    }
}

/// Sum of the products of one span of one row and one token.
///
/// # Safety
/// `codes` is the row's first dword of the span, `ints` the token's first integer.
pub(super) unsafe fn dot(bits: usize, span: usize, codes: *const u8, ints: *const i8) -> i32 {
    let mut sum = 0;
    for col in 0..span {
        let (step, index) = (col * bits / 32, col % (32 / bits));
        // SAFETY: inside the span on both sides, promised by the caller.
        let (byte, q) = unsafe { (codes.add(step * STEP_BYTES + index % 4).read(), ints.add(col).read()) };
        let code = if bits == 8 { byte } else { byte >> (index / 4 * 4) & 15 };
        sum += i32::from(code) * i32::from(q);
    }
    sum
}

/// Byte offsets of one group's parts in its panel.
pub(super) struct GroupPlace {
    /// 32 f16, or of all groups of the block the same 32 dwords.
    pub(super) scales: usize,
    /// 32 u8; meaningless when symmetric.
    pub(super) zeros: usize,
    /// Dwords of the first step.
    pub(super) codes: usize,
}

impl GroupPlace {
    /// Of group `group` of `groups`.
    pub(super) fn new(format: QuantFormat, groups: usize, group: usize) -> Self {
        let code_bytes = format.group_size * PANEL * format.bits / 8;
        let per_block = groups_per_block(format);
        let first = group - group % per_block;
        let here = per_block.min(groups - first);
        let whole = block_header_bytes(format, per_block) + per_block * code_bytes;
        let block = first / per_block * whole;
        Self {
            scales: block + if format.is_shared() { 0 } else { (group - first) * 2 * PANEL },
            zeros: block + here * 2 * PANEL + (group - first) * PANEL,
            codes: block + block_header_bytes(format, here) + (group - first) * code_bytes,
        }
    }
}
