//! The search where four groups of 32 share a scale, each having a small multiple of it.
//!
//! The steps and their order are those of `python/pyrite/quant/reference.py`. As in [`search`](super::search), every level
//! gives the same bytes. Here products and sums are fused, which has one result too.

use super::search::{extremes, least, max, min};
use super::{GROUPS_PER_SCALE, LARGEST_MULTIPLE, QuantFormat};
use crate::ops::lanes::{LANES, Lanes};

/// Of how many scales the scale of the largest group's whole range is made, in turn.
const DIVISORS: [f32; 4] = [15.0, 14.5, 14.0, 13.5];
/// What is tried for each, added to the multiple that is nearest to a group's whole range.
const OFFSETS: [f32; 4] = [0.0, -1.0, 1.0, -2.0];
/// With seven significant bits, every multiple of a scale between these is an f16.
const SMALLEST_SCALE: f32 = 3.814_697_3e-6;
const LARGEST_SCALE: f32 = 4064.0;
/// Adding it rounds a small number to a whole one.
const WHOLE: f32 = 12_582_912.0;
/// Steps from the zero to the smallest and the largest code.
const STEPS: [f32; 2] = [-8.0, 7.0];

/// Quantize groups that share a scale; returns the bits of the f16 scale.
///
/// # Safety
/// As [`Lanes`].
#[inline(always)]
pub(super) unsafe fn groups<L: Lanes>(values: &[f32], codes: &mut [u8], multiples: &mut [u8]) -> u16 {
    let (mut ranges, mut signs) = ([0f32; GROUPS_PER_SCALE], [1f32; GROUPS_PER_SCALE]);
    let of_group = |values| <[f32]>::chunks_exact(values, QuantFormat::SHARED.group_size);
    for (index, values) in of_group(values).enumerate() {
        let (low, high) = extremes(values);
        ranges[index] = max(-low, high) / 8.0;
        // Codes reach farther below the middle than above it: the largest weight goes there.
        signs[index] = if high > -low { -1.0 } else { 1.0 };
    }
    let largest = ranges.into_iter().fold(0.0, max);
    let scales = DIVISORS.map(|by| seven_bits(max(min(largest / by, LARGEST_SCALE), SMALLEST_SCALE)));
    let mut totals = [0f32; DIVISORS.len()];
    // `[groups][scales]`.
    let mut best = [[0f32; DIVISORS.len()]; GROUPS_PER_SCALE];
    for (index, values) in of_group(values).enumerate() {
        let (mut tried, mut steps, mut inverses) = ([0f32; LANES], [0f32; LANES], [0f32; LANES]);
        for at in 0..LANES {
            let scale = scales[at / OFFSETS.len()];
            let multiple = (ranges[index] / scale).round_ties_even() + OFFSETS[at % OFFSETS.len()];
            tried[at] = max(min(multiple, f32::from(LARGEST_MULTIPLE)), 1.0) * signs[index];
            steps[at] = tried[at] * scale;
            inverses[at] = 1.0 / steps[at];
        }
        let mut errors = [0f32; LANES];
        // SAFETY: sixteen floats; the rest is the caller's duty.
        unsafe {
            let mut lanes = [L::splat(0.0); LANES];
            for at in 0..LANES {
                lanes[at] = error::<L>(values, steps[at], inverses[at]);
            }
            L::sums(lanes).store(errors.as_mut_ptr());
        }
        for (scale, errors) in errors.chunks_exact(OFFSETS.len()).enumerate() {
            let offset = least(errors);
            totals[scale] += errors[offset];
            best[index][scale] = tried[scale * OFFSETS.len() + offset];
        }
    }
    let chosen = least(&totals);
    let codes = codes.chunks_exact_mut(QuantFormat::SHARED.group_size);
    for ((index, values), (codes, multiple)) in of_group(values).enumerate().zip(codes.zip(multiples)) {
        let step = best[index][chosen] * scales[chosen];
        // SAFETY: the caller's duty.
        unsafe { store_codes::<L>(values, 1.0 / step, codes) };
        // SAFETY: a whole number from -15 to 15.
        *multiple = unsafe { best[index][chosen].to_int_unchecked::<i8>() }.cast_unsigned();
    }
    half::f16::from_f32(scales[chosen]).to_bits()
}

/// Sums of the squared differences: lane l adds elements l, l + 16, ...
///
/// # Safety
/// As [`Lanes`].
#[inline(always)]
unsafe fn error<L: Lanes>(values: &[f32], step: f32, inverse: f32) -> L {
    // SAFETY: whole chunks of 16; the rest is the caller's duty.
    unsafe {
        let mut sum = L::splat(0.0);
        for part in values.chunks_exact(LANES) {
            let part = L::load(part.as_ptr());
            let difference = steps(part, inverse).mul_add(L::splat(-step), part);
            sum = difference.mul_add(difference, sum);
        }
        sum
    }
}

/// # Safety
/// As [`Lanes`].
#[inline(always)]
unsafe fn store_codes<L: Lanes>(values: &[f32], inverse: f32, codes: &mut [u8]) {
    let mut lanes = [0f32; LANES];
    for (codes, part) in codes.chunks_exact_mut(LANES).zip(values.chunks_exact(LANES)) {
        // SAFETY: whole chunks of 16; the rest is the caller's duty.
        unsafe { steps(L::load(part.as_ptr()), inverse).sub(L::splat(STEPS[0])).store(lanes.as_mut_ptr()) };
        for (to, lane) in codes.iter_mut().zip(lanes) {
            // SAFETY: a whole number from 0 to 15.
            *to = unsafe { lane.to_int_unchecked::<i32>() } as u8;
        }
    }
}

/// Codes, less the zero.
///
/// # Safety
/// As [`Lanes`].
#[inline(always)]
unsafe fn steps<L: Lanes>(values: L, inverse: f32) -> L {
    // SAFETY: the caller's duty.
    unsafe {
        let whole = values.mul_add(L::splat(inverse), L::splat(WHOLE));
        let whole = whole.min(L::splat(WHOLE + STEPS[1])).max(L::splat(WHOLE + STEPS[0]));
        whole.sub(L::splat(WHOLE))
    }
}

/// Round a normal number to seven significant bits, ties to even.
#[inline(always)]
fn seven_bits(value: f32) -> f32 {
    let bits = value.to_bits();
    f32::from_bits((bits + 0xffff + (bits >> 17 & 1)) & !0x1_ffff)
}
