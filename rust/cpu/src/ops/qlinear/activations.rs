//! Activations as int8, in the order in which the tile kernels read them.
//!
//! Tokens are cut into tiles of nearly equal size. The integers of a tile are `[cols / 64][T][64]` i8, so that one token's
//! inputs of 64 columns are one cache line and lie at a fixed distance from the next token's. After the integers of all
//! tokens come the heads, for each tile `[spans][T]` pairs of an f32 scale and an i32, the negated sum of the span's
//! integers, times the zero of all weights when those are symmetric. Where groups of weights share a scale, a span is
//! all of them, the zero is [`shared::ZERO`], and after a pair come four dwords: what the sums of each group start from.
//!
//! How a span becomes integers, [`quantizer`](super::quantizer) says.

use super::quantizer::{Place, quantize};
use super::shared;
use super::tile::Cut;
use crate::isa::Isa;
use crate::quant::{ACTIVATION_SPAN, GROUPS_PER_SCALE, QuantFormat};

/// Bytes of the inputs of one token that lie together.
pub(super) const LINE: usize = ACTIVATION_SPAN;
/// Most tokens of a tile of the kernels whose sums have registers.
pub(super) const MAX_TILE: usize = 8;
/// Most tokens of a tile when two do not take them all: with them every sum has a register.
const MANY_TILE: usize = 6;
/// Most tokens of a [large](takes_large) tile. On Zen 5 matmuls of 9 to 24 rows are 2 to 20 % faster than in two or more
/// tiles, most with few rows; of 32 rows some are slower, since all outputs of a panel are stored at once.
pub(super) const LARGE_TILE: usize = 24;
/// Most tokens of a [block](super::blocks): their sums are a sixth of the first cache.
pub(super) const BLOCK_TILE: usize = 64;
/// The same where groups of weights share a scale: no integer sums lie beside them. 96 were 1 to 2 % faster than 64, and 128
/// up to 8 % slower where outputs are many, on an Emerald Rapids; a prefill on a Zen 5 is 1 to 2 % faster with 96 than with 64.
pub(super) const SHARED_BLOCK_TILE: usize = 96;
/// Bytes of one scale and sum.
pub(super) const HEAD_BYTES: usize = 8;
/// The same where groups of weights share a scale.
pub(super) const SHARED_HEAD_BYTES: usize = HEAD_BYTES + 4 * GROUPS_PER_SCALE;

/// Whether a level has VPDPBUSD.
fn has_dot(isa: Isa) -> bool {
    matches!(isa, Isa::Avx512Vnni | Isa::Avx512Bf16)
}

/// Whether all tokens make one tile for the [kernel of blocks](super::block), which takes codes apart once for all of them
/// and keeps their sums in the cache. It needs VPDPBUSD, and a group whose codes fit the registers.
fn takes_large(isa: Isa, tokens: usize, format: QuantFormat) -> bool {
    let fits = format.bits == 4 && format.group_size == LINE / 2;
    has_dot(isa) && fits && (MAX_TILE + 1..=LARGE_TILE).contains(&tokens)
}

/// Whether so many tokens are cut into [blocks](super::blocks). They need VPDPBUSD.
fn takes_blocks(isa: Isa, tokens: usize) -> bool {
    has_dot(isa) && tokens > LARGE_TILE
}

/// The tokens of a call, cut into tiles.
#[derive(Clone, Copy)]
pub(super) struct Tiles {
    pub(super) tokens: usize,
    cut: Cut,
    span: usize,
    spans: usize,
    lines: usize,
    head_bytes: usize,
    /// What negated sums are multiplied by.
    zero: i32,
    /// Whether the tiles are [blocks](super::blocks).
    pub(super) blocks: bool,
}

