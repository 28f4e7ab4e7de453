//! One token's activations made int8, span by span.
//!
//! One span: `scale = max|x| / 127`, `q = clamp(round(x / scale), -127, 127)`, ties to even, all f32; a span whose scale is
//! 0 has q = 0. A span that is not finite has q = 0 and a scale that is not finite: every output of that token becomes
//! NaN, and the engine finds it there.

use super::activations::LINE;
use crate::isa::Isa;
use crate::quant::ACTIVATION_SPAN;

/// Half of a line: the shorter span.
const HALF: usize = LINE / 2;

/// Where one token goes.
#[derive(Clone, Copy)]
pub(super) struct Place {
    /// Its first line.
    pub(super) ints: *mut u8,
    /// Bytes to its next line.
    pub(super) line_stride: usize,
    /// Its first head.
    pub(super) heads: *mut u8,
    /// Bytes to its next head.
    pub(super) head_stride: usize,
    /// Inputs that share a scale: a line or half of one.
    pub(super) span: usize,
    /// What the negated sums are multiplied by.
    pub(super) zero: i32,
}

/// A scale and the sum of a span's integers.
type Head = (f32, i32);

/// Quantize one token.
///
/// # Safety
/// The place is good for the token; the processor supports `isa`.
pub(super) unsafe fn quantize(isa: Isa, x: &[f32], to: Place) {
    #[cfg(target_arch = "x86_64")]
    if isa != Isa::Scalar {
        #[target_feature(enable = "avx2")]
        unsafe fn avx2(x: &[f32], to: Place) {
            // SAFETY: the caller's duty.
            unsafe {
                if to.span == HALF {
                    token(x, to, |x, ints| span_avx2::<HALF>(x, ints));
                } else {
                    token(x, to, |x, ints| span_avx2::<ACTIVATION_SPAN>(x, ints));
                }
            }
        }
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
        unsafe fn avx512(x: &[f32], to: Place) {
            // SAFETY: the caller's duty.
            unsafe { if to.span == HALF { token_avx512::<HALF>(x, to) } else { token_avx512::<LINE>(x, to) } }
        }
        // SAFETY: the caller's duty; every level but scalar has AVX2.
        return unsafe { if isa == Isa::Avx2 { avx2(x, to) } else { avx512(x, to) } };
    }
    let _ = isa;
    // SAFETY: the caller's duty.
    unsafe {
        if to.span == HALF {
            token(x, to, |x, ints| span_scalar::<HALF>(x, ints));
        } else {
            token(x, to, |x, ints| span_scalar::<ACTIVATION_SPAN>(x, ints));
        }
    }
}

/// Walk the spans of a token.
///
/// # Safety
/// The place is good for the token.
#[inline(always)]
unsafe fn token<const SPAN: usize>(
    x: &[f32],
    to: Place,
    quantize_span: impl Fn(&[f32; SPAN], *mut [i8; SPAN]) -> Head,
) {
    let per_line = LINE / SPAN;
    for (index, x) in x.as_chunks::<SPAN>().0.iter().enumerate() {
        // SAFETY: this span's part of a line and head, promised by the caller.
        unsafe {
            let ints = to.ints.add(index / per_line * to.line_stride + index % per_line * SPAN);
            let (scale, sum) = quantize_span(x, ints.cast());
            let head = to.heads.add(index * to.head_stride);
            head.cast::<f32>().write_unaligned(scale);
            head.add(4).cast::<i32>().write_unaligned(-sum * to.zero);
        }
    }
}

/// The definition.
///
/// # Safety
/// `to` can be written.
#[inline(always)]
unsafe fn span_scalar<const SPAN: usize>(x: &[f32; SPAN], to: *mut [i8; SPAN]) -> Head {
    // The bits of magnitudes are in the order of their values, infinity and NaN above all others.
    let largest = x.iter().fold(0, |largest, value| largest.max(value.to_bits() & 0x7fff_ffff));
    let scale = f32::from_bits(largest) / 127.0;
    let mut whole = [0i8; SPAN];
    if scale != 0.0 && scale.is_finite() {
        for (whole, value) in whole.iter_mut().zip(x) {
            *whole = (value / scale).round_ties_even().clamp(-127.0, 127.0) as i8;
        }
    }
    // SAFETY: the caller's duty.
    unsafe { to.write(whole) };
    (scale, whole.iter().map(|whole| i32::from(*whole)).sum())
}

