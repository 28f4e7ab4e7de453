//! The search for a group's scale: every candidate is tried, the one with the least squared error wins.
//!
//! The steps and their order are those of `python/pyrite/quant/reference.py`. All of it is plain Rust whose operations
//! are rounded one by one, compiled once per instruction level, so every level gives the same bytes.

use super::QuantFormat;
use crate::isa::Isa;

/// Partial sums of an error: lane l adds elements l, l + 16, ...
const LANES: usize = 16;
const SMALLEST_SCALE: f32 = 5.960_464_5e-8;
const LARGEST_SCALE: f32 = 65504.0;
/// Smallest f16 that is not subnormal.
const SMALLEST_NORMAL: f32 = 6.103_515_6e-5;

/// Factors on a group's min-max scale, the first of equals wins.
const FACTORS_4: [f32; 16] =
    [1.0, 1.04, 1.02, 0.98, 0.96, 0.94, 0.92, 0.9, 0.875, 0.86, 0.84, 0.82, 0.8, 0.78, 0.76, 0.74];
const FACTORS_8: [f32; 8] = [1.0, 1.004, 1.002, 0.998, 0.996, 0.9921875, 0.99, 0.985];

/// Quantize one row of finite weights: a code per weight, an f16 scale (its bits) and a zero per group. Zeros are
/// written for symmetric formats too.
///
/// # Panics
/// When the lengths do not fit together, or the processor does not support `isa`.
pub fn quantize_row(
    isa: Isa,
    values: &[f32],
    format: QuantFormat,
    codes: &mut [u8],
    scales: &mut [u16],
    zeros: &mut [u8],
) {
    assert!(format.check(values.len()).is_ok(), "the row does not divide into groups");
    let groups = values.len() / format.group_size;
    let fits = codes.len() == values.len() && scales.len() == groups && zeros.len() == groups;
    assert!(fits, "one code per weight, one scale and one zero per group");
    assert!(isa.is_supported(), "the processor does not support this level");
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
        fn avx512(v: &[f32], f: QuantFormat, c: &mut [u8], s: &mut [u16], z: &mut [u8]) {
            row(v, f, c, s, z);
        }
        #[target_feature(enable = "avx2")]
        fn avx2(v: &[f32], f: QuantFormat, c: &mut [u8], s: &mut [u16], z: &mut [u8]) {
            row(v, f, c, s, z);
        }
        match isa {
            Isa::Scalar => {}
            // SAFETY: the level was asserted.
            Isa::Avx2 => return unsafe { avx2(values, format, codes, scales, zeros) },
            // SAFETY: as above.
            _ => return unsafe { avx512(values, format, codes, scales, zeros) },
        }
    }
    row(values, format, codes, scales, zeros);
}

#[inline(always)]
fn row(values: &[f32], format: QuantFormat, codes: &mut [u8], scales: &mut [u16], zeros: &mut [u8]) {
    let size = format.group_size;
    let groups = values.chunks_exact(size).zip(codes.chunks_exact_mut(size));
    for ((values, codes), (scale, zero)) in groups.zip(scales.iter_mut().zip(zeros)) {
        let best = match format.bits {
            4 => search(values, format, &FACTORS_4),
            _ => search(values, format, &FACTORS_8),
        };
        let most = f32::from(format.max_code());
        for (code, &value) in codes.iter_mut().zip(values) {
            // Whole and between 0 and 255.
            *code = round(value, best.inverse, best.zero, most) as u8;
        }
        *scale = half::f16::from_f32(best.scale).to_bits();
        *zero = best.zero as u8;
    }
}

/// What a factor makes of a group.
#[derive(Clone, Copy)]
struct Candidate {
    scale: f32,
    inverse: f32,
    zero: f32,
}

/// The candidate with the least error.
#[inline(always)]
fn search<const N: usize>(values: &[f32], format: QuantFormat, factors: &[f32; N]) -> Candidate {
    let (low, high) = extremes(values);
    let (most, middle) = (f32::from(format.max_code()), f32::from(format.middle()));
    let (span, steps) = if format.symmetric { (max(-low, high), middle - 1.0) } else { (high - low, most) };
    let (mut scales, mut inverses, mut zeros) = ([0f32; N], [0f32; N], [0f32; N]);
    for index in 0..N {
        let scale = max(min(span * factors[index] / steps, LARGEST_SCALE), SMALLEST_SCALE);
        scales[index] = to_f16_grid(scale);
        inverses[index] = 1.0 / scales[index];
        let zero = (-low * factors[index] * inverses[index]).round_ties_even();
        zeros[index] = if format.symmetric { middle } else { max(min(zero, most), 0.0) };
    }
    let mut best = 0;
    let mut least = f32::INFINITY;
    for index in 0..N {
        let error = error(values, scales[index], inverses[index], zeros[index], most);
        if index == 0 || error < least {
            (best, least) = (index, error);
        }
    }
    Candidate { scale: scales[best], inverse: inverses[best], zero: zeros[best] }
}

/// Smallest and largest of the values and 0.
#[inline(always)]
fn extremes(values: &[f32]) -> (f32, f32) {
    let (mut lows, mut highs) = ([0f32; LANES], [0f32; LANES]);
    for part in values.chunks_exact(LANES) {
        for lane in 0..LANES {
            lows[lane] = min(lows[lane], part[lane]);
            highs[lane] = max(highs[lane], part[lane]);
        }
    }
    (lows.into_iter().fold(0.0, min), highs.into_iter().fold(0.0, max))
}

/// Sum of the squared differences, in the lanes and in the order of the definition.
#[inline(always)]
fn error(values: &[f32], scale: f32, inverse: f32, zero: f32, most: f32) -> f32 {
    let mut lanes = [0f32; LANES];
    for part in values.chunks_exact(LANES) {
        for lane in 0..LANES {
            let code = round(part[lane], inverse, zero, most);
            let difference = (code - zero) * scale - part[lane];
            lanes[lane] += difference * difference;
        }
    }
    let mut half = LANES / 2;
    while half > 0 {
        for lane in 0..half {
            lanes[lane] += lanes[lane + half];
        }
        half /= 2;
    }
    lanes[0]
}

#[inline(always)]
fn round(value: f32, inverse: f32, zero: f32, most: f32) -> f32 {
    max(min((value * inverse).round_ties_even() + zero, most), 0.0)
}

/// Round a number between the smallest and the largest f16 to the nearest f16, ties to even.
#[inline(always)]
fn to_f16_grid(value: f32) -> f32 {
    let bits = value.to_bits();
    let normal = f32::from_bits((bits + 0xfff + (bits >> 13 & 1)) & !0x1fff);
    // Subnormal f16 are multiples of 2^-24, as are all f32 from 0.5 to 1.
    let subnormal = (value + 0.5) - 0.5;
    if value < SMALLEST_NORMAL { subnormal } else { normal }
}

/// The smaller of two numbers that are not NaN: one instruction.
#[inline(always)]
fn min(a: f32, b: f32) -> f32 {
    if a < b { a } else { b }
}

/// The larger of two numbers that are not NaN.
#[inline(always)]
fn max(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_f16_and_the_middle_between_two_round_as_f16_does() {
        for bits in 1..half::f16::MAX.to_bits() {
            let (low, high) = (half::f16::from_bits(bits).to_f32(), half::f16::from_bits(bits + 1).to_f32());
            let middle = (low + high) / 2.0;
            for value in [low, middle, middle.next_down(), middle.next_up(), high] {
                assert_eq!(to_f16_grid(value), half::f16::from_f32(value).to_f32(), "{value:e}");
            }
        }
    }
}