impl Tiles {
    pub(super) fn new(isa: Isa, tokens: usize, cols: usize, format: QuantFormat) -> Self {
        let most = match isa {
            Isa::Avx2 => 4,
            _ if takes_large(isa, tokens, format) => LARGE_TILE,
            _ if takes_blocks(isa, tokens) && format.is_shared() => SHARED_BLOCK_TILE,
            _ if takes_blocks(isa, tokens) => BLOCK_TILE,
            // As few passes over the weights as there can be.
            _ if tokens <= 2 * MAX_TILE => MAX_TILE,
            _ => MANY_TILE,
        };
        let (cut, span) = (Cut::new(tokens, most), format.span());
        let (zero, head_bytes) = match (format.is_shared(), format.symmetric) {
            (true, _) => (shared::ZERO, SHARED_HEAD_BYTES),
            (false, true) => (i32::from(format.middle()), HEAD_BYTES),
            (false, false) => (1, HEAD_BYTES),
        };
        let (spans, lines, blocks) = (cols.div_ceil(span), cols.div_ceil(LINE), takes_blocks(isa, tokens));
        Self { tokens, cut, span, spans, lines, head_bytes, zero, blocks }
    }

    pub(super) fn count(&self) -> usize {
        self.cut.tiles
    }

    /// Whether one large tile takes all tokens.
    pub(super) fn is_large(&self) -> bool {
        self.count() == 1 && self.tokens > MAX_TILE && !self.blocks
    }

    /// First token and number of tokens of a tile.
    pub(super) fn range(&self, tile: usize) -> (usize, usize) {
        (self.cut.begin(tile), self.cut.tokens(tile))
    }

    /// Bytes of all tokens.
    pub(super) fn bytes(&self) -> usize {
        self.tokens * (self.lines * LINE + self.spans * self.head_bytes)
    }

    /// Byte offsets of a tile's integers and heads.
    pub(super) fn offsets(&self, tile: usize) -> (usize, usize) {
        let begin = self.range(tile).0;
        (begin * self.lines * LINE, self.tokens * self.lines * LINE + begin * self.spans * self.head_bytes)
    }

    /// Quantize one token, whose inputs are `x`.
    ///
    /// # Safety
    /// `to`, where the first tile begins, has room for all tokens; nobody else touches this one; the processor supports
    /// `isa`.
    pub(super) unsafe fn store(&self, isa: Isa, x: &[f32], token: usize, to: *mut u8) {
        debug_assert!(x.len().div_ceil(self.span) == self.spans);
        // SAFETY: this token's parts; the level is supported.
        unsafe { quantize(isa, x, self.place(isa, token, to)) }
    }

    /// The same for the inputs of one span, of whole lines unless it is the last one.
    ///
    /// # Safety
    /// As [`store`](Self::store).
    pub(super) unsafe fn store_span(&self, isa: Isa, x: &[f32], token: usize, span: usize, to: *mut u8) {
        debug_assert!(span < self.spans && x.len() <= self.span && self.span.is_multiple_of(LINE));
        let of_token = self.place(isa, token, to);
        let ints = of_token.ints.wrapping_add(span * (self.span / LINE) * of_token.line_stride);
        let heads = of_token.heads.wrapping_add(span * of_token.head_stride);
        // SAFETY: the parts of this span; the level is supported.
        unsafe { quantize(isa, x, Place { ints, heads, ..of_token }) }
    }

    /// Where a token goes.
    fn place(&self, isa: Isa, token: usize, to: *mut u8) -> Place {
        debug_assert!(token < self.tokens);
        let tile = self.cut.tile_of(token);
        let (begin, tokens) = self.range(tile);
        let (ints, heads) = self.offsets(tile);
        Place {
            ints: to.wrapping_add(ints + (token - begin) * LINE),
            line_stride: tokens * LINE,
            heads: to.wrapping_add(heads + (token - begin) * self.head_bytes),
            head_stride: tokens * self.head_bytes,
            span: self.span,
            zero: self.zero,
            narrow: !has_dot(isa),
        }
    }
}
