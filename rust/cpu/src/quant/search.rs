//! The search for a group's scale: every candidate is tried, the one with the least squared error wins.
//!
//! The steps and their order are those of `python/pyrite/quant/reference.py`. All operations are rounded one by one, and
//! the code is compiled once per instruction level, so every level gives the same bytes.

use super::{QuantFormat, shared};
use crate::isa::Isa;
use crate::ops::lanes::{LANES, Lanes, at_every_level};

const SMALLEST_SCALE: f32 = 5.960_464_5e-8;
const LARGEST_SCALE: f32 = 65504.0;
/// Smallest f16 that is not subnormal.
const SMALLEST_NORMAL: f32 = 6.103_515_6e-5;

/// Factors on the scale of a group's whole range, the first of equals wins; `_S` of symmetric formats.
const FACTORS_4: [f32; 16] =
    [1.0, 1.04, 1.02, 0.98, 0.96, 0.94, 0.92, 0.9, 0.875, 0.86, 0.84, 0.82, 0.8, 0.78, 0.76, 0.74];
const FACTORS_4_S: [f32; 16] =
    [1.0, 0.98, 0.94, 1.02, 1.12, 0.92, 0.96, 1.04, 0.9, 1.1, 0.88, 1.15, 0.86, 0.84, 0.82, 0.78];
const FACTORS_8: [f32; 8] = [1.0, 1.004, 1.002, 0.998, 0.996, 0.9921875, 0.99, 0.985];
const FACTORS_8_S: [f32; 8] = [1.0, 1.002, 0.998, 1.004, 0.996, 1.006, 1.008, 0.994];

/// Quantize one row of finite weights: a code per weight; an f16 scale (its bits) per group, or per groups that share
/// one; and a byte per group, its zero (for symmetric formats too) or the multiple, i8, of the scale that it shares.
///
/// # Panics
/// When the lengths do not fit together, or the processor does not support `isa`.
pub fn quantize_row(
    isa: Isa,
    values: &[f32],
    format: QuantFormat,
    codes: &mut [u8],
    scales: &mut [u16],
    of_groups: &mut [u8],
) {
    assert!(format.check(values.len()).is_ok(), "the row does not divide into groups");
    let fits = codes.len() == values.len() && scales.len() == format.num_scales(values.len());
    assert!(
        fits && of_groups.len() == values.len() / format.group_size,
        "lengths of codes, scales and groups"
    );
    assert!(isa.is_supported(), "the processor does not support this level");
    quantize_groups(isa, values, format, codes, scales, of_groups);
}

at_every_level! {
    /// The groups of a row, checked.
    fn quantize_groups(
        values: &[f32],
        format: QuantFormat,
        codes: &mut [u8],
        scales: &mut [u16],
        of_groups: &mut [u8],
    ) = row
}

