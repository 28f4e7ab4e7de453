//! Ops that treat every element alone: glu, gate, add, and the logits' multiplier and soft-cap.

use super::lanes::{LANES, Lanes, at_every_level};

at_every_level! {
    /// `out = silu(gate) * up`, `silu(z) = z / (1 + exp(-z))`.
    pub fn glu(gate: &[f32], up: &[f32], out: &mut [f32]) = glu_lanes
}

at_every_level! {
    /// `x = x / (1 + exp(-gate))`.
    pub fn gate(x: &mut [f32], gate: &[f32]) = gate_lanes
}

at_every_level! {
    /// `x = x + y`.
    pub fn add(x: &mut [f32], y: &[f32]) = add_lanes
}

at_every_level! {
    /// `x = multiplier * x`.
    pub fn scale(x: &mut [f32], multiplier: f32) = scale_lanes
}

at_every_level! {
    /// `x = cap * tanh(multiplier * x / cap)`.
    pub fn soft_cap(x: &mut [f32], multiplier: f32, cap: f32) = soft_cap_lanes
}

/// Call `op` on each 16 elements of `x` and of `y`, and write what it returns to `x`.
#[inline(always)]
unsafe fn in_place<L: Lanes>(x: &mut [f32], y: Option<&[f32]>, op: impl Fn(L, L) -> L) {
    assert!(y.is_none_or(|y| y.len() == x.len()));
    let whole = x.len() - x.len() % LANES;
    let tail = x.len() - whole;
    let x = x.as_mut_ptr();
    let y = y.map_or(x.cast_const(), <[f32]>::as_ptr);
    // SAFETY: all accesses are below the length that both have; the level is the caller's duty.
    unsafe {
        for i in (0..whole).step_by(LANES) {
            op(L::load(x.add(i)), L::load(y.add(i))).store(x.add(i));
        }
        if tail > 0 {
            let v = op(L::load_part(x.add(whole), tail), L::load_part(y.add(whole), tail));
            v.store_part(x.add(whole), tail);
        }
    }
}

/// `1 + exp(-z)`.
#[inline(always)]
unsafe fn one_plus_exp_minus<L: Lanes>(z: L) -> L {
    // SAFETY: the level is the caller's duty.
    unsafe { L::splat(1.0).add(L::splat(0.0).sub(z).exp()) }
}

/// [`glu`] at the level of `L`.
///
/// # Safety
/// That of the lanes.
#[inline(always)]
pub(in crate::ops) unsafe fn glu_lanes<L: Lanes>(gate: &[f32], up: &[f32], out: &mut [f32]) {
    assert!(gate.len() == up.len() && gate.len() == out.len());
    let whole = gate.len() - gate.len() % LANES;
    let tail = gate.len() - whole;
    let (gate, up, out) = (gate.as_ptr(), up.as_ptr(), out.as_mut_ptr());
    // SAFETY: all accesses are below the length that all three have; the level is the caller's duty.
    unsafe {
        let op = |g: L, u: L| g.div(one_plus_exp_minus(g)).mul(u);
        for i in (0..whole).step_by(LANES) {
            op(L::load(gate.add(i)), L::load(up.add(i))).store(out.add(i));
        }
        if tail > 0 {
            let v = op(L::load_part(gate.add(whole), tail), L::load_part(up.add(whole), tail));
            v.store_part(out.add(whole), tail);
        }
    }
}

#[inline(always)]
unsafe fn gate_lanes<L: Lanes>(x: &mut [f32], gate: &[f32]) {
    // SAFETY: the level is the caller's duty, here and in the closure.
    unsafe { in_place::<L>(x, Some(gate), |x, g| x.div(one_plus_exp_minus(g))) }
}

/// [`add`] at the level of `L`.
///
/// # Safety
/// That of the lanes.
#[inline(always)]
pub(in crate::ops) unsafe fn add_lanes<L: Lanes>(x: &mut [f32], y: &[f32]) {
    // SAFETY: as above.
    unsafe { in_place::<L>(x, Some(y), |x, y| x.add(y)) }
}

#[inline(always)]
unsafe fn scale_lanes<L: Lanes>(x: &mut [f32], multiplier: f32) {
    // SAFETY: as above.
    unsafe {
        let multiplier = L::splat(multiplier);
        in_place::<L>(x, None, |x, _| multiplier.mul(x));
    }
}

#[inline(always)]
unsafe fn soft_cap_lanes<L: Lanes>(x: &mut [f32], multiplier: f32, cap: f32) {
    // SAFETY: as above.
    unsafe {
        let (multiplier, cap) = (L::splat(multiplier), L::splat(cap));
        in_place::<L>(x, None, |x, _| cap.mul(tanh(multiplier.mul(x).div(cap))));
    }
}

/// tanh within 3 ulp: an odd polynomial below 0.625 (coefficients as in Cephes `tanhf`), else `1 - 2 / (e^2|x| + 1)`.
#[inline(always)]
unsafe fn tanh<L: Lanes>(x: L) -> L {
    const POLY: [f32; 5] = [-5.704_988_7e-3, 2.063_909e-2, -5.373_971_6e-2, 1.333_144_2e-1, -3.333_328e-1];
    // SAFETY: the level is the caller's duty.
    unsafe {
        let size = x.abs();
        let square = x.mul(x);
        let mut p = L::splat(POLY[0]);
        for c in &POLY[1..] {
            p = p.mul_add(square, L::splat(*c));
        }
        let near = p.mul(square).mul_add(x, x);
        let e = size.add(size).exp();
        let far = L::splat(1.0).sub(L::splat(2.0).div(e.add(L::splat(1.0)))).copysign(x);
        size.select_less(L::splat(0.625), near, far)
    }
}
