//! Exponentials, each written three times with the same bits: a scalar definition and two vector forms.
//!
//! e^x: range reduction by a two-part ln 2, a degree-6 polynomial (coefficients as in Cephes `expf`), and scaling by
//! 2^n in two halves (one instruction in AVX-512) so that the whole range works without special cases. Error below
//! 2 ulp; exp(-inf) = 0, exp(inf) = inf, NaN stays NaN.
//!
//! 2^x, for weights of a softmax that will be rounded: a degree-4 polynomial over what lies beside the nearest whole
//! number.

const LOW: f32 = -110.0;
const HIGH: f32 = 89.0;
const LN2_HIGH: f32 = 0.693_359_4;
const LN2_LOW: f32 = -2.121_944_4e-4;
const POLY: [f32; 6] = [1.987_569_1e-4, 1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5];

/// e^x. The definition that the vector forms repeat bit for bit.
pub fn exp(x: f32) -> f32 {
    let x = if x < LOW { LOW } else { x };
    let x = if x > HIGH { HIGH } else { x };
    let n = (x * std::f32::consts::LOG2_E).round_ties_even();
    let r = n.mul_add(-LN2_HIGH, x);
    let r = n.mul_add(-LN2_LOW, r);
    let mut p = POLY[0];
    for c in &POLY[1..] {
        p = p.mul_add(r, *c);
    }
    let p = p.mul_add(r * r, r) + 1.0;
    let n = n as i32;
    let half = n >> 1;
    p * power_of_two(half) * power_of_two(n.wrapping_sub(half))
}

/// Terms of a polynomial for 2^x from -1/2 to 1/2, highest first: off by 2.9e-6 of the value at most, exact at 0.
const EXP2: [f32; 5] = [0.009_582_853, 0.055_906_426, 0.240_240_99, 0.693_124_2, 1.0];
/// Everything below has the power of this: all are normal numbers.
const EXP2_LOW: f32 = -125.0;

/// 2^x for `x` up to 1; at least 2^-125. NaN stays NaN.
pub fn exp2(x: f32) -> f32 {
    let x = if x < EXP2_LOW { EXP2_LOW } else { x };
    let [first, terms @ ..] = EXP2;
    let whole = x.round_ties_even();
    let power = terms.into_iter().fold(first, |sum, term| sum.mul_add(x - whole, term));
    power * power_of_two(whole as i32)
}

fn power_of_two(n: i32) -> f32 {
    f32::from_bits((n.wrapping_add(127) as u32) << 23)
}

