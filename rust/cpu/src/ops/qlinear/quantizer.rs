//! One token's activations made int8, span by span.
//!
//! One span: `scale = max|x| / 127`, `q = clamp(round(x / scale), -127, 127)`, ties to even, all f32; a span whose scale is
//! 0 has q = 0. A span that is not finite has q = 0 and a scale that is not finite: every output of that token becomes
//! NaN, and the engine finds it there. The last of the spans of four groups may be shorter.

use super::activations::{HEAD_BYTES, LINE};
use crate::isa::Isa;
use crate::quant::{ACTIVATION_SPAN, GROUPS_PER_SCALE};

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
    /// Inputs that share a scale: two lines, where groups of weights share theirs, or one line or half of one.
    pub(super) span: usize,
    /// What the negated sums are multiplied by.
    pub(super) zero: i32,
    /// Whether sums of 4-bit codes are pairs of 16 bits.
    pub(super) narrow: bool,
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
                match to.span {
                    HALF => token(x, to, |x, ints| span_avx2::<HALF>(x, ints)),
                    LINE => token(x, to, |x, ints| span_avx2::<ACTIVATION_SPAN>(x, ints)),
                    _ => groups(x, to, |x, ints, stride| groups_avx2(x, ints, stride)),
                }
            }
        }
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
        unsafe fn avx512(x: &[f32], to: Place) {
            // SAFETY: the caller's duty.
            unsafe {
                match to.span {
                    HALF => token_avx512::<HALF>(x, to),
                    LINE => token_avx512::<LINE>(x, to),
                    _ => groups(x, to, |x, ints, stride| groups_avx512(x, ints, stride)),
                }
            }
        }
        // SAFETY: the caller's duty; every level but scalar has AVX2.
        return unsafe { if isa == Isa::Avx2 { avx2(x, to) } else { avx512(x, to) } };
    }
    let _ = isa;
    // SAFETY: the caller's duty.
    unsafe {
        match to.span {
            HALF => token(x, to, |x, ints| span_scalar::<HALF>(x, ints)),
            LINE => token(x, to, |x, ints| span_scalar::<ACTIVATION_SPAN>(x, ints)),
            _ => groups(x, to, |x, ints, stride| {
                by_groups(x, ints, stride, scale_scalar(x), |x, scale, ints| whole_scalar(x, scale, ints))
            }),
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

/// The scale of a span of four groups, and of each group the sum of its integers.
type GroupHead = (f32, [i32; GROUPS_PER_SCALE]);

/// Walk the spans of a token whose spans are four groups. `quantize_span` gets the span, its first line and the bytes to its
/// second.
///
/// # Safety
/// The place is good for the token.
#[inline(always)]
unsafe fn groups(x: &[f32], to: Place, quantize_span: impl Fn(&[f32], *mut u8, usize) -> GroupHead) {
    for (index, x) in x.chunks(GROUPS_PER_SCALE * HALF).enumerate() {
        // SAFETY: this span's parts of two lines and its head, promised by the caller.
        unsafe {
            let (scale, sums) = quantize_span(x, to.ints.add(2 * index * to.line_stride), to.line_stride);
            let head = to.heads.add(index * to.head_stride);
            head.cast::<f32>().write_unaligned(scale);
            head.add(4).cast::<i32>().write_unaligned(-sums.iter().sum::<i32>() * to.zero);
            // The zero of 8 taken away, in one sum or two. That of two is at most 4 * 32 * 127.
            let two = |sum: i32| ((-4 * sum) & 0xffff) | (-4 * sum) << 16;
            let starts = sums.map(|sum| if to.narrow { two(sum) } else { -8 * sum });
            head.add(HEAD_BYTES).cast::<[i32; GROUPS_PER_SCALE]>().write_unaligned(starts);
        }
    }
}

/// Make a span of groups whole by `scale`, one group after another: `quantize_group` returns the sum of its integers.
///
/// # Safety
/// As much as the span has can be written from `ints` on, and `stride` bytes on.
#[inline(always)]
unsafe fn by_groups(
    x: &[f32],
    ints: *mut u8,
    stride: usize,
    scale: f32,
    quantize_group: impl Fn(&[f32; HALF], f32, *mut [i8; HALF]) -> i32,
) -> GroupHead {
    let mut sums = [0; GROUPS_PER_SCALE];
    for (group, x) in x.as_chunks::<HALF>().0.iter().enumerate() {
        // SAFETY: this group's part of a line, promised by the caller.
        let ints = unsafe { ints.add(group / 2 * stride + group % 2 * HALF) };
        sums[group] = quantize_group(x, scale, ints.cast());
    }
    (scale, sums)
}

/// The definition.
///
/// # Safety
/// `to` can be written.
#[inline(always)]
unsafe fn span_scalar<const SPAN: usize>(x: &[f32; SPAN], to: *mut [i8; SPAN]) -> Head {
    let scale = scale_scalar(x);
    // SAFETY: the caller's duty.
    (scale, unsafe { whole_scalar(x, scale, to) })
}

/// The scale of a span.
fn scale_scalar(x: &[f32]) -> f32 {
    // The bits of magnitudes are in the order of their values, infinity and NaN above all others.
    let largest = x.iter().fold(0, |largest, value| largest.max(value.to_bits() & 0x7fff_ffff));
    f32::from_bits(largest) / 127.0
}

/// Make numbers whole by a scale; returns the sum.
///
/// # Safety
/// `to` can be written.
#[inline(always)]
unsafe fn whole_scalar<const N: usize>(x: &[f32; N], scale: f32, to: *mut [i8; N]) -> i32 {
    let mut whole = [0i8; N];
    if scale != 0.0 && scale.is_finite() {
        for (whole, value) in whole.iter_mut().zip(x) {
            *whole = (value / scale).round_ties_even().clamp(-127.0, 127.0) as i8;
        }
    }
    // SAFETY: the caller's duty.
    unsafe { to.write(whole) };
    whole.iter().map(|whole| i32::from(*whole)).sum()
}

/// The same with AVX2.
///
/// # Safety
/// As [`group_avx2`].
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn span_avx2<const SPAN: usize>(x: &[f32; SPAN], to: *mut [i8; SPAN]) -> Head {
    // SAFETY: the parts of the span, and the caller's duty.
    unsafe {
        let scale = scale_avx2(x);
        let mut sum = 0;
        for (part, x) in x.as_chunks::<HALF>().0.iter().enumerate() {
            sum += group_avx2(x, scale, to.cast::<[i8; HALF]>().add(part));
        }
        (scale, sum)
    }
}

/// [`scale_scalar`] of whole groups with AVX2.
///
/// # Safety
/// Reached from code compiled for AVX2, on a processor that has it.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn scale_avx2(x: &[f32]) -> f32 {
    use std::arch::x86_64::*;
    // SAFETY: the span's elements, and the caller's duty.
    unsafe {
        let mut largest = [_mm256_setzero_si256(); 4];
        for x in x.as_chunks::<HALF>().0 {
            for (part, largest) in largest.iter_mut().enumerate() {
                let bits = _mm256_loadu_si256(x.as_ptr().add(8 * part).cast());
                *largest = _mm256_max_epu32(*largest, _mm256_and_si256(bits, _mm256_set1_epi32(i32::MAX)));
            }
        }
        let [a, b, c, d] = largest;
        let mut largest = _mm256_max_epu32(_mm256_max_epu32(a, b), _mm256_max_epu32(c, d));
        largest = _mm256_max_epu32(largest, _mm256_permute2x128_si256::<1>(largest, largest));
        largest = _mm256_max_epu32(largest, _mm256_shuffle_epi32::<0b01_00_11_10>(largest));
        largest = _mm256_max_epu32(largest, _mm256_shuffle_epi32::<0b10_11_00_01>(largest));
        _mm256_cvtss_f32(_mm256_castsi256_ps(largest)) / 127.0
    }
}

/// [`whole_scalar`] of a group with AVX2.
///
/// # Safety
/// `to` can be written; reached from code compiled for AVX2, on a processor that has it.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn group_avx2(x: &[f32; HALF], scale: f32, to: *mut [i8; HALF]) -> i32 {
    use std::arch::x86_64::*;
    // SAFETY: the group's elements, and the caller's duty.
    unsafe {
        let valid = _mm256_set1_epi32(if scale != 0.0 && scale.is_finite() { -1 } else { 0 });
        let scale = _mm256_set1_ps(scale);
        // The conversion rounds ties to even, as nobody changes the rounding mode; the packing below keeps to 127.
        let whole = |quarter: usize| {
            let value = _mm256_loadu_ps(x.as_ptr().add(8 * quarter));
            let whole = _mm256_cvtps_epi32(_mm256_div_ps(value, scale));
            _mm256_and_si256(valid, _mm256_max_epi32(whole, _mm256_set1_epi32(-127)))
        };
        let pairs = [_mm256_packs_epi32(whole(0), whole(1)), _mm256_packs_epi32(whole(2), whole(3))];
        let mixed = _mm256_packs_epi16(pairs[0], pairs[1]);
        let bytes = _mm256_permutevar8x32_epi32(mixed, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
        _mm256_storeu_si256(to.cast(), bytes);
        let twos = _mm256_maddubs_epi16(_mm256_set1_epi8(1), bytes);
        let sum = _mm256_madd_epi16(twos, _mm256_set1_epi16(1));
        let sum = _mm_add_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256::<1>(sum));
        let sum = _mm_add_epi32(sum, _mm_shuffle_epi32::<0b01_00_11_10>(sum));
        let sum = _mm_add_epi32(sum, _mm_shuffle_epi32::<0b10_11_00_01>(sum));
        _mm_cvtsi128_si32(sum)
    }
}

