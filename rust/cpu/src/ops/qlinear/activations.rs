//! Activations as int8, in the order in which the tile kernels read them.
//!
//! Tokens are cut into tiles of nearly equal size. The integers of a tile are `[cols / 64][T][64]` i8, so that one token's
//! inputs of a span are one cache line and lie at a fixed distance from the next token's. After the integers of all
//! tokens come the heads, `[tokens][spans]` pairs of an f32 scale and an i32, the negated sum of the span's integers.
//!
//! One span of one token: `scale = max|x| / 127`, `q = clamp(round(x / scale), -127, 127)`, ties to even, all f32; a
//! span whose scale is 0 has q = 0. A span that is not finite has q = 0 and a scale that is not finite: every output of
//! that token becomes NaN, and the engine finds it there.

use super::tuning::Tuning;
use crate::isa::Isa;
use crate::quant::ACTIVATION_SPAN;

/// Bytes of the inputs of one token that lie together.
pub(super) const LINE: usize = ACTIVATION_SPAN;
/// Most tokens of a tile.
pub(super) const MAX_TILE: usize = 8;
/// Bytes of one scale and sum.
pub(super) const HEAD_BYTES: usize = 8;

/// The tokens of a call, cut into tiles.
#[derive(Clone, Copy)]
pub(super) struct Tiles {
    pub(super) tokens: usize,
    pub(super) count: usize,
    /// Tokens of the last tiles; the first `longer` have one more.
    size: usize,
    longer: usize,
    span: usize,
    spans: usize,
    lines: usize,
}

impl Tiles {
    pub(super) fn new(isa: Isa, tokens: usize, cols: usize, span: usize) -> Self {
        let most = match isa {
            Isa::Avx2 => 4,
            // As few passes over the weights as there can be.
            _ if tokens <= 2 * MAX_TILE => MAX_TILE,
            _ => Tuning::get().tile,
        };
        let count = tokens.div_ceil(most);
        let (size, longer) = (tokens / count, tokens % count);
        Self { tokens, count, size, longer, span, spans: cols / span, lines: cols.div_ceil(LINE) }
    }

    /// First token and number of tokens of a tile.
    pub(super) fn range(&self, tile: usize) -> (usize, usize) {
        (tile * self.size + tile.min(self.longer), self.size + usize::from(tile < self.longer))
    }

    /// Bytes of all tokens.
    pub(super) fn bytes(&self) -> usize {
        self.tokens * (self.lines * LINE + self.head_stride())
    }

    /// Bytes of the heads of one token.
    pub(super) fn head_stride(&self) -> usize {
        self.spans * HEAD_BYTES
    }

    /// Byte offsets of a tile's integers and heads.
    pub(super) fn offsets(&self, tile: usize) -> (usize, usize) {
        let begin = self.range(tile).0;
        (begin * self.lines * LINE, self.tokens * self.lines * LINE + begin * self.head_stride())
    }

    /// Quantize one token, whose inputs are `x`.
    ///
    /// # Safety
    /// `to`, where the first tile begins, has room for all tokens; nobody else touches this one; the processor supports
    /// `isa`.
    pub(super) unsafe fn store(&self, isa: Isa, x: &[f32], token: usize, to: *mut u8) {
        debug_assert!(token < self.tokens && x.len() == self.spans * self.span);
        let in_longer = self.longer * (self.size + 1);
        let tile = match token {
            _ if token < in_longer => token / (self.size + 1),
            _ => self.longer + (token - in_longer) / self.size,
        };
        let (begin, tokens) = self.range(tile);
        let (ints, heads) = self.offsets(tile);
        let place = Place {
            ints: to.wrapping_add(ints + (token - begin) * LINE),
            line_stride: tokens * LINE,
            heads: to.wrapping_add(heads + (token - begin) * self.head_stride()),
            span: self.span,
        };
        // SAFETY: this token's parts; the level is supported.
        unsafe { quantize(isa, x, place) }
    }
}

/// Where one token goes.
#[derive(Clone, Copy)]
struct Place {
    ints: *mut u8,
    line_stride: usize,
    heads: *mut u8,
    span: usize,
}

/// Quantize one token.
///
/// # Safety
/// The place is good for the token; the processor supports `isa`.
unsafe fn quantize(isa: Isa, x: &[f32], to: Place) {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
        unsafe fn avx512(x: &[f32], to: Place) {
            // SAFETY: the caller's duty.
            unsafe { quantize_token(x, to) }
        }
        #[target_feature(enable = "avx2")]
        unsafe fn avx2(x: &[f32], to: Place) {
            // SAFETY: the caller's duty.
            unsafe { quantize_token(x, to) }
        }
        match isa {
            Isa::Scalar => {}
            // SAFETY: the caller's duty.
            Isa::Avx2 => return unsafe { avx2(x, to) },
            // SAFETY: the caller's duty.
            _ => return unsafe { avx512(x, to) },
        }
    }
    let _ = isa;
    // SAFETY: the caller's duty.
    unsafe { quantize_token(x, to) }
}

#[inline(always)]
unsafe fn quantize_token(x: &[f32], to: Place) {
    let Place { ints, line_stride, heads, span } = to;
    // SAFETY: the caller's duty. A half span is the first or the second half of a line.
    unsafe {
        if span == ACTIVATION_SPAN {
            for (index, x) in x.as_chunks::<ACTIVATION_SPAN>().0.iter().enumerate() {
                let head = heads.add(index * HEAD_BYTES);
                quantize_span(x, ints.add(index * line_stride).cast(), head);
            }
        } else {
            for (index, x) in x.as_chunks::<{ ACTIVATION_SPAN / 2 }>().0.iter().enumerate() {
                let ints = ints.add(index / 2 * line_stride + index % 2 * (LINE / 2));
                quantize_span(x, ints.cast(), heads.add(index * HEAD_BYTES));
            }
        }
    }
}

/// The definition, compiled once per level: every operation is rounded by itself, so all levels agree.
#[inline(always)]
unsafe fn quantize_span<const SPAN: usize>(x: &[f32; SPAN], to: *mut [i8; SPAN], head: *mut u8) {
    // The bits of magnitudes are in the order of their values, infinity and NaN above all others.
    let largest = x.iter().fold(0, |largest, value| largest.max(value.to_bits() & 0x7fff_ffff));
    let scale = f32::from_bits(largest) / 127.0;
    let mut whole = [0i32; SPAN];
    if scale != 0.0 && scale.is_finite() {
        for (whole, value) in whole.iter_mut().zip(x) {
            let rounded = (value / scale).round_ties_even();
            let low = if rounded > -127.0 { rounded } else { -127.0 };
            let clamped = if low < 127.0 { low } else { 127.0 };
            // SAFETY: a whole number from -127 to 127.
            *whole = unsafe { clamped.to_int_unchecked() };
        }
    }
    let sum: i32 = whole.iter().sum();
    // SAFETY: the span's place, promised by the caller.
    unsafe {
        to.write(whole.map(|whole| whole as i8));
        head.cast::<f32>().write_unaligned(scale);
        head.add(4).cast::<i32>().write_unaligned(-sum);
    }
}