/// The same with AVX2.
///
/// # Safety
/// `to` can be written; reached from code compiled for AVX2, on a processor that has it.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
#[allow(clippy::needless_range_loop, reason = "indices tie registers to places")]
unsafe fn span_avx2<const SPAN: usize>(x: &[f32; SPAN], to: *mut [i8; SPAN]) -> Head {
    use std::arch::x86_64::*;
    // SAFETY: the span's elements, and the caller's duty.
    unsafe {
        let mut values = [_mm256_setzero_ps(); ACTIVATION_SPAN / 8];
        let mut largest = _mm256_setzero_si256();
        for part in 0..SPAN / 8 {
            values[part] = _mm256_loadu_ps(x.as_ptr().add(8 * part));
            let magnitude = _mm256_and_si256(_mm256_castps_si256(values[part]), _mm256_set1_epi32(i32::MAX));
            largest = _mm256_max_epu32(largest, magnitude);
        }
        largest = _mm256_max_epu32(largest, _mm256_permute2x128_si256::<1>(largest, largest));
        largest = _mm256_max_epu32(largest, _mm256_shuffle_epi32::<0b01_00_11_10>(largest));
        largest = _mm256_max_epu32(largest, _mm256_shuffle_epi32::<0b10_11_00_01>(largest));
        let scale = _mm256_div_ps(_mm256_castsi256_ps(largest), _mm256_set1_ps(127.0));
        let bits = _mm256_castps_si256(scale);
        let infinity = _mm256_set1_epi32(f32::INFINITY.to_bits() as i32);
        let not_zero = _mm256_cmpgt_epi32(bits, _mm256_setzero_si256());
        let valid = _mm256_and_si256(not_zero, _mm256_cmpgt_epi32(infinity, bits));
        // The conversion rounds ties to even, as nobody changes the rounding mode; the packing below keeps to 127.
        let whole = |value| {
            let whole = _mm256_cvtps_epi32(_mm256_div_ps(value, scale));
            _mm256_and_si256(valid, _mm256_max_epi32(whole, _mm256_set1_epi32(-127)))
        };
        let mut sum = _mm256_setzero_si256();
        for part in 0..SPAN / 32 {
            let of = |quarter: usize| whole(values[4 * part + quarter]);
            let pairs = [_mm256_packs_epi32(of(0), of(1)), _mm256_packs_epi32(of(2), of(3))];
            let mixed = _mm256_packs_epi16(pairs[0], pairs[1]);
            let bytes = _mm256_permutevar8x32_epi32(mixed, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
            _mm256_storeu_si256(to.cast::<u8>().add(32 * part).cast(), bytes);
            let twos = _mm256_maddubs_epi16(_mm256_set1_epi8(1), bytes);
            sum = _mm256_add_epi32(sum, _mm256_madd_epi16(twos, _mm256_set1_epi16(1)));
        }
        let sum = _mm_add_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256::<1>(sum));
        let sum = _mm_add_epi32(sum, _mm_shuffle_epi32::<0b01_00_11_10>(sum));
        let sum = _mm_add_epi32(sum, _mm_shuffle_epi32::<0b10_11_00_01>(sum));
        (_mm256_cvtss_f32(scale), _mm_cvtsi128_si32(sum))
    }
}

