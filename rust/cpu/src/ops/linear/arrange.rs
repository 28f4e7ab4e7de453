//! Activations in the order in which the tile kernels read them.
//!
//! Tokens are cut into tiles of at most `max_tokens` of nearly equal size. A tile of `T` tokens is stored as
//! `[col][T]` f32, or for [`Chain::Dot`] as `[col / 2][T][2]` bf16 with a zero in a missing last column.

use super::tile::{Chain, SPAN};
use crate::isa::Isa;
use crate::tensor::Rows;

/// Most tokens of one tile.
pub(super) fn max_tokens(isa: Isa, chain: Chain) -> usize {
    match (isa, chain) {
        #[cfg(target_arch = "x86_64")]
        (Isa::Avx2, Chain::F32 | Chain::F16) => super::avx2::MAX_TOKENS,
        #[cfg(target_arch = "x86_64")]
        (Isa::Avx2, _) => super::avx2::MAX_TOKENS_BF16,
        #[cfg(target_arch = "x86_64")]
        (Isa::Avx512 | Isa::Avx512Vnni | Isa::Avx512Bf16, _) => super::avx512::MAX_TOKENS,
        _ => 12,
    }
}

/// The tokens of a call, cut into tiles.
#[derive(Clone, Copy)]
pub(super) struct Tiles {
    pub(super) tokens: usize,
    pub(super) count: usize,
    /// Elements of 4 bytes that one token takes.
    words: usize,
}

impl Tiles {
    /// Tiles for `parts` equal parts of the tokens, of which there are at least as many.
    pub(super) fn new(isa: Isa, chain: Chain, tokens: usize, cols: usize, parts: usize) -> Self {
        let words = if chain == Chain::Dot { cols.div_ceil(2) } else { cols };
        let count = tokens.div_ceil(max_tokens(isa, chain)).next_multiple_of(parts);
        Self { tokens, count, words }
    }

    /// First token and number of tokens of a tile.
    pub(super) fn range(&self, tile: usize) -> (usize, usize) {
        let begin = self.tokens * tile / self.count;
        (begin, self.tokens * (tile + 1) / self.count - begin)
    }

    /// Byte offset of column `col` (even for bf16) of a tile.
    pub(super) fn offset(&self, chain: Chain, tile: usize, col: usize) -> usize {
        let (begin, tokens) = self.range(tile);
        let word = if chain == Chain::Dot { col / 2 } else { col };
        4 * (begin * self.words + word * tokens)
    }
}

/// Store columns `col..col + SPAN` of one tile's tokens at `to`.
///
/// # Safety
/// `to` has room for the columns, nobody else touches it, the processor supports `isa`.
pub(super) unsafe fn arrange(
    isa: Isa,
    chain: Chain,
    x: Rows<'_>,
    (begin, tokens): (usize, usize),
    col: usize,
    to: *mut u8,
) {
    let cols = SPAN.min(x.width() - col);
    // SAFETY: tokens and columns in range of `x`; the rest is the caller's duty.
    unsafe {
        let from = x.as_ptr().add(begin * x.stride() + col);
        match (isa, chain) {
            #[cfg(target_arch = "x86_64")]
            (_, Chain::Dot) => x86::pairs(from, x.stride(), tokens, cols, to.cast()),
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx512 | Isa::Avx512Vnni | Isa::Avx512Bf16, _) => {
                x86::floats(from, x.stride(), tokens, cols, to.cast())
            }
            _ => plain(from, x.stride(), tokens, cols, to.cast()),
        }
    }
}

unsafe fn plain(from: *const f32, stride: usize, tokens: usize, cols: usize, to: *mut f32) {
    for token in 0..tokens {
        for col in 0..cols {
            // SAFETY: in range of both, promised by the caller.
            unsafe { *to.add(col * tokens + token) = *from.add(token * stride + col) };
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::super::transpose::transpose16;

    /// `[tokens][cols]` f32 to `[cols][tokens]`, at most 16 tokens.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
    pub(super) unsafe fn floats(from: *const f32, stride: usize, tokens: usize, cols: usize, to: *mut f32) {
        for col in (0..cols).step_by(16) {
            let count = (cols - col).min(16);
            let mask = low_bits(count) as u16;
            let mut rows = [_mm512_setzero_si512(); 16];
            for (token, row) in rows.iter_mut().enumerate().take(tokens) {
                // SAFETY: the mask leaves out columns past the end.
                *row = unsafe { _mm512_maskz_loadu_epi32(mask, from.add(token * stride + col).cast()) };
            }
            // SAFETY: `count` columns exist, promised by the caller.
            unsafe { store(rows, tokens, count, to.add(col * tokens).cast()) };
        }
    }

    /// `[tokens][cols]` f32 to `[cols / 2][tokens][2]` bf16, rounded to nearest even, at most 16 tokens.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
    pub(super) unsafe fn pairs(from: *const f32, stride: usize, tokens: usize, cols: usize, to: *mut i32) {
        for col in (0..cols).step_by(32) {
            let count = (cols - col).min(32);
            let (mask, words) = (low_bits(count), count.div_ceil(2));
            let mut rows = [_mm512_setzero_si512(); 16];
            for (token, row) in rows.iter_mut().enumerate().take(tokens) {
                // SAFETY: the masks leave out columns past the end; both types are 64 bytes of plain numbers.
                *row = unsafe {
                    let first = from.add(token * stride + col);
                    let low = _mm512_maskz_loadu_ps(mask as u16, first);
                    let high = _mm512_maskz_loadu_ps((mask >> 16) as u16, first.wrapping_add(16));
                    std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low))
                };
            }
            let to = to.wrapping_add(col / 2 * tokens);
            if tokens == 1 {
                // SAFETY: `words` words of one token.
                unsafe { _mm512_mask_storeu_epi32(to, low_bits(words) as u16, rows[0]) };
            } else {
                // SAFETY: `words` words per token exist, promised by the caller.
                unsafe { store(rows, tokens, words, to) };
            }
        }
    }

    /// Store the first `count` dwords of `tokens` rows as `[count][tokens]`.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
    unsafe fn store(rows: [__m512i; 16], tokens: usize, count: usize, to: *mut i32) {
        let mask = low_bits(tokens) as u16;
        for (col, words) in transpose16(rows).into_iter().enumerate().take(count) {
            // SAFETY: one column of the tile, promised by the caller.
            unsafe { _mm512_mask_storeu_epi32(to.add(col * tokens), mask, words) };
        }
    }

    fn low_bits(count: usize) -> u32 {
        if count >= 32 { u32::MAX } else { (1 << count) - 1 }
    }
}
