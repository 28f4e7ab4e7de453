//! Activations as int8, in the order in which the tile kernels read them.
//!
//! Tokens are cut into tiles of nearly equal size. A tile of `T` tokens is one record per span: `[T]` f32 scales, `[T]`
//! i32 sums of the integers, negated, then the integers as `[span / 4][T]` dwords of four i8 ([`Form::Bytes`]) or
//! `[span / 4][2][T]` dwords of two i16, columns 0 and 2, then 1 and 3 ([`Form::Words`]).
//!
//! One span of one token: `scale = max|x| / 127`, `q = clamp(round(x / scale), -127, 127)`, ties to even, all f32; a
//! span whose scale is 0 has q = 0. A span that is not finite has q = 0 and a scale that is not finite: every output of
//! that token becomes NaN, and the engine finds it there.

use crate::isa::Isa;
use crate::quant::ACTIVATION_SPAN;
use crate::tensor::Rows;

/// What the kernels of a level multiply with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    Bytes,
    Words,
}

impl Form {
    pub(super) fn of(isa: Isa) -> Self {
        match isa {
            Isa::Avx2 | Isa::Avx512 => Self::Words,
            Isa::Scalar | Isa::Avx512Vnni | Isa::Avx512Bf16 => Self::Bytes,
        }
    }
}

/// The tokens of a call, cut into tiles.
#[derive(Clone, Copy)]
pub(super) struct Tiles {
    form: Form,
    tokens: usize,
    pub(super) count: usize,
    span: usize,
    pub(super) spans: usize,
}

impl Tiles {
    pub(super) fn new(isa: Isa, tokens: usize, cols: usize, span: usize) -> Self {
        let most = match isa {
            Isa::Avx2 => 4,
            _ => 6,
        };
        Self { form: Form::of(isa), tokens, count: tokens.div_ceil(most), span, spans: cols / span }
    }

    /// First token and number of tokens of a tile.
    pub(super) fn range(&self, tile: usize) -> (usize, usize) {
        let begin = self.tokens * tile / self.count;
        (begin, self.tokens * (tile + 1) / self.count - begin)
    }

    /// Bytes of one token in one record.
    fn record_bytes(&self) -> usize {
        8 + self.span * if self.form == Form::Bytes { 1 } else { 2 }
    }

    /// Bytes of one token.
    pub(super) fn token_bytes(&self) -> usize {
        self.spans * self.record_bytes()
    }

    /// Byte offset of a tile.
    pub(super) fn offset(&self, tile: usize) -> usize {
        self.range(tile).0 * self.token_bytes()
    }

    /// Quantize the tokens of one tile in one span, and store their record.
    ///
    /// # Safety
    /// `to`, where the first tile begins, has room for all tiles; nobody else touches this record; the processor
    /// supports `isa`.
    pub(super) unsafe fn store(&self, isa: Isa, x: Rows<'_>, tile: usize, span: usize, to: *mut u8) {
        let (begin, tokens) = self.range(tile);
        let record = to.wrapping_add(self.offset(tile) + span * tokens * self.record_bytes());
        let mut q = [0i8; ACTIVATION_SPAN];
        for token in 0..tokens {
            let from = &x.row(begin + token)[span * self.span..][..self.span];
            // SAFETY: the level is supported.
            let (scale, sum) = unsafe { quantize(isa, from, &mut q) };
            let (words, q) = (record.wrapping_add(8 * tokens).cast::<u32>(), &q[..self.span]);
            // SAFETY: this token's part of the record.
            unsafe {
                record.cast::<f32>().add(token).write_unaligned(scale);
                record.cast::<i32>().add(tokens + token).write_unaligned(-sum);
                for (step, q) in q.chunks_exact(4).enumerate() {
                    if self.form == Form::Bytes {
                        let four = u32::from_ne_bytes([q[0] as u8, q[1] as u8, q[2] as u8, q[3] as u8]);
                        words.add(step * tokens + token).write_unaligned(four);
                        continue;
                    }
                    for (pair, (low, high)) in [(q[0], q[2]), (q[1], q[3])].into_iter().enumerate() {
                        let two = i32::from(low) & 0xffff | i32::from(high) << 16;
                        words.add((2 * step + pair) * tokens + token).write_unaligned(two as u32);
                    }
                }
            }
        }
    }
}

/// Quantize one span; returns its scale and the sum of its integers.
///
/// # Safety
/// The processor supports `isa`.
unsafe fn quantize(isa: Isa, x: &[f32], q: &mut [i8; ACTIVATION_SPAN]) -> (f32, i32) {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
        fn avx512(x: &[f32], q: &mut [i8; ACTIVATION_SPAN]) -> (f32, i32) {
            quantize_span(x, q)
        }
        #[target_feature(enable = "avx2")]
        fn avx2(x: &[f32], q: &mut [i8; ACTIVATION_SPAN]) -> (f32, i32) {
            quantize_span(x, q)
        }
        match isa {
            Isa::Scalar => {}
            // SAFETY: the caller's duty.
            Isa::Avx2 => return unsafe { avx2(x, q) },
            // SAFETY: the caller's duty.
            _ => return unsafe { avx512(x, q) },
        }
    }
    let _ = isa;
    quantize_span(x, q)
}

/// The definition, compiled once per level: every operation is rounded by itself, so all levels agree.
#[inline(always)]
fn quantize_span(x: &[f32], q: &mut [i8; ACTIVATION_SPAN]) -> (f32, i32) {
    // The bits of magnitudes are in the order of their values, infinity and NaN above all others.
    let largest = x.iter().fold(0, |largest, value| largest.max(value.to_bits() & 0x7fff_ffff));
    let scale = f32::from_bits(largest) / 127.0;
    if scale == 0.0 || !scale.is_finite() {
        q.fill(0);
        return (scale, 0);
    }
    let mut sum = 0;
    for (q, value) in q.iter_mut().zip(x) {
        let rounded = (value / scale).round_ties_even();
        let low = if rounded > -127.0 { rounded } else { -127.0 };
        let clamped = if low < 127.0 { low } else { 127.0 };
        // SAFETY: a whole number from -127 to 127.
        let whole: i32 = unsafe { clamped.to_int_unchecked() };
        sum += whole;
        *q = whole as i8;
    }
    (scale, sum)
}
