//! Sixteen f32 side by side, in three implementations with the same bits.
//!
//! The small kernels are written once over [`Lanes`] and instantiated per level: [`ScalarLanes`] is plain Rust and
//! therefore the definition, the others are its AVX2 and AVX-512 forms. Lane j of a row takes the elements j,
//! j + 16, ...; [`Lanes::sum`] folds the lanes by halves: 16 to 8 to 4 to 2 to 1.

#[cfg(target_arch = "x86_64")]
mod x86;

use crate::math;

/// Lanes of one value of any implementation.
pub(crate) const LANES: usize = 16;

/// Sixteen f32. Every method does in each lane what the f32 operation of its name does.
///
/// # Safety
/// Methods of the vector forms must only be reached from code that is compiled for their instruction level and on a
/// processor that has it. Pointers must be good for 16 elements, or for `n` (at most 16) in the `_part` methods.
pub(crate) trait Lanes: Copy {
    unsafe fn splat(value: f32) -> Self;
    unsafe fn load(from: *const f32) -> Self;
    /// The first `n` elements, then zeros.
    unsafe fn load_part(from: *const f32, n: usize) -> Self;
    unsafe fn store(self, to: *mut f32);
    /// Write the first `n` elements only.
    unsafe fn store_part(self, to: *mut f32, n: usize);
    unsafe fn add(self, other: Self) -> Self;
    unsafe fn sub(self, other: Self) -> Self;
    unsafe fn mul(self, other: Self) -> Self;
    unsafe fn div(self, other: Self) -> Self;
    /// `self * by + plus`, rounded once.
    unsafe fn mul_add(self, by: Self, plus: Self) -> Self;
    unsafe fn abs(self) -> Self;
    /// To the nearest whole number, ties to even.
    unsafe fn round(self) -> Self;
    /// `self` where it is less, else `other`.
    unsafe fn min(self, other: Self) -> Self;
    /// `self` where it is more, else `other`.
    unsafe fn max(self, other: Self) -> Self;
    /// The magnitude of `self` with the sign of `sign`.
    unsafe fn copysign(self, sign: Self) -> Self;
    /// `yes` where `self < limit`, else `no` (also where `self` is NaN).
    unsafe fn select_less(self, limit: Self, yes: Self, no: Self) -> Self;
    unsafe fn exp(self) -> Self;
    unsafe fn sum(self) -> f32;
    /// The sums of sixteen values, the first in lane 0.
    unsafe fn sums(values: [Self; LANES]) -> Self;
}

/// The definition: an array.
#[derive(Clone, Copy)]
pub(crate) struct ScalarLanes([f32; LANES]);

impl ScalarLanes {
    #[inline(always)]
    fn each(self, other: Self, op: impl Fn(f32, f32) -> f32) -> Self {
        Self(std::array::from_fn(|lane| op(self.0[lane], other.0[lane])))
    }
}

impl Lanes for ScalarLanes {
    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        Self([value; LANES])
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller's pointer is good for 16 elements.
        Self(unsafe { from.cast::<[f32; LANES]>().read_unaligned() })
    }

    #[inline(always)]
    unsafe fn load_part(from: *const f32, n: usize) -> Self {
        let mut lanes = [0.0; LANES];
        // SAFETY: the caller's pointer is good for n elements, n <= 16.
        unsafe { std::ptr::copy_nonoverlapping(from, lanes.as_mut_ptr(), n) };
        Self(lanes)
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller's pointer is good for 16 elements.
        unsafe { to.cast::<[f32; LANES]>().write_unaligned(self.0) }
    }

    #[inline(always)]
    unsafe fn store_part(self, to: *mut f32, n: usize) {
        // SAFETY: the caller's pointer is good for n elements, n <= 16.
        unsafe { std::ptr::copy_nonoverlapping(self.0.as_ptr(), to, n) }
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        self.each(other, |a, b| a + b)
    }

    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        self.each(other, |a, b| a - b)
    }

    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        self.each(other, |a, b| a * b)
    }

    #[inline(always)]
    unsafe fn div(self, other: Self) -> Self {
        self.each(other, |a, b| a / b)
    }

    #[inline(always)]
    unsafe fn mul_add(self, by: Self, plus: Self) -> Self {
        Self(std::array::from_fn(|lane| self.0[lane].mul_add(by.0[lane], plus.0[lane])))
    }

    #[inline(always)]
    unsafe fn abs(self) -> Self {
        Self(self.0.map(f32::abs))
    }

    #[inline(always)]
    unsafe fn round(self) -> Self {
        Self(self.0.map(f32::round_ties_even))
    }

    #[inline(always)]
    unsafe fn min(self, other: Self) -> Self {
        self.each(other, |a, b| if a < b { a } else { b })
    }

    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        self.each(other, |a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    unsafe fn copysign(self, sign: Self) -> Self {
        self.each(sign, f32::copysign)
    }

    #[inline(always)]
    unsafe fn select_less(self, limit: Self, yes: Self, no: Self) -> Self {
        let pick = |lane: usize| if self.0[lane] < limit.0[lane] { yes.0[lane] } else { no.0[lane] };
        Self(std::array::from_fn(pick))
    }

    #[inline(always)]
    unsafe fn exp(self) -> Self {
        Self(self.0.map(math::exp))
    }

    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        let mut lanes = self.0;
        for half in [8, 4, 2, 1] {
            for lane in 0..half {
                lanes[lane] += lanes[lane + half];
            }
        }
        lanes[0]
    }

    #[inline(always)]
    unsafe fn sums(values: [Self; LANES]) -> Self {
        // SAFETY: plain Rust.
        Self(values.map(|value| unsafe { value.sum() }))
    }
}

#[cfg(target_arch = "x86_64")]
pub(crate) use x86::{Avx2Lanes, Avx512Lanes};

/// Define a safe function with one instance of a generic kernel per instruction level.
///
/// An executor refuses a level that the processor lacks before any kernel can see it.
macro_rules! at_every_level {
    ($(#[$doc:meta])* $visibility:vis fn $name:ident($($arg:ident: $type:ty),* $(,)?) = $kernel:ident) => {
        $(#[$doc])*
        $visibility fn $name(isa: $crate::isa::Isa, $($arg: $type),*) {
            #[cfg(target_arch = "x86_64")]
            {
                use $crate::ops::lanes::{Avx2Lanes, Avx512Lanes};

                #[target_feature(enable = "avx2,fma")]
                fn avx2($($arg: $type),*) {
                    // SAFETY: compiled for the level of these lanes.
                    unsafe { $kernel::<Avx2Lanes>($($arg),*) }
                }

                #[target_feature(enable = "avx512f,avx512dq,avx512vl,avx2,fma")]
                fn avx512($($arg: $type),*) {
                    // SAFETY: compiled for the level of these lanes.
                    unsafe { $kernel::<Avx512Lanes>($($arg),*) }
                }

                match isa {
                    $crate::isa::Isa::Scalar => {}
                    // SAFETY: executors are built for supported levels only.
                    $crate::isa::Isa::Avx2 => return unsafe { avx2($($arg),*) },
                    // SAFETY: as above.
                    _ => return unsafe { avx512($($arg),*) },
                }
            }
            let _ = isa;
            // SAFETY: plain Rust.
            unsafe { $kernel::<$crate::ops::lanes::ScalarLanes>($($arg),*) }
        }
    };
}
pub(crate) use at_every_level;
