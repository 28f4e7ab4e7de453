//! Spans of weights of 16 bits made f32, so that many tiles of tokens need not take them apart again and again.

use super::packed::PANEL;
use crate::isa::Isa;
use crate::tensor::DType;

/// Make `cols` columns of a panel of `dtype`, f16 or bf16, f32 `[col][32]`; of bf16 pairs of columns.
///
/// # Safety
/// The columns exist at `from`, `to` has room for an even number of them, and nobody else touches it; the processor supports
/// `isa`.
pub(super) unsafe fn widen(isa: Isa, dtype: DType, from: *const u8, cols: usize, to: *mut f32) {
    // SAFETY: the caller's duty; every level but scalar has AVX2.
    unsafe {
        match (isa, dtype) {
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx2 | Isa::Avx512 | Isa::Avx512Vnni | Isa::Avx512Bf16, DType::Bf16) => {
                x86::pairs(from, cols, to)
            }
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx2 | Isa::Avx512 | Isa::Avx512Vnni | Isa::Avx512Bf16, _) => x86::halves(from, cols, to),
            (_, DType::Bf16) => pairs(from, cols, to),
            _ => {
                for at in 0..cols * PANEL {
                    let half = from.cast::<u16>().add(at).read_unaligned();
                    to.add(at).write(half::f16::from_bits(half).to_f32());
                }
            }
        }
    }
}

/// `[col / 2][32][2]` bf16.
///
/// # Safety
/// As [`widen`].
#[inline(always)]
unsafe fn pairs(from: *const u8, cols: usize, to: *mut f32) {
    for pair in 0..cols.div_ceil(2) {
        // SAFETY: a pair of columns on both sides, promised by the caller.
        unsafe {
            let words = from.cast::<[u32; PANEL]>().add(pair).read_unaligned();
            let to = to.cast::<[u32; PANEL]>().add(2 * pair);
            to.write_unaligned(words.map(|word| word << 16));
            to.add(1).write_unaligned(words.map(|word| word & 0xffff_0000));
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::PANEL;

    #[target_feature(enable = "avx2")]
    pub(super) unsafe fn pairs(from: *const u8, cols: usize, to: *mut f32) {
        // SAFETY: the caller's duty.
        unsafe { super::pairs(from, cols, to) }
    }

    /// `[col][32]` f16.
    #[target_feature(enable = "avx2,f16c")]
    pub(super) unsafe fn halves(from: *const u8, cols: usize, to: *mut f32) {
        for at in (0..cols * PANEL).step_by(8) {
            // SAFETY: eight weights on both sides, promised by the caller.
            unsafe {
                let wide = _mm256_cvtph_ps(_mm_loadu_si128(from.add(2 * at).cast()));
                _mm256_storeu_ps(to.add(at), wide);
            }
        }
    }
}
