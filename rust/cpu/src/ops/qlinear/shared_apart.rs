//! How a span of 4-bit codes in [groups of which four share a scale](super::shared) becomes bytes, ready to multiply: all at
//! once, or a little at a time beside something else.

use std::arch::x86_64::*;

use super::activations::LINE;
use super::avx512::{Vnni, Words, halves};
use super::kernel::Level;
use super::packed::{PANEL, STEP_BYTES};
use super::shared::{CODE_BYTES, GROUP, HEADER_BYTES, STEPS, ZERO};
use crate::quant::GROUPS_PER_SCALE;

/// Rows of a vector, of which a panel has two.
pub(super) const WIDTH: usize = PANEL / 2;

/// What a group's codes, two bytes at once, are multiplied by, and what is added to them, for both vectors of rows.
pub(super) type Factors = [(__m512i, __m512i); 2];

/// From the multiples of a group's rows, in both halves of a dword. No byte is above 255 in the end, so that in 16 bits two
/// of them keep apart.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) fn factors_of(multiples: [__m512i; 2]) -> Factors {
    multiples.map(|multiple| {
        let minus_eight = _mm512_mullo_epi16(multiple, _mm512_set1_epi16(8 * 0x101));
        (multiple, _mm512_sub_epi16(_mm512_set1_epi16((ZERO * 0x101) as i16), minus_eight))
    })
}

/// Bring the codes of a group times their multiples, whose zero is [`ZERO`], to `to`, a byte each. To multiply codes is more
/// work than to multiply sums, but once for all tokens.
///
/// # Safety
/// The codes are there, and as much room as they take; the processor has AVX-512 F and BW.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) unsafe fn take_apart(codes: *const u8, factors: &Factors, to: *mut u8) {
    for step in 0..STEPS {
        for part in 0..2 {
            // SAFETY: the caller's duty.
            unsafe { take_line_apart(codes, step, part, factors, to) };
        }
    }
}

/// [`take_apart`] of the codes of one step and vector of rows.
///
/// # Safety
/// As there.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn take_line_apart(codes: *const u8, step: usize, part: usize, factors: &Factors, to: *mut u8) {
    let (multiple, zero) = factors[part];
    // SAFETY: the caller's duty.
    unsafe {
        let line = Vnni::load(codes.add(step * STEP_BYTES + part * LINE));
        for (piece, codes) in halves(line).into_iter().enumerate() {
            let to = to.add((2 * step + piece) * STEP_BYTES + part * LINE);
            let codes = _mm512_add_epi16(_mm512_mullo_epi16(codes, multiple), zero);
            _mm512_storeu_si512(to.cast(), codes);
        }
    }
}

/// A span whose codes are taken apart an eighth of a group at a time.
pub(super) struct Coming {
    /// Those of the half of a group that is next.
    codes: *const u8,
    to: *mut u8,
    /// Of its group, and after it those of the other groups.
    factors: *const Factors,
    halves_left: usize,
}

impl Coming {
    /// Nothing to take apart.
    pub(super) fn none() -> Self {
        Self { codes: std::ptr::null(), to: std::ptr::null_mut(), factors: std::ptr::null(), halves_left: 0 }
    }

    /// The span that begins at `block`, which `left` groups are left from, and its scales.
    ///
    /// # Safety
    /// The groups are there, and at `to` is room for a span; `factors` stay until all is done.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
    pub(super) unsafe fn new(
        block: *const u8,
        left: usize,
        to: *mut u8,
        factors: &mut [Factors; GROUPS_PER_SCALE],
    ) -> ([__m512; 2], Self) {
        // SAFETY: the caller's duty.
        let headers = [0, 1].map(|part| unsafe { Words::split(Vnni::load(block.add(4 * part * WIDTH))) });
        for group in 0..GROUPS_PER_SCALE {
            factors[group] = factors_of(headers.map(|(_, multiples)| multiples[group]));
        }
        let codes = block.wrapping_add(HEADER_BYTES);
        let halves_left = 2 * left.min(GROUPS_PER_SCALE);
        (headers.map(|(scale, _)| scale), Self { codes, to, factors: factors.as_ptr(), halves_left })
    }

    /// Whether nothing is left.
    #[inline(always)]
    pub(super) fn is_done(&self) -> bool {
        self.halves_left == 0
    }

    /// One of the four eighths of a group that are next.
    ///
    /// # Safety
    /// There is one, and the processor has AVX-512 F and BW.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    pub(super) unsafe fn eighth<const INDEX: usize>(&self) {
        // SAFETY: the caller's duty.
        unsafe { take_line_apart(self.codes, INDEX / 2, INDEX % 2, &*self.factors, self.to) }
    }

    /// Go to the next half of a group.
    #[inline(always)]
    pub(super) fn advance(&mut self) {
        self.halves_left -= 1;
        self.codes = self.codes.wrapping_add(CODE_BYTES / 2);
        self.to = self.to.wrapping_add(GROUP * PANEL / 2);
        self.factors = self.factors.wrapping_add(usize::from(self.halves_left.is_multiple_of(2)));
    }
}
