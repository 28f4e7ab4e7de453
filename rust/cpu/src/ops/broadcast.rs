//! Multiplications whose second factor is one dword in memory for all lanes, which the instruction reads itself.
//!
//! In assembly, since a compiler gives a dword that two instructions share a broadcast of its own.

use std::arch::asm;
use std::arch::x86_64::*;

macro_rules! reading {
    ($(#[$about:meta])* $name:ident, $instruction:literal, $vector:ty, $factor:ty, $features:literal) => {
        $(#[$about])*
        ///
        /// # Safety
        #[doc = concat!("The processor has ", $features, "; a dword is `AT` bytes behind `from`.")]
        #[inline]
        #[target_feature(enable = $features)]
        pub(super) unsafe fn $name<const AT: usize>(mut sums: $vector, x: $vector, from: *const $factor) -> $vector {
            // SAFETY: the caller's duty.
            unsafe {
                asm!(
                    concat!($instruction, " {sums}, {x}, dword ptr [{from} + {at}]{{1to16}}"),
                    sums = inout(zmm_reg) sums,
                    x = in(zmm_reg) x,
                    from = in(reg) from,
                    at = const AT,
                    options(pure, readonly, nostack, preserves_flags),
                );
            }
            sums
        }
    };
}

reading! {
    /// Add the products of sixteen times four unsigned bytes with four signed ones.
    dpbusd_at, "vpdpbusd", __m512i, u8, "avx512f,avx512vnni"
}
reading! {
    /// Add the products of sixteen pairs of 16-bit integers with one.
    dpwssd_at, "vpdpwssd", __m512i, u8, "avx512f,avx512vnni"
}
reading! {
    /// Add the products of sixteen numbers with one, rounded once.
    fma_at, "vfmadd231ps", __m512, f32, "avx512f"
}

/// [`dpbusd_at`] of two vectors, for which the dword is read once: one read less, and one instruction more. As intrinsics, the
/// multiplications of several tokens drift apart from what they read, and registers do not suffice.
///
/// # Safety
/// As there.
#[inline]
#[target_feature(enable = "avx512f,avx512vnni")]
pub(super) unsafe fn dpbusd_both_at<const AT: usize>(
    [mut first, mut second]: [__m512i; 2],
    x: [__m512i; 2],
    from: *const u8,
) -> [__m512i; 2] {
    let _each: __m512i;
    // SAFETY: the caller's duty.
    unsafe {
        asm!(
            "vpbroadcastd {each}, dword ptr [{from} + {at}]",
            "vpdpbusd {first}, {x}, {each}",
            "vpdpbusd {second}, {y}, {each}",
            each = out(zmm_reg) _each,
            first = inout(zmm_reg) first,
            second = inout(zmm_reg) second,
            x = in(zmm_reg) x[0],
            y = in(zmm_reg) x[1],
            from = in(reg) from,
            at = const AT,
            options(pure, readonly, nostack, preserves_flags),
        );
    }
    [first, second]
}
