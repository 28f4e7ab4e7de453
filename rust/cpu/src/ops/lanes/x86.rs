//! The AVX2 and AVX-512 forms of [`Lanes`].

use std::arch::x86_64::*;

use super::{LANES, Lanes};
use crate::math;

/// Two AVX2 registers.
#[derive(Clone, Copy)]
pub(crate) struct Avx2Lanes(__m256, __m256);

/// One AVX-512 register.
#[derive(Clone, Copy)]
pub(crate) struct Avx512Lanes(__m512);

/// Sum of eight lanes by halves.
#[inline(always)]
unsafe fn sum8(lanes: __m256) -> f32 {
    // SAFETY: reached from AVX2 code only, as `Lanes` asks.
    unsafe {
        let four = _mm_add_ps(_mm256_castps256_ps128(lanes), _mm256_extractf128_ps::<1>(lanes));
        let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
        _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
    }
}

/// Of two values whose lanes lie in halves or quarters of a register, the sums of lanes two apart, one value's beside the
/// other's.
macro_rules! add_twos {
    ($add:ident, $shuffle:ident, $a:expr, $b:expr) => {
        $add($shuffle::<0x44>($a, $b), $shuffle::<0xee>($a, $b))
    };
}

/// The sums of neighbours that are left then.
macro_rules! add_neighbours {
    ($add:ident, $shuffle:ident, $a:expr, $b:expr) => {
        $add($shuffle::<0x88>($a, $b), $shuffle::<0xdd>($a, $b))
    };
}

/// Sums of eight lanes by halves, of eight values.
#[inline(always)]
unsafe fn sums8(values: [__m256; 8]) -> __m256 {
    /// Four lanes of each value in a half.
    #[inline(always)]
    unsafe fn fours(a: __m256, b: __m256) -> __m256 {
        // SAFETY: as below.
        unsafe { _mm256_add_ps(_mm256_permute2f128_ps::<0x20>(a, b), _mm256_permute2f128_ps::<0x31>(a, b)) }
    }
    // SAFETY: reached from AVX2 code only, as `Lanes` asks.
    unsafe {
        let [a, b, c, d, e, f, g, h] = values;
        let first = add_twos!(_mm256_add_ps, _mm256_shuffle_ps, fours(a, e), fours(b, f));
        let second = add_twos!(_mm256_add_ps, _mm256_shuffle_ps, fours(c, g), fours(d, h));
        add_neighbours!(_mm256_add_ps, _mm256_shuffle_ps, first, second)
    }
}

// SAFETY of every block below: reached from code of the level only, with pointers good for what is moved.
#[allow(clippy::undocumented_unsafe_blocks)]
impl Lanes for Avx2Lanes {
    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        unsafe { Self(_mm256_set1_ps(value), _mm256_set1_ps(value)) }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        unsafe { Self(_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))) }
    }

    #[inline(always)]
    unsafe fn load_part(from: *const f32, n: usize) -> Self {
        let mut lanes = [0.0f32; LANES];
        unsafe {
            std::ptr::copy_nonoverlapping(from, lanes.as_mut_ptr(), n);
            Self::load(lanes.as_ptr())
        }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        unsafe {
            _mm256_storeu_ps(to, self.0);
            _mm256_storeu_ps(to.add(8), self.1);
        }
    }

    #[inline(always)]
    unsafe fn store_part(self, to: *mut f32, n: usize) {
        let mut lanes = [0.0f32; LANES];
        unsafe {
            self.store(lanes.as_mut_ptr());
            std::ptr::copy_nonoverlapping(lanes.as_ptr(), to, n);
        }
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        unsafe { Self(_mm256_add_ps(self.0, other.0), _mm256_add_ps(self.1, other.1)) }
    }

    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        unsafe { Self(_mm256_sub_ps(self.0, other.0), _mm256_sub_ps(self.1, other.1)) }
    }

    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        unsafe { Self(_mm256_mul_ps(self.0, other.0), _mm256_mul_ps(self.1, other.1)) }
    }

    #[inline(always)]
    unsafe fn div(self, other: Self) -> Self {
        unsafe { Self(_mm256_div_ps(self.0, other.0), _mm256_div_ps(self.1, other.1)) }
    }

    #[inline(always)]
    unsafe fn mul_add(self, by: Self, plus: Self) -> Self {
        unsafe { Self(_mm256_fmadd_ps(self.0, by.0, plus.0), _mm256_fmadd_ps(self.1, by.1, plus.1)) }
    }

    #[inline(always)]
    unsafe fn abs(self) -> Self {
        unsafe {
            let sign = _mm256_set1_ps(-0.0);
            Self(_mm256_andnot_ps(sign, self.0), _mm256_andnot_ps(sign, self.1))
        }
    }

    #[inline(always)]
    unsafe fn round(self) -> Self {
        const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
        unsafe { Self(_mm256_round_ps::<NEAREST>(self.0), _mm256_round_ps::<NEAREST>(self.1)) }
    }

    #[inline(always)]
    unsafe fn min(self, other: Self) -> Self {
        unsafe { Self(_mm256_min_ps(self.0, other.0), _mm256_min_ps(self.1, other.1)) }
    }

    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        unsafe { Self(_mm256_max_ps(self.0, other.0), _mm256_max_ps(self.1, other.1)) }
    }

    #[inline(always)]
    unsafe fn copysign(self, sign: Self) -> Self {
        unsafe {
            let mask = _mm256_set1_ps(-0.0);
            let take = |a, s| _mm256_or_ps(_mm256_andnot_ps(mask, a), _mm256_and_ps(mask, s));
            Self(take(self.0, sign.0), take(self.1, sign.1))
        }
    }

    #[inline(always)]
    unsafe fn select_less(self, limit: Self, yes: Self, no: Self) -> Self {
        unsafe {
            let pick = |a, l, y, n| _mm256_blendv_ps(n, y, _mm256_cmp_ps::<_CMP_LT_OQ>(a, l));
            Self(pick(self.0, limit.0, yes.0, no.0), pick(self.1, limit.1, yes.1, no.1))
        }
    }

    #[inline(always)]
    unsafe fn exp(self) -> Self {
        unsafe { Self(math::exp_avx2(self.0), math::exp_avx2(self.1)) }
    }

    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        unsafe { sum8(_mm256_add_ps(self.0, self.1)) }
    }

    #[inline(always)]
    unsafe fn sums(values: [Self; LANES]) -> Self {
        unsafe {
            let mut eights = [_mm256_setzero_ps(); LANES];
            for (eight, value) in eights.iter_mut().zip(values) {
                *eight = _mm256_add_ps(value.0, value.1);
            }
            let [first, second] = [eights.as_chunks().0[0], eights.as_chunks().0[1]];
            Self(sums8(first), sums8(second))
        }
    }
}