/// One token with AVX-512, a line at a time: the halves of the vectors across it are its two spans, or both of its one.
///
/// # Safety
/// As [`quantize`]; reached from code compiled for AVX-512 F, BW, VL and DQ, on a processor that has them.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn token_avx512<const SPAN: usize>(x: &[f32], to: Place) {
    use std::arch::x86_64::*;
    const HALVES: i32 = 0b01_00_11_10;
    const SWAP: i32 = 0b10_11_00_01;
    for line in 0..x.len().div_ceil(LINE) {
        let here = LINE.min(x.len() - line * LINE);
        // SAFETY: a line of the token, whose second half may be missing, and its heads: the caller's duty.
        unsafe {
            let from = x.as_ptr().add(line * LINE);
            let values: [__m512; 4] = std::array::from_fn(|part| {
                if 16 * part < here { _mm512_loadu_ps(from.add(16 * part)) } else { _mm512_setzero_ps() }
            });
            let sizes =
                values.map(|value| _mm512_and_si512(_mm512_castps_si512(value), _mm512_set1_epi32(i32::MAX)));
            let mut largest = [_mm512_max_epu32(sizes[0], sizes[1]), _mm512_max_epu32(sizes[2], sizes[3])];
            if SPAN == LINE {
                largest = [_mm512_max_epu32(largest[0], largest[1]); 2];
            }
            let low = _mm512_shuffle_i32x4::<0b01_00_01_00>(largest[0], largest[1]);
            let high = _mm512_shuffle_i32x4::<0b11_10_11_10>(largest[0], largest[1]);
            let mut largest = _mm512_max_epu32(low, high);
            largest = _mm512_max_epu32(largest, _mm512_shuffle_i32x4::<SWAP>(largest, largest));
            largest = _mm512_max_epu32(largest, _mm512_shuffle_epi32::<HALVES>(largest));
            largest = _mm512_max_epu32(largest, _mm512_shuffle_epi32::<SWAP>(largest));
            let scale = _mm512_div_ps(_mm512_castsi512_ps(largest), _mm512_set1_ps(127.0));
            let bits = _mm512_castps_si512(scale);
            let infinity = _mm512_set1_epi32(f32::INFINITY.to_bits() as i32);
            let not_zero = _mm512_cmpgt_epi32_mask(bits, _mm512_setzero_si512());
            let valid = _mm512_mask_cmplt_epi32_mask(not_zero, bits, infinity);
            let scales = [
                _mm512_shuffle_f32x4::<0b00_00_00_00>(scale, scale),
                _mm512_shuffle_f32x4::<0b10_10_10_10>(scale, scale),
            ];
            let valid = [valid << 8 | valid & 255, valid & 0xff00 | valid >> 8];
            let whole = |part: usize| {
                let quotient = _mm512_div_ps(values[part], scales[part / 2]);
                let whole = _mm512_maskz_cvtps_epi32(valid[part / 2], quotient);
                _mm512_max_epi32(whole, _mm512_set1_epi32(-127))
            };
            let pairs = [_mm512_packs_epi32(whole(0), whole(1)), _mm512_packs_epi32(whole(2), whole(3))];
            let mixed = _mm512_packs_epi16(pairs[0], pairs[1]);
            let order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
            let bytes = _mm512_permutexvar_epi32(order, mixed);
            _mm512_storeu_si512(to.ints.add(line * to.line_stride).cast(), bytes);
            let twos = _mm512_maddubs_epi16(_mm512_set1_epi8(1), bytes);
            let mut sum = _mm512_madd_epi16(twos, _mm512_set1_epi16(-1));
            if SPAN == LINE {
                sum = _mm512_add_epi32(sum, _mm512_shuffle_i32x4::<HALVES>(sum, sum));
            }
            sum = _mm512_add_epi32(sum, _mm512_shuffle_i32x4::<SWAP>(sum, sum));
            sum = _mm512_add_epi32(sum, _mm512_shuffle_epi32::<HALVES>(sum));
            sum = _mm512_add_epi32(sum, _mm512_shuffle_epi32::<SWAP>(sum));
            sum = _mm512_mullo_epi32(sum, _mm512_set1_epi32(to.zero));
            let heads = _mm512_unpacklo_epi32(bits, sum);
            let head = to.heads.add(line * (LINE / SPAN) * to.head_stride);
            _mm_storel_epi64(head.cast(), _mm512_castsi512_si128(heads));
            if here > SPAN {
                let second = _mm512_extracti32x4_epi32::<2>(heads);
                _mm_storel_epi64(head.add(to.head_stride).cast(), second);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn quantized(isa: Isa, x: &[f32], span: usize) -> (Vec<u8>, Vec<u8>) {
        let x = &x[..x.len() - x.len() % span];
        let (mut ints, mut heads) = (vec![0; x.len().next_multiple_of(LINE)], vec![0; x.len() / span * 8]);
        let (to, heads_to) = (ints.as_mut_ptr(), heads.as_mut_ptr());
        let place = Place { ints: to, line_stride: LINE, heads: heads_to, head_stride: 8, span, zero: 8 };
        // SAFETY: the vectors have the token's bytes; only supported levels come here.
        unsafe { quantize(isa, x, place) };
        (ints, heads)
    }

    /// Any bits; ties; tiny, where scales lose their precision; all alike.
    fn values() -> impl Strategy<Value = Vec<f32>> {
        let any = any::<u32>().prop_map(f32::from_bits).boxed();
        let ties = (-255i32..256).prop_map(|halves| halves as f32 / 2.0).boxed();
        let tiny = (0u32..3000).prop_map(f32::from_bits).boxed();
        let normal = (-4.0f32..4.0).boxed();
        prop_oneof![Just(any), Just(ties), Just(tiny), Just(normal)]
            .prop_flat_map(|one| proptest::collection::vec(one, 352))
    }

    proptest! {
        #[test]
        fn all_levels_give_the_bits_of_the_definition(mut x in values(), span in prop_oneof![Just(32), Just(64)]) {
            x[0] = if x[0].to_bits() % 2 == 0 { x[0] } else { 127.0 };
            let expected = quantized(Isa::Scalar, &x, span);
            for isa in Isa::ALL.into_iter().filter(|isa| isa.is_supported()) {
                let got = quantized(isa, &x, span);
                prop_assert!(got.0 == expected.0, "integers at {}", isa);
                for (got, expected) in got.1.chunks(8).zip(expected.1.chunks(8)) {
                    let scale = |head: &[u8]| f32::from_le_bytes([head[0], head[1], head[2], head[3]]);
                    let both_nan = scale(got).is_nan() && scale(expected).is_nan();
                    prop_assert!(got == expected || both_nan && got[4..] == expected[4..], "heads at {}", isa);
                }
            }
        }
    }
}
