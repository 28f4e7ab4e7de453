//! What every tile kernel is told, and the portable kernel that defines the numbers.

use std::ops::Range;

use super::packed::PANEL;
use crate::ops::prefetch::prefetch_by_stages;

/// Columns of one span: an output is the sum, in ascending order, of one chain per span.
pub(super) const SPAN: usize = 512;

/// Columns for which a tile of [`Tile::kept`] weights asks once.
pub(super) const STEP: usize = 4;

/// How one output's products are formed and added within a span.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Chain {
    /// `acc = fma(w, x, acc)` over ascending columns, weights f32 `[col][32]`.
    F32,
    /// The same, weights f16 `[col][32]`.
    F16,
    /// The same, weights bf16 `[col / 2][32][2]`.
    Bf16,
    /// VPDPBF16PS over ascending pairs of columns, weights as `Bf16`, activations rounded to bf16.
    Dot,
}

/// One span of one panel times the activations of `T` tokens.
#[derive(Clone, Copy)]
pub(super) struct Tile {
    /// First column of the span in the panel.
    pub(super) weight: *const u8,
    /// First byte of what to ask the memory for meanwhile: weights that are needed later.
    pub(super) next: *const u8,
    /// Bytes from one request to the next; one goes out per column, or pair of columns of bf16, or [`STEP`] columns.
    pub(super) next_step: usize,
    /// Whether many tiles pass this span of f32 weights, which waits in the second cache.
    pub(super) kept: bool,
    /// Where `next` fills the second cache only: bytes ahead of the weights that are asked into the first.
    pub(super) near: Option<usize>,
    /// `[cols][T]` f32, or for [`Chain::Dot`] `[cols / 2][T][2]` bf16.
    pub(super) x: *const u8,
    /// Columns of this span.
    pub(super) cols: usize,
    /// First token's output of the panel's first row.
    pub(super) out: *mut f32,
    /// Elements from a token's outputs to the next token's.
    pub(super) out_stride: usize,
    /// Rows that exist from the panel's first row on.
    pub(super) rows: usize,
    /// Whether this is the first span, whose sum replaces what is in `out`.
    pub(super) first: bool,
    /// Bias of the panel's first row, to be added after this span; null for none.
    pub(super) bias: *const f32,
}

impl Tile {
    /// Ask for what goes with weights that are read, a number of cache lines.
    #[inline(always)]
    pub(super) fn ask(&self, read: *const u8, next: *const u8, lines: usize) {
        prefetch_by_stages(next, self.near.map(|near| read.wrapping_add(near)), 64 * lines);
    }
}

/// `tokens` tokens times one panel, in plain Rust.
///
/// # Safety
/// The pointers of `tile` are good for what they describe and nobody else touches these outputs.
pub(super) unsafe fn scalar(chain: Chain, tokens: usize, tile: &Tile) {
    for token in 0..tokens {
        let mut acc = [0f32; PANEL];
        for col in 0..tile.cols {
            // SAFETY: `[cols][T]` activations, promised by the caller.
            let x = unsafe { tile.x.cast::<f32>().add(col * tokens + token).read_unaligned() };
            for (lane, sum) in acc.iter_mut().enumerate() {
                // SAFETY: a column of the span and a lane of the panel.
                let weight = unsafe { weight(chain, tile.weight, col, lane) };
                *sum = weight.mul_add(x, *sum);
            }
        }
        // SAFETY: the caller's duty, passed on.
        unsafe { finish(&acc, tile, token, 0..PANEL) };
    }
}

unsafe fn weight(chain: Chain, panel: *const u8, col: usize, lane: usize) -> f32 {
    // SAFETY: the element lies in the panel, promised by the caller.
    unsafe {
        match chain {
            Chain::F32 => panel.cast::<f32>().add(col * PANEL + lane).read(),
            Chain::F16 => half::f16::from_bits(panel.cast::<u16>().add(col * PANEL + lane).read()).to_f32(),
            Chain::Bf16 | Chain::Dot => {
                let at = ((col / 2) * PANEL + lane) * 2 + col % 2;
                f32::from_bits(u32::from(panel.cast::<u16>().add(at).read()) << 16)
            }
        }
    }
}

/// Add the sums of one span, one token and some lanes to the outputs, row by row.
///
/// # Safety
/// As [`scalar`].
pub(super) unsafe fn finish(acc: &[f32; PANEL], tile: &Tile, token: usize, lanes: Range<usize>) {
    for (lane, &sum) in acc.iter().enumerate().take(lanes.end.min(tile.rows)).skip(lanes.start) {
        // SAFETY: rows and tokens that exist, promised by the caller.
        unsafe {
            let to = tile.out.add(token * tile.out_stride + lane);
            let mut total = if tile.first { sum } else { *to + sum };
            if !tile.bias.is_null() {
                total += *tile.bias.add(lane);
            }
            *to = total;
        }
    }
}
