//! Sums of exponentials in one fixed order, with the same bits on every x86 level and every platform.
//!
//! Only IEEE additions, multiplications and divisions are used (no libm, no contraction into fused operations), and
//! the sum runs in eight lanes that are added in a fixed tree. Wider vectors therefore change the speed only.

const LANES: usize = 8;
/// Terms computed in one loop; long enough that the compiler keeps it a loop and vectorises it.
const BLOCK: usize = 64;
/// 1.5 * 2^52: adding it rounds to the nearest integer, which is then in the low mantissa bits.
const ROUND: f64 = 6_755_399_441_055_744.0;
/// ln 2 in two parts; the first has 32 significant bits, so its product with a small integer is exact.
const LN2_HIGH: f64 = 6.931_471_803_691_238e-1;
const LN2_LOW: f64 = 1.908_214_929_270_587_7e-10;
/// Below this `exp` is taken as zero: the result would be less than the smallest normal number.
const SMALLEST: f64 = -708.0;

/// Taylor coefficients of exp from the 13th power down; the first term left out is below 1e-17 for |r| <= ln(2) / 2.
const COEFFICIENTS: [f64; 14] = [
    1.0 / 6_227_020_800.0,
    1.0 / 479_001_600.0,
    1.0 / 39_916_800.0,
    1.0 / 3_628_800.0,
    1.0 / 362_880.0,
    1.0 / 40_320.0,
    1.0 / 5_040.0,
    1.0 / 720.0,
    1.0 / 120.0,
    1.0 / 24.0,
    1.0 / 6.0,
    0.5,
    1.0,
    1.0,
];

/// `exp(y)` for `y <= 0`, -inf included: relative error below 5e-16, exactly 1 at 0, and 0 below -708.
///
/// Without a branch, so that loops over it become vectors.
#[inline(always)]
pub(crate) fn exp_nonpositive(y: f64) -> f64 {
    let clamped = if y > SMALLEST { y } else { SMALLEST };
    let shifted = clamped * std::f64::consts::LOG2_E + ROUND;
    let k = shifted - ROUND;
    let r = (clamped - k * LN2_HIGH) - k * LN2_LOW;
    // Written out: as a loop it would hide the caller's loop from the vectoriser.
    let c = COEFFICIENTS;
    let poly = c[0] * r + c[1];
    let poly = poly * r + c[2];
    let poly = poly * r + c[3];
    let poly = poly * r + c[4];
    let poly = poly * r + c[5];
    let poly = poly * r + c[6];
    let poly = poly * r + c[7];
    let poly = poly * r + c[8];
    let poly = poly * r + c[9];
    let poly = poly * r + c[10];
    let poly = poly * r + c[11];
    let poly = poly * r + c[12];
    let poly = poly * r + c[13];
    let scale = f64::from_bits((shifted.to_bits() << 52).wrapping_add(1023 << 52));
    let keep = u64::from(y >= SMALLEST).wrapping_neg();
    f64::from_bits((poly * scale).to_bits() & keep)
}

/// Sum over the row of `exp(logit / temperature - max / temperature)`, `max` being the row's largest logit.
///
/// At least 1, because the largest one counts 1. Logits are finite or -inf.
pub(crate) fn sum_exp(row: &[f32], max: f32, temperature: f64) -> f64 {
    #[cfg(target_arch = "x86_64")]
    {
        if std::arch::is_x86_feature_detected!("avx512f") && std::arch::is_x86_feature_detected!("avx512dq") {
            // SAFETY: the processor and the system support AVX-512 F and DQ, as was just asked.
            return unsafe { sum_exp_avx512(row, max, temperature) };
        }
        if std::arch::is_x86_feature_detected!("avx2") {
            // SAFETY: the processor and the system support AVX2, as was just asked.
            return unsafe { sum_exp_avx2(row, max, temperature) };
        }
    }
    sum_exp_any(row, max, temperature)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512dq")]
fn sum_exp_avx512(row: &[f32], max: f32, temperature: f64) -> f64 {
    sum_exp_any(row, max, temperature)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn sum_exp_avx2(row: &[f32], max: f32, temperature: f64) -> f64 {
    sum_exp_any(row, max, temperature)
}

#[inline(always)]
fn sum_exp_any(row: &[f32], max: f32, temperature: f64) -> f64 {
    let top = f64::from(max) / temperature;
    let mut lanes = [0.0f64; LANES];
    let mut chunks = row.chunks_exact(BLOCK);
    for chunk in &mut chunks {
        let mut terms = [0.0; BLOCK];
        for (term, &logit) in terms.iter_mut().zip(chunk) {
            *term = exp_nonpositive(f64::from(logit) / temperature - top);
        }
        for eight in terms.chunks_exact(LANES) {
            for (lane, term) in lanes.iter_mut().zip(eight) {
                *lane += term;
            }
        }
    }
    for (i, &logit) in chunks.remainder().iter().enumerate() {
        lanes[i % LANES] += exp_nonpositive(f64::from(logit) / temperature - top);
    }
    let [a, b, c, d, e, f, g, h] = lanes;
    ((a + e) + (c + g)) + ((b + f) + (d + h))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn exp_is_exact_at_zero_and_zero_far_below() {
        assert_eq!(exp_nonpositive(0.0), 1.0);
        assert_eq!(exp_nonpositive(-0.0), 1.0);
        assert_eq!(exp_nonpositive(f64::NEG_INFINITY), 0.0);
        assert_eq!(exp_nonpositive(-1e300), 0.0);
        assert!(exp_nonpositive(-708.0) > 0.0);
    }

    proptest! {
        #[test]
        fn exp_is_close_to_libm(y in -708.0f64..=0.0) {
            let (got, expected) = (exp_nonpositive(y), y.exp());
            prop_assert!((got / expected - 1.0).abs() < 4.5e-16, "exp({y}): {got:e} against {expected:e}");
        }

        #[test]
        fn every_level_gives_the_same_bits(row in proptest::collection::vec(-40.0f32..40.0, 1..300), t in 0.05f64..4.0) {
            let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let expected = sum_exp_any(&row, max, t);
            prop_assert_eq!(sum_exp(&row, max, t).to_bits(), expected.to_bits());
            #[cfg(target_arch = "x86_64")]
            if std::arch::is_x86_feature_detected!("avx2") {
                // SAFETY: AVX2 is there, as was just asked.
                prop_assert_eq!(unsafe { sum_exp_avx2(&row, max, t) }.to_bits(), expected.to_bits());
            }
            let plain: f64 = row.iter().map(|&l| (f64::from(l) / t - f64::from(max) / t).exp()).sum();
            prop_assert!((expected / plain - 1.0).abs() < 1e-13);
            prop_assert!(expected >= 1.0);
        }
    }
}
