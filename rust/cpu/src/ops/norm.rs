//! RMS norm of a row, and of each head of a row.

use super::lanes::{LANES, Lanes, at_every_level};

/// What a norm does besides normalizing.
#[derive(Clone, Copy, Debug)]
pub struct Norm<'a> {
    /// `[width]` factors; None for 1.
    pub weight: Option<&'a [f32]>,
    /// Added to the mean square.
    pub eps: f32,
    /// Added to the weight (1 for the centred kind).
    pub weight_offset: f32,
    /// Factor on the result.
    pub scale: f32,
}

at_every_level! {
    /// `out = x / sqrt(mean(x^2) + eps) * (weight + weight_offset)`, then times `scale` where that is not 1.
    pub fn rms_norm(x: &[f32], norm: Norm<'_>, out: &mut [f32]) = rms_norm_lanes
}

at_every_level! {
    /// [`rms_norm`] of each `head_dim` elements of `x`, in place.
    pub fn head_norm(x: &mut [f32], head_dim: usize, norm: Norm<'_>) = head_norm_lanes
}

#[inline(always)]
unsafe fn rms_norm_lanes<L: Lanes>(x: &[f32], norm: Norm<'_>, out: &mut [f32]) {
    assert!(x.len() == out.len() && norm.weight.is_none_or(|weight| weight.len() == x.len()));
    // SAFETY: the lengths were just compared; the level is the caller's duty.
    unsafe { one::<L>(x.as_ptr(), x.len(), norm, out.as_mut_ptr()) }
}

#[inline(always)]
unsafe fn head_norm_lanes<L: Lanes>(x: &mut [f32], head_dim: usize, norm: Norm<'_>) {
    assert!(norm.weight.is_none_or(|weight| weight.len() == head_dim));
    for head in x.chunks_exact_mut(head_dim) {
        let head_pointer = head.as_mut_ptr();
        // SAFETY: reads and writes go through one pointer, element by element; lengths as above.
        unsafe { one::<L>(head_pointer, head.len(), norm, head_pointer) }
    }
}

/// Normalize `width` elements; `out` may be `x`.
#[inline(always)]
unsafe fn one<L: Lanes>(x: *const f32, width: usize, norm: Norm<'_>, out: *mut f32) {
    let whole = width - width % LANES;
    let tail = width - whole;
    // SAFETY: all accesses are below `width`, which x, out and weight all have; the level is the caller's duty.
    unsafe {
        let mut squares = L::splat(0.0);
        for i in (0..whole).step_by(LANES) {
            let v = L::load(x.add(i));
            squares = v.mul_add(v, squares);
        }
        if tail > 0 {
            let v = L::load_part(x.add(whole), tail);
            squares = v.mul_add(v, squares);
        }
        let factor = L::splat(1.0 / (squares.sum() / width as f32 + norm.eps).sqrt());
        let offset = L::splat(norm.weight_offset);
        let scale = L::splat(norm.scale);
        let weight = norm.weight.map(<[f32]>::as_ptr);
        let apply = |v: L, w: Option<L>| {
            let v = v.mul(factor);
            let v = w.map_or(v, |w| v.mul(w.add(offset)));
            if norm.scale == 1.0 { v } else { v.mul(scale) }
        };
        for i in (0..whole).step_by(LANES) {
            apply(L::load(x.add(i)), weight.map(|w| L::load(w.add(i)))).store(out.add(i));
        }
        if tail > 0 {
            let w = weight.map(|w| L::load_part(w.add(whole), tail));
            apply(L::load_part(x.add(whole), tail), w).store_part(out.add(whole), tail);
        }
    }
}