fn first(n: usize) -> __mmask16 {
    ((1u32 << n) - 1) as __mmask16
}

// SAFETY of every block below: as above.
#[allow(clippy::undocumented_unsafe_blocks)]
impl Lanes for Avx512Lanes {
    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        unsafe { Self(_mm512_set1_ps(value)) }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        unsafe { Self(_mm512_loadu_ps(from)) }
    }

    #[inline(always)]
    unsafe fn load_part(from: *const f32, n: usize) -> Self {
        unsafe { Self(_mm512_maskz_loadu_ps(first(n), from)) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        unsafe { _mm512_storeu_ps(to, self.0) }
    }

    #[inline(always)]
    unsafe fn store_part(self, to: *mut f32, n: usize) {
        unsafe { _mm512_mask_storeu_ps(to, first(n), self.0) }
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        unsafe { Self(_mm512_add_ps(self.0, other.0)) }
    }

    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        unsafe { Self(_mm512_sub_ps(self.0, other.0)) }
    }

    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        unsafe { Self(_mm512_mul_ps(self.0, other.0)) }
    }

    #[inline(always)]
    unsafe fn div(self, other: Self) -> Self {
        unsafe { Self(_mm512_div_ps(self.0, other.0)) }
    }

    #[inline(always)]
    unsafe fn mul_add(self, by: Self, plus: Self) -> Self {
        unsafe { Self(_mm512_fmadd_ps(self.0, by.0, plus.0)) }
    }

    #[inline(always)]
    unsafe fn abs(self) -> Self {
        unsafe { Self(_mm512_abs_ps(self.0)) }
    }

    #[inline(always)]
    unsafe fn round(self) -> Self {
        unsafe { Self(_mm512_roundscale_ps::<_MM_FROUND_TO_NEAREST_INT>(self.0)) }
    }

    #[inline(always)]
    unsafe fn min(self, other: Self) -> Self {
        unsafe { Self(_mm512_min_ps(self.0, other.0)) }
    }

    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        unsafe { Self(_mm512_max_ps(self.0, other.0)) }
    }

    #[inline(always)]
    unsafe fn copysign(self, sign: Self) -> Self {
        unsafe {
            let mask = _mm512_set1_ps(-0.0);
            Self(_mm512_or_ps(_mm512_andnot_ps(mask, self.0), _mm512_and_ps(mask, sign.0)))
        }
    }

    #[inline(always)]
    unsafe fn select_less(self, limit: Self, yes: Self, no: Self) -> Self {
        unsafe {
            let less = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(self.0, limit.0);
            Self(_mm512_mask_blend_ps(less, no.0, yes.0))
        }
    }

    #[inline(always)]
    unsafe fn exp(self) -> Self {
        unsafe { Self(math::exp_avx512(self.0)) }
    }

    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        unsafe { sum8(_mm256_add_ps(_mm512_castps512_ps256(self.0), _mm512_extractf32x8_ps::<1>(self.0))) }
    }

    #[inline(always)]
    unsafe fn sums(values: [Self; LANES]) -> Self {
        unsafe {
            // Four values together, of each eight lanes in a half of a register, then four in a quarter.
            let mut fours = [_mm512_setzero_ps(); 4];
            for (index, four) in fours.iter_mut().enumerate() {
                let mut halves = [_mm512_setzero_ps(); 2];
                for (half, first) in halves.iter_mut().zip([index, index + 8]) {
                    let (a, b) = (values[first].0, values[first + 4].0);
                    *half = add_twos!(_mm512_add_ps, _mm512_shuffle_f32x4, a, b);
                }
                *four = add_neighbours!(_mm512_add_ps, _mm512_shuffle_f32x4, halves[0], halves[1]);
            }
            let first = add_twos!(_mm512_add_ps, _mm512_shuffle_ps, fours[0], fours[1]);
            let second = add_twos!(_mm512_add_ps, _mm512_shuffle_ps, fours[2], fours[3]);
            Self(add_neighbours!(_mm512_add_ps, _mm512_shuffle_ps, first, second))
        }
    }
}
