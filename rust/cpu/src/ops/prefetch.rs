//! Asking for memory before it is used. No result depends on it.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::{_MM_HINT_T0, _MM_HINT_T1, _mm_prefetch};

/// Ask for the cache lines of `bytes` bytes.
#[inline(always)]
pub(super) fn prefetch(from: *const u8, bytes: usize) {
    #[cfg(target_arch = "x86_64")]
    for line in (0..bytes).step_by(64) {
        // SAFETY: a prefetch may point anywhere, and SSE is part of the architecture.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(from.wrapping_add(line).cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (from, bytes);
}

/// The same into the second cache, not the first.
#[inline(always)]
pub(super) fn prefetch_outer(from: *const u8, bytes: usize) {
    #[cfg(target_arch = "x86_64")]
    for line in (0..bytes).step_by(64) {
        // SAFETY: a prefetch may point anywhere, and SSE is part of the architecture.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(from.wrapping_add(line).cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (from, bytes);
}

/// Ask for the cache lines of `bytes` bytes that will be written.
#[inline(always)]
pub(super) fn prefetch_to_write(to: *mut f32, bytes: usize) {
    #[cfg(target_arch = "x86_64")]
    for line in (0..bytes).step_by(64) {
        // SAFETY: a prefetch may point anywhere; a processor without this one takes it for no operation.
        unsafe {
            std::arch::asm!("prefetchw [{}]", in(reg) to.wrapping_byte_add(line), options(nostack, preserves_flags));
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (to, bytes);
}
