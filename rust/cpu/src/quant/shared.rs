//! The search where four groups of 32 share a scale, each having a small multiple of it.
//!
//! The steps and their order are those of `python/pyrite/quant/reference.py`. As in [`search`](super::search), every level
//! gives the same bytes. Here products and sums are fused, which has one result too.

use super::search::{extremes, least, max, min};
use super::{GROUPS_PER_SCALE, LARGEST_MULTIPLE, QuantFormat};
use crate::ops::lanes::{LANES, Lanes};

const GROUP: usize = QuantFormat::SHARED.group_size;
/// Of how many scales the scale of the largest group's whole range is made, in turn.
const DIVISORS: [f32; 4] = [15.0, 14.5, 14.0, 13.5];
/// What is tried for each, added to the multiple that is nearest to a group's whole range, in turn.
const OFFSETS: [[f32; DIVISORS.len()]; 4] = [[0.0; 4], [-1.0; 4], [1.0; 4], [-2.0; 4]];
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
    let values = values.as_chunks::<GROUP>().0;
    for (index, values) in values.iter().enumerate() {
        let (low, high) = extremes(values);
        ranges[index] = max(-low, high) / 8.0;
        // Codes reach farther below the middle than above it: the largest weight goes there.
        signs[index] = if high > -low { -1.0 } else { 1.0 };
    }
    let largest = ranges.into_iter().fold(0.0, max);
    let scales = DIVISORS.map(|by| seven_bits(max(min(largest / by, LARGEST_SCALE), SMALLEST_SCALE)));
    // For each offset once more.
    let scales = [scales; OFFSETS.len()];
    let mut totals = [0f32; DIVISORS.len()];
    // `[groups][scales]`.
    let mut best = [[0f32; DIVISORS.len()]; GROUPS_PER_SCALE];
    for (index, values) in values.iter().enumerate() {
        // `[offsets][scales]`.
        let mut tried = [[0f32; DIVISORS.len()]; OFFSETS.len()];
        let (mut steps, mut inverses, mut errors) = (tried, tried, tried);
        // SAFETY: sixteen floats each; the rest is the caller's duty.
        unsafe {
            let (scales, one) = (L::load(scales.as_ptr().cast()), L::splat(1.0));
            let multiple = L::splat(ranges[index]).div(scales).round().add(L::load(OFFSETS.as_ptr().cast()));
            let multiple = multiple.min(L::splat(f32::from(LARGEST_MULTIPLE))).max(one);
            let multiple = multiple.mul(L::splat(signs[index]));
            let step = multiple.mul(scales);
            multiple.store(tried.as_mut_ptr().cast());
            step.store(steps.as_mut_ptr().cast());
            one.div(step).store(inverses.as_mut_ptr().cast());
            let mut lanes = [L::splat(0.0); LANES];
            let (steps, inverses) = (steps.as_flattened(), inverses.as_flattened());
            for (lanes, (step, inverse)) in lanes.iter_mut().zip(steps.iter().zip(inverses)) {
                *lanes = error::<L>(values, *step, *inverse);
            }
            L::sums(lanes).store(errors.as_mut_ptr().cast());
        }
        let (mut least, mut multiples) = (errors[0], tried[0]);
        for (errors, tried) in errors.iter().zip(&tried).skip(1) {
            for scale in 0..DIVISORS.len() {
                let better = errors[scale] < least[scale];
                least[scale] = if better { errors[scale] } else { least[scale] };
                multiples[scale] = if better { tried[scale] } else { multiples[scale] };
            }
        }
        for (total, least) in totals.iter_mut().zip(least) {
            *total += least;
        }
        best[index] = multiples;
    }
    let chosen = least(&totals);
    let codes = codes.as_chunks_mut::<GROUP>().0;
    for ((index, values), (codes, multiple)) in values.iter().enumerate().zip(codes.iter_mut().zip(multiples))
    {
        let step = best[index][chosen] * scales[0][chosen];
        // SAFETY: the caller's duty.
        unsafe { store_codes::<L>(values, 1.0 / step, codes) };
        // SAFETY: a whole number from -15 to 15.
        *multiple = unsafe { best[index][chosen].to_int_unchecked::<i8>() }.cast_unsigned();
    }
    half::f16::from_f32(scales[0][chosen]).to_bits()
}

/// Sums of the squared differences: lane l adds elements l, l + 16, ...
///
/// # Safety
/// As [`Lanes`].
#[inline(always)]
unsafe fn error<L: Lanes>(values: &[f32; GROUP], step: f32, inverse: f32) -> L {
    // SAFETY: two times sixteen values; the rest is the caller's duty.
    unsafe {
        let (minus_step, from) = (L::splat(-step), values.as_ptr());
        let (low, high) = (L::load(from), L::load(from.add(LANES)));
        let low = steps(low, inverse).mul_add(minus_step, low);
        let high = steps(high, inverse).mul_add(minus_step, high);
        high.mul_add(high, low.mul(low))
    }
}

/// # Safety
/// As [`Lanes`].
#[inline(always)]
unsafe fn store_codes<L: Lanes>(values: &[f32; GROUP], inverse: f32, codes: &mut [u8; GROUP]) {
    let mut lanes = [0f32; LANES];
    for (codes, part) in codes.as_chunks_mut::<LANES>().0.iter_mut().zip(values.as_chunks::<LANES>().0) {
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
