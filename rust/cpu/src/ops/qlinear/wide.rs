//! Panels of 4-bit codes made wide, so that many tiles of tokens need not take the codes apart again and again.
//!
//! A wide panel is its groups one after another: 32 f32 scales, then (unless symmetric) 32 u8 zeros, padded to a cache
//! line, then for every four columns 32 dwords of codes, a byte each. Where four groups share a scale, they follow a common
//! header: 32 f32 scales, then for each of four groups 32 dwords of its multiple, in both halves.

use super::packed::{PANEL, STEP_BYTES, block_header_bytes, groups_per_block};
use super::shared;
use crate::isa::Isa;
use crate::ops::prefetch::prefetch;
use crate::quant::{GROUPS_PER_SCALE, QuantFormat};

/// Bytes of one scale.
pub(super) const WIDE_SCALE_BYTES: usize = 4;

/// Bytes of the scales and zeros of a group, or of the groups that share a scale.
pub(super) const fn wide_header_bytes(format: QuantFormat) -> usize {
    if format.is_shared() {
        return (WIDE_SCALE_BYTES + 4 * GROUPS_PER_SCALE) * PANEL;
    }
    WIDE_SCALE_BYTES * PANEL + if format.symmetric { 0 } else { PANEL.next_multiple_of(64) }
}

/// Bytes of a wide panel.
pub(super) const fn wide_panel_bytes(format: QuantFormat, groups: usize) -> usize {
    groups.div_ceil(format.groups_per_scale) * wide_header_bytes(format) + groups * format.group_size * PANEL
}

/// Make a panel of 4-bit codes wide; bytes from `ahead` after those read are prefetched.
///
/// # Safety
/// `from` is a panel of so many groups, `to` has [`wide_panel_bytes`] for it; the processor supports `isa`.
pub(super) unsafe fn widen(
    isa: Isa,
    format: QuantFormat,
    groups: usize,
    from: *const u8,
    to: *mut u8,
    ahead: usize,
) {
    #[cfg(target_arch = "x86_64")]
    if isa != Isa::Scalar {
        // SAFETY: the caller's duty; every level but scalar has these.
        return unsafe { widen_avx2(format, groups, from, to, ahead) };
    }
    let _ = isa;
    let scales = |from: *const u8, to: *mut u8| {
        for lane in 0..PANEL {
            // SAFETY: 32 scales on both sides.
            unsafe {
                let scale = half::f16::from_bits(from.cast::<u16>().add(lane).read_unaligned()).to_f32();
                to.cast::<f32>().add(lane).write_unaligned(scale);
            }
        }
    };
    // SAFETY: the caller's duty.
    unsafe { walk(format, groups, from, to, ahead, scales) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn widen_avx2(format: QuantFormat, groups: usize, from: *const u8, to: *mut u8, ahead: usize) {
    use std::arch::x86_64::*;
    let scales = |from: *const u8, to: *mut u8| {
        for lane in (0..PANEL).step_by(8) {
            // SAFETY: 32 scales on both sides; the level is supported.
            unsafe {
                let scale = _mm256_cvtph_ps(_mm_loadu_si128(from.add(2 * lane).cast()));
                _mm256_storeu_ps(to.add(4 * lane).cast(), scale);
            }
        }
    };
    // SAFETY: the caller's duty.
    unsafe { walk(format, groups, from, to, ahead, scales) }
}

/// Go over the groups; `scales` makes 32 f16 to f32.
///
/// # Safety
/// As [`widen`].
#[inline(always)]
unsafe fn walk(
    format: QuantFormat,
    groups: usize,
    from: *const u8,
    to: *mut u8,
    ahead: usize,
    scales: impl Fn(*const u8, *mut u8),
) {
    let steps = format.group_size / 8;
    let (mut from, mut to, mut left) = (from, to, groups);
    // SAFETY: blocks of the panel and groups of the wide one, one after another, promised by the caller.
    unsafe {
        while left > 0 {
            let here = left.min(groups_per_block(format));
            let header = block_header_bytes(format, here);
            prefetch(from.wrapping_add(ahead), header + here * steps * STEP_BYTES);
            if format.is_shared() {
                widen_shared(from, to);
                to = to.add(wide_header_bytes(format));
            }
            for group in 0..here {
                if !format.is_shared() {
                    scales(from.add(group * 2 * PANEL), to);
                    if !format.symmetric {
                        let zeros = from.add((2 * here + group) * PANEL);
                        to.add(WIDE_SCALE_BYTES * PANEL).copy_from_nonoverlapping(zeros, PANEL);
                    }
                    to = to.add(wide_header_bytes(format));
                }
                for step in 0..steps {
                    let codes = from.add(header + (group * steps + step) * STEP_BYTES);
                    let codes = codes.cast::<[u8; STEP_BYTES]>().read_unaligned();
                    to.cast::<[u8; STEP_BYTES]>().write(codes.map(|byte| byte & 15));
                    to.add(STEP_BYTES).cast::<[u8; STEP_BYTES]>().write(codes.map(|byte| byte >> 4));
                    to = to.add(2 * STEP_BYTES);
                }
            }
            from = from.add(header + here * steps * STEP_BYTES);
            left -= here;
        }
    }
}

/// Make the header of groups that share a scale wide.
///
/// # Safety
/// A header on both sides.
#[inline(always)]
unsafe fn widen_shared(from: *const u8, to: *mut u8) {
    for lane in 0..PANEL {
        // SAFETY: dwords of the headers, promised by the caller.
        unsafe {
            let (scale, multiples) = shared::split(from.cast::<u32>().add(lane).read_unaligned());
            to.cast::<f32>().add(lane).write_unaligned(scale);
            for (group, multiple) in multiples.into_iter().enumerate() {
                let both = (multiple.cast_unsigned() & 0xffff) * 0x1_0001;
                to.cast::<u32>().add((1 + group) * PANEL + lane).write_unaligned(both);
            }
        }
    }
}
