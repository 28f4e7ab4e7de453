use proptest::prelude::*;

use super::elementwise::{add, gate, glu, scale, soft_cap};
use super::norm::{Norm, head_norm, rms_norm};
use super::rope::{rope, rope_table};
use crate::isa::Isa;

/// Run `work` at every level; all results must have the bits of the scalar one.
fn same_bits(work: impl Fn(Isa) -> Vec<f32>) -> Vec<f32> {
    let expected = work(Isa::Scalar);
    for isa in Isa::ALL.into_iter().filter(|isa| isa.is_supported()) {
        for (index, (a, b)) in work(isa).iter().zip(&expected).enumerate() {
            assert!(a.to_bits() == b.to_bits(), "{isa}: element {index}: {a:e} is not {b:e}");
        }
    }
    expected
}

/// `count` numbers of mixed sizes and signs.
fn numbers(seed: u64, count: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2).wrapping_add(1);
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next() * [0.1, 1.0, 30.0][(next().abs() * 2.999) as usize]).collect()
}

fn close(got: &[f32], expected: impl Fn(usize) -> f64, relative: f64) {
    for (index, got) in got.iter().enumerate() {
        let expected = expected(index);
        let error = (f64::from(*got) - expected).abs();
        assert!(
            error <= relative * expected.abs() + 1e-30,
            "element {index}: got {got:e}, expected {expected:e}"
        );
    }
}

fn widths() -> impl Strategy<Value = usize> {
    prop_oneof![Just(1), Just(24), Just(60), Just(64), Just(333), Just(1024), 1..700usize]
}

fn sigmoid(z: f32) -> f64 {
    1.0 / (1.0 + (-f64::from(z)).exp())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn rms_norm_has_the_same_bits_at_every_level(width in widths(), seed: u64, weighted: bool, centred: bool) {
        let (x, weight) = (numbers(seed, width), numbers(seed ^ 1, width));
        let weight_offset = if centred { 1.0 } else { 0.0 };
        let norm = Norm { weight: weighted.then_some(&weight[..]), eps: 1e-5, weight_offset, scale: 1.0 };
        let got = same_bits(|isa| {
            let mut out = vec![f32::NAN; width];
            rms_norm(isa, &x, norm, &mut out);
            out
        });
        let mean = x.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / width as f64;
        let factor = |i: usize| if weighted { f64::from(weight[i] + weight_offset) } else { 1.0 };
        close(&got, |i| f64::from(x[i]) / (mean + f64::from(1e-5f32)).sqrt() * factor(i), 1e-5);
    }

    #[test]
    fn head_norm_has_the_same_bits_at_every_level(head_dim in widths(), heads in 1..4usize, seed: u64) {
        let (x, weight) = (numbers(seed, head_dim * heads), numbers(seed ^ 1, head_dim));
        let norm = Norm { weight: Some(&weight), eps: 1e-6, weight_offset: 0.0, scale: 1.37 };
        let got = same_bits(|isa| {
            let mut x = x.clone();
            head_norm(isa, &mut x, head_dim, norm);
            x
        });
        for (head, got) in got.chunks_exact(head_dim).enumerate() {
            let x = &x[head * head_dim..][..head_dim];
            let mean = x.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / head_dim as f64;
            let factor = f64::from(1.37f32) / (mean + f64::from(1e-6f32)).sqrt();
            close(got, |i| f64::from(x[i]) * f64::from(weight[i]) * factor, 1e-5);
        }
    }

    #[test]
    fn rope_has_the_same_bits_at_every_level(
        half in 1..70usize, rest in 0..9usize, position in 0..200_000i32, seed: u64,
    ) {
        let head_dim = 2 * half + rest;
        let x = numbers(seed, 3 * head_dim);
        let inv_freq: Vec<f32> = (0..half).map(|i| 1e4f32.powf(-(i as f32) / half as f32)).collect();
        let (mut cos, mut sin) = (vec![0.0; half], vec![0.0; half]);
        rope_table(position, &inv_freq, 1.1, &mut cos, &mut sin);
        let got = same_bits(|isa| {
            let mut x = x.clone();
            rope(isa, &mut x, head_dim, &cos, &sin);
            x
        });
        for (head, got) in got.chunks_exact(head_dim).enumerate() {
            let x = &x[head * head_dim..][..head_dim];
            prop_assert_eq!(&got[2 * half..], &x[2 * half..]);
            for a in 0..half {
                let angle = f64::from(position as f32 * inv_freq[a]);
                let (s, c) = (1.1 * angle.sin(), 1.1 * angle.cos());
                let (p, q) = (f64::from(x[a]), f64::from(x[a + half]));
                let size = 1e-6 * (p.abs() + q.abs());
                prop_assert!((f64::from(got[a]) - (p * c - q * s)).abs() <= size);
                prop_assert!((f64::from(got[a + half]) - (q * c + p * s)).abs() <= size);
            }
        }
    }

    #[test]
    fn elementwise_ops_have_the_same_bits_at_every_level(width in widths(), seed: u64) {
        let (x, y) = (numbers(seed, width), numbers(seed ^ 1, width));
        let in_place = |op: &dyn Fn(Isa, &mut [f32])| same_bits(|isa| {
            let mut x = x.clone();
            op(isa, &mut x);
            x
        });
        let got = same_bits(|isa| {
            let mut out = vec![f32::NAN; width];
            glu(isa, &x, &y, &mut out);
            out
        });
        close(&got, |i| f64::from(x[i]) * sigmoid(x[i]) * f64::from(y[i]), 1e-6);
        let got = in_place(&|isa, x| gate(isa, x, &y));
        close(&got, |i| f64::from(x[i]) * sigmoid(y[i]), 1e-6);
        let got = in_place(&|isa, x| add(isa, x, &y));
        close(&got, |i| f64::from(x[i] + y[i]), 0.0);
        let got = in_place(&|isa, x| scale(isa, x, 0.37));
        close(&got, |i| f64::from(x[i] * 0.37), 0.0);
        let got = in_place(&|isa, x| soft_cap(isa, x, 0.37, 15.0));
        close(&got, |i| 15.0 * (f64::from(0.37f32) * f64::from(x[i]) / 15.0).tanh(), 1e-6);
    }
}

#[test]
fn soft_cap_holds_at_the_extremes() {
    let x = [0.0, -0.0, 1e-30, 0.6249, 0.6251, 9.0, 1e30, -1e30, f32::INFINITY, f32::NEG_INFINITY];
    let got = same_bits(|isa| {
        let mut x = x.to_vec();
        soft_cap(isa, &mut x, 1.0, 1.0);
        x
    });
    close(&got, |i| f64::from(x[i]).tanh(), 3e-7);
    let nan = Isa::ALL.into_iter().filter(|isa| isa.is_supported()).all(|isa| {
        let mut x = [f32::NAN];
        soft_cap(isa, &mut x, 1.0, 1.0);
        x[0].is_nan()
    });
    assert!(nan);
}
