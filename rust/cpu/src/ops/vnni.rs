//! VPDPBUSD and VPDPWSSD whose second factor is one dword in memory for all lanes, which the instruction reads itself.
//!
//! In assembly, since a compiler gives a dword that two instructions share a broadcast of its own.

use std::arch::asm;
use std::arch::x86_64::*;

macro_rules! reading {
    ($(#[$about:meta])* $name:ident, $instruction:literal) => {
        $(#[$about])*
        ///
        /// # Safety
        /// AVX-512 F and VNNI, and a dword `AT` bytes behind `from`.
        #[inline]
        #[target_feature(enable = "avx512f,avx512vnni")]
        pub(super) unsafe fn $name<const AT: usize>(mut sums: __m512i, x: __m512i, from: *const u8) -> __m512i {
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
    dpbusd_at, "vpdpbusd"
}
reading! {
    /// Add the products of sixteen pairs of 16-bit integers with one.
    dpwssd_at, "vpdpwssd"
}
