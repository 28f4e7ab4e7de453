//! Asking for memory before it is used. No result depends on it.

/// Define a function that asks for the cache lines of so many bytes with a hint.
macro_rules! asking {
    ($(#[$about:meta])* $name:ident, $hint:ident) => {
        $(#[$about])*
        #[inline(always)]
        pub(super) fn $name(from: *const u8, bytes: usize) {
            #[cfg(target_arch = "x86_64")]
            for line in (0..bytes).step_by(64) {
                use std::arch::x86_64::{$hint, _mm_prefetch};
                // SAFETY: a prefetch may point anywhere, and SSE is part of the architecture.
                unsafe { _mm_prefetch::<$hint>(from.wrapping_add(line).cast()) };
            }
            #[cfg(not(target_arch = "x86_64"))]
            let _ = (from, bytes);
        }
    };
}

asking! {
    /// Ask for the cache lines of `bytes` bytes.
    prefetch, _MM_HINT_T0
}
asking! {
    /// The same into the second cache, not the first.
    prefetch_outer, _MM_HINT_T1
}
asking! {
    /// The same for bytes that are read once and need not stay in any cache.
    prefetch_once, _MM_HINT_NTA
}

/// Ask for the cache lines of `bytes` bytes at `to_come`; where there are some that are read `sooner`, into the second
/// cache only, and for those into the first.
#[inline(always)]
pub(super) fn prefetch_by_stages(to_come: *const u8, sooner: Option<*const u8>, bytes: usize) {
    match sooner {
        None => prefetch(to_come, bytes),
        Some(sooner) => {
            prefetch_outer(to_come, bytes);
            prefetch(sooner, bytes);
        }
    }
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
