//! Rotary position embedding: tables of cos and sin per token, and the rotation of half-split pairs.

use super::lanes::{LANES, Lanes, at_every_level};

/// Fill one token's cos and sin, `[h]` each, times `scale`.
///
/// The angle is the f32 product of position and frequency, as transformers computes it; its cos and sin are taken in
/// f64, so that they are correctly rounded and the same at every instruction level.
pub fn rope_table(position: i32, inv_freq: &[f32], scale: f32, cos: &mut [f32], sin: &mut [f32]) {
    for ((frequency, cos), sin) in inv_freq.iter().zip(cos).zip(sin) {
        let (s, c) = f64::from(position as f32 * frequency).sin_cos();
        *cos = c as f32 * scale;
        *sin = s as f32 * scale;
    }
}

at_every_level! {
    /// Rotate `(x[a], x[a + h])` of each `head_dim` elements of `x`, with `h` the length of `cos` and `sin`.
    ///
    /// `x[a] cos - x[a + h] sin` and `x[a + h] cos + x[a] sin`, each with one fused multiply-add.
    pub fn rope(x: &mut [f32], head_dim: usize, cos: &[f32], sin: &[f32]) = rope_lanes
}

#[inline(always)]
unsafe fn rope_lanes<L: Lanes>(x: &mut [f32], head_dim: usize, cos: &[f32], sin: &[f32]) {
    let half = cos.len();
    assert!(sin.len() == half && 2 * half <= head_dim);
    let whole = half - half % LANES;
    let tail = half - whole;
    for head in x.chunks_exact_mut(head_dim) {
        let first = head.as_mut_ptr();
        // SAFETY: a + h < 2h <= head_dim; cos and sin have h elements; the level is the caller's duty.
        unsafe {
            let second = first.add(half);
            let (cos, sin) = (cos.as_ptr(), sin.as_ptr());
            for i in (0..whole).step_by(LANES) {
                let (a, b) = (L::load(first.add(i)), L::load(second.add(i)));
                let (a, b) = rotate(a, b, L::load(cos.add(i)), L::load(sin.add(i)));
                a.store(first.add(i));
                b.store(second.add(i));
            }
            if tail > 0 {
                let part = |from: *const f32| L::load_part(from.add(whole), tail);
                let (a, b) = rotate(part(first), part(second), part(cos), part(sin));
                a.store_part(first.add(whole), tail);
                b.store_part(second.add(whole), tail);
            }
        }
    }
}

#[inline(always)]
unsafe fn rotate<L: Lanes>(a: L, b: L, cos: L, sin: L) -> (L, L) {
    // SAFETY: the level is the caller's duty.
    unsafe {
        let minus = L::splat(0.0).sub(b.mul(sin));
        (a.mul_add(cos, minus), a.mul_add(sin, b.mul(cos)))
    }
}