#[cfg(target_arch = "x86_64")]
pub(crate) use x86::{exp_avx2, exp_avx512, exp2_avx2, exp2_avx512};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{EXP2, EXP2_LOW, HIGH, LN2_HIGH, LN2_LOW, LOW, POLY};
    use std::arch::x86_64::*;
    use std::f32::consts::LOG2_E;

    /// [`exp`](super::exp) of eight lanes.
    #[target_feature(enable = "avx2,fma")]
    #[inline]
    pub(crate) fn exp_avx2(x: __m256) -> __m256 {
        // min and max return their second operand when one is NaN, which lets NaN through.
        let x = _mm256_min_ps(_mm256_set1_ps(HIGH), _mm256_max_ps(_mm256_set1_ps(LOW), x));
        let n = _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(_mm256_mul_ps(
            x,
            _mm256_set1_ps(LOG2_E),
        ));
        let r = _mm256_fmadd_ps(n, _mm256_set1_ps(-LN2_HIGH), x);
        let r = _mm256_fmadd_ps(n, _mm256_set1_ps(-LN2_LOW), r);
        let mut p = _mm256_set1_ps(POLY[0]);
        for c in &POLY[1..] {
            p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(*c));
        }
        let p = _mm256_add_ps(_mm256_fmadd_ps(p, _mm256_mul_ps(r, r), r), _mm256_set1_ps(1.0));
        let n = _mm256_cvtps_epi32(n);
        let half = _mm256_srai_epi32::<1>(n);
        let power =
            |n| _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_add_epi32(n, _mm256_set1_epi32(127))));
        _mm256_mul_ps(_mm256_mul_ps(p, power(half)), power(_mm256_sub_epi32(n, half)))
    }

    /// [`exp`](super::exp) of sixteen lanes.
    #[target_feature(enable = "avx512f")]
    #[inline]
    pub(crate) fn exp_avx512(x: __m512) -> __m512 {
        let x = _mm512_min_ps(_mm512_set1_ps(HIGH), _mm512_max_ps(_mm512_set1_ps(LOW), x));
        let n = _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(_mm512_mul_ps(
            x,
            _mm512_set1_ps(LOG2_E),
        ));
        let r = _mm512_fmadd_ps(n, _mm512_set1_ps(-LN2_HIGH), x);
        let r = _mm512_fmadd_ps(n, _mm512_set1_ps(-LN2_LOW), r);
        let mut p = _mm512_set1_ps(POLY[0]);
        for c in &POLY[1..] {
            p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(*c));
        }
        let p = _mm512_add_ps(_mm512_fmadd_ps(p, _mm512_mul_ps(r, r), r), _mm512_set1_ps(1.0));
        // One rounding, as in the definition: its first multiplication is exact.
        _mm512_scalef_ps(p, n)
    }

    /// [`exp2`](super::exp2) of eight lanes.
    #[target_feature(enable = "avx2,fma")]
    #[inline]
    pub(crate) fn exp2_avx2(x: __m256) -> __m256 {
        let x = _mm256_max_ps(_mm256_set1_ps(EXP2_LOW), x);
        let whole = _mm256_cvtps_epi32(x);
        let rest = _mm256_sub_ps(x, _mm256_cvtepi32_ps(whole));
        let [first, terms @ ..] = EXP2.map(|term| _mm256_set1_ps(term));
        let power = terms.into_iter().fold(first, |sum, term| _mm256_fmadd_ps(sum, rest, term));
        // Normal numbers: their exponents add up. NaN meets a zero.
        let exponent = _mm256_slli_epi32::<23>(whole);
        _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(power), exponent))
    }

    /// [`exp2`](super::exp2) of sixteen lanes.
    #[target_feature(enable = "avx512f,avx512dq")]
    #[inline]
    pub(crate) fn exp2_avx512(x: __m512) -> __m512 {
        let x = _mm512_max_ps(_mm512_set1_ps(EXP2_LOW), x);
        // Exact, and so is the whole number without it.
        let rest = _mm512_reduce_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x);
        let [first, terms @ ..] = EXP2.map(|term| _mm512_set1_ps(term));
        let power = terms.into_iter().fold(first, |sum, term| _mm512_fmadd_ps(sum, rest, term));
        _mm512_scalef_ps(power, _mm512_sub_ps(x, rest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Finite bit patterns of every size, more from -86 to -110, where results become subnormal and zero, and the
    /// special values.
    fn samples() -> impl Iterator<Item = f32> {
        (0..=u32::MAX)
            .step_by(10_007)
            .chain((0xc2ac_0000..=0xc2dc_0000).step_by(97))
            .map(f32::from_bits)
            .chain([0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, -87.4, -103.9, -104.5, 88.7, 88.8, -1e30])
            .filter(|x| !x.is_nan())
    }

    #[test]
    fn scalar_is_close_to_the_exact_value() {
        for x in samples() {
            let (got, exact) = (exp(x), f64::from(x).exp());
            let tolerance = (2.4e-7 * exact).max(2e-45);
            let close = (f64::from(got) - exact).abs() <= tolerance;
            assert!(close || (exact > 3.4e38 && got >= 3.4e38), "exp({x}) = {got}, expected {exact}");
        }
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(0.0), 1.0);
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn powers_of_two_are_close_and_exact_where_they_can_be() {
        for step in 0..175_001 {
            let x = -(step as f32) / 1400.0;
            let (got, want) = (f64::from(exp2(x)), f64::from(x).exp2());
            assert!((got - want).abs() <= 2.9e-6 * want, "{x}: got {got:e}, expected {want:e}");
        }
        for power in 0..=125 {
            assert_eq!(exp2(-(power as f32)), f32::from_bits((127 - power) << 23));
        }
        assert_eq!([f32::NEG_INFINITY, -151.0, -1e9].map(exp2), [2.0 * f32::MIN_POSITIVE; 3]);
        assert!((1.0..1.000_001).contains(&exp2(1e-6)));
        assert!(exp2(f32::NAN).is_nan());
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn vector_forms_have_the_same_bits() {
        use std::arch::x86_64::*;
        /// The vector forms of one function, over arrays.
        macro_rules! forms {
            ($eight:ident, $sixteen:ident) => {{
                #[target_feature(enable = "avx2,fma")]
                fn avx2(x: &[f32; 16], out: &mut [f32; 16]) {
                    for half in [0, 8] {
                        // SAFETY: eight elements from 0 or 8 lie inside the arrays of sixteen.
                        unsafe {
                            let y = $eight(_mm256_loadu_ps(x.as_ptr().add(half)));
                            _mm256_storeu_ps(out.as_mut_ptr().add(half), y);
                        }
                    }
                }
                #[target_feature(enable = "avx512f,avx512dq")]
                fn avx512(x: &[f32; 16], out: &mut [f32; 16]) {
                    // SAFETY: sixteen elements each.
                    unsafe { _mm512_storeu_ps(out.as_mut_ptr(), $sixteen(_mm512_loadu_ps(x.as_ptr()))) };
                }
                (
                    avx2 as unsafe fn(&[f32; 16], &mut [f32; 16]),
                    avx512 as unsafe fn(&[f32; 16], &mut [f32; 16]),
                )
            }};
        }
        same_bits(exp, forms!(exp_avx2, exp_avx512), |_| true);
        same_bits(exp2, forms!(exp2_avx2, exp2_avx512), |x| x <= 1.0);
    }

    /// A vector form over sixteen lanes.
    #[cfg(target_arch = "x86_64")]
    type Form = unsafe fn(&[f32; 16], &mut [f32; 16]);

    /// Compare the forms for eight and for sixteen lanes of a function with its definition.
    #[cfg(target_arch = "x86_64")]
    fn same_bits(definition: fn(f32) -> f32, (avx2, avx512): (Form, Form), within: fn(f32) -> bool) {
        use crate::isa::Isa;
        let all: Vec<f32> = samples().filter(|x| within(*x)).collect();
        for chunk in all.chunks_exact(16) {
            let x: [f32; 16] = chunk.try_into().unwrap();
            let want = x.map(|x| definition(x).to_bits());
            let mut out = [f32::NAN; 16];
            if Isa::Avx2.is_supported() {
                // SAFETY: just checked.
                unsafe { avx2(&x, &mut out) };
                assert_eq!(out.map(f32::to_bits), want, "{x:?}");
            }
            if Isa::Avx512.is_supported() {
                // SAFETY: just checked.
                unsafe { avx512(&x, &mut out) };
                assert_eq!(out.map(f32::to_bits), want, "{x:?}");
            }
        }
    }
}