/// # Safety
/// As [`Lanes`].
#[inline(always)]
unsafe fn row<L: Lanes>(
    values: &[f32],
    format: QuantFormat,
    codes: &mut [u8],
    scales: &mut [u16],
    of_groups: &mut [u8],
) {
    let size = format.group_size;
    if format.is_shared() {
        let parts = values.chunks(format.span()).zip(codes.chunks_mut(format.span()));
        let multiples = of_groups.chunks_mut(format.groups_per_scale);
        for ((values, codes), (multiples, scale)) in parts.zip(multiples.zip(scales)) {
            // SAFETY: the caller's duty.
            *scale = unsafe { shared::groups::<L>(values, codes, multiples) };
        }
        return;
    }
    let groups = values.chunks_exact(size).zip(codes.chunks_exact_mut(size));
    for ((values, codes), (scale, zero)) in groups.zip(scales.iter_mut().zip(of_groups)) {
        // SAFETY: the caller's duty.
        let best = unsafe {
            match (format.bits, format.symmetric) {
                (4, false) => search::<L, 16>(values, format, &FACTORS_4),
                (4, true) => search::<L, 16>(values, format, &FACTORS_4_S),
                (_, false) => search::<L, 8>(values, format, &FACTORS_8),
                (_, true) => search::<L, 8>(values, format, &FACTORS_8_S),
            }
        };
        // SAFETY: the caller's duty.
        unsafe { store_codes::<L>(values, best, format, codes) };
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
///
/// # Safety
/// As [`Lanes`].
#[inline(always)]
unsafe fn search<L: Lanes, const N: usize>(
    values: &[f32],
    format: QuantFormat,
    factors: &[f32; N],
) -> Candidate {
    let (low, high) = extremes(values);
    let (most, middle) = (f32::from(format.max_code()), f32::from(format.middle()));
    let (span, steps) = if format.symmetric { (max(-low, high), middle) } else { (high - low, most) };
    let (mut scales, mut inverses, mut zeros) = ([0f32; N], [0f32; N], [0f32; N]);
    for index in 0..N {
        let scale = max(min(span * factors[index] / steps, LARGEST_SCALE), SMALLEST_SCALE);
        let scale = to_f16_grid(scale);
        // Codes reach farther below the middle than above it: the largest weight goes there.
        scales[index] = if format.symmetric && high > -low { -scale } else { scale };
        inverses[index] = 1.0 / scales[index];
        let zero = (-low * factors[index] * inverses[index]).round_ties_even();
        zeros[index] = if format.symmetric { middle } else { max(min(zero, most), 0.0) };
    }
    let at = |index: usize| Candidate { scale: scales[index], inverse: inverses[index], zero: zeros[index] };
    let mut errors = [0f32; LANES];
    // SAFETY: sixteen floats; the rest is the caller's duty.
    unsafe {
        let mut lanes = [L::splat(0.0); LANES];
        for (index, lanes) in lanes.iter_mut().enumerate().take(N) {
            *lanes = error::<L>(values, at(index), most);
        }
        L::sums(lanes).store(errors.as_mut_ptr());
    }
    at(least(&errors[..N]))
}

/// Where the least of some numbers is, the first of equals.
#[inline(always)]
pub(super) fn least(numbers: &[f32]) -> usize {
    let mut best = 0;
    for index in 1..numbers.len() {
        if numbers[index] < numbers[best] {
            best = index;
        }
    }
    best
}

/// Smallest and largest of the values and 0.
#[inline(always)]
pub(super) fn extremes(values: &[f32]) -> (f32, f32) {
    let (mut lows, mut highs) = ([0f32; LANES], [0f32; LANES]);
    for part in values.chunks_exact(LANES) {
        for lane in 0..LANES {
            lows[lane] = min(lows[lane], part[lane]);
            highs[lane] = max(highs[lane], part[lane]);
        }
    }
    for half in [8, 4, 2, 1] {
        for lane in 0..half {
            lows[lane] = min(lows[lane], lows[lane + half]);
            highs[lane] = max(highs[lane], highs[lane + half]);
        }
    }
    (lows[0], highs[0])
}

/// Sums of the squared differences: lane l adds elements l, l + 16, ...
///
/// # Safety
/// As [`Lanes`].
#[inline(always)]
unsafe fn error<L: Lanes>(values: &[f32], by: Candidate, most: f32) -> L {
    // SAFETY: whole chunks of 16; the rest is the caller's duty.
    unsafe {
        let (scale, mut sum) = (L::splat(by.scale), L::splat(0.0));
        for part in values.chunks_exact(LANES) {
            let part = L::load(part.as_ptr());
            let difference = steps(part, by, most).mul(scale).sub(part);
            sum = sum.add(difference.mul(difference));
        }
        sum
    }
}

/// # Safety
/// As [`Lanes`].
#[inline(always)]
unsafe fn store_codes<L: Lanes>(values: &[f32], by: Candidate, format: QuantFormat, codes: &mut [u8]) {
    let mut lanes = [0f32; LANES];
    for (codes, part) in codes.chunks_exact_mut(LANES).zip(values.chunks_exact(LANES)) {
        // SAFETY: whole chunks of 16; the rest is the caller's duty.
        unsafe {
            let steps = steps(L::load(part.as_ptr()), by, f32::from(format.max_code()));
            steps.add(L::splat(by.zero)).store(lanes.as_mut_ptr());
        }
        for (to, lane) in codes.iter_mut().zip(lanes) {
            // SAFETY: a whole number from 0 to 255.
            *to = unsafe { lane.to_int_unchecked::<i32>() } as u8;
        }
    }
}

/// Codes, less the zero.
///
/// # Safety
/// As [`Lanes`].
#[inline(always)]
unsafe fn steps<L: Lanes>(values: L, by: Candidate, most: f32) -> L {
    // SAFETY: the caller's duty.
    unsafe {
        let whole = values.mul(L::splat(by.inverse)).round();
        whole.min(L::splat(most - by.zero)).max(L::splat(-by.zero))
    }
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
pub(super) fn min(a: f32, b: f32) -> f32 {
    if a < b { a } else { b }
}

/// The larger of two numbers that are not NaN.
#[inline(always)]
pub(super) fn max(a: f32, b: f32) -> f32 {
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