/// One span of groups with AVX2.
///
/// # Safety
/// As [`by_groups`]; reached from code compiled for AVX2, on a processor that has it.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn groups_avx2(x: &[f32], ints: *mut u8, stride: usize) -> GroupHead {
    // SAFETY: the caller's duty.
    unsafe { by_groups(x, ints, stride, scale_avx2(x), |x, scale, ints| group_avx2(x, scale, ints)) }
}

/// The same with AVX-512. Divisions, which take longer than all the rest, are made of multiplications: of a quotient that is
/// nearly right and the exact remainder comes, twice, a better one. The second is made of one that is off by less than an
/// ulp, and of the rounded reciprocal, and so is the rounded quotient (P. W. Markstein, Computation of elementary functions
/// on the IBM RISC System/6000 processor, 1990), where nothing overflows or loses digits.
///
/// # Safety
/// As [`by_groups`]; reached from code compiled for AVX-512 F, BW, VL and DQ, on a processor that has them.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn groups_avx512(x: &[f32], ints: *mut u8, stride: usize) -> GroupHead {
    use std::arch::x86_64::*;
    const VECTORS: usize = GROUPS_PER_SCALE * HALF / 16;
    const HALVES: i32 = 0b01_00_11_10;
    const SWAP: i32 = 0b10_11_00_01;
    /// Scales that are far from where reciprocals overflow and remainders of what is not rounded to zero lose digits.
    const SAFE: std::ops::RangeInclusive<f32> = 1e-30..=1e30;
    // SAFETY: whole groups of the span, and their parts of its lines; the level: the caller's duty.
    unsafe {
        let values: [__m512; VECTORS] = std::array::from_fn(|part| {
            if 16 * part < x.len() { _mm512_loadu_ps(x.as_ptr().add(16 * part)) } else { _mm512_setzero_ps() }
        });
        let magnitude = _mm512_set1_epi32(i32::MAX);
        let mut largest = _mm512_setzero_si512();
        for value in values {
            let bits = _mm512_and_si512(_mm512_castps_si512(value), magnitude);
            largest = _mm512_max_epu32(largest, bits);
        }
        largest = _mm512_max_epu32(largest, _mm512_shuffle_i32x4::<HALVES>(largest, largest));
        largest = _mm512_max_epu32(largest, _mm512_shuffle_i32x4::<SWAP>(largest, largest));
        largest = _mm512_max_epu32(largest, _mm512_shuffle_epi32::<HALVES>(largest));
        largest = _mm512_max_epu32(largest, _mm512_shuffle_epi32::<SWAP>(largest));
        let scales = _mm512_div_ps(_mm512_castsi512_ps(largest), _mm512_set1_ps(127.0));
        let scale = _mm512_cvtss_f32(scales);
        if !SAFE.contains(&scale) {
            return by_groups(x, ints, stride, scale, |x, scale, ints| group_avx2(x, scale, ints));
        }
        let reciprocal = _mm512_div_ps(_mm512_set1_ps(1.0), scales);
        let whole = |part: usize| {
            let mut quotient = _mm512_mul_ps(values[part], reciprocal);
            for _ in 0..2 {
                let remainder = _mm512_fnmadd_ps(quotient, scales, values[part]);
                quotient = _mm512_fmadd_ps(remainder, reciprocal, quotient);
            }
            // The conversion rounds ties to even; no magnitude is above 127 or rounds to more.
            _mm512_cvtps_epi32(quotient)
        };
        let order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
        // Of each line the sums of four integers.
        let sums = [0, 1].map(|line| {
            let [a, b, c, d] = [0, 1, 2, 3].map(|part| whole(4 * line + part));
            let mixed = _mm512_packs_epi16(_mm512_packs_epi32(a, b), _mm512_packs_epi32(c, d));
            let bytes = _mm512_permutexvar_epi32(order, mixed);
            if x.len() > line * LINE {
                _mm512_storeu_si512(ints.add(line * stride).cast(), bytes);
            }
            let twos = _mm512_maddubs_epi16(_mm512_set1_epi8(1), bytes);
            _mm512_madd_epi16(twos, _mm512_set1_epi16(1))
        });
        // Dwords 0 and 2 of lanes 0 and 2 become those of the four groups.
        let [first, second] = sums;
        let mut sums =
            _mm512_add_epi32(_mm512_unpacklo_epi64(first, second), _mm512_unpackhi_epi64(first, second));
        sums = _mm512_add_epi32(sums, _mm512_shuffle_epi32::<SWAP>(sums));
        sums = _mm512_add_epi32(sums, _mm512_shuffle_i32x4::<SWAP>(sums, sums));
        let groups = _mm512_setr_epi32(0, 8, 2, 10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
        let mut of_groups = [0; GROUPS_PER_SCALE];
        let sums = _mm512_castsi512_si128(_mm512_permutexvar_epi32(groups, sums));
        _mm_storeu_si128(of_groups.as_mut_ptr().cast(), sums);
        (scale, of_groups)
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
        // Only the longest spans may end early.
        let (x, head_stride) = match span {
            ..=LINE => (&x[..x.len() - x.len() % span], 8),
            _ => (x, 24),
        };
        let heads = vec![0; x.len().div_ceil(span) * head_stride];
        let (mut ints, mut heads) = (vec![0; x.len().next_multiple_of(LINE)], heads);
        let (to, heads_to) = (ints.as_mut_ptr(), heads.as_mut_ptr());
        let place =
            Place { ints: to, line_stride: LINE, heads: heads_to, head_stride, span, zero: 8, narrow: false };
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
        fn all_levels_give_the_bits_of_the_definition(mut x in values(), span in prop_oneof![Just(32), Just(64), Just(128)]) {
            x[0] = if x[0].to_bits() % 2 == 0 { x[0] } else { 127.0 };
            let expected = quantized(Isa::Scalar, &x, span);
            for isa in Isa::ALL.into_iter().filter(|isa| isa.is_supported()) {
                let got = quantized(isa, &x, span);
                prop_assert!(got.0 == expected.0, "integers at {}", isa);
                let head_bytes = if span == 128 { 24 } else { 8 };
                for (got, expected) in got.1.chunks(head_bytes).zip(expected.1.chunks(head_bytes)) {
                    let scale = |head: &[u8]| f32::from_le_bytes([head[0], head[1], head[2], head[3]]);
                    let both_nan = scale(got).is_nan() && scale(expected).is_nan();
                    prop_assert!(got == expected || both_nan && got[4..] == expected[4..], "heads at {}", isa);
                }
            }
        }
    }
}
